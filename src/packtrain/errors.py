"""Decides which errors packtrain raises on purpose, and the exit code that each of them ends the program with.

PacktrainError                       exit 1: a base class, never raised
├── UserError                        exit 2: the user can fix it; one sentence says what was given, what is needed, what to write
│   ├── ConfigError                  a preset, recipe, option or KEY=VALUE that does not fit
│   ├── SourceError                  text that cannot be read: missing, unreachable or broken
│   ├── DatasetError                 a prepared dataset that is missing, incomplete, changed, or does not fit
│   ├── TokenizerError               a tokenizer that is missing, or does not fit the dataset or the model
│   ├── RunError                     a run that is missing, in use, or of another model
│   │   └── CheckpointError          a checkpoint that is missing, incomplete or changed
│   │       └── CheckpointFormatError    a checkpoint of another version of packtrain
│   ├── DeviceError                  an option that this machine does not support
│   └── ExportError                  an export that would not be the same model
│       └── ModelError               a model from elsewhere that is missing, damaged, or not a Llama of ours
├── Interrupted                      exit 3: stopped by a signal, with everything saved
└── GuardError                       exit 4: stopped by a guard before it did harm
    ├── NonFiniteError               a loss or gradient that is NaN or infinite
    ├── DivergedError                a loss or gradient norm that stays far above its recent values
    ├── DatasetChangedError          a file of a dataset that was cut short or taken away while it was read
    ├── DiskFullError                a disk without space to write
    └── RankLostError                another process of the run that is gone

Any other exception is a bug of ours and ends the program with exit code 1.
"""


class PacktrainError(Exception):
    """Base class; `exit_code` is what the command line returns."""

    exit_code = 1
    is_reported = False
    """Whether another process of the run prints it."""


class UserError(PacktrainError):
    exit_code = 2


class ConfigError(UserError): ...


class SourceError(UserError): ...


class DatasetError(UserError): ...


class TokenizerError(UserError): ...


class RunError(UserError): ...


class CheckpointError(RunError): ...


class CheckpointFormatError(CheckpointError): ...


class DeviceError(UserError): ...


class ExportError(UserError): ...


class ModelError(ExportError): ...


class Interrupted(PacktrainError):  # noqa: N818  a stop that the user wants is not an error
    exit_code = 3
    command: str | None = None
    """What to type to continue, if the command line knows it."""


class GuardError(PacktrainError):
    exit_code = 4


class NonFiniteError(GuardError): ...


class DivergedError(GuardError): ...


class DatasetChangedError(GuardError): ...


class DiskFullError(GuardError): ...


class RankLostError(GuardError): ...
