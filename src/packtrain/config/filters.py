"""Decides what can be set about the filters that `clean.filters` names; keys and defaults are datatrove's."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from packtrain.config.base import Section

FilterName = Literal["gopher_quality", "gopher_repetition", "fineweb_quality", "c4_quality", "language", "pii"]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
NGramShares = tuple[tuple[PositiveInt, Share], ...]


class GopherQualityConfig(Section):
    """`gopher_quality`: documents by their words and lines (Gopher, arXiv 2112.11446, appendix A). A key of 0 asks nothing."""

    min_doc_words: PositiveInt = 50
    """Least words that are more than punctuation."""
    max_doc_words: NonNegativeInt = 100_000
    """Most such words."""
    min_avg_word_length: NonNegativeInt = 3
    """Least mean length of such a word, in characters."""
    max_avg_word_length: NonNegativeInt = 10
    """Largest mean length of such a word."""
    max_symbol_word_ratio: Share = 0.1
    """Most hash signs, and most ellipses, for each word."""
    max_bullet_lines_ratio: Share = 0.9
    """Largest share of lines that begin with a bullet."""
    max_ellipsis_lines_ratio: Share = 0.3
    """Largest share of lines that end with an ellipsis."""
    max_non_alpha_words_ratio: Share = 0.8
    """Least share of words with a letter, in spite of its name, which is datatrove's."""
    min_stop_words: NonNegativeInt = 2
    """How many of stop_words must occur."""
    stop_words: tuple[str, ...] = ("the", "be", "to", "of", "and", "that", "have", "with")
    """Words that are in nearly every text of the language."""


class GopherRepetitionConfig(Section):
    """`gopher_repetition`: documents that repeat themselves (Gopher, arXiv 2112.11446, table A1). A key of 0 asks nothing."""

    dup_line_frac: Share = 0.3
    """Largest share of lines that are copies of an earlier one."""
    dup_para_frac: Share = 0.3
    """The same of paragraphs."""
    dup_line_char_frac: Share = 0.2
    """Largest share of characters in copied lines."""
    dup_para_char_frac: Share = 0.2
    """The same in copied paragraphs."""
    top_n_grams: NGramShares = ((2, 0.2), (3, 0.18), (4, 0.16))
    """Pairs of n and the largest share of characters in the most frequent run of n words."""
    dup_n_grams: NGramShares = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))
    """Pairs of n and the largest share of characters in runs of n words that occurred before."""


class FineWebQualityConfig(Section):
    """`fineweb_quality`: what FineWeb (arXiv 2406.17557) added to the rules of Gopher and C4."""

    line_punct_thr: Share = 0.12
    """Least share of lines that end with a mark that ends a sentence."""
    line_punct_exclude_zero: bool = False
    """Let documents pass that have no such line at all."""
    short_line_thr: Share = 0.67
    """Largest share of short lines."""
    short_line_length: PositiveInt = 30
    """Characters up to which a line is short."""
    char_duplicates_ratio: Share = 0.01
    """Largest share of characters in lines that are copies of an earlier one."""
    new_line_ratio: Annotated[float, Field(ge=0.0)] = 0.3
    """Most line ends for each word."""


class C4QualityConfig(Section):
    """`c4_quality`: C4's rules (jmlr.org/papers/v21/20-074), which drop lines, and documents with too little left. -1 turns a
    number off."""

    split_paragraph: bool = True
    """Judge lines; false judges sentences."""
    remove_citations: bool = True
    """Cut citation marks such as [3] and [edit]."""
    filter_no_terminal_punct: bool = True
    """Drop lines that do not end with . ? ! or a quotation mark."""
    min_num_sentences: Annotated[int, Field(ge=-1)] = 5
    """Documents with fewer sentences in the lines that are left are dropped."""
    min_words_per_line: Annotated[int, Field(ge=-1)] = 3
    """Lines with fewer words are dropped."""
    max_word_length: Annotated[int, Field(ge=-1)] = 1000
    """Lines with a longer word are dropped."""
    filter_lorem_ipsum: bool = True
    """Drop documents that say lorem ipsum."""
    filter_javascript: bool = True
    """Drop lines that mention javascript."""
    filter_curly_bracket: bool = True
    """Drop documents with a curly bracket in a line that would be kept."""
    filter_policy: bool = True
    """Drop lines about cookies, privacy and terms of use."""


class LanguageConfig(Section):
    """`language`: documents by their language, which fastText's lid.176 tells; the compressed model comes with the library."""

    languages: Annotated[tuple[str, ...], Field(min_length=1)] = ("en",)
    """Languages to keep, by the model's codes (en, de, fr, zh ...)."""
    threshold: Share = 0.65
    """A document is kept if one of them is found with a larger score."""


class PiiConfig(Section):
    """`pii`: addresses of people are replaced by made-up ones of the same form, beginning anew in each document."""

    remove_emails: bool = True
    """Replace e-mail addresses."""
    remove_ips: bool = True
    """Replace IP addresses (version 4)."""
    only_remove_public_ips: bool = True
    """Leave addresses alone that are not public, such as 192.168.0.1."""


class FilterSettings(Section):
    """The part of `clean` that is about filters."""

    filters: tuple[FilterName, ...] = ()
    """Filters, in the order in which they are applied to clean text (`pip install 'packtrain[filters]'`)."""
    word_language: str = "eng"
    """Language by whose rules filters count words and sentences, by ISO 639-3 code."""
    gopher_quality: GopherQualityConfig = GopherQualityConfig()
    gopher_repetition: GopherRepetitionConfig = GopherRepetitionConfig()
    fineweb_quality: FineWebQualityConfig = FineWebQualityConfig()
    c4_quality: C4QualityConfig = C4QualityConfig()
    language: LanguageConfig = LanguageConfig()
    pii: PiiConfig = PiiConfig()

    @model_validator(mode="after")
    def _settings_have_their_filter(self) -> Self:
        if len(set(self.filters)) < len(self.filters):
            raise ValueError(f"clean.filters names one twice ({', '.join(self.filters)}); name each once")
        for name, field in FilterSettings.model_fields.items():
            if name in ("filters", *self.filters) or getattr(self, name) == field.default:
                continue
            if name != "word_language":
                raise ValueError(
                    f"clean.{name} is set, but clean.filters does not name {name}; add it there, or leave the setting out"
                )
            if not set(self.filters) - {"language", "pii"}:
                raise ValueError(
                    "clean.word_language is set, but clean.filters names none that counts words; leave the setting out"
                )
        return self
