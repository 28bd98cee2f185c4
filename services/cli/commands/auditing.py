"""The audit: `config history` lists the revisions, and shows one with what it did to the run."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from services.cli.commands.options import JsonOption, LimitOption, RunOption, UrlOption, connect, print_json
from services.cli.legible import legible, one_line
from services.cli.progress import describe_changes

Json = dict[str, Any]


def history(
    revision: Annotated[
        int | None, typer.Argument(min=1, help="show this revision, with the figures around it", show_default=False)
    ] = None,
    limit: LimitOption = 20,
    run: RunOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the revisions, newest first: who, when, why, what, and from which learner step in force. Or show one."""
    with connect(run, url) as client:
        document = client.revisions(limit) if revision is None else client.revision(revision)
    if as_json:
        print_json(document)
    elif isinstance(document, dict):
        _show_revision(document)
    else:
        _show_revisions(document)


def _show_revisions(revisions: list[Json]) -> None:
    table = Table("revision", "when", "who")
    for heading in ("what changed", "why", "from step"):
        table.add_column(heading, overflow="fold")
    for revision in revisions:
        number = int(revision["revision"])
        step = revision["step"]
        cells = [str(number), moment(revision["at_s"]), legible(revision["author"])]
        cells += [legible(describe_changes(revision["changes"], number)), legible(revision["reason"])]
        table.add_row(*(Text(cell) for cell in cells), "–" if step is None else str(step))
    Console(highlight=False).print(table)


def _show_revision(revision: Json) -> None:
    console = Console(highlight=False)
    grid = Table.grid(padding=(0, 2))
    for label, value in _facts(revision):
        grid.add_row(Text(label, style="dim"), Text(value))
    console.print(grid)
    table = Table("path", "before", "after")
    for change in revision["changes"]:
        table.add_row(*(Text(one_line(cell)) for cell in _cells(change)))
    if revision["changes"]:
        console.print(table)
    console.print(_around(revision))


def _facts(revision: Json) -> Iterator[tuple[str, str]]:
    yield "revision", str(revision["revision"])
    yield "who", f"{legible(revision['author'])} from {legible(revision['origin'])}"
    yield "when", moment(revision["at_s"])
    yield "why", legible(revision["reason"]) or "–"
    marks = revision["in_force"].items()
    yield "in force", ", ".join(f"{legible(name)} ({_mark(mark)})" for name, mark in marks) or "nowhere yet"


def _mark(mark: Json) -> str:
    step = mark.get("step")
    return moment(mark["at_s"])[11:] if step is None else f"step {step}"


def _cells(change: Json) -> tuple[str, str, str]:
    return str(change["path"]), json.dumps(change["before"]), json.dumps(change["after"])


def _around(revision: Json) -> Table | str:
    """The means of figures over the steps before and after a revision came into force."""
    if not revision["steps_before"] and not revision["steps_after"]:
        return "there are no figures around it, because no step was made just before it or under it"
    before, after = (dict(_figures(revision[when])) for when in ("before", "after"))
    table = Table("mean of")
    table.add_column(_steps(revision["steps_before"], "before"), justify="right")
    table.add_column(_steps(revision["steps_after"], "from then on"), justify="right")
    for name in dict.fromkeys((*before, *after)):
        table.add_row(legible(name), _number(before.get(name)), _number(after.get(name)))
    return table


def _figures(surroundings: Json) -> Iterator[tuple[str, Any]]:
    """(name, mean) of every figure; held-out accuracies, one for each set, are those of the nearest evaluation."""
    for name, value in surroundings.items():
        if isinstance(value, dict):
            yield from ((f"held-out {inner} ({name})", part) for inner, part in value.items())
        else:
            yield name.replace("_", " "), value


def _steps(count: int, when: str) -> str:
    return f"{count} step{'' if count == 1 else 's'} {when}"


def _number(value: Any) -> str:
    return "–" if value is None else f"{value:.4g}"


def moment(at_s: float) -> str:
    """A Unix time in words of the local clock."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_s))
