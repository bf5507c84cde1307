"""Decides the settings of each filter in `clean.filters`; their names and defaults are those of datatrove."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from packtrain.config.base import Section

FilterName = Literal["gopher_quality", "gopher_repetition", "fineweb_quality", "c4_quality", "language", "pii"]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
NGramShares = tuple[tuple[PositiveInt, Share], ...]


class GopherQualityConfig(Section):
    """`gopher_quality`: drops documents by their words and lines (Gopher, arXiv 2112.11446, appendix A). 0 turns a number off, except
    min_doc_words, which is at least 1."""

    min_doc_words: PositiveInt = 50
    """Fewest words, not counting punctuation."""
    max_doc_words: NonNegativeInt = 100_000
    """Most words, not counting punctuation."""
    min_avg_word_length: NonNegativeInt = 3
    """Smallest mean length of a word, in characters."""
    max_avg_word_length: NonNegativeInt = 10
    """Largest mean length of a word."""
    max_symbol_word_ratio: Share = 0.1
    """Most hash signs, and most ellipses, per word."""
    max_bullet_lines_ratio: Share = 0.9
    """Largest share of lines that begin with a bullet or a hyphen."""
    max_ellipsis_lines_ratio: Share = 0.3
    """Largest share of lines that end with an ellipsis."""
    max_non_alpha_words_ratio: Share = 0.8
    """Smallest share of words that have a letter. The name, which is datatrove's, suggests the opposite."""
    min_stop_words: NonNegativeInt = 2
    """How many of the stop_words a document must have."""
    stop_words: tuple[str, ...] = ("the", "be", "to", "of", "and", "that", "have", "with")
    """Words that nearly every text of the language has."""


class GopherRepetitionConfig(Section):
    """`gopher_repetition`: drops documents that repeat themselves (Gopher, arXiv 2112.11446, table A1). 0 turns a share off,
    and an empty list the n-grams."""

    dup_line_frac: Share = 0.3
    """Largest share of lines that are copies of an earlier one."""
    dup_para_frac: Share = 0.3
    """Largest share of paragraphs that are copies of an earlier one."""
    dup_line_char_frac: Share = 0.2
    """Largest share of characters in copied lines."""
    dup_para_char_frac: Share = 0.2
    """Largest share of characters in copied paragraphs."""
    top_n_grams: NGramShares = ((2, 0.2), (3, 0.18), (4, 0.16))
    """Pairs of n and the largest share of characters in the most frequent run of n words."""
    dup_n_grams: NGramShares = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))
    """Pairs of n and the largest share of characters in runs of n words that occurred before."""


class FineWebQualityConfig(Section):
    """`fineweb_quality`: what FineWeb (arXiv 2406.17557) added to the rules of Gopher and C4."""

    line_punct_thr: Share = 0.12
    """Smallest share of lines that end with the punctuation of a sentence."""
    line_punct_exclude_zero: bool = False
    """Keep documents that have no such line at all."""
    short_line_thr: Share = 0.67
    """Largest share of short lines."""
    short_line_length: PositiveInt = 30
    """Most characters in a short line."""
    char_duplicates_ratio: Share = 0.01
    """Largest share of characters in lines that are copies of an earlier one."""
    new_line_ratio: Annotated[float, Field(ge=0.0)] = 0.3
    """Most line breaks per word."""


class C4QualityConfig(Section):
    """`c4_quality`: the rules of C4 (jmlr.org/papers/v21/20-074), which drop lines, and then documents with too little left.
    -1 turns a number off."""

    split_paragraph: bool = True
    """Apply the rules to lines; false applies them to sentences."""
    remove_citations: bool = True
    """Remove citation marks such as [3] and [edit]."""
    filter_no_terminal_punct: bool = True
    """Drop lines that do not end with . ? ! or a quotation mark, and those that end with an ellipsis."""
    min_num_sentences: Annotated[int, Field(ge=-1)] = 5
    """Drop documents with fewer sentences in the remaining lines."""
    min_words_per_line: Annotated[int, Field(ge=-1)] = 3
    """Drop lines with fewer words."""
    max_word_length: Annotated[int, Field(ge=-1)] = 1000
    """Drop lines with a longer word, in characters."""
    filter_lorem_ipsum: bool = True
    """Drop documents that say lorem ipsum."""
    filter_javascript: bool = True
    """Drop lines that mention javascript."""
    filter_curly_bracket: bool = True
    """Drop documents with a curly bracket in a line that would be kept."""
    filter_policy: bool = True
    """Drop lines about cookies, privacy and terms of use."""


class LanguageConfig(Section):
    """`language`: keeps documents in some languages, found by fastText's lid.176, whose compressed model the library includes."""

    languages: Annotated[tuple[str, ...], Field(min_length=1)] = ("en",)
    """Languages to keep, by the model's codes (en, de, fr, zh ...)."""
    threshold: Share = 0.65
    """A document is kept if the score of one of these languages is above this."""


class PiiConfig(Section):
    """`pii`: replaces people's addresses with made-up ones of the same form, starting with the same one in each document."""

    remove_emails: bool = True
    """Replace e-mail addresses."""
    remove_ips: bool = True
    """Replace IP addresses (version 4)."""
    only_remove_public_ips: bool = True
    """Keep IP addresses that are not public, such as 192.168.0.1."""


class FilterSettings(Section):
    """The filters of `clean` and their settings."""

    filters: tuple[FilterName, ...] = ()
    """Filters to apply to cleaned text, in this order (`pip install 'packtrain[filters]'`)."""
    word_language: str = "eng"
    """Language whose rules decide words and sentences for the filters, as an ISO 639-3 code."""
    gopher_quality: GopherQualityConfig = GopherQualityConfig()
    gopher_repetition: GopherRepetitionConfig = GopherRepetitionConfig()
    fineweb_quality: FineWebQualityConfig = FineWebQualityConfig()
    c4_quality: C4QualityConfig = C4QualityConfig()
    language: LanguageConfig = LanguageConfig()
    pii: PiiConfig = PiiConfig()

    @model_validator(mode="after")
    def _settings_have_their_filter(self) -> Self:
        if len(set(self.filters)) < len(self.filters):
            raise ValueError(f"clean.filters names a filter twice ({', '.join(self.filters)}); name each once")
        for name, field in FilterSettings.model_fields.items():
            if name in ("filters", *self.filters) or getattr(self, name) == field.default:
                continue
            if name != "word_language":
                raise ValueError(
                    f"clean.{name} is set, but clean.filters does not name {name}; add it there, or leave the setting out"
                )
            if not set(self.filters) - {"language", "pii"}:
                raise ValueError(
                    "clean.word_language is set, but clean.filters names no filter that counts words; leave the setting out"
                )
        return self
