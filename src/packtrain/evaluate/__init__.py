"""How good a model is on held-out text. Read `loss.py` first; `yardsticks.py` says what simpler methods reach."""
