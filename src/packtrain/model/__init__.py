"""The Llama: read `llama.py`, then `attention.py`, `layers.py` and `loss.py`. `cpu/` and `fp8.py` swap faster parts in."""
