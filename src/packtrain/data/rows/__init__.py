"""Documents to rows of equal length, and the order in which a run sees them. Read `plan.py` first."""
