"""Text from a model. Read `decode.py`, the loop, then `sample.py`, `text.py` and `cache.py`."""
