"""The files of a prepared dataset. Read `manifest.py` first, then `shards.py`."""
