"""Decides what can be set about preparing a dataset: the source, cleaning, deduplication, tokenizer and split."""

from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, Self

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from packtrain.config.base import Section
from packtrain.config.expression import row_filter
from packtrain.config.filters import FilterSettings


class KindSettings(NamedTuple):
    """The setting of `source` that a kind of source needs, and the settings that only some kinds understand."""

    needs: str | None
    understands: tuple[str, ...] = ()
    gives_ids: bool = False
    """Its documents are token ids that another program made, not text."""


# How each kind is found, scanned and read stands in prepare/sources/documents.py, under the same names.
KIND_SETTINGS: dict[str, KindSettings] = {
    "hf": KindSettings("repo", ("id_column", "filter")),
    "parquet": KindSettings("path", ("id_column", "filter")),
    "jsonl": KindSettings("path", ("id_column", "filter")),
    "csv": KindSettings("path", ("id_column", "filter")),
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
    """hf: a dataset of the Hugging Face hub. parquet, jsonl (also .gz, .zst), csv, text: files. function: your own Python
    generator. stdlib: the sources and language reference of the running Python. nanogpt, llmc (.bin), megatron (.bin and .idx),
    datatrove (.ds): ids that another program made; `packtrain import` finds out the settings for them."""
    path: str | None = None
    """File, folder, glob pattern or fsspec URL (parquet, jsonl, csv, text, files of ids). With `hf`: a local copy of the
    repository's files."""
    repo: str | None = None
    """hf: dataset repository, as `owner/name`."""
    config: str | None = None
    """hf: configuration (subset) of the repository, a folder of parquet files."""
    split: str = "train"
    """hf: split of the configuration."""
    revision: str | None = None
    """hf: commit, tag or branch; a commit pins the data."""
    text_column: str = "text"
    """parquet, jsonl, csv: the column or key that holds the document."""
    id_column: str | None = None
    """The column or key that names a document; kept beside it. Unset: none."""
    filter: str | None = None
    """hf, parquet, jsonl, csv, function: rows to take, for example `int_score >= 3 and lang in ["en", "de"]`; others are
    dropped as `filter`. It may compare a column (one that is no plain name as `column("its name")`) with numbers, quoted texts,
    true and false by == != < <= > >=, in, not in; ask `is null`; and join these by and, or, not, and parentheses. As in SQL, a
    comparison with a missing value (in csv an empty field) is neither true nor false, nor is its negation; a row is taken
    only where the whole is true."""
    separator: Annotated[str, Field(min_length=1)] | None = None
    """text: splits a file into documents; \\n and \\t stand for line end and tab. Unset: a document per file."""
    function: str | None = None
    """function: `my_file.py:documents`, a generator of strings or of {"text": ..., "id": ...}."""
    eot: NonNegativeInt | None = None
    """nanogpt, llmc (datatrove without an index): the id that stands between documents. Unset: each file is a document."""
    eot_position: Literal["end", "begin", "both"] = "end"
    """nanogpt, llmc: whether `eot` ends a document, begins one, or does both."""
    max_documents: PositiveInt | None = None
    """Stop after this many documents; for a first try."""
    max_bad_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = 0.01
    """Share of unreadable rows (broken JSON, no text) above which a source is refused; below, they are counted."""

    @field_validator("separator")
    @classmethod
    def _read_escapes(cls, value: str | None) -> str | None:
        # A shell hands over '\\n' as two characters.
        return value if value is None else value.replace("\\n", "\n").replace("\\t", "\t")

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
        for key in ("separator", "function", "id_column", "filter", "eot"):
            kinds = [kind for kind, settings in KIND_SETTINGS.items() if key in settings.understands]
            if getattr(self, key) is not None and self.kind not in kinds:
                raise ValueError(
                    f"source.{key} means nothing to source.kind={self.kind}, only to {', '.join(kinds)}; leave it out"
                )
        return self

    @property
    def gives_ids(self) -> bool:
        """Whether its documents are token ids that another program made, not text."""
        return KIND_SETTINGS[self.kind].gives_ids


class CleanConfig(FilterSettings):
    """What is done to every document before it is hashed and tokenized; each dropped one is counted under its reason."""

    normalize: Literal["NFC", "NFKC", "none"] = "NFC"
    """Unicode normalisation form."""
    control_characters: bool = True
    """Remove control characters other than tab and line end."""
    line_ends: bool = True
    """Write CRLF and CR as LF."""
    whitespace: bool = True
    """Cut spaces at line ends, shorten runs of blank lines to two, trim the document. Indentation stays."""
    fix_encoding: bool = False
    """Repair mojibake with ftfy (`pip install 'packtrain[ftfy]'`)."""
    min_chars: NonNegativeInt = 1
    """Shorter documents are dropped as `too_short`."""
    max_chars: PositiveInt | None = None
    """Longer documents are dropped as `too_long`. Unset: none is."""


class DedupConfig(Section):
    """Removal of repeated documents; the first in source order stays."""

    exact: bool = True
    """Drop a document whose normalised text (case and whitespace folded) was seen before (128-bit hash)."""
    near: bool = False
    """Drop also a document that is nearly one before it, by MinHash over word n-grams (`pip install 'packtrain[near]'`). Takes
    some 340 bytes of disk for each document while it works."""
    near_threshold: Annotated[float, Field(gt=0.0, le=1.0)] = 0.75
    """Estimated share of word n-grams in common (Jaccard) from which two documents count as nearly equal. 0.75 is what
    FineWeb (arXiv 2406.17557) aims at."""
    near_words: PositiveInt = 5
    """Words in an n-gram. 5 as in FineWeb."""
    near_bands: Annotated[int, Field(ge=1, le=256)] = 14
    """Bands of a signature; documents are compared if one band is equal. 14 of 8 entries as in FineWeb: of pairs with 75 % in
    common 77 % are found, of those with 80 % 92 %, with 90 % all but one in 2,500."""
    near_band_rows: Annotated[int, Field(ge=1, le=64)] = 8
    """Entries of a band. A pair with a share j in common is found with probability 1 - (1 - j^rows)^bands."""

    @model_validator(mode="after")
    def _near_takes_effect(self) -> Self:
        if self.near and not self.exact:
            raise ValueError("dedup.near=true drops exact copies as well; write dedup.exact=true, or dedup.near=false")
        for key, field in type(self).model_fields.items():
            if key.startswith("near_") and not self.near and getattr(self, key) != field.default:
                raise ValueError(
                    f"dedup.{key} means nothing without dedup.near; write dedup.near=true, or leave it out"
                )
        return self


class TokenizerRecipe(Section):
    """Which tokenizer, and what is put around each document."""

    name: str | None = None
    """Hub name, or folder with a tokenizer.json."""
    revision: str | None = None
    """Commit, tag or branch of a hub tokenizer."""
    vocab_size: PositiveInt | None = None
    """Train a byte-level BPE of this size on the source instead."""
    backend: Literal["tokenizers", "fast"] = "tokenizers"
    """Library that encodes. fast: fastokens (`pip install 'packtrain[fast]'`), several times as fast. The dataset is the same
    byte for byte: a sample of every slice is encoded by both, and a slice in which any id differs is done by tokenizers."""
    bos: bool = True
    """Put the begin-of-text token before every document."""
    eos: bool = True
    """Put the end-of-text token after every document."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.name is None) == (self.vocab_size is None):
            raise ValueError(
                "a recipe needs either tokenizer.name (a hub name or folder) or tokenizer.vocab_size (train one), not "
                + ("both" if self.name else "neither")
            )
        return self


class SplitConfig(Section):
    """Which documents are held out, decided by content, so that copies are on one side."""

    by: Literal["content", "files"] = "content"
    """content: by a hash of the text. files: those named val, validation, dev, eval or test, or in a folder named so, are held
    out; documents that are in training as well are then counted, and dropped if `dedup.exact` is set."""
    validation_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Share of documents that goes to validation."""
    salt: str = "packtrain"
    """Another salt gives another split."""


class PrepareConfig(Section):
    """How the work is spread; none of this changes a byte of the result but slice_documents."""

    workers: PositiveInt | None = None
    """Processes. Unset: one per core."""
    executor: Literal["local", "ray"] = "local"
    """Where slices run. local: processes of this machine. ray: tasks of a Ray cluster (`pip install 'packtrain[ray]'`), whose
    nodes must see source and dataset under the same names: a shared file system, or fsspec URLs."""
    ray_address: str | None = None
    """Ray cluster to use: `auto`, or HOST:PORT. Unset: one is started here, and ends with the work."""
    disk_check: bool = True
    """Stop before a local disk would be full: when what is still to be written, as estimated from what was so far, is more than
    is free."""
    slice_documents: PositiveInt = 65_536
    """Documents in a slice at most: the unit of parallel work, of recovery, and the shard that is written. The
    first gigabytes of a source are cut finer."""

    @model_validator(mode="after")
    def _address_has_an_effect(self) -> Self:
        if self.ray_address is not None and self.executor != "ray":
            raise ValueError(
                "prepare.ray_address means nothing without Ray; write prepare.executor=ray, or leave it out"
            )
        return self


class Recipe(Section):
    """How a dataset is prepared. A recipe file is this, written as TOML, with only what differs from the defaults."""

    source: SourceConfig
    clean: CleanConfig = CleanConfig()
    dedup: DedupConfig = DedupConfig()
    tokenizer: TokenizerRecipe
    split: SplitConfig = SplitConfig()
    prepare: PrepareConfig = PrepareConfig()

    @model_validator(mode="after")
    def _fits_a_source_of_ids(self) -> Self:
        if not self.source.gives_ids:
            if self.split.by == "files":
                kinds = [kind for kind, settings in KIND_SETTINGS.items() if settings.gives_ids]
                raise ValueError(f"split.by=files is for sources of ids ({', '.join(kinds)}); leave it out")
            return self
        if self.clean != CleanConfig():
            raise ValueError(
                f"clean.* means nothing to source.kind={self.source.kind}, whose ids are kept as they are; leave it out"
            )
        if self.tokenizer.backend != "tokenizers":
            raise ValueError(
                f"tokenizer.backend={self.tokenizer.backend} means nothing to source.kind={self.source.kind}, whose ids are "
                "there; leave it out"
            )
        if self.tokenizer.name is None:
            raise ValueError(
                f"source.kind={self.source.kind} needs the tokenizer that made the ids; write tokenizer.name=..."
            )
        return self
