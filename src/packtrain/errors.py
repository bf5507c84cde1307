"""Every error that packtrain raises on purpose, and the exit code each one ends the program with.

PacktrainError
├── UserError                    exit 2: the user can mend it; one sentence says what was given, what is needed, what to write
│   ├── ConfigError              a preset, recipe or key=value that does not fit
│   ├── SourceError              text that cannot be read: missing, unreachable, broken
│   ├── DatasetError             a prepared dataset that is missing, torn, changed or does not fit
│   ├── TokenizerError           a tokenizer that is missing or does not fit the dataset or the model
│   ├── RunError                 a run directory that is missing, in use, or holds another model
│   │   └── CheckpointError      a checkpoint that is missing, cut short or changed
│   │       └── CheckpointFormatError   one that another version of packtrain wrote
│   ├── DeviceError              an option that this machine cannot do
│   └── ExportError              an export that would not be the same model
├── Interrupted                  exit 3: stopped by a signal, everything saved
└── GuardError                   exit 4: stopped by a guard before harm was done
    ├── NonFiniteError           loss or gradient is NaN or infinite
    ├── DivergedError            loss or gradient norm stays far above what it was
    ├── DiskFullError            no room left to write
    └── RankLostError            another process of a run over several is gone

Anything else that escapes is our own bug and ends with exit code 1.
"""


class PacktrainError(Exception):
    """Base class; `exit_code` is what the command line returns."""

    exit_code = 1
    is_reported = False
    """Whether another process of the run says it already."""


class UserError(PacktrainError):
    exit_code = 2


class ConfigError(UserError):
    pass


class SourceError(UserError):
    pass


class DatasetError(UserError):
    pass


class TokenizerError(UserError):
    pass


class RunError(UserError):
    pass


class CheckpointError(RunError):
    pass


class CheckpointFormatError(CheckpointError):
    pass


class DeviceError(UserError):
    pass


class ExportError(UserError):
    pass


class Interrupted(PacktrainError):  # noqa: N818  it is no error
    exit_code = 3


class GuardError(PacktrainError):
    exit_code = 4


class NonFiniteError(GuardError):
    pass


class DivergedError(GuardError):
    pass


class DiskFullError(GuardError):
    pass


class RankLostError(GuardError):
    pass
