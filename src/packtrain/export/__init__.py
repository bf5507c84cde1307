"""Turns a run into files that other programs load. Read `run.py` first: write aside, check, publish. A new format is one file
and one line there."""
