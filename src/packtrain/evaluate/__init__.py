"""How good a model is on held-out text. Read `loss.py` first; `yardsticks.py` measures simpler methods on the same text."""
