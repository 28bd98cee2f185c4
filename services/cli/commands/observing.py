"""Commands that look: `status`, `watch`; and `down`, which ends what they look at."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.errors import TributaryError
from common.events import EventKind
from services.cli import location
from services.cli.client import ControlClient, follow
from services.cli.commands.options import JsonOption, RunOption, UrlOption, connect, print_json
from services.cli.exit_codes import INTERRUPTED
from services.cli.legible import legible
from services.cli.panel import number
from services.cli.progress import Progress, describe_rehearsal, describe_schedule, percent
from services.cli.voice import choose_voice

Json = dict[str, Any]
STOP_S = 20.0
_LOOK_S = 0.1
_STATUS_S = 2.0


commands = typer.Typer()


@commands.command()
def status(run: RunOption = None, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Show what is asked for and what is in force, who is alive, how fast and how far."""
    with connect(run, url) as client:
        document = client.status()
    if as_json:
        print_json(document)
        return
    console = Console(highlight=False)
    console.print(_figures(document))
    console.print(_processes(document))


def _figures(document: Json) -> Table:
    revision, learner, rates, backlog = (document[key] for key in ("revision", "learner", "rates", "backlog"))
    settled = "in force everywhere" if revision["settled"] else f"in force: {revision['in_force']}"
    last = document.get("last_step") or {}
    version = document["version"]
    rows = [
        ("run", f"{document['run']['name']} at {document['run']['dashboard']}"),
        (
            "step",
            f"{learner['step']}{' / ' + str(learner['max_steps']) if learner['max_steps'] else ''}{_paused(learner)}",
        ),
        ("revision", f"{revision['asked']} ({settled})"),
        ("algorithm", f"{document['algorithm']}, hints {document['hints']}"),
        ("reward", number(last.get("reward"))),
        (
            "weight version",
            f"{version['published']} (generators: {_listed(version['generators'])})",
        ),
        ("staleness", number(learner["staleness"], 1)),
        ("tokens/s", f"{rates['generated_tokens_per_s']:.0f} generated, {rates['trained_tokens_per_s']:.0f} trained"),
        (
            "waiting",
            f"{backlog['requests']} requests, {backlog['groups']} groups, {backlog['quarantined']} quarantined",
        ),
        ("credit", f"{backlog['outstanding']} of {backlog['credit']} groups outstanding"),
    ]
    if document.get("hint_schedule"):
        rows.append(("hint schedule", describe_schedule(document["hint_schedule"])))
    if document.get("rehearsal"):
        rows.append(("rehearsal buffer", describe_rehearsal(document["rehearsal"])))
    for name, evaluation in document["evaluations"].items():
        rows.append((f"held-out {name}", f"{percent(evaluation.get('accuracy'))} at step {evaluation.get('step')}"))
    grid = Table.grid(padding=(0, 2))
    for label, value in rows:
        grid.add_row(Text(legible(label), style="dim"), Text(legible(value)))
    return grid


def _paused(learner: Json) -> str:
    order = learner["paused"]
    return f" (paused by {order['by']})" if order else ""


def _listed(versions: Json) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items()) or "none"


def _processes(document: Json) -> Table:
    table = Table("process", "state", "pid", "revision", "version", "heard of")
    table.columns[0].no_wrap = True
    table.add_column("metrics", overflow="fold")
    table.add_column("trouble", overflow="fold")
    for process in document["processes"]:
        style = "" if process["alive"] else "red"
        is_drained = process["alive"] and process["name"] in document["drained"]
        state = state_of(process) + (", drained" if is_drained else "")
        age = f"{process['age_s']:.0f} s ago"
        cells = [process["name"], state, process.get("pid", ""), process["revision"], process["version"], age]
        cells += [process.get("metrics", ""), process["trouble"]]
        table.add_row(*(Text(legible(cell)) for cell in cells), style=style)
    return table


def state_of(process: Json) -> str:
    """What a process says of itself; "lost" if it has gone silent."""
    return process["state"] if process["alive"] or process["state"] in ("stopped", "failed") else "lost"


@commands.command()
def watch(
    run: RunOption = None,
    url: UrlOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="every event as a JSON line")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="plain lines even in a terminal")] = False,
) -> None:
    """Follow a run in the terminal until Ctrl-C. The run goes on without you."""
    address = location.control_url(run, url)
    with ControlClient(address) as client:
        document = client.status()
    try:
        asyncio.run(_watch(address, document, as_json=as_json, plain=plain))
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


async def _watch(address: str, document: Json, *, as_json: bool, plain: bool) -> None:
    voice = choose_voice(as_json=as_json, plain=plain)
    progress = Progress(document["run"]["name"], document["learner"]["max_steps"], address)
    progress.processes = {p["name"]: p["state"] if p["alive"] else "lost" for p in document["processes"]}
    progress.look(document)
    since_s = float(document["at_s"])

    async def listen() -> None:
        async for event in follow(lambda: address):
            is_news = event.at_s >= since_s
            is_process = event.kind is EventKind.PROCESS
            if is_process and not is_news:
                continue
            sentence = progress.absorb(event)
            if is_process:
                sentence = f"{event.data.get('name')} {event.data.get('state')}"
            if is_news:
                voice.tell(event, sentence)

    async def look() -> None:
        while True:
            if (told := await asyncio.to_thread(_status, address)) is not None:
                progress.look(told)
            await asyncio.sleep(_STATUS_S)

    tasks = asyncio.create_task(listen()), asyncio.create_task(look())
    try:
        while not any(task.done() for task in tasks):
            voice.show(progress)
            await asyncio.sleep(0.2)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        voice.close()


def _status(address: str) -> Json | None:
    """The status of the run; None while the control plane does not answer."""
    try:
        with ControlClient(address) as client:
            return client.status()
    except TributaryError:
        return None


@commands.command()
def down(run: RunOption = None) -> None:
    """Stop the run that is up on this machine: every process of it. It can be resumed with `up`."""
    state = location.find(run)
    try:
        os.kill(state.pid, signal.SIGTERM)
    except PermissionError as error:
        raise TributaryError(
            f"the run {state.run} belongs to another user (process {state.pid}): ask them, or stop it as that user"
        ) from error
    except ProcessLookupError:
        pass
    deadline_s = time.monotonic() + STOP_S
    while location.is_up(Path(state.directory)):
        if time.monotonic() > deadline_s:
            raise TributaryError(
                f"the run {state.run} (process {state.pid}) has not stopped within {STOP_S:.0f} s: "
                f"kill it with `kill -9 {state.pid}`, which takes its processes along"
            )
        time.sleep(_LOOK_S)
    print(f"stopped {state.run}; resume it with: tributary up {state.run_file}")
