"""Decides what of a model is compiled: each block, and each chunk of the loss, so that one graph serves all of them."""

import torch

from packtrain.model.llama import Llama


def compile_model(model: Llama, backend: str = "inductor") -> None:
    """Compiles `model` in place, at its first pass. Call it before the model is sharded or replicated.

    All blocks share one graph, so compiling takes as long as for one block. Gradients of a block are ready, and are sent to
    other ranks, before those of the block below are computed; FSDP gathers a block's weights between compiled blocks. The
    loss computes chunk by chunk, and frees each chunk's logits before the next; compiled as a whole, it would keep them all.
    Shapes are constants: another number of rows would be another graph (`evaluate_rows` pads the last ones).
    """
    for block in model.model.layers.children():
        block.compile(backend=backend, dynamic=False)
    model.chunk_loss = torch.compile(model.chunk_loss, backend=backend, dynamic=False)
