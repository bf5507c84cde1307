"""`packtrain serve`: a model by OpenAI's API, and a page to play with it, until Ctrl-C."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from packtrain.cli import screen
from packtrain.cli.figures import describe_average
from packtrain.cli.generate_options import WeightsOption
from packtrain.cli.options import AsJson, AverageChoice, Best, Last, Step
from packtrain.errors import ConfigError, Interrupted
from packtrain.serve.limits import ServeLimits

if TYPE_CHECKING:
    from packtrain.serve.server import Serving

_LIMITS = ServeLimits()


Model = Annotated[
    Path,
    typer.Argument(metavar="RUN|FOLDER", help="A run, a folder of one of its checkpoints, or a model from elsewhere."),
]
Host = Annotated[
    str, typer.Option("--host", metavar="NAME", help="Address to listen at; 0.0.0.0 for other machines too.")
]
Port = Annotated[int, typer.Option("--port", metavar="N", help="Port to listen at; 0 takes a free one.")]
Token = Annotated[
    str | None, typer.Option("--token", metavar="TEXT", help="Answer only requests that carry this token.")
]
TokenFile = Annotated[
    Path | None,
    typer.Option("--token-file", metavar="FILE", help="Read the token from a file; no process list shows it."),
]
Reload = Annotated[
    bool, typer.Option("--reload", help="Follow a run that is still training: answer with its newest checkpoint.")
]
Slots = Annotated[
    int, typer.Option("--slots", metavar="N", help="Generate N texts at once; each has memory for a whole context.")
]
Queue = Annotated[
    int, typer.Option("--queue", metavar="N", help="Let N texts wait for a slot; refuse more with status 429.")
]
MaxSeconds = Annotated[float, typer.Option("--max-seconds", metavar="S", help="End a request that takes longer.")]
AllowHost = Annotated[
    list[str] | None,
    typer.Option("--allow-host", metavar="NAME", help="Also answer under this name; may be given again."),
]
AllowOrigin = Annotated[
    list[str] | None,
    typer.Option("--allow-origin", metavar="ORIGIN", help="Let pages of https://this.site ask; may be given again."),
]


def serve(
    model: Model,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    token: Token = None,
    token_file: TokenFile = None,
    reload: Reload = False,
    slots: Slots = _LIMITS.slots,
    queue: Queue = _LIMITS.queue,
    max_seconds: MaxSeconds = _LIMITS.max_seconds,
    allow_host: AllowHost = None,
    allow_origin: AllowOrigin = None,
    weights: WeightsOption = "float32",
    step: Step = None,
    best: Best = False,
    last: Last = False,
    average: AverageChoice = None,
    as_json: AsJson = False,
) -> None:
    """Serve a model by OpenAI's API, with a page to play with it.

    The page is at the address that is printed; Ctrl-C ends the server.
    """
    from packtrain.api.serving import serve as open_server

    screen.route_logging()
    if token is not None and token_file is not None:
        raise ConfigError("--token and --token-file both give a token; keep one")
    server = open_server(
        model,
        host=host,
        port=port,
        token=token if token_file is None else _read_token(token_file),
        reload=reload,
        slots=slots,
        queue=queue,
        max_seconds=max_seconds,
        allow_hosts=allow_host or (),
        allow_origins=allow_origin or (),
        step=step,
        best=best,
        last=last,
        average=average,
        weights=weights,
    )
    with server:
        try:
            _tell(server, as_json)
            server.wait()
        except KeyboardInterrupt:
            raise Interrupted("the server has ended; answers that were not complete ended with an error") from None


def _tell(server: "Serving", as_json: bool) -> None:
    if server.weights_note is not None:
        screen.note(server.weights_note)
    if as_json:
        facts: dict[str, Any] = {"address": server.address, "api": f"{server.address}v1", "model": server.name}
        facts |= {"step": server.step, "average": server.average}
        screen.print_json(facts)
    else:
        which = "" if server.step is None else f", step {server.step}{describe_average(server.average)}"
        screen.console.print(f"serving {server.name}{which} at {server.address}", soft_wrap=True, markup=False)
        screen.note(f"Open it in a browser, or give a client {server.address}v1 as its base URL. Ctrl-C ends it.")
    # Into a pipe too: whoever started this waits for the address.
    sys.stdout.flush()


def _read_token(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text; write the token into it on one line") from None
    if not text:
        raise ConfigError(f"{path} is empty; write the token into it on one line")
    return text
