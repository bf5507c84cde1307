"""Decides what the page of a ladder shows: the runs' losses with the law through them, the check on it, and the prediction."""

import math
from collections.abc import Sequence
from pathlib import Path

from packtrain.errors import RunError
from packtrain.report import figures, sections
from packtrain.report.document import contents, document, write_page
from packtrain.report.markup import Child, Markup, el, join
from packtrain.report.scales import Scale, linear, logarithmic
from packtrain.runs.ladder import LadderRecord, Law, Prediction, RungRecord, read_ladder

_CONTENTS = {"prediction": "Prediction", "picture": "Loss by size and tokens", "runs": "Runs", "law": "Law"}
_HEIGHT_PX = 360
_POINTS_OF_A_LINE = 60
_NUM_COLOURS = 8


def write_ladder_report(folder: Path, out: Path | None = None) -> Path:
    """Writes the page of a ladder and gives its path: `out`, or report.html in the ladder's folder.

    Reads only ladder.json; a ladder in progress has a page too. Raises RunError if the folder has none, or if `out` cannot be
    written.
    """
    target = out or folder / "report.html"
    write_page(target, build_ladder_page(folder.resolve().name, read_ladder(folder)), RunError)
    return target


def build_ladder_page(name: str, record: LadderRecord) -> str:
    """The page as an HTML document."""
    header = el(
        "header",
        el("p", "Ladder", class_="kicker"),
        el("h1", name),
        _standfirst(record),
        el("p", f"Preset {record.preset} · --budget {record.asked.budget}", class_="byline"),
        _key_figures(record),
        contents(_CONTENTS),
        _notes(record),
    )
    main = el(
        "main",
        sections.section("prediction", "Prediction", *_prediction(record)),
        sections.section("picture", "Loss by size and tokens", _picture(record)),
        sections.section("runs", "Runs", _runs(record)),
        sections.section("law", "Law", *_law(record)),
    )
    return document(f"{name} – packtrain ladder", [header, main], "the file of the ladder")


def _standfirst(record: LadderRecord) -> Markup:
    found = record.prediction
    model = f"{figures.short(record.parameters)} parameters on {figures.short(record.tokens)} tokens"
    if found is None:
        ended = sum(run.state != "planned" for run in record.runs)
        text = f"{ended} of {len(record.runs)} runs have ended. The law for {model} comes after the last."
        return el("p", text, class_="standfirst")
    return el(
        "p",
        el("b", model),
        " should reach ",
        el("b", f"{found.bits_per_byte:.3f} bits"),
        f" per byte of text that it has not seen, between {found.bits_per_byte_low:.3f} and {found.bits_per_byte_high:.3f}.",
        class_="standfirst",
    )


def _key_figures(record: LadderRecord) -> Markup:
    runs = [run for run in record.runs if run.state != "planned"]
    largest = max(record.runs, key=lambda run: run.flops)
    cells = [
        ("Runs", f"{len(runs)} of {len(record.runs)}", f"{len({run.parameters for run in record.runs})} sizes"),
        ("Largest size", figures.short(largest.parameters), f"{figures.exact(largest.parameters)} parameters"),
        ("FLOPs of the preset", f"{record.flops / largest.flops:,.0f} ×", "those of the largest run"),
    ]
    if record.held_out is not None:
        cells.append(("Check on the largest size", f"{abs(record.held_out.error):.2%}", "off, fitted without it"))
    if record.prediction is not None:
        found = record.prediction
        cells.append(("Predicted loss", f"{found.loss:.3f}", f"nats per token, {found.low:.3f} to {found.high:.3f}"))
    return sections.strip(cells)


def _prediction(record: LadderRecord) -> list[Markup]:
    found, checked = record.prediction, record.held_out
    if found is None:
        return [el("p", "Not made yet: runs are missing.", class_="absent")]
    rows: list[list[Child]] = [
        ["Loss, nats per token", f"{found.loss:.4f}", f"{found.low:.4f} to {found.high:.4f}"],
        [
            "Bits per byte",
            f"{found.bits_per_byte:.4f}",
            f"{found.bits_per_byte_low:.4f} to {found.bits_per_byte_high:.4f}",
        ],
    ]
    parts = [sections.table(["", "Predicted", "Interval, 95 %"], rows, numbers=(1, 2))]
    if checked is None:
        parts.append(el("p", "Without the largest size, too few runs are left to check the law.", class_="note"))
    else:
        way = "high" if checked.error > 0 else "low"
        text = (
            f"Check: fitted without the largest size, the law says {checked.predicted:.4f} for its longest run, which reached "
            f"{checked.measured:.4f}; that is {abs(checked.error):.2%} too {way}. The interval is the bootstrap's, and at least this wide."
        )
        parts.append(el("p", text, class_="note"))
    return parts


def _runs(record: LadderRecord) -> Markup:
    rows: list[list[Child]] = []
    for run in record.runs:
        fitted = None if record.law is None else record.law.predict(run.parameters, run.tokens)
        shape = f"{run.hidden_size} × {run.num_hidden_layers}"
        counts = (run.parameters, run.tokens, run.steps, run.global_batch_tokens)
        result = {"planned": "not trained yet", "diverged": "diverged"}.get(run.state, figures.decimal(run.loss, 4))
        rows.append(
            [
                shape,
                *(figures.exact(count) for count in counts),
                f"{run.epochs:.2f}",
                f"{run.lr:.2e}",
                result,
                figures.decimal(fitted, 4),
            ]
        )
    head = ("Width × layers", "Parameters", "Tokens", "Steps", "Batch", "Epochs", "Learning rate", "Loss", "Law")
    return sections.table(head, rows, numbers=range(1, len(head)))


def _law(record: LadderRecord) -> list[Markup]:
    law = record.law
    if law is None:
        return [el("p", "Not fitted yet.", class_="absent")]
    labels = {
        "floor": "E, the floor",
        "size_factor": "A, of size",
        "tokens_factor": "B, of tokens",
        "exponent": "The exponent of both",
    }
    rows: list[list[Child]] = []
    for key, label in labels.items():
        low, high = record.law_intervals.get(key, (math.nan, math.nan))
        rows.append([label, f"{getattr(law, key):.4g}", f"{low:.4g} to {high:.4g}"])
    lead = (
        "Loss = E + A / N^exponent + B / D^exponent, for N parameters and D tokens: the form of Hoffmann et al. 2022 (arXiv "
        "2203.15556) with one exponent, as in Muennighoff et al. 2023 (arXiv 2305.16264), fitted by the Huber loss of its logarithm. "
        "Intervals by bootstrap."
    )
    return [el("p", lead, class_="lead"), sections.table(["", "Fitted", "Interval, 95 %"], rows, numbers=(1, 2))]


def _notes(record: LadderRecord) -> Markup | None:
    lost = [
        f"{run.name} diverged and is left out of the law: {run.reason}"
        for run in record.runs
        if run.state == "diverged"
    ]
    sentences = [*record.doubts, *record.notes, *lost]
    if not sentences:
        return None
    return el(
        "div", el("p", "What to know"), el("ul", *(el("li", text) for text in sentences)), class_="missing", role="note"
    )


def _picture(record: LadderRecord) -> Markup:
    """Measured losses as dots, the law as lines, the prediction with its interval at the right."""
    ended = [run for run in record.runs if run.loss is not None]
    if not ended:
        return el("p", "Nothing to draw yet.", class_="absent")
    found = record.prediction
    losses = [run.loss for run in ended if run.loss is not None]
    losses += [found.low, found.high] if found else []
    x_scale = logarithmic(min(run.tokens for run in ended), max(record.tokens, *(run.tokens for run in ended)))
    y_scale = linear(min(losses), max(losses), room=0.08)
    sizes = sorted({run.parameters for run in ended})
    colours = {size: index % (_NUM_COLOURS - 1) for index, size in enumerate(sizes)}
    drawn: list[Markup] = [_grid(x_scale, y_scale)]
    if record.law is not None:
        drawn.append(_lines(record.law, ended, colours, found, x_scale, y_scale))
    drawn += [_dot(run.tokens, run.loss or math.nan, colours[run.parameters], x_scale, y_scale) for run in ended]
    if found is not None:
        drawn.append(_interval(found, x_scale, y_scale))
    svg = el(
        "svg",
        el("title", "Loss on held-out text by tokens, a colour for each size"),
        *drawn,
        role="img",
        height=_HEIGHT_PX,
        width="100%",
    )
    entries = [(f"{figures.short(size)} parameters", colours[size]) for size in sizes]
    if found is not None:
        entries.append((f"the preset, {figures.short(found.parameters)}, predicted", _NUM_COLOURS - 1))
    legend = el("ul", *(el("li", el("i", class_=f"dots c{colour}"), text) for text, colour in entries), class_="legend")
    note = "Dots: measured after the last step of each run. Lines: the law. The bar at the right: the interval of the prediction."
    return el(
        "figure",
        el("figcaption", el("h3", "Loss on held-out text"), el("p", "nats per token, by tokens", class_="unit")),
        el("div", legend, class_="chart-head"),
        el("div", svg, class_="plot named"),
        el("p", note, class_="note"),
    )


def _grid(x_scale: Scale, y_scale: Scale) -> Markup:
    parts = []
    for value in y_scale.ticks:
        at = _percent(1 - y_scale.place(value))
        parts.append(el("line", x1="0", x2="100%", y1=at, y2=at, class_="grid"))
        text = figures.tick(value, y_scale.tick_step)
        parts.append(el("text", text, x="-8", y=at, dy="0.32em", text_anchor="end"))
    parts.append(el("line", x1="0", x2="100%", y1="100%", y2="100%", class_="base"))
    for value in x_scale.ticks:
        at = _percent(x_scale.place(value))
        parts.append(el("line", x1=at, x2=at, y1="100%", y2=_HEIGHT_PX + 4, class_="grid"))
        parts.append(el("text", figures.short(value), x=at, y=_HEIGHT_PX + 18, text_anchor="middle"))
    parts.append(el("text", "tokens", x="100%", y=_HEIGHT_PX + 32, text_anchor="end", class_="axis"))
    return el("g", *parts)


def _lines(
    law: Law,
    ended: Sequence[RungRecord],
    colours: dict[int, int],
    found: Prediction | None,
    x_scale: Scale,
    y_scale: Scale,
) -> Markup:
    """The law at each size: over the lengths of the ladder, and for the preset up to its own."""
    lengths = [run.tokens for run in ended]
    paths = [_path(law, size, min(lengths), max(lengths), colour, x_scale, y_scale) for size, colour in colours.items()]
    if found is not None:
        paths.append(
            _path(law, found.parameters, min(lengths), found.tokens, _NUM_COLOURS - 1, x_scale, y_scale, "6 4")
        )
    return el(
        "svg", *paths, viewBox="0 0 1000 1000", preserveAspectRatio="none", width="100%", height="100%", class_="curves"
    )


def _path(
    law: Law,
    size: int,
    first: int,
    last: int,
    colour: int,
    x_scale: Scale,
    y_scale: Scale,
    dashes: str | None = None,
) -> Markup:
    ratio = (last / first) ** (1 / (_POINTS_OF_A_LINE - 1))
    points = [(tokens, law.predict(size, tokens)) for tokens in (first * ratio**i for i in range(_POINTS_OF_A_LINE))]
    words = [
        f"{1000 * x_scale.place(tokens):.1f} {1000 * (1 - y_scale.place(loss)):.1f}"
        for tokens, loss in points
        if y_scale.low <= loss <= y_scale.high
    ]
    return el(
        "path",
        d="M" + "L".join(words) if words else "",
        class_=f"line c{colour}",
        vector_effect="non-scaling-stroke",
        stroke_dasharray=dashes,
    )


def _dot(tokens: int, loss: float, colour: int, x_scale: Scale, y_scale: Scale) -> Markup:
    at, height = _percent(x_scale.place(tokens)), _percent(1 - y_scale.place(loss))
    label = el("title", f"{figures.exact(tokens)} tokens: {loss:.4f}")
    return el("circle", label, cx=at, cy=height, r="4", class_=f"c{colour}")


def _interval(found: Prediction, x_scale: Scale, y_scale: Scale) -> Markup:
    at, colour = _percent(x_scale.place(found.tokens)), _NUM_COLOURS - 1
    low, high = (_percent(1 - y_scale.place(loss)) for loss in (found.low, found.high))
    bar = el("line", x1=at, x2=at, y1=low, y2=high, class_=f"c{colour}", style="stroke: var(--k); stroke-width: 2")
    middle = _percent(1 - y_scale.place(found.loss))
    text = el("text", f"{found.loss:.3f}", x=at, dx="8", y=middle, dy="0.32em", class_=f"end c{colour}")
    return join(bar, _dot(found.tokens, found.loss, colour, x_scale, y_scale), text)


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"
