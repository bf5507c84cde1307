"""What can be configured, its default and its meaning: one file per room. Read `run.py`, then `load.py`."""
