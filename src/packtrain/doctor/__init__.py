"""What would go wrong in a long run, found in a minute before it. Read `examine.py` first: it has the checks in order."""
