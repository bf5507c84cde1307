"""Decides what a training run can be configured with: one section for each room."""

import math
from fractions import Fraction
from typing import Self

from pydantic import model_validator

from packtrain.config.base import Section
from packtrain.config.cpu import CpuConfig
from packtrain.config.data import DataConfig
from packtrain.config.evaluate import EvaluateConfig
from packtrain.config.guard import GuardConfig
from packtrain.config.model import ModelConfig
from packtrain.config.optim import OptimConfig, ScheduleConfig
from packtrain.config.parallel import ParallelConfig
from packtrain.config.runs import CheckpointConfig, LogConfig, TrackConfig
from packtrain.config.train import TrainConfig
from packtrain.errors import ConfigError


class RunConfig(Section):
    """Everything that decides a training run. A preset is this class as TOML, with only the values that differ."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    guard: GuardConfig = GuardConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    parallel: ParallelConfig = ParallelConfig()
    cpu: CpuConfig = CpuConfig()
    track: TrackConfig = TrackConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        batch, length = self.train.global_batch_tokens, self.data.seq_len
        if batch % length:
            raise ValueError(
                f"train.global_batch_tokens={batch} is not a multiple of data.seq_len={length}; "
                f"write train.global_batch_tokens={max(1, batch // length) * length}"
            )
        if self.train.precision == "fp8" and length % 16:
            raise ValueError(
                f"train.precision=fp8 multiplies tokens 16 at a time, and data.seq_len={length} is not a multiple of 16; "
                f"write data.seq_len={max(1, length // 16) * 16}, or train.precision=bf16"
            )
        limit = self.model.max_position_embeddings
        if limit is not None and limit < length:
            raise ValueError(
                f"data.seq_len={length} is longer than model.max_position_embeddings={limit}; "
                f"leave the latter out, or write data.seq_len={limit}"
            )
        if self.train.stop_after is not None and not self.evaluate.every:
            raise ValueError(
                f"train.stop_after={self.train.stop_after} counts validations, and evaluate.every=0 makes none; write "
                "evaluate.every=STEPS, or leave train.stop_after out"
            )
        if self.train.anneal_from is not None and self.schedule.name == "constant":
            raise ValueError(
                "train.anneal_from needs a schedule that decays, and schedule.name=constant does not; write schedule.name=linear, "
                "cosine or wsd"
            )
        return self

    @property
    def rows_per_step(self) -> int:
        """Rows in a global batch."""
        return self.train.global_batch_tokens // self.data.seq_len

    @property
    def repack_seed(self) -> int | None:
        """What the documents' order in later epochs depends on; None if it stays as it is."""
        return self.train.seed if self.data.repack else None

    @property
    def rows_per_pass(self) -> int:
        """Rows of a micro-batch in one process, as set; for `auto`, without knowing the device, the default."""
        size = self.train.micro_batch_size
        default = TrainConfig.model_fields["micro_batch_size"].default
        return min(default if size == "auto" else size, self.rows_per_step)

    @property
    def effective_schedule(self) -> ScheduleConfig:
        """The schedule in effect: an annealing run has no warm-up, and decays from its first step."""
        if self.train.anneal_from is None:
            return self.schedule
        return self.schedule.model_copy(update={"warmup_steps": 0, "decay_fraction": 1.0})

    @property
    def effective_optim(self) -> OptimConfig:
        """The optimizer's settings in effect: an annealing run takes the momentum over as it is."""
        if self.train.anneal_from is None:
            return self.optim
        return self.optim.model_copy(update={"momentum_warmup_steps": 0})

    def num_lanes(self, rows: int) -> int:
        """Lanes for a micro-batch of `rows` in one eager process on a CPU with several threads."""
        if self.parallel.lanes != "auto":
            return self.parallel.lanes
        # More than two lanes have not been measured.
        return 2 if rows % 2 == 0 and self.train.activation_gb is None else 1

    @property
    def activation_budget_bytes(self) -> float | None:
        """Most bytes for the activations of a micro-batch; None for no limit."""
        return None if self.train.activation_gb is None else self.train.activation_gb * 1e9

    @property
    def given_steps(self) -> int | None:
        """Optimizer updates that train.steps or train.tokens sets; None if the data says how many an epoch has."""
        if self.train.tokens is not None:
            return self.train.tokens // self.train.global_batch_tokens
        return self.train.steps

    def num_steps(self, epoch_rows: int, most_rows: int | None = None) -> int:
        """Optimizer updates of the run: as configured, or train.epochs (else one) of `epoch_rows` rows.

        The last step of an epoch is filled with rows of the next, so that none is left out, unless the data ends:
        `most_rows` is the number of all rows if each dataset has max_epochs. Raises ConfigError if that is too few.
        """
        epochs = Fraction(str(self.train.epochs or 1))
        steps = self.given_steps or math.ceil(epochs * epoch_rows / self.rows_per_step)
        if most_rows is None or steps * self.rows_per_step <= most_rows:
            return steps
        possible = most_rows // self.rows_per_step
        if possible and self.given_steps is None and self.train.epochs is None:
            return possible
        advice = f"write train.steps={possible}" if possible else "lower train.global_batch_tokens"
        raise ConfigError(
            f"{steps:,} steps of {self.rows_per_step:,} rows need {steps * self.rows_per_step:,} rows, and "
            f"the max_epochs of data.dataset allow {most_rows:,}, enough for {possible:,} steps; {advice}, or raise max_epochs"
        )
