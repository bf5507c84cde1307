"""Files that are whole or absent: atomic writes, stores, locks, and sorting on disk. Read `store.py` first."""
