"""Decides how an evaluation is shown: the model beside simpler methods, by length and place, and its figures in tasks."""

from typing import Any

from packtrain.cli import screen
from packtrain.cli.figures import describe_average


def show_text(outcome: dict[str, Any]) -> None:
    """Prints the model's figures on text, and a table of bits per byte with the yardsticks."""
    model, interval = outcome["model"], outcome["model"]["interval"]
    step = outcome["step"]
    screen.heading(
        "Evaluation" if step is None else f"Evaluation of step {step:,}{describe_average(outcome['average'])}"
    )
    screen.console.print(screen.escape(f"{outcome['coverage']} {_describe_protocol(outcome['protocol'])}"))
    screen.console.print(
        f"loss {_figure(model['loss'])} nats per token, perplexity {_figure(model['perplexity'], 2)}, "
        f"{model['num_tokens']:,} tokens, {model['num_bytes']:,} bytes"
    )
    if interval is None:
        screen.console.print("no interval: that needs at least two documents")
    elif interval["bits_per_byte"] is not None:
        low, high = interval["bits_per_byte"]
        share = f"{interval['coverage']:.0%}"
        screen.console.print(f"bits per byte: {share} interval {low:.4f} to {high:.4f} ({interval['method']})")
    screen.console.print()
    rows = [("this model", model["bits_per_byte"], model["sees"], "bold")]
    rows += [(y["name"], y["bits_per_byte"], y["sees"], "") for y in outcome["yardsticks"]]
    table = screen.table("on held-out text", "bits per byte", "context")
    table.columns[2].justify = "left"
    for name, bits, sees, style in sorted(rows, key=lambda row: (row[1] is None, row[1])):
        table.add_row(screen.escape(name), _figure(bits), screen.escape(sees), style=style)
    screen.console.print(table)
    if "sources" in outcome:
        table = screen.table("source", "share", "loss", "perplexity", "bits per byte")
        for source in outcome["sources"]:
            found = source["model"]
            figures = (_figure(found["loss"]), _figure(found["perplexity"], 2), _figure(found["bits_per_byte"]))
            table.add_row(screen.escape(source["name"]), f"{source['share']:.2%}", *figures)
        screen.heading("This model, by source")
        screen.console.print(table)


def show_tasks(outcome: dict[str, Any]) -> None:
    """Prints the metrics of each task, as lm-evaluation-harness prints them."""
    step = outcome["step"]
    screen.heading("Tasks" if step is None else f"Tasks, step {step:,}{describe_average(outcome['average'])}")
    table = screen.table("task", "metric", "value", "± standard error", "questions")
    table.columns[1].justify = "left"
    for name, task in outcome["tasks"].items():
        first = screen.escape(name)
        for metric in task["metrics"]:
            error = metric["stderr"]
            questions = "" if task["questions"] is None else f"{task['questions']:,}"
            figures = (_figure(metric["value"]), "" if error is None else f"± {error:.4f}")
            table.add_row(first, screen.escape(metric["name"]), *figures, questions if first else "")
            first = ""
    screen.console.print(table)
    if outcome.get("limit") is not None:
        screen.console.print(f"only the first {outcome['limit']:,} questions of each task")


def _describe_protocol(protocol: dict[str, Any]) -> str:
    if protocol["name"] == "rows":
        return "Protocol: the rows of training."
    return (
        f"Protocol: each document by itself, in windows of {protocol['window']:,} tokens that repeat "
        f"{protocol['overlap']:,} of the one before."
    )


def show_breakdown(outcome: dict[str, Any]) -> None:
    """Prints a table by length and one by position, for a single source."""
    for key, column, title in (
        ("by_length", "bytes", "By length of the document, in bytes"),
        ("by_position", "seen", "By the number of tokens before it"),
    ):
        found = outcome.get(key, [])
        if len(found) < 2:
            continue
        has_documents = "documents" in found[0]
        table = screen.table(column, *(["documents"] if has_documents else []), "tokens", "loss", "bits per byte")
        for row in found:
            documents = [f"{row['documents']:,}"] if has_documents else []
            figures = (_figure(row["loss"]), _figure(row["bits_per_byte"]))
            table.add_row(row[column], *documents, f"{row['tokens']:,}", *figures)
        screen.heading(title)
        screen.console.print(table)


def _figure(value: float | None, places: int = 4) -> str:
    return "not finite" if value is None else f"{value:.{places}f}"
