"""Decides which side of a split may be empty, and what is said of one that may not."""

import logging

from packtrain.config.recipe import Recipe
from packtrain.data.format.manifest import SPLITS, SplitName
from packtrain.errors import SourceError
from packtrain.prepare.steps.ledger import Intake, KeptCounts

log = logging.getLogger("packtrain")


def check_sides(intake: Intake, kept: KeptCounts, recipe: Recipe) -> None:
    """Raise SourceError if nothing is left, or a side is empty that the split needs; warn if a given one has no training text."""
    total = sum(kept.documents.values())
    if total == 0:
        counted = ", ".join(f"{intake.dropped[reason]} {reason}" for reason in intake.reasons())
        raise SourceError(
            f"no document is left after cleaning (of {intake.documents}: {counted}); look at the source, or relax what dropped them"
        )
    split = recipe.split
    if split.is_given:
        _check_given_sides(kept, recipe)
        return
    needed: tuple[SplitName, ...] = SPLITS
    if split.validation_fraction in (0.0, 1.0):
        needed = ("validation",) if split.validation_fraction else ("train",)
    for name in needed:
        if kept.documents[name] == 0:
            others = "another split.validation_fraction"
            if split.by == "content":
                others = (
                    "another split.salt, or split.by=tail to hold out the end of the text, even of a single document"
                )
            raise SourceError(
                f"the {name} side of the split is empty, as all {total} documents are on the other side; add documents, "
                f"or write split.validation_fraction=0 for no validation data, or {others}"
            )


def _check_given_sides(kept: KeptCounts, recipe: Recipe) -> None:
    """Raise SourceError if a given split has no validation documents; warn if it has none for training."""
    split, total = recipe.split, sum(kept.documents.values())
    if not kept.documents["train"]:
        log.warning(
            "split.by=%s gives no training documents, so this dataset is all validation: runs can be evaluated on it, but not "
            "trained",
            split.by,
        )
    # Recipes with a fraction of 0 are older than this rule.
    if kept.documents["validation"] or (split.by == "files" and not split.validation_fraction):
        return
    advice = "check split.column and split.validation_values" if split.by == "column" else "look at these files"
    if recipe.source.max_documents is not None:
        advice = f"raise source.max_documents={recipe.source.max_documents}, which may end before them"
    raise SourceError(
        f"the validation side of the split is empty, as split.by={split.by} puts all {total} documents on the training side; "
        f"{advice}, or write split.by=content"
    )
