"""Kernels of the CPU: `blocks.use_cpu_kernels` swaps them into a Llama; read `blocks.py`, then `gradients.py`."""
