"""Decides what a row filter such as `int_score >= 3` can say, and which rows pass it. It is parsed and never executed."""

import ast
import operator
import warnings
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any, Literal

Kind = Literal["number", "text", "truth value"]
# True, False, or None if a missing value leaves it open.
Verdict = bool | None
Test = Callable[[Mapping[str, Any]], Verdict]

_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_MIRRORED: dict[type[ast.cmpop], type[ast.cmpop]] = {ast.Lt: ast.Gt, ast.LtE: ast.GtE, ast.Gt: ast.Lt, ast.GtE: ast.LtE}
_WORDS = {"null": None, "true": True, "false": False}
_FORMS = "column >= 3, column == 'text', column in [1, 2] or column is null, joined by and, or, not and parentheses"


class MismatchError(Exception):
    """A row's value is of a different kind from what the filter compares it with."""


class RowFilter:
    """A parsed expression. `columns` are those that it needs, with the kind of value it expects, or None for any kind."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.columns: dict[str, Kind | None] = {}
        try:
            # Python warns about some backslashes, which do not matter here.
            with warnings.catch_warnings(action="ignore"):
                tree = ast.parse(text.strip(), mode="eval")
            self._test = self._boolean(tree.body)
        except (SyntaxError, RecursionError, MemoryError) as error:
            at = f" at character {error.offset}" if isinstance(error, SyntaxError) and error.offset else ""
            raise ValueError(f"source.filter={text} is not understood{at}; write {_FORMS}") from None

    def keeps(self, row: Mapping[str, Any]) -> bool:
        """Whether a row passes: only if the expression is true.

        As in SQL, a comparison with a missing value (absent or None) is neither true nor false, nor is its negation.
        Raises MismatchError for a value of a different kind from what it is compared with.
        """
        return self._test(row) is True

    def _boolean(self, node: ast.expr) -> Test:
        match node:
            case ast.BoolOp(op=ast.And(), values=values):
                return _joined([self._boolean(value) for value in values], decisive=False)
            case ast.BoolOp(op=ast.Or(), values=values):
                return _joined([self._boolean(value) for value in values], decisive=True)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return _not(self._boolean(operand))
            case ast.Compare():
                sides = [node.left, *node.comparators]
                tests = [self._comparison(*pair) for pair in zip(sides, node.ops, sides[1:], strict=False)]
                return _joined(tests, decisive=False)
        column = _column(node)
        if column is None:
            raise self._refused(node)
        self._expect(column, True)
        return _reader(column, "truth value")

    def _comparison(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Test:
        column = _column(left)
        if column is None and type(op) in _COMPARISONS and _column(right) is not None:
            left, right, op = right, left, _MIRRORED.get(type(op), type(op))()
            column = _column(left)
        if column is None:
            raise self._refused(left)
        match op:
            case ast.Is() | ast.IsNot():
                if not _is_null(right):
                    raise self._refused(right)
                self.columns.setdefault(column, None)
                wanted = isinstance(op, ast.Is)
                return lambda row: (row.get(column) is None) is wanted
            case ast.In() | ast.NotIn():
                if not isinstance(right, ast.List | ast.Tuple | ast.Set) or not right.elts:
                    raise self._refused(right)
                among = [self._literal(element) for element in right.elts]
                kind = self._expect(column, *among)
                read, inside = _reader(column, kind), isinstance(op, ast.In)
                return lambda row: None if (value := read(row)) is None else (value in among) is inside
        literal = self._literal(right)
        kind = self._expect(column, literal)
        read, compare = _reader(column, kind), _COMPARISONS[type(op)]
        return lambda row: None if (value := read(row)) is None else compare(value, literal)

    def _literal(self, node: ast.expr) -> Any:
        match node:
            case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=ast.Constant(value=int() | float() as value)):
                if not isinstance(value, bool):
                    return -value if isinstance(sign, ast.USub) else value
            case ast.Constant(value=bool() | int() | float() | str() as value):
                return value
            case ast.Name(id="true" | "false" as word):
                return _WORDS[word]
        if _is_null(node):
            raise ValueError(
                f"source.filter={self.text} compares with null, and no value equals null; write `is null` or `is not null`"
            )
        if (column := _column(node)) is not None:
            raise ValueError(
                f"source.filter={self.text} compares with '{column}', which reads as a column; compare with a "
                f"number, a text in quotes, true or false: write '{column}' in quotes if it is a text"
            )
        raise self._refused(node)

    def _expect(self, column: str, *literals: Any) -> Kind:
        """The kind of the literals, which becomes that of the column."""
        known = self.columns.get(column)
        for kind in map(_kind, literals):
            if known is not None and known != kind:
                raise ValueError(
                    f"source.filter={self.text} compares '{column}' with a {known} and with a {kind}; use one kind for a column"
                )
            known = kind
        assert known is not None
        self.columns[column] = known
        return known

    def _refused(self, node: ast.expr) -> ValueError:
        seen = ast.get_source_segment(self.text.strip(), node) or self.text
        return ValueError(f"source.filter={self.text} says {seen}, which is not understood there; write {_FORMS}")


@lru_cache(maxsize=8)
def row_filter(text: str) -> RowFilter:
    """The filter of a `source.filter`. Raises ValueError with a sentence for the user if it cannot be parsed."""
    return RowFilter(text)


def _column(node: ast.expr) -> str | None:
    """The column that a name or `column("any name")` refers to."""
    match node:
        case ast.Name(id=name) if name not in _WORDS:
            return name
        case ast.Call(func=ast.Name(id="column"), args=[ast.Constant(value=str() as name)], keywords=[]):
            return name
    return None


def _is_null(node: ast.expr) -> bool:
    return (isinstance(node, ast.Constant) and node.value is None) or (isinstance(node, ast.Name) and node.id == "null")


def _kind(value: Any) -> Kind | None:
    if isinstance(value, bool):
        return "truth value"
    if isinstance(value, int | float | Decimal):
        return "number"
    return "text" if isinstance(value, str) else None


def _reader(column: str, kind: Kind) -> Callable[[Mapping[str, Any]], Any]:
    def read(row: Mapping[str, Any]) -> Any:
        value = row.get(column)
        if value is not None and _kind(value) != kind:
            found = _kind(value) or type(value).__name__
            raise MismatchError(f"'{column}' holds a {found}, which source.filter compares with a {kind}")
        return value

    return read


def _joined(tests: list[Test], *, decisive: bool) -> Test:
    """`and` if one False decides, `or` if one True does; otherwise a missing value leaves it open."""

    def test(row: Mapping[str, Any]) -> Verdict:
        verdicts = [one(row) for one in tests]
        return decisive if decisive in verdicts else None if None in verdicts else not decisive

    return test


def _not(inner: Test) -> Test:
    def test(row: Mapping[str, Any]) -> Verdict:
        verdict = inner(row)
        return None if verdict is None else not verdict

    return test
