"""Raw text to a prepared dataset. Read `run.py` first: it shows the acts in order."""
