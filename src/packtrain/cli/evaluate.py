"""`packtrain evaluate`: a model's loss on held-out text, beside what simpler methods reach, and its figures in standard tasks."""

from packtrain.api.measuring import EvaluateOptions, evaluate_and_save
from packtrain.cli import evaluation_options as given
from packtrain.cli import screen
from packtrain.cli.evaluation_view import show_breakdown, show_tasks, show_text
from packtrain.cli.following import show_next, write_command
from packtrain.cli.options import AsJson, AverageChoice, Best, Last, Step, which_checkpoint
from packtrain.errors import ConfigError


def evaluate(
    model: given.Model,
    tokens: given.Tokens = None,
    everything: given.Everything = False,
    best: Best = False,
    last: Last = False,
    average: AverageChoice = None,
    step: Step = None,
    dataset: given.DatasetFolder = None,
    text: given.TextFile = None,
    separator: given.Separator = None,
    text_column: given.TextColumn = "text",
    protocol: given.ProtocolName = None,
    window: given.WindowTokens = None,
    overlap: given.Overlap = None,
    tasks: given.Tasks = None,
    task_files: given.TaskFiles = None,
    limit: given.Limit = None,
    as_json: AsJson = False,
) -> None:
    """Measure loss and bits per byte on held-out text, or in tasks."""
    screen.route_logging()
    if everything and tokens is not None:
        raise ConfigError(f"--all and --tokens {tokens} both say how much to evaluate; keep one")
    which = which_checkpoint(model, step, best, last)
    options = EvaluateOptions(
        tokens=tokens,
        everything=everything,
        dataset=dataset,
        text=text,
        separator=None if separator is None else separator.replace("\\n", "\n").replace("\\t", "\t"),
        text_column=text_column,
        protocol=protocol,  # type: ignore[arg-type]
        window=window,
        overlap=overlap,
        tasks=tuple(name.strip() for listed in tasks or () for name in listed.split(",") if name.strip()),
        task_files=task_files,
        limit=limit,
    )
    outcome = evaluate_and_save(model, options, which=which, step=step, average=average, progress=screen.progress)
    if as_json:
        screen.print_json(outcome)
        return
    if "model" in outcome:
        show_text(outcome)
        show_breakdown(outcome)
    if "tasks" in outcome:
        show_tasks(outcome)
    if outcome["step"] is not None:
        show_next(write_command("report", model))
