"""Commands that order: `pause`, `resume` and `checkpoint` the learner; `generators`, `generators drain|admit NAME`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.errors import SettingsError, TributaryError
from common.orders import OrderKind
from services.cli import location
from services.cli.client import ControlClient
from services.cli.commands.observing import state_of
from services.cli.commands.options import JsonOption, RunOption, UrlOption, connect, print_json
from services.cli.exit_codes import UNFINISHED
from services.cli.legible import legible

Json = dict[str, Any]
CHECKPOINT_S = 20.0
_COMPLETION_S = 1.0

commands = typer.Typer()
generators = typer.Typer(help="List the generators; drain one, or admit it again.")
commands.add_typer(generators, name="generators")


@commands.command()
def pause(run: RunOption = None, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Have the learner wait at its next step boundary. Generators go on as far as their credit allows."""
    answer = _order_learner(OrderKind.PAUSE, run, url)
    _tell(answer, "the learner pauses at its next step boundary; it goes on with: tributary resume", as_json=as_json)


@commands.command()
def resume(run: RunOption = None, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Have a paused learner go on."""
    _tell(_order_learner(OrderKind.RESUME, run, url), "the learner goes on", as_json=as_json)


def _order_learner(order: OrderKind, run: Path | None, url: str | None) -> Json:
    with connect(run, url) as client:
        return client.order_learner(order.value)


@commands.command()
def checkpoint(
    wait_s: Annotated[
        float, typer.Option("--wait", min=0, max=120, help="seconds to wait for it; then exit code 3")
    ] = CHECKPOINT_S,
    run: RunOption = None,
    url: UrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have the learner write a checkpoint at its next step boundary, and wait for it."""
    with connect(run, url) as client:
        answer = client.order_learner(OrderKind.CHECKPOINT.value, wait_s)
    why = legible(answer["notice"])
    told = f"the checkpoint of step {answer['step']} is written" if answer["done"] else f"it is ordered, but {why}"
    _tell(answer, told, as_json=as_json)
    if not answer["done"]:
        raise typer.Exit(UNFINISHED)


@generators.callback(invoke_without_command=True)
def list_generators(
    context: typer.Context, run: RunOption = None, url: UrlOption = None, as_json: JsonOption = False
) -> None:
    """List the generators: what each serves, how fast, and whether it is drained."""
    if context.invoked_subcommand is not None:
        _refuse_misplaced(context, run)
        return
    with connect(run, url) as client:
        document = client.generators()
    if as_json:
        print_json(document)
        return
    Console(highlight=False).print(_table(document["generators"]))


def _refuse_misplaced(context: typer.Context, run: Path | None) -> None:
    """SettingsError if a run is named where only the list would heed it, and the order would go to another run."""
    source = context.get_parameter_source("url")
    if run is not None or (source is not None and source.name == "COMMANDLINE"):
        raise SettingsError(
            f"--run and --url stand at the end: tributary generators {context.invoked_subcommand} NAME --run DIRECTORY"
        )


def _table(found: list[Json]) -> Table:
    table = Table("generator", "state", "version", "revision", "requests", "tokens/s", "heard of")
    table.add_column("trouble", overflow="fold")
    for generator in found:
        rate = generator.get("tokens_per_s")
        cells = [generator["name"], _state(generator), generator["version"], generator["revision"]]
        cells += [generator["requests"], "–" if rate is None else f"{rate:.0f}"]
        cells += [f"{generator['age_s']:.0f} s ago", generator["trouble"]]
        style = "red" if not generator["alive"] else "yellow" if generator["drained"] else ""
        table.add_row(*(Text(legible(cell)) for cell in cells), style=style)
    return table


def _state(generator: Json) -> str:
    """A generator's state in words, with who drained it."""
    order = generator["drained"]
    return state_of(generator) + (f", {generator['drain']} by {order['by']}" if order else "")


def _known(incomplete: str) -> list[str]:
    """Names of generators, for the shell's completion; none while no control plane answers."""
    try:
        with ControlClient(location.control_url(None, None), limit_s=_COMPLETION_S) as client:
            return [g["name"] for g in client.generators()["generators"] if g["name"].startswith(incomplete)]
    except TributaryError:
        return []


NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="the generator", autocompletion=_known, show_default=False)
]


@generators.command()
def drain(name: NameArgument, run: RunOption = None, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Have a generator finish what it has and take no more requests. It keeps its weights fresh."""
    told = f"{name} takes no more requests; it is admitted again with: tributary generators admit {name}"
    _tell(_order_generator(name, OrderKind.DRAIN, run, url), told, as_json=as_json)


@generators.command()
def admit(name: NameArgument, run: RunOption = None, url: UrlOption = None, as_json: JsonOption = False) -> None:
    """Have a drained generator take requests again."""
    _tell(_order_generator(name, OrderKind.ADMIT, run, url), f"{name} takes requests again", as_json=as_json)


def _order_generator(name: str, order: OrderKind, run: Path | None, url: str | None) -> Json:
    with connect(run, url) as client:
        return client.order_generator(name, order.value)


def _tell(answer: Json, sentence: str, *, as_json: bool) -> None:
    """Print what came of an order."""
    if as_json:
        print_json(answer)
        return
    absent = "" if answer.get("alive", True) else " (no learner is alive now)"
    print(f"{'' if answer.get('changed', True) else 'nothing to change: '}{sentence}{absent}")
