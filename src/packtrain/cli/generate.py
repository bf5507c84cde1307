"""`packtrain generate`: prompts, continued by a run's model and shown token by token, or a conversation with it."""

import io
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from packtrain.cli import generate_options as option
from packtrain.cli import screen
from packtrain.cli.figures import describe_average
from packtrain.cli.generate_options import DEFAULT
from packtrain.cli.options import AsJson, AverageChoice, Best, Last, Step
from packtrain.cli.prompts_file import read_prompt, read_prompts
from packtrain.data.tokens.visible import printable
from packtrain.errors import ConfigError, UserError
from packtrain.generate.settings import Beyond, GenerateSettings

if TYPE_CHECKING:
    from packtrain.api.models import LoadedModel
    from packtrain.generate.many import Answer

ENDS = {
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
    prompt: option.Prompt = None,
    prompts: option.Prompts = None,
    max_tokens: option.MaxTokens = DEFAULT.max_tokens,
    temperature: option.Temperature = DEFAULT.temperature,
    top_k: option.TopK = DEFAULT.top_k,
    top_p: option.TopP = DEFAULT.top_p,
    min_p: option.MinP = DEFAULT.min_p,
    typical_p: option.TypicalP = DEFAULT.typical_p,
    repetition_penalty: option.RepetitionPenalty = DEFAULT.repetition_penalty,
    frequency_penalty: option.FrequencyPenalty = DEFAULT.frequency_penalty,
    presence_penalty: option.PresencePenalty = DEFAULT.presence_penalty,
    no_repeat_ngram: option.NoRepeatNgram = DEFAULT.no_repeat_ngram,
    logit_bias: option.LogitBias = None,
    seed: option.Seed = DEFAULT.seed,
    stop: option.Stop = None,
    stop_token_id: option.StopTokenId = None,
    min_tokens: option.MinTokens = DEFAULT.min_tokens,
    n: option.Count = DEFAULT.n,
    beyond: option.BeyondOption = None,
    logprobs: option.Logprobs = DEFAULT.logprobs,
    weights: option.WeightsOption = "float32",
    step: Step = None,
    best: Best = False,
    last: Last = False,
    average: AverageChoice = None,
    as_json: AsJson = False,
) -> None:
    """Continue prompts, or talk with the model in the terminal."""
    screen.route_logging()
    texts = _read(prompt, prompts)
    if texts is None:
        _check_terminal(run, as_json)
    # The parameters of this function are named as the settings are.
    given = {field: value for field, value in locals().items() if field in vars(DEFAULT)}
    given |= {"stop": tuple(stop or ()), "stop_token_ids": tuple(stop_token_id or ())}
    given |= {"logit_bias": option.read_bias(logit_bias)}
    given["beyond"] = cast(Beyond, beyond or ("truncate" if texts is None else "error"))
    settings = GenerateSettings(**given)
    if logprobs is not None and not as_json:
        raise ConfigError("--logprobs belongs to --json; add it")
    opened = _open(run, step, best, last, average, weights)
    if texts is None:
        from packtrain.cli.conversation import converse

        converse(opened, settings)
    elif len(texts) == settings.n == 1 and not as_json:
        _show_one(opened, texts[0], settings)
    else:
        _show_all(opened, texts, settings, as_json)


def _read(prompt: list[str] | None, prompts: Path | None) -> list[str] | None:
    """The prompts that are given; None for a conversation."""
    if prompt and prompt.count("-") > 1:
        raise UserError("--prompt - is given twice, but standard input can be read once; give it once")
    texts = [read_prompt() if text == "-" else text for text in prompt or ()]
    if prompts is not None:
        texts += read_prompts(prompts)
    return texts or None


def _check_terminal(run: Path, as_json: bool) -> None:
    if as_json or not (sys.stdin.isatty() and sys.stdout.isatty()):
        why = "--json" if as_json else "no terminal to talk in"
        raise UserError(
            f"there is {why} and no prompt; write packtrain generate {run} --prompt TEXT, --prompt - or --prompts FILE"
        )


def _open(run: Path, step: int | None, best: bool, last: bool, average: bool | None, weights: str) -> "LoadedModel":
    from packtrain.api.models import load
    from packtrain.api.narrowing import describe_narrowing, device_for

    opened = load(run, step=step, best=best, last=last, average=average, device=device_for(weights))
    found = opened.narrow(weights)
    if found is not None:
        screen.note(describe_narrowing(found))
    return opened


def _show_one(opened: "LoadedModel", text: str, settings: GenerateSettings) -> None:
    generation = opened.stream(text, **vars(settings))
    start = time.perf_counter()
    show(text, generation)
    seconds = time.perf_counter() - start
    num_tokens = len(generation.token_ids)
    which = "" if opened.step is None else f"step {opened.step}{describe_average(opened.average)}, "
    screen.note(
        f"{num_tokens} tokens, {num_tokens / seconds:.0f} a second, {which}seed {generation.seed}: "
        f"{ENDS[str(generation.finish_reason)]}"
    )


def _show_all(opened: "LoadedModel", texts: list[str], settings: GenerateSettings, as_json: bool) -> None:
    """Each answer as soon as it and all before it are finished; as JSON, all of them in one object at the end."""
    start = time.perf_counter()
    finished: dict[tuple[int, int], Answer] = {}
    shown = 0
    num_answers = len(texts) * settings.n

    def on_answer(number: int, i: int, answer: "Answer") -> None:
        nonlocal shown
        finished[number, i] = answer
        while not as_json and (place := divmod(shown, settings.n)) in finished:
            show(texts[place[0]], [finished[place].text])
            screen.note(f"seed {finished[place].seed}: {ENDS[str(finished[place].finish_reason)]}\n")
            shown += 1

    opened.answer(texts, on_answer=on_answer, **vars(settings))
    num_tokens = sum(len(answer.token_ids) for answer in finished.values())
    rate = num_tokens / (time.perf_counter() - start)
    if not as_json:
        which = "" if opened.step is None else f", step {opened.step}{describe_average(opened.average)}"
        screen.note(f"{num_answers} texts, {num_tokens} tokens, {rate:.0f} a second{which}")
        return
    answers = [_describe_answer(opened, texts[number], answer) for (number, _), answer in sorted(finished.items())]
    if num_answers == 1:
        screen.print_json({**answers[0], "step": opened.step, "average": opened.average, "tokens_per_s": rate})
    else:
        screen.print_json(
            {
                "answers": answers,
                "tokens": num_tokens,
                "step": opened.step,
                "average": opened.average,
                "tokens_per_s": rate,
            }
        )


def _describe_answer(opened: "LoadedModel", prompt: str, answer: "Answer") -> dict[str, Any]:
    found: dict[str, Any] = {
        "prompt": prompt,
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": len(answer.prompt_ids),
        "tokens": len(answer.token_ids),
        "seed": answer.seed,
    }
    if answer.logprobs:
        found["logprobs"] = _describe_tokens(opened, answer)
    return found


def _describe_tokens(opened: "LoadedModel", answer: "Answer") -> list[dict[str, Any]]:
    name = opened.tokenizer.raw.id_to_token
    rows = zip(answer.token_ids, answer.logprobs, answer.alternatives, strict=True)
    return [
        {"id": token_id, "token": name(token_id), "logprob": logprob}
        | {"alternatives": [{"id": i, "token": name(i), "logprob": p} for i, p in others]}
        for token_id, logprob, others in rows
    ]


def show(prompt: str, pieces: Any) -> str:
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
