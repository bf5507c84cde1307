"""Decides which optimizers there are: what each one is, the bytes of its states, and the library that it needs."""

from dataclasses import dataclass

# Both bitsandbytes and torchao keep the states of smaller tensors in float32.
SMALLEST_QUANTISED = 4096


@dataclass(frozen=True)
class OptimizerKind:
    """What the configuration, the planner and `optim.build` know of an optimizer before it is imported."""

    meaning: str
    state_bytes: float
    """Bytes of state for each parameter."""
    matrix_bytes: float | None = None
    """Bytes of state for each parameter of a matrix of the blocks, if the optimizer orthogonalises those."""
    row_bytes: int = 0
    """Bytes of state for each row of such a matrix, beside them."""
    is_low_bit: bool = False
    """Whether states take fewer than 32 bits; those of tensors below SMALLEST_QUANTISED elements stay in float32."""
    needs_compiler: bool = False
    """Whether its update on a CUDA GPU is compiled, whatever train.compile says."""
    library: str | None = None
    """The package that it needs, if that is not installed by default."""
    extra: str | None = None
    """The extra of packtrain that installs `library`."""
    library_bytes: int = 0
    """Memory that a process takes to import `library`, measured."""

    @property
    def orthogonalises(self) -> bool:
        return self.matrix_bytes is not None


# A new optimizer is one line here and the file `optim/NAME.py`. The 8-bit and 4-bit states: two numbers, and for each a
# float32 scale in blocks of 256 and of 128.
OPTIMIZERS = {
    "adamw": OptimizerKind("fused, float32 states", 8),
    "adamw8bit": OptimizerKind(
        "block-wise 8-bit states through bitsandbytes (arXiv 2110.02861)",
        2 + 2 * 4 / 256,
        is_low_bit=True,
        library="bitsandbytes",
        extra="lowbit",
        library_bytes=72_000_000,
    ),
    "adamw4bit": OptimizerKind(
        "4-bit states through torchao (arXiv 2309.01507)",
        1 + 2 * 4 / 128,
        is_low_bit=True,
        needs_compiler=True,
        library="torchao",
        extra="torchao",
        library_bytes=37_000_000,
    ),
    "muon": OptimizerKind(
        "orthogonalized momentum for the matrices of the blocks (arXiv 2502.16982), at AdamW's learning rates; AdamW updates the rest",
        8,
        matrix_bytes=4,
    ),
    "normuon": OptimizerKind(
        "muon with each row of an update scaled by its running mean square (arXiv 2510.05491)",
        8,
        matrix_bytes=4,
        row_bytes=4,
    ),
}
