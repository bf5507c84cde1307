"""What a run takes, before its first step; needs no torch. Read `outlook.py` first, then `memory.py`."""
