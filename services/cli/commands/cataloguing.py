"""`tributary methods`: the algorithms and hint policies there are, with papers, needs and parameters. Needs no run."""

from __future__ import annotations

import inspect
import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.config.algorithm import ALGORITHMS, AlgorithmConfig
from common.config.hints import HINT_POLICIES, HintConfig
from common.errors import SettingsError
from services.cli.commands.options import JsonOption, print_json

Json = dict[str, Any]

commands = typer.Typer()


def kinds() -> list[str]:
    """The kinds of all algorithms."""
    return [kind_of(algorithm) for algorithm in ALGORITHMS]


def _all_kinds() -> list[str]:
    return [*kinds(), *(kind_of(policy) for policy in HINT_POLICIES)]


def kind_of(config: type[AlgorithmConfig] | type[HintConfig]) -> str:
    """What an operator calls it."""
    return str(config.model_fields["kind"].default)


@commands.command()
def methods(
    kind: Annotated[
        str | None,
        typer.Argument(help="show this one's parameters", autocompletion=_all_kinds, show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the algorithms and hint policies: paper, what each needs, what feeds it. Or show one's parameters."""
    found = [m for m in (*ALGORITHMS, *HINT_POLICIES) if kind in (None, kind_of(m))]
    if not found:
        raise SettingsError(f"there is no {kind!r}: the algorithms and hint policies are {', '.join(_all_kinds())}")
    if as_json:
        listed = {
            "algorithms": [_algorithm(a) for a in ALGORITHMS],
            "hint_policies": [_policy(h) for h in HINT_POLICIES],
        }
        print_json(listed if kind is None else next(d for part in listed.values() for d in part if d["kind"] == kind))
        return
    console = Console(highlight=False)
    if kind is None:
        console.print(_algorithms())
        console.print(_policies())
        console.print("tributary methods KIND lists its parameters; tributary switch KIND --key value applies them")
    else:
        _show(console, found[0])


def fed_by(algorithm: type[AlgorithmConfig]) -> list[str]:
    """The hint policies that feed an algorithm, as each is suggested; the published one first."""
    policies = [(kind_of(h), h.model_validate(h.suggestion).provides) for h in HINT_POLICIES]
    fits = [kind for kind, provides in policies if algorithm.requires <= provides <= algorithm.accepts]
    published = algorithm.published_hints["kind"]
    return [published, *(kind for kind in fits if kind != published)]


def _algorithms() -> Table:
    table = Table()
    for heading in ("algorithm", "name", "paper", "needs", "published hints"):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("algorithm", "needs", "published hints"))
    for algorithm in ALGORITHMS:
        needs = ", ".join(sorted(algorithm.requires)) or "–"
        hints = algorithm.published_hints["kind"]
        table.add_row(kind_of(algorithm), algorithm.title, _paper(algorithm.paper), needs, hints)
    return table


def _paper(address: str) -> str:
    """Where a paper is, without what all addresses begin with."""
    return address.removeprefix("https://").removesuffix("/").replace("arxiv.org/abs/", "arXiv ")


def _policies() -> Table:
    table = Table("hint policy", "provides")
    table.add_column("what a group holds", overflow="fold")
    for policy in HINT_POLICIES:
        provides = ", ".join(sorted(policy.model_validate(policy.suggestion).provides)) or "–"
        table.add_row(kind_of(policy), provides, _summary(policy).partition("\n")[0])
    return table


def _show(console: Console, config: type[AlgorithmConfig] | type[HintConfig]) -> None:
    console.print(Text(f"{kind_of(config)}: {config.title}", style="bold"))
    if issubclass(config, AlgorithmConfig):
        needs = ", ".join(sorted(config.requires)) or "nothing beside rollouts"
        policies = ", ".join(fed_by(config))
        console.print(f"{config.paper}\nneeds {needs}; fed by hint policy {policies} (published first)", soft_wrap=True)
    console.print(Text(_summary(config)))
    table = Table("parameter", "default")
    table.add_column("what it is", overflow="fold")
    for name, parameter in config.model_fields.items():
        if name != "kind":
            default = json.loads(config.model_construct().model_dump_json()).get(name)
            cells = (name, "(needed)" if parameter.is_required() else json.dumps(default), parameter.description or "")
            table.add_row(*(Text(cell) for cell in cells))
    if table.row_count:
        console.print(table)


def _summary(config: type[AlgorithmConfig] | type[HintConfig]) -> str:
    return inspect.getdoc(config) or ""


def _algorithm(algorithm: type[AlgorithmConfig]) -> Json:
    return {
        "kind": kind_of(algorithm),
        "title": algorithm.title,
        "paper": algorithm.paper,
        "summary": _summary(algorithm),
        "requires": sorted(algorithm.requires),
        "accepts": sorted(algorithm.accepts),
        "published_hints": algorithm.published_hints,
        "fed_by": fed_by(algorithm),
        "schema": algorithm.model_json_schema(),
    }


def _policy(policy: type[HintConfig]) -> Json:
    return {
        "kind": kind_of(policy),
        "title": policy.title,
        "summary": _summary(policy),
        "provides": sorted(policy.model_validate(policy.suggestion).provides),
        "suggestion": policy.suggestion,
        "schema": policy.model_json_schema(),
    }
