"""Decides what a path is that a model is to be opened from: a run, one of its checkpoints, or files from elsewhere."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packtrain.data.tokens.tokenizer import Tokenizer, load_tokenizer
from packtrain.errors import ConfigError, ModelError, RunError
from packtrain.model.llama import Llama
from packtrain.pretrained import gguf, gguf_header, llama2c
from packtrain.pretrained.conditions import Conditions, conditions_of
from packtrain.pretrained.files import ModelFiles, load_model, refuse
from packtrain.pretrained.huggingface import CONFIG, read_folder
from packtrain.runs.checkpoint import AverageKind, OpenRun, open_run
from packtrain.runs.layout import HASHES, RunLayout


@dataclass(frozen=True)
class OpenModel:
    """A model to use, in evaluation mode and float32, and how it reads text."""

    name: str
    """Of the run's folder or of the model's."""
    folder: Path
    """The run's folder, or what was given."""
    model: Llama
    tokenizer: Tokenizer
    add_bos: bool
    """Whether a begin-of-text token comes before a text."""
    context_length: int
    """Positions that the model is meant for."""
    step: int | None
    """Of the checkpoint; None for a model from elsewhere."""
    run: OpenRun | None
    """None for a model from elsewhere."""

    @property
    def conditions(self) -> Conditions:
        return Conditions(self.tokenizer, self.add_bos, self.context_length)

    @property
    def average(self) -> AverageKind | None:
        """Of what kind the weights are an average over steps; None: they are those of one step, or not of a run."""
        return None if self.run is None else self.run.average


def open_model(
    path: Path,
    *,
    step: int | None = None,
    which: Literal["last", "best"] = "last",
    device: str = "cpu",
    average: bool | None = None,
) -> OpenModel:
    """Opens the model at `path`, in float32 on `device`. `average` as in `open_run`.

    A run: its last or best checkpoint, or that of `step`; every file is compared with its hash. A checkpoint's folder in a
    run. A Llama or Qwen3 from elsewhere: a Hugging Face folder, a GGUF, a file of llama2.c. Raises RunError or
    CheckpointError for a run that cannot be opened, ModelError for another model that cannot, TokenizerError if its
    tokenizer is missing or is not the model's, and ConfigError for a step of what has no checkpoints.
    """
    run, own_step = _find_run(path)
    if run is not None:
        if own_step is not None and (step is not None or which == "best"):
            raise ConfigError(f"{path} is a single checkpoint; leave out --step and --best")
        opened = open_run(run, step=step if own_step is None else own_step, which=which, device=device, average=average)
        return of_run(opened, run)
    files = read_files(path)
    if average is not None:
        option = "--average" if average else "--no-average"
        raise ConfigError(f"{path} is not a run, so it has one set of weights; leave out {option}")
    if step is not None or which == "best":
        raise ConfigError(f"{path} is not a run, so it has no checkpoints; leave out --step and --best")
    conditions = files.conditions()
    return OpenModel(
        name=path.resolve().stem if path.is_file() else path.resolve().name,
        folder=path,
        model=load_model(files, device=device),
        tokenizer=conditions.tokenizer,
        add_bos=conditions.add_bos,
        context_length=conditions.context_length,
        step=None,
        run=None,
    )


def of_run(run: OpenRun, folder: Path | None = None) -> OpenModel:
    """The model of a run that is open; `folder` is the run's, as it was given. Raises TokenizerError as `conditions_of` does."""
    folder, conditions = folder or run.layout.folder, conditions_of(run)
    return OpenModel(
        name=folder.resolve().name,
        folder=folder,
        model=run.model,
        tokenizer=conditions.tokenizer,
        add_bos=conditions.add_bos,
        context_length=conditions.context_length,
        step=run.step,
        run=run,
    )


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of the model at `path`, whose weights are not read. Raises as `open_model` does."""
    run, _ = _find_run(path)
    return read_files(path).conditions().tokenizer if run is None else load_tokenizer(RunLayout(run).tokenizer)


def is_model(path: Path) -> bool:
    """Whether there is a model at `path`, or something that can only be meant as one."""
    is_folder = any((path / name).is_file() for name in (CONFIG, "config.toml"))
    if path.is_file():
        return path.suffix in (".gguf", ".bin")
    return is_folder or (path.is_dir() and _only_model(path) is not None)


def read_files(path: Path) -> ModelFiles:
    """The model from elsewhere at `path`, not yet in memory. Raises ModelError if there is none that packtrain can read."""
    if not path.exists():
        raise RunError(f"{path} does not exist; give {_EXAMPLES}")
    if (path / CONFIG).is_file():
        return read_folder(path)
    file = path if path.is_file() else _only_model(path)
    if file is None:
        raise ModelError(f"{path} is neither a run nor a model that packtrain can read; give {_EXAMPLES}")
    if gguf_header.is_gguf(file):
        return gguf.read_file(file)
    if llama2c.is_pickle(file):
        raise refuse(file, "it is a pickle, which can run any code; convert it to safetensors first")
    if llama2c.is_llama2c(file):
        return llama2c.read_file(file)
    raise ModelError(f"{file} is neither a GGUF nor a file of llama2.c; give {_EXAMPLES}")


def read_files_to_train(path: Path) -> ModelFiles:
    """`read_files` of weights to start a run from. Raises ModelError if they were rounded to eight bits."""
    files = read_files(path)
    if files.is_rounded:
        raise ModelError(
            f"{path} cannot be trained further: its weights were rounded to Q8_0, which loses what training changes; give the "
            "same model in F32, F16 or BF16"
        )
    return files


def _only_model(folder: Path) -> Path | None:
    """The model in a folder with a GGUF, or with a model.bin of llama2.c. Raises ModelError if there are several."""
    if not folder.is_dir():
        return None
    found = [path for path in sorted(folder.glob("*.gguf")) if path.is_file()]
    if len(found) > 1:
        raise ModelError(f"{folder} has {len(found)} GGUF files; give one of them, for example {found[0]}")
    model = folder / "model.bin"
    return found[0] if found else model if model.is_file() else None


def _find_run(path: Path) -> tuple[Path | None, int | None]:
    """The run that `path` is or is a checkpoint of, if it is one, and the checkpoint's step."""
    if (path / "config.toml").is_file():
        return path, None
    whole = path.resolve()
    step = RunLayout.step_of(whole)
    if step is not None and whole.parent.name == "checkpoints" and (whole / HASHES).exists():
        return (path.parent.parent if path.name == whole.name else whole.parent.parent), step
    return None, None


_EXAMPLES = "a run, a folder of one of its checkpoints, a Hugging Face folder, a GGUF or a llama2.c file"
