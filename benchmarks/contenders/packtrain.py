"""packtrain, as `packtrain train` sets it up."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.contenders.autocast import autocast
from packtrain.config.data import DataConfig
from packtrain.config.model import ModelConfig
from packtrain.config.optim import OptimConfig
from packtrain.config.run import RunConfig
from packtrain.model.cpu.blocks import use_cpu_kernels
from packtrain.model.cpu.products import Products
from packtrain.model.init import build as build_model
from packtrain.model.roles import roles
from packtrain.optim.build import build_optimizer
from packtrain.parallel.lanes import split_into_lanes
from packtrain.train.cpu_libraries import resolve_cpu_libraries
from packtrain.train.device import keep_freed_memory, resolve_lanes
from packtrain.train.step import Placement, Precision


def build(shape: dict[str, Any], tokens: torch.Tensor) -> Callable[[], float]:
    """A function that takes a training step on the same batch each time and returns its loss."""
    keep_freed_memory(torch.device("cpu"))
    config = ModelConfig.model_validate({key: shape[key] for key in ModelConfig.model_fields if key in shape})
    model = build_model(config, seed=0)
    run, device = RunConfig(model=config, data=DataConfig(seq_len=shape["seq_len"])), torch.device("cpu")
    count = resolve_lanes(run, len(tokens), device, is_alone=True, is_compiled=False)
    precision = Precision(shape["precision"], "cpu", torch.amp.GradScaler("cpu", enabled=False))
    placement = Placement(device, precision, len(tokens))
    run = resolve_cpu_libraries(run, None, placement, num_lanes=count)
    use_cpu_kernels(model, Products.of(run.cpu))
    settings = {key: shape[key] for key in ("lr", "weight_decay", "betas")}
    optim = OptimConfig(name=shape["optimizer"], **settings)
    optimizer = build_optimizer(optim, dict(model.named_parameters()), roles(model))
    optimizer.make_states()
    trained = split_into_lanes(model, count)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def step() -> float:
        with autocast(shape):
            loss = trained(inputs, targets) / targets.numel()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step
