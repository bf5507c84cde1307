"""Where raw text comes from. Read `documents.py` first: its table has every kind of source."""
