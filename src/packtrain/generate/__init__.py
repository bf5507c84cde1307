"""Text from a model. Read `decode.py` (the loop) first, then `sample.py`, `text.py` and `cache.py`."""
