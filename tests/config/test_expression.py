"""A row filter passes the rows that SQL and Arrow would, and says of anything else what it cannot read."""

from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packtrain.config.expression import MismatchError, RowFilter


@pytest.mark.parametrize(
    ("text", "row", "kept"),
    [
        ("int_score >= 3", {"int_score": 3}, True),
        ("int_score >= 3", {"int_score": 2}, False),
        ("3 <= int_score", {"int_score": 3.5}, True),
        ("2 <= score < 4", {"score": 4}, False),
        ("2 <= score < 4", {"score": 2}, True),
        ("score > -1.5", {"score": Decimal("-1.4")}, True),
        ("lang == 'en'", {"lang": "en"}, True),
        ('lang != "en"', {"lang": "de"}, True),
        ("dump >= 'CC-MAIN-2020'", {"dump": "CC-MAIN-2021-04"}, True),
        ("lang in ['en', 'de']", {"lang": "de"}, True),
        ("lang not in ('en', 'de')", {"lang": "de"}, False),
        ("adult", {"adult": True}, True),
        ("not adult", {"adult": True}, False),
        ("adult == false", {"adult": False}, True),
        ("url is null", {}, True),
        ("url is not null", {"url": None}, False),
        ("url is None", {"url": [1]}, False),
        ('column("two words") == 1', {"two words": 1}, True),
        ("a == 1 or b == 1 and not c == 1", {"a": 0, "b": 1, "c": 1}, False),
        ("(a == 1 or b == 1) and not (c == 1)", {"a": 1, "b": 0, "c": 0}, True),
        # A comparison with a missing value is neither true nor false, nor is its negation.
        ("a > 1", {}, False),
        ("not a > 1", {}, False),
        ("a != 1", {"a": None}, False),
        ("a not in [1]", {"a": None}, False),
        ("a > 1 or a is null", {"a": None}, True),
        ("a > 1 or b > 1", {"b": 2}, True),
        ("not (a > 1 and b > 1)", {"b": 0}, True),
        ("a == 'x\\n'", {"a": "x\n"}, True),
    ],
)
def test_which_rows_pass(text: str, row: dict[str, Any], kept: bool) -> None:
    assert RowFilter(text).keeps(row) is kept


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not understood"),
        ("score >=", "is not understood"),
        ("score = 3", "is not understood at character"),
        ("score >= 3 AND lang == 'en'", "is not understood"),
        ("(" * 500 + "a" + ")" * 500, "is not understood"),
        ("a == '\\d'", None),
        ("score", None),
        ("score + 1 > 3", "says score \\+ 1"),
        ("len(text) > 3", r"says len\(text\)"),
        ("__import__('os').system('true')", "which is not understood there"),
        ("meta.lang == 'en'", "says meta.lang"),
        ("lang == en", "write 'en' in quotes"),
        ("a == b", "which reads as a column"),
        ("a == null", "write `is null`"),
        ("a is 3", "says 3"),
        ("a in []", r"says \[\]"),
        ("a in 'abc'", "says 'abc'"),
        ("a in [1, 'x']", "with a number and with a text"),
        ("a > 3 and a == 'x'", "with a number and with a text"),
        ("3 > 2", "says 3"),
        ("lambda: 1", "says lambda: 1"),
        ("a == f'{b}'", "says f'{b}'"),
        ("a == b'x'", "says b'x'"),
        ("a == 1j", "says 1j"),
    ],
)
def test_what_is_not_understood(text: str, reason: str | None) -> None:
    if reason is None:
        RowFilter(text)
        return
    with pytest.raises(ValueError, match=reason):
        RowFilter(text)


def test_a_value_of_a_different_kind_is_an_error() -> None:
    with pytest.raises(MismatchError, match=r"'score' holds a text, which source.filter compares with a number"):
        RowFilter("score > 3").keeps({"score": "4"})
    # A truth value is not a number, although it is one in Python.
    with pytest.raises(MismatchError, match="holds a truth value"):
        RowFilter("score in [1]").keeps({"score": True})
    with pytest.raises(MismatchError, match="holds a list"):
        RowFilter("score == 'x'").keeps({"score": []})


_NUMBERS = st.integers(-2, 2)
_LEAVES = st.one_of(
    st.tuples(st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), st.sampled_from("ab"), _NUMBERS),
    st.tuples(st.just("in"), st.sampled_from("ab"), st.lists(_NUMBERS, min_size=1, max_size=3)),
    st.tuples(st.just("null"), st.sampled_from("ab"), st.none()),
)
_TREES = st.recursive(
    _LEAVES, lambda inner: st.tuples(st.sampled_from(["and", "or", "not"]), inner, inner), max_leaves=8
)


@given(_TREES, st.lists(st.tuples(*[st.one_of(st.none(), _NUMBERS)] * 2), min_size=1, max_size=20))
def test_arrow_passes_the_same_rows(tree: Any, rows: list[tuple[int | None, int | None]]) -> None:
    chosen = RowFilter(_written(tree))
    kept = [i for i, (a, b) in enumerate(rows) if chosen.keeps({"a": a, "b": b})]
    a, b = zip(*rows, strict=True)
    table = pa.table({"a": pa.array(a, pa.int64()), "b": pa.array(b, pa.int64()), "at": range(len(rows))})
    assert table.filter(_in_arrow(tree))["at"].to_pylist() == kept


def _written(tree: Any) -> str:
    what, left, right = tree
    if what == "null":
        return f"{left} is null"
    if what == "not":
        return f"not ({_written(left)})"
    return f"({_written(left)}) {what} ({_written(right)})" if what in ("and", "or") else f"{left} {what} {right}"


def _in_arrow(tree: Any) -> Any:
    what, left, right = tree
    if what == "null":
        return pc.field(left).is_null()
    if what == "not":
        return ~_in_arrow(left)
    if what in ("and", "or"):
        return _in_arrow(left) & _in_arrow(right) if what == "and" else _in_arrow(left) | _in_arrow(right)
    field = pc.field(left)
    if what == "in":
        # Arrow's own `is in` calls a missing value false; in SQL, and here, it is neither.
        either = field == right[0]
        for value in right[1:]:
            either = either | (field == value)
        return either
    return {
        "==": field == right,
        "!=": field != right,
        "<": field < right,
        "<=": field <= right,
        ">": field > right,
    }.get(what, field >= right)
