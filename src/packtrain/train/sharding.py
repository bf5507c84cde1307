"""Decides how a model without memory is sharded over the ranks: cut first, then filled, so that it never needs to fit whole."""

from packtrain.config.run import RunConfig
from packtrain.model.init import ReadWeight, initial_values
from packtrain.model.llama import Llama
from packtrain.parallel.shards import fill
from packtrain.parallel.wrap import shard
from packtrain.train.step import Placement


def shard_model(
    model: Llama, config: RunConfig, placement: Placement, *, is_new: bool, read: ReadWeight | None
) -> None:
    """Shards `model`, which is on the meta device, in place.

    A new one gets its initial weights, or those that `read` gives, one parameter at a time.
    """
    shard(
        model,
        list(model.model.layers),
        placement.ranks,
        device_type=placement.device.type,
        shard_size=config.parallel.shard_size,
        dtype=placement.precision.dtype,
    )
    model.to_empty(device=placement.device)
    model.tie_weights()
    if is_new:
        for name, parameter in model.named_parameters():
            seed = config.train.seed
            values = initial_values(name, parameter.shape, config.model, seed) if read is None else read(name)
            fill(parameter, values)
