"""Commands that steer: `config get|set|diff|rollback` and `switch`."""

from __future__ import annotations

import json
import shlex
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.config.store import Change, difference
from common.errors import SettingsError
from services.cli.assignments import parse_assignments, parse_switch
from services.cli.commands.auditing import history
from services.cli.commands.cataloguing import kinds
from services.cli.commands.options import JsonOption, RunOption, UrlOption, connect, print_json
from services.cli.commands.trying import WAIT_S, WaitOption, dry_run, show_answer, try_patch
from services.cli.feeding import with_hints
from services.cli.legible import one_line
from services.cli.progress import describe_changes

Json = dict[str, Any]
ReasonOption = Annotated[str, typer.Option("--reason", "-m", help="why; kept in the history")]

commands = typer.Typer()
config = typer.Typer(help="Read and change the live configuration of a run.", no_args_is_help=True)
config.command()(history)
config.command("dry-run")(dry_run)
commands.add_typer(config, name="config")
_LENIENT = {"allow_extra_args": True, "ignore_unknown_options": True}


@config.command()
def get(
    path: Annotated[str, typer.Argument(help="a part of it, such as algorithm or optimizer.learning_rate")] = "",
    run: RunOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the live configuration, or a part of it."""
    with connect(run, url) as client:
        revision = client.config()
    value = pick(revision["config"], path)
    if as_json:
        print_json(value if path else revision)
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
    with connect(run, url) as client:
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
    with connect(run, url) as client:
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
        print_json({"before": first, "after": second, "changes": rows})
        return
    _show_changes(first, second, changes)


def _show_changes(first: int, second: int, changes: list[Change]) -> None:
    if not changes:
        print(f"revisions {first} and {second} are the same")
        return
    table = Table("path", f"revision {first}", f"revision {second}")
    for change in changes:
        cells = (change.path, json.dumps(change.before), json.dumps(change.after))
        table.add_row(*(Text(one_line(cell)) for cell in cells))
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
    with connect(run, url) as client:
        decision = client.roll_back(revision, reason=reason)
    _show_decision(decision, as_json=as_json)


@commands.command(context_settings=_LENIENT)
def switch(
    context: typer.Context,
    kind: Annotated[str, typer.Argument(help="the algorithm", autocompletion=kinds, show_default=False)],
    run: RunOption = None,
    url: UrlOption = None,
    reason: ReasonOption = "",
    is_dry: Annotated[
        bool, typer.Option("--dry-run", help="only ask what the learner's next step would be like")
    ] = False,
    wait_s: WaitOption = WAIT_S,
    as_json: JsonOption = False,
) -> None:
    """Switch to another algorithm, or change the current one: switch luffy --gamma 0.2 --hints demonstration.

    Any --key value before --hints is the algorithm's own; --hints KIND names a hint policy, and what follows it is that
    policy's. A new kind starts from its published defaults. Without --hints the current hint policy stays if it feeds
    the algorithm; if not, the published one comes along. Kinds and keys: `tributary methods`.
    """
    patch = parse_switch(kind, context.args)
    with connect(run, url) as client:
        patch, told = with_hints(patch, client.config()["config"])
        label = shlex.join([kind, *context.args])
        answer = try_patch(client, label, patch, wait_s) if is_dry else client.patch(patch, reason=reason)
    if told and not as_json:
        print(told)
    if is_dry:
        show_answer(answer, as_json=as_json)
    else:
        _show_decision(answer, as_json=as_json)


def _show_decision(decision: Json, *, as_json: bool) -> None:
    if as_json:
        print_json(decision)
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
