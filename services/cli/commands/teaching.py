"""Commands that teach: `demonstrate` adds an expert's answer to a prompt, `demonstrations` lists what was added."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.errors import SettingsError
from services.cli.client import ControlClient
from services.cli.commands.auditing import moment
from services.cli.commands.options import JsonOption, RunOption, UrlOption, connect, print_json
from services.cli.exit_codes import FAILED, UNFINISHED
from services.cli.legible import legible, one_line
from services.cli.panel import number

Json = dict[str, Any]
WAIT_S = 20.0
_LOOK_S = 0.5
_WAITING, _IN_USE = "waiting", "in use"

commands = typer.Typer()


@commands.command()
def demonstrate(
    prompt_id: Annotated[str, typer.Argument(help="the prompt, such as train:17", show_default=False)],
    text: Annotated[str | None, typer.Argument(help="the whole answer", show_default=False)] = None,
    file: Annotated[Path | None, typer.Option(help="read the answer from here; - is standard input")] = None,
    wait_s: Annotated[
        float, typer.Option("--wait", min=0, max=3600, help="seconds to wait for its grade; then exit code 3")
    ] = WAIT_S,
    run: RunOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add a demonstration to a prompt. It is graded first, and used from the prompt's next request on."""
    answer = _answer(text, file)
    with connect(run, url) as client:
        addition = client.demonstrate(prompt_id, answer)
        addition = await_verdict(client, addition, wait_s, time.monotonic, time.sleep)
    if as_json:
        print_json(addition)
    else:
        print(verdict(addition))
    if addition["state"] != _IN_USE:
        raise typer.Exit(UNFINISHED if addition["state"] == _WAITING else FAILED)


def _answer(text: str | None, file: Path | None) -> str:
    """The demonstration, as it was given on the command line."""
    if (text is None) == (file is None):
        raise SettingsError("give the answer either as TEXT or with --file PATH")
    if file is None:
        return text or ""
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{file} is not UTF-8 text ({error.reason} at byte {error.start})") from error


def await_verdict(
    client: ControlClient, addition: Json, wait_s: float, clock: Callable[[], float], sleep: Callable[[float], None]
) -> Json:
    """The addition once it was judged, or as it is after wait_s."""
    deadline_s = clock() + wait_s
    while addition["state"] == _WAITING and clock() < deadline_s:
        sleep(_LOOK_S)
        addition = client.demonstration(addition["id"])
    return addition


def verdict(addition: Json) -> str:
    """What became of an addition, in a sentence."""
    prompt_id, reward = legible(addition["prompt_id"]), addition.get("reward")
    graded = "" if reward is None else f" (graded {reward:g})"
    if addition["state"] == _IN_USE:
        return f"in use{graded}: the next request of {prompt_id} has it"
    if addition["state"] == _WAITING:
        return f"it waits for its grade; see what becomes of it with: tributary demonstrations {addition['id']}"
    return f"refused: {legible(addition['reason'])}"


@commands.command()
def demonstrations(
    addition_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="show this one, with its text", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=200, help="how many at most")] = 20,
    run: RunOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the demonstrations that operators added, newest first, and what became of each."""
    with connect(run, url) as client:
        document = client.demonstrations(limit) if addition_id is None else client.demonstration(addition_id)
    if as_json:
        print_json(document)
    elif addition_id is not None:
        print(f"{moment(document['at_s'])}, by {legible(document['by'])}: {verdict(document)}\n")
        print(legible(document["text"]))
    else:
        _show(document["demonstrations"])


def _show(additions: list[Json]) -> None:
    if not additions:
        print("none was added: tributary demonstrate PROMPT_ID TEXT adds one")
        return
    table = Table("id", "when", "by", "prompt", "state", "reward")
    table.add_column("why, or its text", overflow="fold")
    for addition in additions:
        cells = [addition["id"], moment(addition["at_s"]), addition["by"], addition["prompt_id"], addition["state"]]
        cells += [number(addition.get("reward")), one_line(addition["reason"] or addition.get("text", ""), 120)]
        table.add_row(*(Text(legible(cell)) for cell in cells))
    Console(highlight=False).print(table)
