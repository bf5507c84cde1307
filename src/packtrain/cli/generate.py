"""`packtrain generate`: a prompt, continued by a run's model and shown token by token."""

import io
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from packtrain.cli import screen
from packtrain.cli.options import AsJson, Best, Step
from packtrain.data.tokens.visible import printable
from packtrain.errors import UserError
from packtrain.generate.settings import GenerateSettings

_DEFAULT = GenerateSettings()
_ENDS = {
    "eos": "the model ended the text",
    "stop": "a stop string was found",
    "length": "--max-tokens was reached",
    "context": "the model's context is full",
}


def generate(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN|FOLDER", help="A run, or a Hugging Face folder that `packtrain export` wrote."),
    ],
    prompt: Annotated[
        str, typer.Option("--prompt", metavar="TEXT", help="Text to continue; - reads it from standard input.")
    ],
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", metavar="N", help="Generate N tokens at most.")
    ] = _DEFAULT.max_tokens,
    temperature: Annotated[
        float,
        typer.Option("--temperature", metavar="T", help="Divide the logits by T; 0 always takes the likeliest token."),
    ] = _DEFAULT.temperature,
    top_k: Annotated[
        int, typer.Option("--top-k", metavar="K", help="Sample from the K likeliest tokens; 0 for all.")
    ] = _DEFAULT.top_k,
    top_p: Annotated[
        float,
        typer.Option("--top-p", metavar="P", help="Sample from the likeliest tokens whose probabilities add up to P."),
    ] = _DEFAULT.top_p,
    min_p: Annotated[
        float,
        typer.Option(
            "--min-p", metavar="P", help="Sample from tokens at least P times as likely as the likeliest; 0 for all."
        ),
    ] = _DEFAULT.min_p,
    repetition_penalty: Annotated[
        float,
        typer.Option(
            "--repetition-penalty", metavar="X", help="Above 1, tokens that the text already has become less likely."
        ),
    ] = _DEFAULT.repetition_penalty,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", help="The same seed gives the same text.")
    ] = _DEFAULT.seed,
    stop: Annotated[
        list[str] | None,
        typer.Option("--stop", metavar="TEXT", help="Stop at this string; may be given more than once."),
    ] = None,
    step: Step = None,
    best: Best = False,
    as_json: AsJson = False,
) -> None:
    """Continue a prompt."""
    screen.route_logging()
    stops = tuple(stop or ())
    settings = GenerateSettings(max_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed, stops)
    text = _read_prompt() if prompt == "-" else prompt
    _generate(run, text, settings, step, best, as_json)


def _generate(run: Path, text: str, settings: GenerateSettings, step: int | None, best: bool, as_json: bool) -> None:
    from packtrain.api.models import load

    opened = load(run, step=step, best=best)
    generation = opened.stream(text, **vars(settings))
    start = time.perf_counter()
    continuation = "".join(generation) if as_json else _show(text, generation)
    seconds = time.perf_counter() - start
    num_tokens = len(generation.token_ids)
    if not as_json:
        which = "" if opened.step is None else f"step {opened.step}, "
        screen.note(
            f"{num_tokens} tokens, {num_tokens / seconds:.0f} a second, {which}seed {generation.seed}: "
            f"{_ENDS[str(generation.finish_reason)]}"
        )
        return
    screen.print_json(
        {
            "prompt": text,
            "text": continuation,
            "finish_reason": generation.finish_reason,
            "prompt_tokens": len(generation.prompt_ids),
            "tokens": num_tokens,
            "tokens_per_s": num_tokens / seconds,
            "seed": generation.seed,
            "step": opened.step,
        }
    )


def _show(prompt: str, pieces: Any) -> str:
    """Writes the prompt and then each piece as it comes; returns the pieces joined.

    A terminal is shown hidden characters by their escapes; a file or another program gets the text as it is.
    """
    # A terminal that cannot show a character shows a question mark; an error would cut the text short.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    shape = printable if sys.stdout.isatty() else str
    sys.stdout.write(shape(prompt))
    shown = []
    for piece in pieces:
        sys.stdout.write(shape(piece))
        sys.stdout.flush()
        shown.append(piece)
    sys.stdout.write("\n")
    sys.stdout.flush()
    return "".join(shown)


def _read_prompt() -> str:
    """Standard input as a prompt, without the final line break that `echo` and editors add."""
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"the prompt on standard input is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None
    return text.removesuffix("\n").removesuffix("\r")
