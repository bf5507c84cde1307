"""From text to batches. Preparation: read `prepare.py`, then `stages.py`; the format is `shards.py`. Training: `loader.py`, then `pack.py`."""
