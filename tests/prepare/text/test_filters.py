"""Whether filters give the verdicts of the libraries that run them."""

import json
from pathlib import Path
from typing import Any

import pytest
from datatrove.data import Document
from datatrove.pipeline import filters as blocks
from datatrove.pipeline.formatters import PIIFormatter
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.corpora import files_of, recipe, sentences, texts_of, write_jsonl

from packtrain.config.load import load_recipe
from packtrain.config.recipe import CleanConfig
from packtrain.data.format.manifest import read_manifest
from packtrain.errors import ConfigError
from packtrain.prepare.run import prepare
from packtrain.prepare.text.clean import Cleaner
from packtrain.prepare.text.filters import make_filters
from packtrain.prepare.verify import verify

# Prose of nine sentences, and what each filter is there to find.
PROSE = (
    "The committee met in the morning and talked about the bridge that they have to build with stone. "
    "It was to be the first of its kind, and nobody had seen the plans before. "
    'The engineer said, "We will have it finished by the end of the year." '
    "Many people came to look at the river, and some of them stayed until the evening.\n"
    "When the work began, the weather turned cold. The men complained, but they were paid well. "
    "A road was laid from the village to the bank, and carts brought the blocks from the quarry. "
    "In the spring the first arch stood. The whole town came to see it, and there was music."
)
DOCUMENTS = [
    PROSE,
    "too short",
    "x y z " * 40,
    "hippopotamuses notwithstanding " * 40,
    PROSE + " #" * 60,
    PROSE + " ..." * 60,
    "\n".join(f"- {part}" for part in PROSE.split(". ")) + "\n" + PROSE.replace("\n", " "),
    "\n".join(f"- {word} {i}" for i, word in enumerate(PROSE.split())),
    "\n".join(f"{part} ..." for part in PROSE.split(". ")),
    " ".join(f"{i} word" if i % 5 == 0 else f"{i}" for i in range(3000, 3300)),
    " ".join(f"noun{i} verb{i}" for i in range(200)),
    "\n".join([PROSE.replace("\n", " ")] * 3),
    "\n\n".join([PROSE.replace("\n", " "), *["the same again and again and again"] * 4]),
    PROSE + " one two three four five six seven eight nine ten eleven" * 12,
    "\n".join(PROSE.split()),
    PROSE + "\nPlease turn on javascript to see this page.\nA heading without a point\nWe use cookies on this site.",
    PROSE + "\nLorem ipsum dolor sit amet, and so on.",
    PROSE + "\nfunction f() { return the answer; } and so on.",
    PROSE + "\nAs was said before.[12] And again it was said so.[edit]",
    "\n".join(f"Line {i} of this." for i in range(30)),
]
BLOCKS = {
    "gopher_quality": blocks.GopherQualityFilter,
    "gopher_repetition": blocks.GopherRepetitionFilter,
    "fineweb_quality": blocks.FineWebQualityFilter,
    "c4_quality": blocks.C4QualityFilter,
}


def verdict(block: Any, text: str) -> tuple[str, str | None]:
    document = Document(text=text, id="")
    result = block.filter(document)
    return document.text, None if result is True else result[1]


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.slow
def test_each_gives_the_verdict_of_datatroves_own_block(name: str) -> None:
    (ours,) = make_filters(CleanConfig(filters=(name,)))
    theirs = BLOCKS[name]()
    reasons = set()
    for text in DOCUMENTS:
        wanted, reason = verdict(theirs, text)
        assert ours(text) == (wanted, reason and f"{name}.{reason.removeprefix('gopher_')}")
        reasons.add(reason)
    assert None in reasons
    assert len(reasons) > 3


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        (
            "gopher_quality",
            {"min_doc_words": 5, "stop_words": ("y", "z"), "max_symbol_word_ratio": 0.5, "max_avg_word_length": 0},
        ),
        ("gopher_repetition", {"dup_line_frac": 0.9, "top_n_grams": ((2, 0.05),), "dup_n_grams": ()}),
        ("fineweb_quality", {"short_line_length": 60, "line_punct_exclude_zero": True, "new_line_ratio": 0.01}),
        ("c4_quality", {"min_num_sentences": 2, "remove_citations": False, "filter_curly_bracket": False}),
    ],
)
def test_every_setting_reaches_the_block(name: str, settings: dict[str, Any]) -> None:
    (ours,) = make_filters(CleanConfig.model_validate({"filters": (name,), name: settings}))
    theirs, usual = BLOCKS[name](**settings), BLOCKS[name]()
    verdicts = [verdict(theirs, text) for text in DOCUMENTS]
    assert verdicts != [verdict(usual, text) for text in DOCUMENTS]
    assert [(text, reason and reason.rpartition(".")[2]) for text, reason in map(ours, DOCUMENTS)] == [
        (text, reason and reason.removeprefix("gopher_")) for text, reason in verdicts
    ]


def test_our_defaults_are_datatroves() -> None:
    import inspect

    for name, block in BLOCKS.items():
        theirs = {k: p.default for k, p in inspect.signature(block.__init__).parameters.items()}
        ours = getattr(CleanConfig(), name).model_dump()
        given_none = {"stop_words"}
        assert {k: v for k, v in ours.items() if k not in given_none} == {
            k: theirs[k] for k in ours if k not in given_none
        }
    assert set(CleanConfig().gopher_quality.stop_words) == blocks.GopherQualityFilter().stop_words


def test_addresses_are_replaced_and_a_document_hangs_on_no_other() -> None:
    (ours,) = make_filters(CleanConfig(filters=("pii",)))
    text = "Write to ann@mail.net or bob@mail.net, at 8.8.8.8 or 192.168.0.1."
    wanted = PIIFormatter().format(text)
    assert "ann@" not in wanted and "8.8.8.8" not in wanted and "192.168.0.1" in wanted
    assert [ours("a first mail: x@y.org"), ours(text), ours(text)][1:] == [(wanted, None)] * 2


def test_languages() -> None:
    german = "Der Ausschuss traf sich am Morgen und sprach über die Brücke, die aus Stein gebaut werden sollte."
    (english,) = make_filters(CleanConfig(filters=("language",)))
    assert english(PROSE) == (PROSE, None)
    assert english(german) == (german, "language.de")
    assert english("12345 67890")[1] is not None
    (both,) = make_filters(
        CleanConfig.model_validate({"filters": ["language"], "language": {"languages": ["de", "en"]}})
    )
    assert (both(PROSE)[1], both(german)[1]) == (None, None)
    (sure,) = make_filters(CleanConfig.model_validate({"filters": ["language"], "language": {"threshold": 0.999}}))
    assert sure("What is la vita without vino?")[1] in ("language.uncertain", "language.it")
    (any_sign,) = make_filters(CleanConfig.model_validate({"filters": ["language"], "language": {"threshold": 0.0001}}))
    assert any_sign("What is la vita without vino?")[1] is None


def test_what_a_filter_leaves_is_cleaned_again() -> None:
    clean = Cleaner(CleanConfig.model_validate({"filters": ["c4_quality"], "c4_quality": {"min_num_sentences": -1}}))
    assert clean("A heading\n\nAnother one") == ("", "empty")
    assert clean(PROSE) == (PROSE, None)
    assert clean("heading\n" + PROSE) == (PROSE, None)


@settings(deadline=None)  # the first call loads a filter
@given(st.text(max_size=200), st.sampled_from(list(BLOCKS) + ["pii", "language"]))
def test_no_text_upsets_a_filter(text: str, name: str) -> None:
    if name not in _MADE:
        loose = {"min_doc_words": 1} if name == "gopher_quality" else {}
        _MADE[name] = Cleaner(CleanConfig.model_validate({"filters": [name], **({name: loose} if loose else {})}))
    once, reason = _MADE[name](text)
    assert reason is None or isinstance(reason, str)
    assert _MADE[name](text) == (once, reason)


_MADE: dict[str, Cleaner] = {}


@pytest.mark.slow
def test_end_to_end(tmp_path: Path) -> None:
    kept = [
        f"{PROSE}\nIt was the bridge number {i}, and the people of it wrote to mail{i}@town.net." for i in range(40)
    ]
    texts = [f"{text}\nA heading {i}" if i % 3 else text for i, text in enumerate(kept)]
    source = write_jsonl(
        tmp_path / "a.jsonl", [*texts, *sentences(10), "Der Ausschuss traf sich am Morgen und sprach. " * 30]
    )
    settings = {
        "clean__filters": ["language", "gopher_quality", "c4_quality", "pii"],
        "clean__language": {"languages": ["en"], "threshold": 0.5},
        "prepare__slice_documents": 10,
    }
    prepare(recipe("jsonl", source, **settings), tmp_path / "out")
    ledger = read_manifest(tmp_path / "out").ledger
    dropped = ledger["documents"]["dropped"]
    assert dropped["language.de"] == 1
    assert sum(dropped.values()) == 11
    assert set(ledger["samples"]) == set(dropped)
    wanted = [text.replace(f"mail{i}@town.net", "email@example.com") for i, text in enumerate(kept)]
    assert sorted(texts_of(tmp_path / "out")) == sorted(wanted)
    assert verify(tmp_path / "out", rebuild=3, seed=1).rebuilt


@pytest.mark.parametrize("names", [("language", "pii"), (*BLOCKS, "language", "pii")])
@pytest.mark.slow
def test_the_same_bytes_with_any_workers(names: tuple[str, ...], tmp_path: Path) -> None:
    texts = [f"{PROSE}\nIt was the bridge number {i}, and people wrote to mail{i}@town.net." for i in range(40)]
    source = write_jsonl(tmp_path / "a.jsonl", [*texts, *DOCUMENTS])
    for workers in (1, 2):
        made = recipe("jsonl", source, prepare__workers=workers, prepare__slice_documents=8, clean__filters=names)
        prepare(made, tmp_path / f"out{workers}")
    assert files_of(tmp_path / "out1") == files_of(tmp_path / "out2")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ('clean.filters=["gopher"]', "gopher_quality"),
        ('clean.filters=["pii", "pii"]', "names a filter twice"),
        ("clean.gopher_quality.min_doc_words=10", "add it there, or leave the setting out"),
        ("clean.word_language=deu", "names no filter that counts words"),
        ('clean.filters=["gopher_quality"] clean.word_language=zzz', "not a language that datatrove splits"),
        ('clean.filters=["gopher_quality"] clean.word_language=tha', "pythainlp"),
        ('clean.filters=["language"] clean.language.languages=["english"]', "which the model does not know"),
        ('clean.filters=["gopher_quality"] clean.gopher_quality.min_words=1', "min_doc_words"),
    ],
)
def test_what_cannot_be_is_told_before_any_work(settings: str, reason: str, tmp_path: Path) -> None:
    words = settings.replace('", "', '","').split(" ")
    with pytest.raises(ConfigError, match=reason):
        prepare(load_recipe("stdlib", words).config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_settings_survive_the_manifest() -> None:
    made = CleanConfig.model_validate({"filters": ["c4_quality"], "c4_quality": {"min_num_sentences": 3}})
    assert CleanConfig.model_validate(json.loads(made.model_dump_json())) == made
