"""What makes two documents copies: equal ones by sorting hashes on disk, near ones by MinHash. Read `equal.py` first."""
