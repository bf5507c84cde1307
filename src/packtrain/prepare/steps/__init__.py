"""The acts of preparation over all slices. Read `results.py` first, then `scan.py`, `choose.py` and `encode.py`."""
