"""Decides whether a dataset is still what its manifest says, and whether its source still gives the same bytes."""

import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from packtrain.config.recipe import Recipe
from packtrain.data.format.account import find_imbalance
from packtrain.data.format.content import compare_hash
from packtrain.data.format.manifest import SPLITS, SUFFIXES, Manifest, ShardInfo, SplitName
from packtrain.data.format.shards import Dataset, open_dataset, refuse_shard
from packtrain.data.tokens.tokenizer import load_tokenizer
from packtrain.errors import DatasetError
from packtrain.prepare.sources.documents import plan_slices, read_rows
from packtrain.prepare.sources.slices import Slice, Slicing
from packtrain.prepare.steps.encode import tokenize_slice
from packtrain.prepare.steps.job import hash_inputs
from packtrain.prepare.steps.results import TOKENS, Results, tokenizer_path
from packtrain.prepare.steps.scan import read_scan, scan_slice, write_keep
from packtrain.prepare.steps.sides import Cut, write_cut
from packtrain.prepare.steps.wrong_sides import count_leaked, find_side_problem, read_recipe, split_config
from packtrain.storage.store import LocalStore

_CHUNK = 1 << 22


@dataclass(frozen=True)
class Verified:
    """What was checked: shards, documents, tokens and bytes, and the slices that were made again.

    `split_by` is that of the recipe: if "content", every document is on the side that its content hash says.
    `leaked_documents` counts validation documents with an equal one in training, as the ledger does.
    """

    shards: int
    documents: int
    tokens: int
    bytes_read: int
    split_by: str
    leaked_documents: int
    rebuilt: tuple[str, ...]


def verify(
    folder: Path,
    *,
    rebuild: int = 0,
    source_path: str | None = None,
    seed: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Verified:
    """Read every file of a dataset, and compare hashes, indexes, ids and document borders with the manifest.

    `rebuild` is a number of random slices, drawn with `seed`, to make again from the source and compare byte by byte;
    `source_path` says where the source has moved. `on_progress` gets bytes read and bytes in all. Raises DatasetError that
    names the first wrong shard, and says why.
    """
    dataset = open_dataset(folder)
    manifest = dataset.manifest
    _check_ledger(folder, manifest)
    every = [(name, shard) for name in SPLITS for shard in manifest.splits.get(name, ())]
    total = sum(info.size for _, shard in every for info in shard.files.values())
    done = 0
    for name, shard in every:
        problem = _find_content_problem(dataset, name, shard) or find_side_problem(dataset, name, shard)
        if problem is not None:
            raise refuse_shard(folder, name, shard, problem)
        done += sum(info.size for info in shard.files.values())
        if on_progress is not None:
            on_progress(done, total)
    leaked = count_leaked(dataset)
    if leaked != manifest.ledger.get("leaked_documents", 0):
        raise DatasetError(
            f"{folder}: {leaked} validation documents are in training too, but the ledger says "
            f"{manifest.ledger.get('leaked_documents', 0)}; prepare the dataset again"
        )
    rebuilt = _rebuild(dataset, rebuild, source_path, seed) if rebuild else ()
    return Verified(
        shards=len(every),
        documents=sum(shard.documents for _, shard in every),
        tokens=sum(shard.tokens for _, shard in every),
        bytes_read=total,
        split_by=split_config(manifest).by,
        leaked_documents=leaked,
        rebuilt=rebuilt,
    )


def _find_content_problem(dataset: Dataset, name: SplitName, shard: ShardInfo) -> str | None:
    for suffix in SUFFIXES:
        compare_hash(dataset, name, shard, suffix)
    split, manifest = dataset.split(name), dataset.manifest
    number = split.shards.index(shard)
    begin = sum(before.tokens for before in split.shards[:number])
    ids, ends = split.read(begin, begin + shard.tokens), split.shard_ends(number)
    starts = np.concatenate([[0], ends[:-1]])
    tokenizer = manifest.tokenizer
    least = tokenizer.adds_bos + tokenizer.adds_eos
    if (ends - starts < least).any():
        return f"document {int(np.argmax(ends - starts < least))} of its index has no room for BOS and EOS"
    if tokenizer.adds_bos and (ids[starts] != tokenizer.bos_id).any():
        return f"document {int(np.argmax(ids[starts] != tokenizer.bos_id))} does not begin with BOS"
    if tokenizer.adds_eos and (ids[ends - 1] != tokenizer.eos_id).any():
        return f"document {int(np.argmax(ids[ends - 1] != tokenizer.eos_id))} does not end with EOS"
    largest = max((int(ids[i : i + _CHUNK].max()) for i in range(0, len(ids), _CHUNK)), default=0)
    if largest != shard.max_id:
        return f"its largest id is {largest}, the manifest says {shard.max_id}"
    # Raises DatasetError unless it names a source for each of the documents.
    split.sources_of_shard(number, ["hash"])
    return None


def _check_ledger(folder: Path, manifest: Manifest) -> None:
    """Raise DatasetError unless the ledger balances and the shards hold what it says."""
    problem = find_imbalance(manifest.ledger)
    for unit in ("documents", "tokens", "utf8_bytes"):
        for name in SPLITS:
            counted = manifest.ledger[unit][name]
            found = sum(getattr(shard, unit) for shard in manifest.splits.get(name, ()))
            if problem is None and counted != found:
                problem = f"it says {counted} {unit} of {name}, the shards have {found}"
    kept = sum(manifest.ledger["documents"][name] for name in SPLITS)
    if problem is None and sum(manifest.length_histogram.values()) != kept:
        problem = f"the length histogram has {sum(manifest.length_histogram.values())} documents of {kept}"
    if problem is not None:
        raise DatasetError(f"{folder}: the ledger does not balance: {problem}; prepare the dataset again")


def _rebuild(dataset: Dataset, count: int, source_path: str | None, seed: int | None) -> tuple[str, ...]:
    recipe: Recipe = read_recipe(Recipe, dataset.manifest.recipe)
    # The judge, not the library that is fast.
    recipe = recipe.model_copy(update={"tokenizer": recipe.tokenizer.model_copy(update={"backend": "tokenizers"})})
    if source_path is not None:
        recipe = recipe.model_copy(update={"source": recipe.source.model_copy(update={"path": source_path})})
    tokenizer = load_tokenizer(dataset.tokenizer_folder)
    with tempfile.TemporaryDirectory(prefix="packtrain-verify-") as temporary:
        decodes = tokenizer.hash if recipe.source.gives_ids else None
        results = Results(recipe, LocalStore(Path(temporary)), tokenizer_hash=decodes)
        tokenizer.save(results.store.folder(tokenizer_path(tokenizer.hash)))
        slicing = plan_slices(recipe, results.store)
        if hash_inputs(recipe, slicing, tokenizer if recipe.tokenizer.name else None) != dataset.manifest.inputs_hash:
            raise DatasetError(
                f"{dataset.folder}: its source has other content now than when it was prepared, so no slice can be compared; "
                "put the original files back, name them with --source, or leave --rebuild out"
            )
        chosen = sorted(
            random.Random(seed).sample(slicing.slices, min(count, len(slicing.slices))), key=lambda s: s.number
        )
        if recipe.split.by == "tail":
            write_cut(results, _find_cut(dataset, results, slicing))
        for piece in chosen:
            _rebuild_slice(dataset, results, piece)
    return tuple(piece.describe() for piece in chosen)


def _rebuild_slice(dataset: Dataset, results: Results, piece: Slice) -> None:
    scan_slice(results, piece, attempt=1)
    scan = read_scan(results, piece)
    kept = _read_kept_rows(dataset, piece)
    rows = [(row.file, row.row) for row in read_rows(piece, results.recipe.source)]
    keep = np.fromiter((row in kept for row in rows), dtype=np.bool_, count=len(rows))
    unclean = keep & (scan["reason"] != 0)
    if unclean.any() or int(keep.sum()) != len(kept):
        raise DatasetError(
            f"{dataset.folder}: {piece.describe()} holds documents that its source does not give; prepare the dataset again"
        )
    left_out = scan["content"][~keep & (scan["reason"] == 0)]
    missing = _count_missing(dataset, left_out)
    # Near copies are in no shard, and only a pass over the whole source would tell which these are.
    counted = dataset.manifest.ledger["documents"]
    if missing > counted["near_duplicates"] + counted.get("in_validation", 0):
        raise DatasetError(
            f"{dataset.folder}: {missing} documents of {piece.describe()} are in no shard, though none is a copy "
            "of another; prepare the dataset again"
        )
    write_keep(results, piece, keep)
    tokenizer_hash = dataset.manifest.tokenizer.hash
    tokenize_slice(results, piece, tokenizer_hash, attempt=1)
    key = results.tokens_key(piece, keep, tokenizer_hash)
    for name in SPLITS:
        for suffix in SUFFIXES:
            made = results.store.folder(TOKENS) / f"{key}.{name}.{suffix}"
            known = dataset.folder / name / f"{piece.name}.{suffix}"
            if made.exists() != known.exists() or (made.exists() and not _has_equal_content(made, known)):
                raise DatasetError(
                    f"{dataset.folder}: {name}/{known.name} is not what the source gives now ({piece.describe()}); prepare it "
                    "again, with the package versions that made it if nothing else changed"
                )


def _find_cut(dataset: Dataset, results: Results, slicing: Slicing) -> Cut:
    """Where split.by=tail cut the text: in the document that the ledger names, or before the first validation document."""
    known = dataset.manifest.ledger.get("cut_document")
    shards = dataset.split("validation").shards
    if known is None and not shards:
        return Cut(len(slicing.slices), 0)
    source = known
    if source is None:
        (source,) = dataset.split("validation").sources_of_shard(0, ["file", "row"]).slice(0, 1).to_pylist()
    for piece in slicing.slices:
        if not any(p.file == source["file"] and 0 <= source["row"] - p.first_row < p.rows for p in piece.parts):
            continue
        rows = [(row.file, row.row) for row in read_rows(piece, results.recipe.source)]
        place = (source["file"], source["row"])
        if place in rows:
            keeps_first = known is not None and place in _read_kept_rows(dataset, piece, ("train",))
            return Cut(piece.number, rows.index(place), known["at"] if known else 0, keeps_first=keeps_first)
    raise DatasetError(
        f"{dataset.folder}: the source has no {source['file']} row {source['row']}, where the text is cut; prepare the "
        "dataset again"
    )


def _read_kept_rows(dataset: Dataset, piece: Slice, sides: Sequence[SplitName] = SPLITS) -> set[tuple[str, int]]:
    kept: set[tuple[str, int]] = set()
    for path in (dataset.folder / name / f"{piece.name}.src.parquet" for name in sides):
        if path.exists():
            table = pq.read_table(path, columns=["file", "row"])
            kept.update(zip(table["file"].to_pylist(), table["row"].to_pylist(), strict=True))
    return kept


def _count_missing(dataset: Dataset, contents: np.ndarray) -> int:
    """How many of these content hashes are in no shard."""
    wanted = {row.tobytes() for row in contents}
    for name in SPLITS:
        for shard in dataset.manifest.splits.get(name, ()):
            if not wanted:
                return 0
            table = pq.read_table(dataset.folder / name / f"{shard.name}.src.parquet", columns=["hash"])
            wanted.difference_update(table["hash"].to_pylist())
    return len(wanted)


def _has_equal_content(made: Path, known: Path) -> bool:
    if made.read_bytes() == known.read_bytes():
        return True
    # Another version of pyarrow may write the same table in other bytes.
    if known.suffix != ".parquet":
        return False
    tables: list[pa.Table] = [pq.read_table(path) for path in (made, known)]
    return bool(tables[0].equals(tables[1]))
