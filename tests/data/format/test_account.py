"""The entries of a ledger add up, and one that does not balance is described."""

import copy

import pytest

from packtrain.data.format.account import count_rows, describe_split, find_imbalance, list_entries

LEDGER = {
    "documents": {"in": 20, "train": 9, "validation": 2, "duplicates": 4, "dropped": {"empty": 1, "gopher: short": 4}},
    "tokens": {"in": 1100, "train": 900, "validation": 200},
    "utf8_bytes": {
        "in": 4000,
        "train": 2700,
        "validation": 600,
        "duplicates": 400,
        "dropped": {"empty": 0, "gopher: short": 300},
    },
    "bytes_per_token": 3.0,
}


def test_every_reason_is_an_entry_whatever_its_name() -> None:
    names = [entry.name for entry in list_entries(LEDGER)]
    assert names == ["train", "validation", "duplicates", "empty", "gopher: short"]
    assert find_imbalance(LEDGER) is None


def test_what_was_left_out_has_no_tokens_but_an_estimate() -> None:
    found = {entry.name: entry for entry in list_entries(LEDGER)}
    assert (found["train"].tokens, found["train"].estimated_tokens) == (900, 900)
    assert (found["gopher: short"].tokens, found["gopher: short"].estimated_tokens) == (None, 100)
    assert found["duplicates"].estimated_tokens == 133


def test_another_table_of_reasons_is_told_too() -> None:
    ledger = copy.deepcopy(LEDGER)
    ledger["documents"] |= {"in": 23, "near_duplicates": 3}
    assert list_entries(ledger)[-1].name == "near_duplicates"
    assert list_entries(ledger)[-1].utf8_bytes is None
    assert find_imbalance(ledger) is None


def test_one_missing_document_byte_or_token_is_told() -> None:
    for unit in ("documents", "utf8_bytes", "tokens"):
        ledger = copy.deepcopy(LEDGER)
        ledger[unit]["train"] -= 1
        assert f" {unit} came in" in (find_imbalance(ledger) or "")


def test_a_ledger_of_an_older_version_is_read() -> None:
    ledger = {"documents": {"in": 3, "train": 2, "validation": 1, "duplicates": 0, "dropped": {}}}
    assert [entry.utf8_bytes for entry in list_entries(ledger)] == [None, None, None]
    assert find_imbalance(ledger) is None


def test_the_tail_is_the_last_row_that_is_not_full() -> None:
    assert count_rows(1025, 512) == (3, 1)
    assert count_rows(1024, 512) == (2, 0)
    assert count_rows(0, 512) == (0, 0)


@pytest.mark.parametrize("by", ["files", "column", "hub", "tail", None, 3, []])
@pytest.mark.parametrize("value", [None, "", [], "\x1b", 1, True])
def test_a_split_of_odd_values_is_described_without_an_error(by: object, value: object) -> None:
    split = dict.fromkeys(("validation_fraction", "validation_files", "column"), value) | {"by": by}
    assert isinstance(describe_split({"split": split}, LEDGER), str | None)


def test_a_split_by_tail_tells_its_share() -> None:
    recipe = {"split": {"by": "tail", "validation_fraction": 0.1}}
    assert describe_split(recipe, LEDGER) == "validation: the last 0.1 of the text, 2 documents"
