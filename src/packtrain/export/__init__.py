"""A run to files that other programs load. Read `run.py`: write aside, check, publish; a format is one file and one line there."""
