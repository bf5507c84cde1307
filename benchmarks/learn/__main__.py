"""Trains, sweeps and compares recipes by the protocol of `benchmarks/learn/__init__.py`.

    python -m benchmarks.learn train benchmarks/presets/reference-demo.toml optim.lr=1e-3 --seeds 1 2 3
    python -m benchmarks.learn train FILE --share 0.35 --seeds 1 2 3
    python -m benchmarks.learn train FILE --minutes 5 --corpus prose --data FOLDER
    python -m benchmarks.learn sweep FILE --over optim.lr=1e-3,2e-3,4e-3 --over optim.betas=[0.9,0.95],[0.9,0.99]
    python -m benchmarks.learn score RUN RUN --name NAME
    python -m benchmarks.learn small FILE --data FOLDER --shares 1 0.5 --epochs 1 2 4 8 16 --against reference-demo
    python -m benchmarks.learn table --against reference-demo [--markdown] [--into PAGE] [--picture FILE.svg]

nanoGPT's Shakespeare (1.88 nats a character is published):
    python -m benchmarks.learn train benchmarks/presets/nanogpt-shakespeare.toml --corpus shakespeare --data FOLDER

What is done is not done again: stop it at any time and type the same command.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.learn import results
from benchmarks.learn.corpora import NAMES, prepare_corpus
from benchmarks.learn.recipe import Budget, RecipeFile, measure_recipe, name_recipe


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. Returns the exit code; what is wrong with the input is one sentence."""
    from packtrain.errors import PacktrainError

    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse takes settings in one place only.
    if rest and ("settings" not in options or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.settings += rest
    try:
        options.run(options)
    except PacktrainError as error:
        print(f"learn: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("learn: interrupted; type the same command to continue", file=sys.stderr)
        return 3
    return 0


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learn", description=__doc__, formatter_class=raw)
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")
    train = verbs.add_parser("train", help="train and score a preset, and keep a line of results")
    _add_common(train)
    train.set_defaults(run=_train)
    sweep = verbs.add_parser("sweep", help="the same for several values of settings")
    _add_common(sweep)
    sweep.add_argument("--over", action="append", required=True, metavar="KEY=A,B", help="values to try; give it again")
    sweep.add_argument("--grid", action="store_true", help="every combination, not one setting at a time")
    sweep.set_defaults(run=_sweep)
    score = verbs.add_parser("score", help="keep a line of results of runs that are finished already")
    score.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="one for each seed")
    score.add_argument("--name", required=True, help="name of the recipe")
    score.add_argument("--results", type=Path, default=results.FILE, metavar="FILE")
    score.set_defaults(run=_score)
    small = verbs.add_parser("small", help="a small corpus: epochs that help, and data efficiency")
    _add_common(small)
    small.add_argument("--megabytes", type=_number(float), default=1.0, help="all of the training text (10^6 bytes)")
    small.add_argument("--shares", type=_share, nargs="+", default=[1.0], help="of that text")
    small.add_argument("--epochs", type=_number(float), nargs="+", default=[1, 2, 4, 8, 16, 32], help="to try in turn")
    small.add_argument("--against", metavar="NAME", help="the recipe whose best figure on all of the text counts")
    small.set_defaults(run=_small, points=0)
    table = verbs.add_parser("table", help="compare the recipes that were measured")
    table.add_argument("--against", metavar="NAME", help="the recipe whose final figure the others are to reach")
    table.add_argument("--only", nargs="*", default=[], metavar="GLOB", help="recipes to show, such as 'reference*'")
    table.add_argument("--corpus", help="show only this one")
    table.add_argument("--markdown", action="store_true")
    table.add_argument("--into", type=Path, metavar="FILE", help="put the tables into this page, between its marks")
    table.add_argument("--picture", type=Path, metavar="FILE", help="write the curves to this SVG file")
    table.add_argument("--results", type=Path, default=results.FILE, metavar="FILE")
    table.set_defaults(run=_table)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("preset", help="a preset file, or the name of a preset")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="as of `packtrain train`")
    parser.add_argument("--name", help="name of the recipe; unset: the file's, with the settings")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--tokens", type=_number(int), help="budget; unset: the preset's own")
    length.add_argument("--minutes", type=_number(float), help="budget in processor minutes of each thread")
    parser.add_argument("--share", type=_share, default=1.0, help="of the budget, with the schedule shrunk to it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1337])
    parser.add_argument("--points", type=int, default=4, help="checkpoints on the way that are scored for the curve")
    parser.add_argument("--corpus", default="stdlib", help=f"{', '.join(NAMES)}, or a prepared dataset's folder")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="where the published texts are")
    parser.add_argument("--prepare", action="append", default=[], metavar="KEY=VALUE", help="of the data recipe")
    parser.add_argument("--work", type=Path, default=Path("learn-work"), metavar="FOLDER", help="datasets and runs")
    parser.add_argument("--results", type=Path, default=results.FILE, metavar="FILE")


def _number(kind: type) -> object:
    def read(text: str) -> float:
        value = kind(text.replace("_", "").replace(",", "")) if kind is int else kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not a positive number")
        return value

    read.__name__ = "positive number"
    return read


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share; write a number above 0 and up to 1, such as 0.35")
    return value


def _recipe(options: argparse.Namespace) -> RecipeFile:
    return RecipeFile(
        preset=options.preset,
        name=options.name or name_recipe(options.preset, options.settings),
        words=tuple(options.settings),
        budget=Budget(options.tokens, options.minutes, options.share),
        seeds=tuple(dict.fromkeys(options.seeds)),
        points=max(0, options.points),
    )


def _train(options: argparse.Namespace) -> None:
    from benchmarks.learn.table import describe_line

    corpus = prepare_corpus(options.corpus, options.work, options.data, options.prepare)
    print(describe_line(measure_recipe(_recipe(options), corpus, options.work, options.results)))


def _sweep(options: argparse.Namespace) -> None:
    from benchmarks.learn.sweep import list_points
    from benchmarks.learn.table import describe_line

    points = list_points(options.over, is_grid=options.grid)
    corpus = prepare_corpus(options.corpus, options.work, options.data, options.prepare)
    lines = [
        measure_recipe(_recipe(options).with_words(words), corpus, options.work, options.results) for words in points
    ]
    for line in sorted(lines, key=lambda line: line["mean"] or float("inf")):
        print(describe_line(line))


def _score(options: argparse.Namespace) -> None:
    from benchmarks.learn.finished import score_finished
    from benchmarks.learn.table import describe_line

    print(describe_line(score_finished(options.runs, options.name, options.results)))


def _small(options: argparse.Namespace) -> None:
    from benchmarks.learn.small import describe_shares, measure_epochs, prepare_small
    from packtrain.errors import ConfigError

    if options.tokens or options.minutes or options.share != 1 or options.corpus != "stdlib":
        raise ConfigError("a small corpus is given by --megabytes, --shares and --epochs; leave the other budgets out")
    for share in sorted(set(options.shares), reverse=True):
        corpus = prepare_small(options.work, options.data, options.megabytes, share, options.prepare)
        measure_epochs(_recipe(options), corpus, options.epochs, options.work, options.results)
    lines = [line for line in results.read_lines(options.results) if line["corpus"]["held_out"] == corpus.held_out]
    known = {line["name"] for line in lines}
    if options.against is not None and options.against not in known:
        raise ConfigError(f"{options.results} has no run of '{options.against}' on this corpus; train it first")
    print("\n".join(describe_shares(lines, options.against)))


def _table(options: argparse.Namespace) -> None:
    from benchmarks.learn.table import choose_lines, lay_out_tables, put_between_marks

    lines = results.read_lines(options.results)
    tables = lay_out_tables(lines, options)
    if options.into is None:
        print(f"\n{tables}", end="")
    else:
        put_between_marks(options.into, tables)
        print(f"the tables are in {options.into}")
    if options.picture is not None:
        from benchmarks.learn.picture import draw_curves

        options.picture.write_text(draw_curves(choose_lines(lines, options)))
        print(f"the curves are in {options.picture}")


if __name__ == "__main__":
    sys.exit(main())
