"""Whether a split of a hub repository is the files that the `datasets` library reads for it, whatever its card says."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.command_line import prepare

from packtrain.config.recipe import SourceConfig
from packtrain.errors import SourceError
from packtrain.prepare.sources.cards import find_splits, read_card, take_split
from packtrain.prepare.sources.hub import find_dataset_files

# Each line: the files of a repository, the front matter of its README.md, a configuration, and the splits that
# `load_dataset_builder(folder, name=config).config.data_files` of datasets 5.2.0 gave, or null where it raised an error.
LAYOUTS = [json.loads(line) for line in (Path(__file__).parent / "hub_layouts.jsonl").read_text().splitlines()]


def select(names: list[str], card: Any, config: str | None, split: str) -> list[str]:
    return take_split(find_splits(names, card, config, split), split)


def repository(folder: Path, names: list[str], card: str | None = None) -> Path:
    """A folder whose every parquet file has one document, its own name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet"):
            pq.write_table(pa.table({"text": [f"the document of {name}"]}), path)
        else:
            path.write_text("{}")
    if card is not None:
        (folder / "README.md").write_text(f"---\n{card}\n---\nSome words.\n")
    return folder


def found(path: Path | str, split: str = "train", config: str | None = None) -> list[str]:
    source = SourceConfig(kind="hf", path=str(path), split=split, config=config)
    files, commit = find_dataset_files(source)
    assert commit is None
    return [file.name for file in files]


def test_each_split_is_as_datasets_gives_it() -> None:
    same = 0
    for layout in LAYOUTS:
        splits = layout["splits"] or {}
        for split in {"train", "validation", "test", *splits}:
            try:
                ours = select(layout["files"], yaml.safe_load(layout["card"] or "{}") or {}, layout["config"], split)
            except SourceError:
                assert not splits.get(split), layout
                continue
            # Where datasets refuses a repository for its other files or splits, this one may still be clear.
            assert split not in splits or ours == sorted(set(splits[split])), layout
            same += split in splits
    assert same > 150


def test_what_is_refused_although_datasets_reads_it() -> None:
    twice = "configs: [{config_name: a, data_files: web/*}, {config_name: a, data_files: books/*}]"
    with pytest.raises(SourceError, match="two configurations are called 'a'"):
        select(["web/a.parquet", "books/a.parquet"], yaml.safe_load(twice), "a", "train")
    mixed = {"configs": [{"config_name": "a", "data_files": "*"}]}
    with pytest.raises(SourceError, match=r"1 parquet files and 1 of other formats \(b\.jsonl\)"):
        select(["a.parquet", "b.jsonl"], mixed, None, "train")


@pytest.mark.parametrize(
    ("card", "sentence"),
    [
        ("pretty_name: My: dataset: x", "is not YAML"),
        ("configs: [unclosed", "is not YAML"),
        ("a: &a [*a]\nb: !!python/object:os.system {}", "is not YAML"),
        ("{[1]: 2}: 3", "is not YAML"),
        ("x: 2001-99-99", "is not YAML"),
        ("[" * 3000, "is not YAML"),
        ("- a\n- b", "is a list; write a mapping"),
        ("just words", "is a text; write a mapping"),
        ("configs: default", "`configs` is a text"),
        ("configs: {default: x}", "`configs` is a mapping"),
        ("configs: [default]", "`configs` is a list; write a list of mappings"),
        ("configs: [{data_files: '*'}]", "a config_name is missing"),
        ("configs: [{config_name: 2020, data_files: '*'}]", "a config_name is a number; write each as a text, a number in quotes"),
        ("configs: [{config_name: a, data_files: {train: a.parquet}}]", "`data_files` holds a mapping"),
        ("configs: [{config_name: a, data_files: [{split: train, path: 3}]}]", "`data_files` holds a number"),
        ("configs: [{config_name: a, data_files: [{split: train, path: a, more: 1}]}]", "`data_files` holds a mapping"),
        ("configs: [{config_name: a, data_files: nothing/*}]", r"the pattern nothing/\*, which matches no file"),
        ("configs: [{config_name: a, data_files: [web/*, b.parquet]}]", r"the file 'b\.parquet', which is not there"),
        ("configs: [{config_name: a, data_files: '**.parquet'}]", r"write \*\* only between slashes"),
        ("configs: [{config_name: a, data_files: 'https://example.com/a.parquet'}]", "outside of the repository"),
        ("configs: [{config_name: a, data_files: ../a.parquet}]", "outside of the repository"),
        ("configs: [{config_name: a, data_dir: /etc}]", "`data_dir` names '/etc', which is outside"),
        ("configs: [{config_name: a, data_dir: [web]}]", "`data_dir` is a list"),
        ("configs: [{config_name: a, data_dir: nothing}]", "names the folder nothing/, which has no data"),
        ("configs: [{config_name: a, filters: [[x, '>', 3]]}]", r"with `filters`, which is not read; write source\.filter="),
        ("configs: [{config_name: a}, {config_name: b}]", "has no default configuration; write source.config= with one of a, b"),
        ("configs: [{config_name: a, default: true}, {config_name: default}]", "has several default configurations"),
        ("configs: [{config_name: a, data_files: [{split: test, path: '**'}]}]", "no split 'train'; .* one of test"),
    ],
)  # fmt: skip
def test_a_card_that_cannot_be_followed_is_a_sentence(tmp_path: Path, card: str, sentence: str) -> None:
    with pytest.raises(SourceError, match=sentence):
        found(repository(tmp_path, ["web/a.parquet", "books/a.parquet"], card))


def test_a_card_that_cannot_be_followed_ends_with_2(tmp_path: Path) -> None:
    done = prepare("hf", repository(tmp_path / "in", ["a.parquet"], "configs: default"), tmp_path / "out")
    assert done.code == 2
    assert "README.md" in done.sentence


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=5)
    | st.sampled_from(["**", "a/*", "a", "train", "../x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["configs", "config_name", "data_files", "data_dir", "split", "path", "default", "x"]),
            inner,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(JSON, st.lists(JSON, max_size=2))
def test_any_card_gives_files_or_a_sentence(card: Any, configs: list[Any]) -> None:
    names = ["a/train-0.parquet", "a/test-0.parquet", "README.md", "b.jsonl"]
    configs = [{"config_name": "a", **entry} if isinstance(entry, dict) else entry for entry in configs]
    for value in (card, {"configs": configs}):
        try:
            assert set(select(names, value, None, "train")) <= set(names[:2])
        except SourceError as error:
            assert len(str(error)) < 1000
        try:
            assert all(isinstance(name, str) for name in read_card(value))
        except SourceError:
            continue


def test_a_folder_named_by_the_card(tmp_path: Path) -> None:
    card = "configs: [{config_name: default, data_dir: web}, {config_name: books, data_dir: books}]"
    folder = repository(tmp_path, ["web/a.parquet", "web/b.parquet", "books/c.parquet"], card)
    assert found(folder) == ["a.parquet", "b.parquet"]
    assert found(folder, config="books") == ["c.parquet"]
    (folder / "README.md").write_text(
        "---\nconfigs: [{config_name: x, data_dir: ./web/, data_files: a.parquet}]\n---\n"
    )
    assert found(folder) == ["a.parquet"]
    # As in `datasets`, this file's keys come before those of the card.
    (folder / ".huggingface.yaml").write_text("configs: [{config_name: x, data_dir: books}]")
    assert found(folder) == ["c.parquet"]


def test_two_splits_never_share_a_name(tmp_path: Path) -> None:
    folder = repository(tmp_path / "a", ["data/train/0.parquet", "data/validation/0.parquet"])
    assert (found(folder), found(folder, "validation")) == (["train/0.parquet"], ["validation/0.parquet"])
    with pytest.raises(SourceError, match=r"no split 'test'; .* one of train, validation"):
        found(folder, "test")
    # A split alone has the names that it always had, whatever else is there.
    alone = ["data/train/0.parquet", "data/train/1.parquet", "train/stats.json"]
    assert found(repository(tmp_path / "b", alone)) == [
        "0.parquet",
        "1.parquet",
    ]


def test_a_path_of_files_means_all_of_them_as_train(tmp_path: Path) -> None:
    folder = repository(tmp_path, ["train-0.parquet", "test-0.parquet", "other.parquet"])
    assert found(f"{folder}/*.parquet") == ["other.parquet", "test-0.parquet", "train-0.parquet"]
    assert found(f"{folder}/*.parquet", "test") == ["test-0.parquet"]
    with pytest.raises(SourceError, match="named after the split 'validation'"):
        found(f"{folder}/*.parquet", "validation")


def test_a_copy_of_the_folder_data(tmp_path: Path) -> None:
    names = ["train_sft-00000-of-00001.parquet", "test_sft-00000-of-00001.parquet"]
    assert found(repository(tmp_path, names), "test_sft") == ["test_sft-00000-of-00001.parquet"]


@pytest.mark.parametrize("others", [["a.jsonl", "b.csv"], ["a.jsonl"]])
def test_other_formats_are_named(tmp_path: Path, others: list[str]) -> None:
    with pytest.raises(SourceError, match=r"0 parquet files and \d of other formats \(a\.jsonl.*only parquet is read"):
        found(repository(tmp_path, others))
