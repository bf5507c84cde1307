"""A prepared dataset, and its way to batches. Read `format/manifest.py` for the files, then `feed/loader.py`, `rows/plan.py`."""
