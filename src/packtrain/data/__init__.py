"""From text to batches. Preparing: `prepare.py`, then `stages.py`; the format: `shards.py`. Training: `loader.py`, `pack.py`."""
