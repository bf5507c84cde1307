"""Run by torchrun in the tests of `test_distributed`: a checkpoint from another number of processes is restored bit for bit."""

import sys
from pathlib import Path

import torch

from packtrain.config.load import from_toml
from packtrain.config.run import RunConfig
from packtrain.model.init import build
from packtrain.parallel.ranks import join_processes
from packtrain.runs import checkpoint
from packtrain.runs.layout import RunLayout
from packtrain.runs.retention import Retention
from packtrain.runs.writer import CheckpointWriter
from packtrain.train.preflight import open_training_data
from packtrain.train.setup import build_parts
from packtrain.train.state import collect, gather_model


def main(source: Path, target: Path, shard_size: str) -> None:
    """Loads the newest checkpoint of the run `source` sharded, and writes it again into the folder `target`."""
    config = from_toml(RunConfig, (source / "config.toml").read_text(), str(source))
    parallel = config.parallel.model_copy(update={"mode": "fsdp", "shard_size": int(shard_size) or None})
    config = config.model_copy(update={"parallel": parallel})
    sources = open_training_data(config)
    with join_processes(torch.device("cpu")) as ranks:
        device = torch.device("cpu")
        new = build_parts(config, sources, ranks=ranks, device=device, checkpoint=None)
        # Each parameter is cut into whole rows, over the number of ranks that was configured.
        num_shares = parallel.shard_size or ranks.world_size
        for name, parameter in new.model.named_parameters():
            row = parameter.shape[1:].numel()
            assert parameter.to_local().numel() <= -(-parameter.shape[0] // num_shares) * row, name
            assert parameter.device_mesh.shape[-1] == num_shares, name
        started = gather_model(new.model, ranks)
        if started is not None:
            plain = build(config.model, seed=config.train.seed)
            for (name, sharded), parameter in zip(started.named_parameters(), plain.parameters(), strict=True):
                assert torch.equal(sharded, parameter), name
        found = checkpoint.find_newest(RunLayout(source), ranks)
        assert found is not None
        parts = build_parts(config, sources, ranks=ranks, device=device, checkpoint=found)
        mine, numbers = collect(parts.model, parts.optimizer, ranks)
        assert numbers == found.state["optimizer_numbers"]
        layout = RunLayout(target)
        if ranks.is_main:
            layout.folder.mkdir()
        ranks.barrier()
        with CheckpointWriter(layout, ranks, Retention(1)) as writer:
            writer.save(mine, found.state)
            writer.wait()
        for each in (new, parts):
            each.loader.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
