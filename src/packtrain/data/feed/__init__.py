"""Rows to batches: the datasets of a run, their mixture and the loader. Read `loader.py` first."""
