"""A manifest of nonsense whose checksum fits is refused or read, by every command, and never ends in a traceback."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.corpora import write_sealed
from typer.testing import CliRunner

from packtrain.cli.diff import diff
from packtrain.cli.export import export
from packtrain.cli.inspect import inspect
from packtrain.cli.report import report
from packtrain.cli.verify import verify
from packtrain.errors import PacktrainError

app = typer.Typer(pretty_exceptions_enable=False)
for command in (diff, export, inspect, report, verify):
    app.command(command.__name__)(command)

NASTY = ("", "in", "[/b]", "\x1b[31m", "\u202e", "../x", "-1", "1e999", "٣", "\0", "a" * 5_000)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, -1, 2**31, 2**63 - 1, 2**63, 10**400, 0.5, -1.5, 1e308]),
    st.sampled_from(NASTY),
    st.integers(-3, 10_000),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*NASTY, "train", "documents"]), inner, max_size=3)
    ),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def copy(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose manifest each example writes again."""
    return Path(shutil.copytree(tiny_dataset, tmp_path_factory.mktemp("nonsense") / "copy"))


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    for key in tree if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from places(tree[key])


@settings(max_examples=settings().max_examples * 5 // 8, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
@pytest.mark.slow
def test_nonsense_ends_in_a_sentence(copy: Path, tiny_dataset: Path, data: st.DataObject) -> None:
    tree = json.loads((tiny_dataset / "manifest.json").read_text())
    part = data.draw(
        st.sampled_from(["ledger", "ledger", "splits", "recipe", "tokenizer", "length_histogram", "created_by", ""])
    )
    for _ in range(data.draw(st.integers(1, 3))):
        inner = tree[part] if part else tree
        found = list(places(inner)) if isinstance(inner, dict | list) else []
        holder, key = data.draw(st.sampled_from([*([(tree, part)] if part else []), *found]))
        how = data.draw(st.sampled_from(["replace", "add", "remove"]))
        if how == "remove" and not (holder is tree and key == part):
            del holder[key]
        elif how == "add" and isinstance(holder[key], dict):
            holder[key][data.draw(st.sampled_from([*NASTY, "near_duplicates"]))] = data.draw(VALUES)
        else:
            holder[key] = data.draw(VALUES)
        if part and not isinstance(tree[part], dict | list):
            break
    write_sealed(copy / "manifest.json", tree)
    shutil.rmtree(copy.parent / "out", ignore_errors=True)
    for words in (
        ["verify", copy],
        ["diff", tiny_dataset, copy],
        ["inspect", copy],
        ["inspect", copy, "--step", "1"],
        ["inspect", copy, "--document", "train/0", "--json"],
        ["report", copy, "--out", copy.parent / "page.html"],
        ["export", copy, "--format", "megatron", "--out", copy.parent / "out"],
    ):
        result = CliRunner().invoke(app, [*map(str, words), *(["data.seq_len=64"] if words[0] == "inspect" else [])])
        assert "\x1b[31m" not in result.output and "\u202e" not in result.output
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            with contextlib.suppress(PacktrainError):
                raise result.exception
            assert "\n" not in str(result.exception)
