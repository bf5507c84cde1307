"""The report of a run is one valid HTML file that shows what the files say, lacks nothing quietly, and runs no text."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import typer
from tests.report.runs_on_disk import write_lines, write_run
from typer.testing import CliRunner

from packtrain.cli.report import report
from packtrain.errors import RunError
from packtrain.report.collect import collect
from packtrain.report.page import build_page, write_report

VOID = {"br", "hr", "img", "input", "link", "meta"}


class Page(HTMLParser):
    """Parses a page, checks that its tags are balanced, and keeps what the tests look at."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        self.ids += [found["id"]] if found.get("id") else []
        self.links += [found["href"]] if tag == "a" and found.get("href") else []
        self.loaded += [str(found[key]) for key in ("src", "srcset", "data") if key in found]
        self.loaded += [str(found["href"])] if tag in ("link", "image", "use") and "href" in found else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data + " "


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "a run").folder


def page_of(*folders: Path) -> Page:
    return Page(build_page([collect(folder) for folder in folders]))


def test_the_page_needs_no_other_file(folder: Path) -> None:
    text = build_page([collect(folder)])
    page = Page(text)
    assert page.loaded == []
    assert len(page.ids) == len(set(page.ids))
    assert all(link.removeprefix("#") in page.ids for link in page.links)
    assert not re.search(r"url\(|@import|fetch\(|https?://", text)


def test_the_page_says_what_the_run_did(folder: Path) -> None:
    text = page_of(folder).text
    for fact in (
        "1,377,408",
        "700 of 700 steps",
        "AMD EPYC 7B13",
        "unigram",
        "3.012",
        "resumed",
        "3,090,645",
        "2.13.0+cpu",
    ):
        assert fact in text
    for title in ("Loss", "Bits per byte on held-out text", "Learning rate", "Gradient norm", "Speed", "Memory"):
        assert title in text
    assert "default: 0.0006" in text


def test_evaluations_are_shown_with_their_intervals(folder: Path) -> None:
    text = page_of(folder).text
    bits = json.loads((folder / "evaluation.json").read_text())["model"]["bits_per_byte"]
    for fact in (
        f"95 % interval {bits - 0.021:.3f} to {bits + 0.022:.3f} (bootstrap over documents, 1,000 resamples)",
        # 1.96 standard errors on each side.
        f"{0.5419 - 1.96 * 0.0116:.4f} to {0.5419 + 1.96 * 0.0116:.4f}",
        "the first 200 questions",
        "2318.4417",
        "Other evaluations of this run.",
        "documents",
        "129–256",
        "4,097–16,384",
    ):
        assert fact in text


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"task": 3}',
        '{"task": "a", "metrics": {}}',
        '{"task": "a", "step": "x", "metrics": [{"value": "<b>"}]}',
    ]
    + [
        '{"model": {"interval": [1, 2]}, "protocol": 3, "dataset": []}',
        '{"model": {"interval": {"bits_per_byte": [1]}}}',
    ],
)
def test_no_kept_evaluation_breaks_the_page(folder: Path, content: str) -> None:
    for path in (folder / "evaluations").glob("*/*.json"):
        path.write_text(content)
    page_of(folder)


def test_the_page_is_accessible(folder: Path) -> None:
    page = page_of(folder)
    assert ("html", {"lang": "en"}) in page.tags
    tables = build_page([collect(folder)]).split("<table>")[1:]
    assert tables and all("<th " in table.partition("</table>")[0] for table in tables)
    drawn = [attributes for tag, attributes in page.tags if tag == "svg" and attributes.get("role") == "img"]
    assert drawn and all(set(str(a["aria-labelledby"]).split()) <= set(page.ids) for a in drawn)


def test_what_a_model_writes_is_shown_as_text(folder: Path) -> None:
    attack = '<script>alert(1)</script><img src=x onerror="alert(2)">&amp;'
    for path in (folder / "samples").iterdir():
        write_lines(path, [{"prompt": attack, "text": attack}])
    (folder / "events.jsonl").write_text(json.dumps({"time": 1, "event": attack, "step": 1, attack: attack}) + "\n")
    evaluation = json.loads((folder / "evaluation.json").read_text())
    evaluation["yardsticks"][0] = {"name": attack, "bits_per_byte": 2.5, "sees": attack}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["hardware"]["device"] = manifest["command"] = attack
    (folder / "manifest.json").write_text(json.dumps(manifest))
    page = page_of(folder)
    assert "<script>alert(1)</script>" in page.text
    assert not any(tag == "img" for tag, _ in page.tags)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    plain = [attributes for tag, attributes in page.tags if tag == "script" and attributes.get("type") is None]
    assert len(plain) == 1


@pytest.mark.parametrize("gone", ["metrics.jsonl", "events.jsonl", "manifest.json", "evaluation.json", "samples"])
def test_a_missing_file_leaves_a_page_that_says_so(folder: Path, gone: str) -> None:
    path = folder / gone
    if path.is_dir():
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    else:
        path.unlink()
    says = {
        "metrics.jsonl": "No training step has been logged yet.",
        "events.jsonl": "None recorded.",
        "manifest.json": "no manifest.json yet",
        "evaluation.json": "has not been evaluated yet",
        "samples": "No samples",
    }
    assert says[gone] in page_of(folder).text


def test_a_run_that_has_just_started_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("")
    text = page_of(tmp_path).text
    assert "Nothing to draw yet." in text and "has not logged a step yet" in text


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl", "manifest.json", "evaluation.json", "config.toml"])
@pytest.mark.parametrize(
    "content", ["", "\x00\xff", "[]", "{}", '{"step": 3}', '{"step": "x", "loss": {}}', "null\n1\n"]
)
def test_no_content_breaks_the_page(folder: Path, name: str, content: str) -> None:
    (folder / name).write_bytes(content.encode("latin-1") + b"\n")
    page_of(folder)


@pytest.mark.parametrize(
    "evaluation",
    [
        {"model": {}},
        {"model": {"bits_per_byte": None}, "yardsticks": [{"name": "zlib", "bits_per_byte": None}, 3]},
        {"model": {"bits_per_byte": "x", "num_tokens": None}, "yardsticks": {"a": 1}, "step": None},
    ],
)
def test_an_evaluation_without_figures_shows_none(folder: Path, evaluation: dict[str, object]) -> None:
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    (folder / "events.jsonl").unlink()
    text = page_of(folder).text
    assert "zlib at its best" not in text and "nan" not in text.lower().split()


def test_saved_checkpoints_are_counted_and_long_lists_of_events_cut(folder: Path) -> None:
    saved = [{"time": 1.0, "event": "saved", "step": step} for step in range(500)]
    skipped = [
        {"time": 1.0, "event": "skipped", "step": step, "dataset_hash": "0123456789abcdef"} for step in range(300)
    ]
    write_lines(folder / "events.jsonl", saved + skipped)
    text = page_of(folder).text
    assert "500 checkpoints were saved, the last at step 499." in text
    assert "100 earlier events are in events.jsonl." in text
    assert "dataset hash 0123456789ab" in text and "0123456789abc" not in text


def test_losses_that_are_not_finite_are_counted(folder: Path) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 710, "tokens": 2908160, "loss": null, "grad_norm": null}\n')
    assert "not finite (1 of 71)" in page_of(folder).text


def test_several_runs_share_their_charts(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / "x" / "run", lr=1e-3).folder,
        write_run(tmp_path / "y" / "run", lr=2e-3, steps=400).folder,
    ]
    page = page_of(*folders)
    assert len(page.ids) == len(set(page.ids))
    assert all(link.removeprefix("#") in page.ids for link in page.links)
    assert "2 runs compared" in page.text and "optim.lr" in page.text and "0.002" in page.text
    # Both folders are called `run`, so the page calls them by their paths.
    assert str(folders[0]) in page.text and str(folders[1]) in page.text


def test_a_run_without_steps_can_be_compared(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.toml").write_text("")
    assert "new: No training step has been logged yet." in page_of(folder, tmp_path / "new").text


def test_the_command_writes_to_the_file_given(folder: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(report)
    result = CliRunner().invoke(app, [str(folder), "--json"])
    assert json.loads(result.stdout)["report"] == str(folder / "report.html")
    assert (folder / "report.html").read_text().startswith("<!DOCTYPE html>")
    CliRunner().invoke(app, [str(folder), "--out", str(tmp_path / "out.html")], catch_exceptions=False)
    assert (tmp_path / "out.html").is_file()


def test_a_file_that_cannot_be_written_is_an_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="--out"):
        write_report([folder], tmp_path / "no" / "such" / "folder.html")


def test_torch_is_not_loaded(folder: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from packtrain.report.page import write_report; "
        f"write_report([Path({str(folder)!r})]); print('torch' in sys.modules, 'pyarrow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def with_yardsticks(folder: Path, bits: float, **yardsticks: float) -> str:
    found = json.loads((folder / "evaluation.json").read_text())
    found["model"]["bits_per_byte"] = bits
    found["yardsticks"] = [{"name": name, "bits_per_byte": value, "sees": ""} for name, value in yardsticks.items()]
    (folder / "evaluation.json").write_text(json.dumps(found))
    return re.sub(r"\s+", " ", page_of(folder).text)


def test_the_headline_compares_with_the_best_simpler_method(folder: Path) -> None:
    assert ", 25% less than xz (2.000), the best of 2 simpler methods" in with_yardsticks(folder, 1.5, zlib=3.0, xz=2.0)
    # Level with the bigram table: better than zlib is not the news.
    assert ", level with bigram (2.000)" in with_yardsticks(folder, 1.995, zlib=3.0, bigram=2.0)
    assert ", 50% more than bigram (2.000)" in with_yardsticks(folder, 3.0, zlib=4.0, bigram=2.0)


def test_one_step_among_two_hundred_thousand_is_drawn(folder: Path) -> None:
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, 200_001):
            file.write(
                f'{{"step": {step}, "tokens": {step * 4096}, "loss": {99.5 if step == 123_457 else 2 + 1 / step}}}\n'
            )
    text = build_page([collect(folder)])
    [data] = re.findall(r'id="loss">.*?<script type="application/json">(.*?)</script>', text, flags=re.DOTALL)
    raw = next(series for series in json.loads(data)["series"] if series["name"] == "each logged step")
    assert raw["ys"][raw["xs"][0].index(123_457)] == 99.5
    # The spike is a point of the drawn path too, and not only of the values under the pointer.
    drawn = re.findall(r'<path d="([^"]*)" class="faint', text)
    lowest = min(float(y) for _, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", drawn[0]))
    assert lowest < 60 and len(text) < 2_000_000
