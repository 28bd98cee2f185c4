"""Dry runs: `config dry-run` and `switch --dry-run` ask what a change would do now, and change nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console

from common.errors import SettingsError
from services.cli.assignments import parse_assignments
from services.cli.client import ControlClient
from services.cli.commands.options import JsonOption, RunOption, UrlOption, connect, print_json
from services.cli.exit_codes import FAILED, UNFINISHED
from services.cli.findings import findings_table, remarks
from services.cli.legible import legible

Json = dict[str, Any]
WAIT_S = 20.0
LONGEST_LABEL = 80
_OR = "or"

WaitOption = Annotated[
    float, typer.Option("--wait", min=0, max=60, help="seconds to wait for the answer; then exit code 3")
]


def dry_run(
    assignments: Annotated[
        list[str] | None,
        typer.Argument(help="path=value ..., and further candidates after the word `or`", show_default=False),
    ] = None,
    earlier: Annotated[str, typer.Option("--id", help="show what this earlier dry run found")] = "",
    wait_s: WaitOption = WAIT_S,
    run: RunOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask what changes would do with the very batch that the learner trains on now. Nothing is changed.

    tributary config dry-run algorithm.gamma=0.2 or algorithm.gamma=0.4 or algorithm.kind=srft
    """
    if bool(assignments) == bool(earlier):
        raise SettingsError("name either changes to try, such as algorithm.gamma=0.2, or an earlier dry run with --id")
    with connect(run, url) as client:
        answer = client.trial(earlier) if earlier else client.dry_run(candidates_of(assignments or []), wait_s)
    show_answer(answer, as_json=as_json)


def candidates_of(words: Sequence[str]) -> list[Json]:
    """The candidates that `a=1 b=2 or a=3` names; each is labelled with its own words."""
    parts: list[list[str]] = [[]]
    for word in words:
        if word == _OR:
            parts.append([])
        else:
            parts[-1].append(word)
    if not all(parts):
        raise SettingsError(f"{_OR!r} stands between two candidates: algorithm.gamma=0.2 {_OR} algorithm.gamma=0.4")
    return [{"label": label_of(" ".join(part)), "patch": parse_assignments(part)} for part in parts]


def label_of(words: str) -> str:
    """A label that fits what the control plane takes."""
    return words if len(words) <= LONGEST_LABEL else words[: LONGEST_LABEL - 1] + "…"


def try_patch(client: ControlClient, label: str, patch: Json, wait_s: float) -> Json:
    """What one change would do."""
    return client.dry_run([{"label": label_of(label), "patch": patch}], wait_s)


def show_answer(answer: Json, *, as_json: bool) -> None:
    """Print what a dry run found; exit code 3 if it waits still, 1 if no candidate could be tried."""
    is_waiting = answer["state"] == "waiting"
    if as_json:
        print_json(answer)
    elif is_waiting:
        why = legible(answer["notice"]).partition(":")[0] or "the learner has not come to its next step yet"
        print(f"{why}; see its answer later with: tributary config dry-run --id {answer['id']}")
    else:
        console = Console(highlight=False)
        console.print(findings_table(answer))
        for remark in remarks(answer):
            console.print(f"· {remark}", markup=False, soft_wrap=True)
    if is_waiting:
        raise typer.Exit(UNFINISHED)
    if all(candidate["finding"] is None for candidate in answer["candidates"]):
        raise typer.Exit(FAILED)
