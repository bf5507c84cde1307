"""Bytes that are whole or absent: files, stores, locks and sorting on disk. Read `store.py` first."""
