"""The Llama: read `llama.py`, then `attention.py`, `layers.py` and `loss.py`; `size.py` counts without torch."""
