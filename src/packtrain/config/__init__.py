"""What can be configured, with its default and its meaning: one file for each room. Read `run.py`, then `load.py`."""
