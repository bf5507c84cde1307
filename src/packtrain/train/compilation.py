"""Decides what of a model is compiled: each block, and each chunk of the loss, so that one graph serves all of them."""

import torch
import torch._functorch.config as functorch_config

from packtrain.model.llama import Llama


def compile_model(model: Llama, share_kept: float = 1.0, backend: str = "inductor") -> None:
    """Compiles `model` in place, at its first pass. Call it before the model is sharded or replicated.

    All blocks share one graph, so compiling takes as long as for one block. Gradients of a block are ready, and are sent to
    other ranks, before those of the block below are computed; FSDP gathers a block's weights between compiled blocks. The
    loss computes chunk by chunk, and frees each chunk's logits before the next; compiled as a whole, it would keep them all.
    `share_kept` of what a block would keep for its backward pass is kept, and the rest computed again there, the cheapest
    first: torch's `activation_memory_budget`, which holds for everything that this process compiles from here on.

    Shapes are constants: another number of rows would be another graph (`evaluate_rows` pads the last ones).
    """
    functorch_config.activation_memory_budget = share_kept
    for block in model.model.layers.children():
        block.compile(backend=backend, dynamic=False)
    model.chunk_loss = torch.compile(model.chunk_loss, backend=backend, dynamic=False)
