"""Decides how a dataset can be prepared: the source, cleaning, deduplication, tokenizer and split."""

from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, Self

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from packtrain.config.base import Section
from packtrain.config.expression import row_filter
from packtrain.config.filters import FilterSettings
from packtrain.config.prepare import PrepareConfig
from packtrain.config.split import SplitConfig


class KindSettings(NamedTuple):
    """The setting of `source` that a kind of source needs, and the settings that only some kinds understand."""

    needs: str | None
    understands: tuple[str, ...] = ()
    gives_ids: bool = False
    """Its documents are token ids that another program made, not text."""


# prepare/sources/documents.py says how each kind is found, scanned and read, under the same names.
KIND_SETTINGS: dict[str, KindSettings] = {
    "hf": KindSettings("repo", ("id_column", "filter")),
    "parquet": KindSettings("path", ("id_column", "filter")),
    "jsonl": KindSettings("path", ("id_column", "filter")),
    "csv": KindSettings("path", ("id_column", "filter", "delimiter", "quoting")),
    "text": KindSettings("path", ("separator",)),
    "function": KindSettings("function", ("function", "filter")),
    "stdlib": KindSettings(None),
    "nanogpt": KindSettings("path", ("eot",), gives_ids=True),
    "llmc": KindSettings("path", ("eot",), gives_ids=True),
    "megatron": KindSettings("path", gives_ids=True),
    "datatrove": KindSettings("path", ("eot",), gives_ids=True),
}
if TYPE_CHECKING:
    SourceKindName = str
else:
    SourceKindName = Literal[tuple(KIND_SETTINGS)]


class SourceConfig(Section):
    """Where the text comes from."""

    kind: SourceKindName = "stdlib"
    """`hf`: a dataset of the Hugging Face hub. `parquet`, `jsonl` (also .gz, .zst), `csv`, `text`: files. `function`: your own
    Python generator. `stdlib`: the sources and language reference of the running Python. `nanogpt`, `llmc` (.bin), `megatron`
    (.bin and .idx), `datatrove` (.ds): token files of another program; `packtrain import` finds their settings."""
    path: str | None = None
    """parquet, jsonl, csv, text, token files: a file, folder, glob pattern or fsspec URL. hf: a local copy of the repository's
    files."""
    repo: str | None = None
    """hf: the dataset repository, as `owner/name`."""
    config: str | None = None
    """hf: the configuration (subset) of the dataset, which is a folder of parquet files."""
    split: str = "train"
    """hf: the split of the configuration."""
    revision: str | None = None
    """hf: a commit, tag or branch; a commit pins the data."""
    text_column: str = "text"
    """parquet, jsonl, csv: the column or key with the text of a document. If there is none of that name, dots lead to nested
    fields, as in `content.text`."""
    id_column: str | None = None
    """hf, parquet, jsonl, csv: the column or key with the id of a document, which the dataset keeps. Unset: no ids."""
    filter: str | None = None
    """hf, parquet, jsonl, csv, function: which rows to use, for example `int_score >= 3 and lang in ["en", "de"]`. The others
    are dropped as `filter`. Compare a column with numbers, quoted texts, true or false by == != < <= > >=, in and not in; test
    it with `is null`; join tests with and, or, not and parentheses. Write a column whose name is not a plain word as
    `column("its name")`. As in SQL, a comparison with a missing value (in csv, an empty field) is neither true nor false, nor is
    its negation; a row is used only if the whole expression is true."""
    separator: Annotated[str, Field(min_length=1)] | None = None
    """text: the text between the documents of a file; \\n, \\t and \\f stand for line break, tab and form feed. A line break also
    matches CRLF. Unset: one document per file."""
    delimiter: Annotated[str, Field(min_length=1)] | None = None
    """csv: the character between fields, such as `;` or `|`; \\t stands for a tab. Unset: a tab in .tsv files, a comma in others."""
    quoting: Literal["minimal", "none"] | None = None
    """csv: `minimal`: a field that begins with a double quote ends at the next lone one, and may hold delimiters and line ends.
    `none`: a quote is a character like any other. Unset: `minimal`, except that a file is refused if its fields are separated by
    tabs and a quoted one holds line ends, but each of its lines would be a whole record under `none`."""
    function: str | None = None
    """function: a generator of strings or of {"text": ..., "id": ...}, as `my_file.py:documents`."""
    eot: NonNegativeInt | None = None
    """nanogpt, llmc, and datatrove without an index: the id between documents. Unset: each file is one document."""
    eot_position: Literal["end", "begin", "both"] = "end"
    """nanogpt, llmc, and datatrove without an index: whether `eot` ends a document, begins it, or both."""
    max_documents: PositiveInt | None = None
    """Read no more than this many records, for a first try. Blank lines and dropped documents count."""
    max_document_mb: Annotated[float, Field(gt=0.0)] = 32.0
    """All kinds but token files: the most megabytes (10^6 bytes) of a document, or of the record that it is in, which is held in
    memory. A larger record is unreadable (`too_large`); a larger text file without `separator` is refused."""
    max_bad_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.01
    """Largest share of unreadable rows (broken JSON, no text, too large). They are counted; a source with more of them is refused,
    by number or, from 16 KB on, by size. So is a source with a file of which more than half is unreadable, or more than a tenth if
    that is 10 rows or 16 KB, unless this share is larger. A null text in parquet is counted (`no_text`), but not unreadable."""

    @field_validator("separator", "delimiter")
    @classmethod
    def _read_escapes(cls, value: str | None) -> str | None:
        # A shell passes '\\n' as two characters.
        return value if value is None else value.replace("\\n", "\n").replace("\\t", "\t").replace("\\f", "\f")

    @field_validator("delimiter")
    @classmethod
    def _delimits(cls, value: str | None) -> str | None:
        if value is not None and (len(value) != 1 or value in '\r\n" ' or ord(value) > 127):
            raise ValueError(
                f"source.delimiter={value!r} is not one ASCII character other than a quote, space or line end; write "
                "source.delimiter=';' or '\\t', for example"
            )
        return value

    @field_validator("filter")
    @classmethod
    def _read_filter(cls, value: str | None) -> str | None:
        if value is not None:
            row_filter(value)
        return value

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> Self:
        needed = KIND_SETTINGS[self.kind].needs
        if needed is not None and getattr(self, needed) is None and not (self.kind == "hf" and self.path):
            raise ValueError(f"source.kind={self.kind} needs source.{needed}; write source.{needed}=...")
        for key in ("separator", "function", "id_column", "filter", "delimiter", "quoting", "eot"):
            kinds = [kind for kind, settings in KIND_SETTINGS.items() if key in settings.understands]
            if getattr(self, key) is not None and self.kind not in kinds:
                raise ValueError(
                    f"source.{key} has no effect with source.kind={self.kind}, only with {', '.join(kinds)}; leave it out"
                )
        return self

    @property
    def max_document_bytes(self) -> int:
        """The most bytes of a document."""
        return int(self.max_document_mb * 1_000_000)

    @property
    def gives_ids(self) -> bool:
        """Whether its documents are token ids that another program made, not text."""
        return KIND_SETTINGS[self.kind].gives_ids


class CleanConfig(FilterSettings):
    """What is done to each document before it is hashed and tokenized. Dropped documents are counted by reason."""

    normalize: Literal["NFC", "NFKC", "none"] = "NFC"
    """Unicode normalization form."""
    control_characters: bool = True
    """Replace control characters (category Cc) other than tabs and line breaks, so that no two words are joined: vertical
    tab, form feed, U+001C to U+001E and U+0085 become line breaks; others, such as NUL, become a space, or nothing next to
    whitespace. Invisible characters of other categories, such as soft hyphens, stay."""
    line_ends: bool = True
    """Replace CRLF and CR by LF."""
    whitespace: bool = True
    """Remove spaces and tabs at the ends of lines, shorten runs of blank lines to two, and trim the document. Indentation
    stays, except that of the first line."""
    fix_encoding: bool = False
    """Repair mojibake with ftfy (`pip install 'packtrain[ftfy]'`)."""
    min_chars: NonNegativeInt = 1
    """Drop shorter documents, as `too_short`."""
    max_chars: PositiveInt | None = None
    """Drop longer documents, as `too_long`. Unset: none are dropped."""


class DedupConfig(Section):
    """How copies of documents are dropped. The first in source order stays."""

    exact: bool = True
    """Drop a document if an earlier one has the same text, except for case and whitespace (128-bit hash)."""
    near: bool = False
    """Also drop near-duplicates of earlier documents, found by MinHash over word n-grams (`pip install 'packtrain[near]'`).
    Takes about 340 bytes of disk per document while it works."""
    near_threshold: Annotated[float, Field(gt=0.0, le=1.0)] = 0.75
    """Smallest estimated share of common word n-grams (Jaccard) of near-duplicates. FineWeb (arXiv 2406.17557) aims at
    0.75."""
    near_words: PositiveInt = 5
    """Words in an n-gram; 5 in FineWeb."""
    near_bands: Annotated[int, Field(ge=1, le=256)] = 14
    """Bands of a signature; documents are compared if they share a band. FineWeb uses 14 bands of 8 entries, which find 77%
    of pairs with 75% in common, 92% of pairs with 80%, and all but one in 2,500 with 90%."""
    near_band_rows: Annotated[int, Field(ge=1, le=64)] = 8
    """Entries in a band. A pair with a share j in common is found with probability 1 - (1 - j^rows)^bands."""

    @model_validator(mode="after")
    def _near_takes_effect(self) -> Self:
        if self.near and not self.exact:
            raise ValueError("dedup.near=true drops exact copies as well; write dedup.exact=true, or dedup.near=false")
        for key, field in type(self).model_fields.items():
            if key.startswith("near_") and not self.near and getattr(self, key) != field.default:
                raise ValueError(
                    f"dedup.{key} has no effect without dedup.near; write dedup.near=true, or leave it out"
                )
        return self


class TokenizerRecipe(Section):
    """Which tokenizer is used, and which tokens are put around each document."""

    name: str | None = None
    """A name on the hub, or a folder with a tokenizer.json."""
    revision: str | None = None
    """A commit, tag or branch of a tokenizer on the hub."""
    vocab_size: PositiveInt | None = None
    """Train a byte-level BPE of this size on the source, instead of using a tokenizer by name. A small source may give a
    smaller one."""
    backend: Literal["auto", "tokenizers", "fast"] = "auto"
    """Library that encodes. `fast`: fastokens (`pip install 'packtrain[fast]'`), which is several times faster. The dataset is
    the same byte for byte: both libraries encode a sample of each slice, and if any id differs `tokenizers` encodes the slice.
    `auto`: fastokens, if it is installed and reads the tokenizer."""
    allow_loss: bool = False
    """Continue if text does not come back from its ids as it was, and count the lost bytes in the ledger. By default, such a
    tokenizer is refused. Of Llama-2 and its kind, one loss is never refused, only counted: `▁`, which comes back as a space."""
    bos: bool = True
    """Put the begin-of-text token before every document."""
    eos: bool = True
    """Put the end-of-text token after every document."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.name is None) == (self.vocab_size is None):
            raise ValueError(
                "a recipe needs either tokenizer.name (a hub name or folder) or tokenizer.vocab_size (to train one), and this has "
                + ("both; leave one out" if self.name else "neither; write one of them")
            )
        return self


# The kinds of source for which a way of splitting has a meaning; the others have one for all kinds.
_SPLIT_KINDS = {
    "files": tuple(kind for kind in KIND_SETTINGS if kind != "function"),
    "column": ("hf", "parquet", "jsonl", "csv", "function"),
    "hub": ("hf",),
}


class Recipe(Section):
    """How a dataset is prepared. A recipe is this class as TOML, with only the values that differ from the defaults."""

    source: SourceConfig
    clean: CleanConfig = CleanConfig()
    dedup: DedupConfig = DedupConfig()
    tokenizer: TokenizerRecipe
    split: SplitConfig = SplitConfig()
    prepare: PrepareConfig = PrepareConfig()

    @model_validator(mode="after")
    def _splits_what_the_source_has(self) -> Self:
        kinds = _SPLIT_KINDS.get(self.split.by, (self.source.kind,))
        if self.source.kind not in kinds:
            raise ValueError(
                f"split.by={self.split.by} has no meaning for source.kind={self.source.kind}, only for {', '.join(kinds)}; write "
                "split.by=content, or split.by=tail for the end of the text"
            )
        return self

    @model_validator(mode="after")
    def _fits_a_source_of_ids(self) -> Self:
        if not self.source.gives_ids:
            return self
        if self.clean != CleanConfig():
            raise ValueError(
                f"clean.* has no effect with source.kind={self.source.kind}, whose ids are kept as they are; leave it out"
            )
        if self.tokenizer.backend == "fast":
            raise ValueError(
                f"tokenizer.backend={self.tokenizer.backend} has no effect with source.kind={self.source.kind}, whose text is "
                "already tokenized; leave it out"
            )
        if self.tokenizer.allow_loss:
            raise ValueError(
                f"tokenizer.allow_loss has no effect with source.kind={self.source.kind}, whose ids are kept as they are; leave it out"
            )
        if self.tokenizer.name is None:
            raise ValueError(
                f"source.kind={self.source.kind} needs the tokenizer that made the ids; write tokenizer.name=..."
            )
        return self
