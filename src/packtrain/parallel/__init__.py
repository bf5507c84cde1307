"""The processes of a run, and the only user of torch.distributed. Read `ranks.py` first, then `wrap.py`."""
