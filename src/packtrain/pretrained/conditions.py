"""Decides how a run's model reads text: as it did in training, according to the run's manifest."""

from dataclasses import dataclass

from packtrain.data.tokens.tokenizer import Tokenizer, load_tokenizer
from packtrain.errors import TokenizerError
from packtrain.runs.checkpoint import OpenRun


@dataclass(frozen=True)
class Conditions:
    """The tokenizer, whether a begin-of-text token comes first, and the number of positions."""

    tokenizer: Tokenizer
    add_bos: bool
    context_length: int


def conditions_of(run: OpenRun) -> Conditions:
    """The conditions of a run. Raises TokenizerError if its tokenizer is missing or is not the one it was trained with."""
    tokenizer = load_tokenizer(run.tokenizer_folder)
    trained_with = run.manifest["dataset"].get("tokenizer")
    if trained_with is None:
        raise TokenizerError(f"{run.layout.manifest} does not name the run's tokenizer; restore a copy of it")
    if tokenizer.hash != trained_with["hash"]:
        raise TokenizerError(
            f"{run.tokenizer_folder} is not the tokenizer that the run was trained with (its hash differs); replace it "
            "with a copy of the tokenizer folder of the run's dataset"
        )
    context_length = run.config.model.max_position_embeddings or run.config.data.seq_len
    return Conditions(tokenizer, trained_with["adds_bos"], context_length)
