"""How weights change: `build.py` makes the optimizer, `schedule.py` gives the learning rate of a step."""
