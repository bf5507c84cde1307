"""Training. Read `setup.py` (which parts, and how they meet), then `loop.py` (when), then `step.py` (what)."""
