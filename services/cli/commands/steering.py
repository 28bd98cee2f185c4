"""Commands that steer: `config get|set|diff|history|rollback` and `switch`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from common.config.algorithm import ALGORITHMS
from common.config.store import Change, difference
from common.errors import SettingsError
from services.cli import location
from services.cli.assignments import parse_assignments, parse_switch
from services.cli.client import ControlClient
from services.cli.commands.observing import JsonOption, RunOption, UrlOption
from services.cli.feeding import with_hints
from services.cli.progress import describe_changes

Json = dict[str, Any]
ReasonOption = Annotated[str, typer.Option("--reason", "-m", help="why; kept in the history")]

config = typer.Typer(help="Read and change the live configuration of a run.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.add_typer(config, name="config")
    lenient = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command(context_settings=lenient)(switch)


def _client(run: Path | None, url: str | None) -> ControlClient:
    return ControlClient(location.control_url(run, url))


@config.command()
def get(
    path: Annotated[str, typer.Argument(help="a part of it, such as algorithm or optimizer.learning_rate")] = "",
    run: RunOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the live configuration, or a part of it."""
    with _client(run, url) as client:
        revision = client.config()
    value = pick(revision["config"], path)
    if as_json:
        print(json.dumps(value if path else revision, indent=2))
    elif isinstance(value, dict):
        for name, leaf in leaves(value, path):
            print(f"{name} = {json.dumps(leaf)}")
    else:
        print(json.dumps(value))


@config.command("set")
def set_values(
    assignments: Annotated[
        list[str], typer.Argument(help="path=value, such as algorithm.gamma=0.2", show_default=False)
    ],
    run: RunOption = None,
    url: UrlOption = None,
    reason: ReasonOption = "",
    if_revision: Annotated[int | None, typer.Option(help="only if this revision is current")] = None,
    as_json: JsonOption = False,
) -> None:
    """Change values of the live configuration, all in one revision. `null` returns a value to its default."""
    patch = parse_assignments(assignments)
    with _client(run, url) as client:
        decision = client.patch(patch, reason=reason, expected=if_revision)
    _show_decision(decision, as_json=as_json)


@config.command()
def diff(
    before: Annotated[int | None, typer.Argument(help="a revision; default: the one before the current")] = None,
    after: Annotated[int | None, typer.Argument(help="another revision; default: the current one")] = None,
    run: RunOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what differs between two revisions."""
    with _client(run, url) as client:
        revisions = {int(revision["revision"]): revision for revision in client.revisions()}
    newest = max(revisions, default=0)
    second = newest if after is None else after
    first = max(second - 1, 1) if before is None else before
    for number in (first, second):
        if number not in revisions:
            raise SettingsError(f"there is no revision {number}: `tributary config history` lists them")
    changes = difference(revisions[first]["config"], revisions[second]["config"])
    if as_json:
        rows = [{"path": change.path, "before": change.before, "after": change.after} for change in changes]
        print(json.dumps({"before": first, "after": second, "changes": rows}, indent=2))
        return
    _show_changes(first, second, changes)


def _show_changes(first: int, second: int, changes: list[Change]) -> None:
    if not changes:
        print(f"revisions {first} and {second} are the same")
        return
    table = Table("path", f"revision {first}", f"revision {second}")
    for change in changes:
        table.add_row(change.path, json.dumps(change.before), json.dumps(change.after))
    Console(highlight=False).print(table)


@config.command()
def history(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="how many revisions")] = 20,
    run: RunOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the revisions, newest first: who, when, why, what, and from which learner step in force."""
    with _client(run, url) as client:
        revisions = client.revisions(limit)
    if as_json:
        print(json.dumps(revisions, indent=2))
        return
    table = Table("revision", "when", "who")
    for heading in ("what changed", "why", "from step"):
        table.add_column(heading, overflow="fold")
    for revision in revisions:
        number = int(revision["revision"])
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(revision["at_s"]))
        mark = revision["in_force"].get("learner") or {}
        step = mark.get("step")
        what = describe_changes(revision["changes"], number)
        table.add_row(
            str(number), when, revision["author"], what, revision["reason"], "–" if step is None else str(step)
        )
    Console(highlight=False).print(table)


@config.command()
def rollback(
    revision: Annotated[int, typer.Argument(min=1, help="the revision to return to", show_default=False)],
    run: RunOption = None,
    url: UrlOption = None,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
) -> None:
    """Make an earlier revision's configuration current again, as a new revision."""
    with _client(run, url) as client:
        decision = client.roll_back(revision, reason=reason)
    _show_decision(decision, as_json=as_json)


def _kinds() -> list[str]:
    return [str(algorithm.model_fields["kind"].default) for algorithm in ALGORITHMS]


def switch(
    context: typer.Context,
    kind: Annotated[str, typer.Argument(help="the algorithm", autocompletion=_kinds, show_default=False)],
    run: RunOption = None,
    url: UrlOption = None,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
) -> None:
    """Switch to another algorithm, or change the current one: switch luffy --gamma 0.2 --hints demonstration.

    Any --key value before --hints is the algorithm's own; --hints KIND names a hint policy, and what follows it is that
    policy's. A new kind starts from its published defaults. Without --hints the current hint policy stays if it feeds
    the algorithm; if not, the published one comes along. Kinds and keys: GET /v1/algorithms and /v1/hint-policies.
    """
    patch = parse_switch(kind, context.args)
    with _client(run, url) as client:
        patch, told = with_hints(patch, client.config()["config"])
        decision = client.patch(patch, reason=reason)
    if told and not as_json:
        print(told)
    _show_decision(decision, as_json=as_json)


def _show_decision(decision: Json, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(decision, indent=2))
        return
    number = int(decision["revision"])
    if not decision["changed"]:
        print(f"nothing to change: revision {number} says the same already")
        return
    print(f"revision {number}: {describe_changes(decision['changes'])}; in force from the learner's next step")


def pick(document: Json, path: str) -> Any:
    """The part of a configuration at a dotted path; SettingsError names what there is instead."""
    value: Any = document
    for name in filter(None, path.split(".")):
        if not isinstance(value, dict) or name not in value:
            there = ", ".join(value) if isinstance(value, dict) else "nothing below it"
            raise SettingsError(f"the live configuration has no {path}: at {name!r} there is {there}")
        value = value[name]
    return value


def leaves(value: Any, path: str) -> list[tuple[str, Any]]:
    """Every value of a configuration with its dotted path."""
    if not isinstance(value, dict):
        return [(path, value)]
    return [leaf for name, inner in value.items() for leaf in leaves(inner, f"{path}.{name}" if path else name)]
