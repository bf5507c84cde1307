"""How weights move: `build.py` makes the optimizer, `schedule.py` says the learning rate of a step."""
