"""From text to batches. Preparing: read `prepare.py`, then `stages.py`; format: `shards.py`. Training: `loader.py`, then `pack.py`."""
