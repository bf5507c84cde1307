"""Small runs that tell what a large one will reach. Read `family.py`, `rungs.py`, `climb.py`, `law.py` in this order."""
