"""`packtrain doctor`: what this machine has, what would fail on it or in a run, and how to fix that."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from packtrain.cli import screen
from packtrain.cli.options import AsJson, Settings
from packtrain.errors import ConfigError, UserError

if TYPE_CHECKING:
    from packtrain.doctor.finding import Finding

_MARKS = {"ok": "[green]ok[/green]     ", "fault": "[bold red]fault[/bold red]  ", "skipped": "[dim]skipped[/dim]"}


def doctor(
    target: Annotated[
        str | None,
        typer.Argument(metavar="[PRESET|RUN]", help="A preset, a TOML file or a run to check; unset: this machine."),
    ] = None,
    settings: Settings = None,
    run: Annotated[
        Path | None,
        typer.Option("--run", metavar="FOLDER", help="With a preset: where the run would be, whose disk is checked."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what this machine can do, or check a run before it starts.

    With a preset or a run, checks its data, model, checkpoints, disk and trackers in about a minute. Nothing is trained for good,
    and nothing is written into the run. Ends with 2 if a check finds a fault.
    """
    if target is None:
        if run is not None:
            raise ConfigError(
                f"--run {run} is where a run would be; name its preset, or check a run with `packtrain doctor {run}`"
            )
        _show_machine(as_json)
    else:
        screen.route_logging()
        _check_run(target, settings or [], run, as_json=as_json)


def _check_run(target: str, settings: list[str], folder: Path | None, *, as_json: bool) -> None:
    from packtrain.api.checking import examine_target

    findings = []
    for finding in examine_target(target, settings, folder):
        findings.append(finding)
        if not as_json:
            _show(finding)
    faults = [finding.check for finding in findings if finding.state == "fault"]
    if as_json:
        screen.print_json({"checks": [dataclasses.asdict(finding) for finding in findings], "faults": faults})
    if faults:
        count = f"{len(faults)} of {len(findings)} checks found a fault"
        raise UserError(f"{count} ({', '.join(faults)}); fix what is said above, and run the command again")
    if not as_json:
        left = sum(finding.state == "skipped" for finding in findings)
        screen.console.print("\nno faults found" + (f"; checks not made: {left}" if left else ""))


def _show(finding: "Finding") -> None:
    screen.console.print(
        f"{_MARKS[finding.state]} [bold]{finding.check:<20}[/bold] {screen.escape(finding.says)}", soft_wrap=True
    )
    for line in finding.lines:
        screen.console.print(f"        {screen.escape(line)}", style="dim", no_wrap=True, overflow="ellipsis")
    if finding.fix:
        screen.console.print(f"        fix: {screen.escape(finding.fix)}", soft_wrap=True)


def _show_machine(as_json: bool) -> None:
    from packtrain.doctor.machine import examine_machine

    machine = examine_machine()
    if as_json:
        screen.print_json(dataclasses.asdict(machine))
        return
    for name, value in machine.facts.items():
        screen.console.print(f"[bold]{name:<16}[/bold] {value}", soft_wrap=True)
    for problem in machine.problems:
        screen.warn(problem)
    if not machine.problems:
        screen.console.print("\nno problems found")
