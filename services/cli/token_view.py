"""The token view: a group as the learner saw it, its text coloured by who wrote each token, or by its ratio."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from services.cli.legible import legible, one_line

Json = dict[str, Any]
_PROMPT = "prompt"
_SOURCES = {_PROMPT: "dim", "policy": "green", "hint": "yellow", "demonstration": "magenta"}
_ROTATION = ("cyan", "green", "yellow", "magenta", "blue", "red")
_RATIOS = ((0.5, "ratio < 0.5", "red"), (0.8, "0.5 … 0.8", "yellow"), (1.25, "0.8 … 1.25", "green"))
_LARGE_RATIO = ("ratio > 1.25", "cyan")
_COLUMNS = ("behaviour_logprob", "policy_logprob", "expert_logprob", "ratio")


class Aspect(StrEnum):
    """What the colour of a token tells."""

    SOURCE = "source"
    VERSION = "version"
    RATIO = "ratio"


Classify = Callable[[Json, int], tuple[str, str]]
"""Tokens of a trajectory and a position → what the token is, in a few words, and its style."""


def classifier(aspect: Aspect, group: Json) -> Classify:
    """How tokens of a group are told apart."""
    match aspect:
        case Aspect.SOURCE:
            return _by_source
        case Aspect.RATIO:
            return _by_ratio
        case Aspect.VERSION:
            found = {v for t in group["trajectories"] for v in t["tokens"]["version"] if v is not None}
            styles = {version: _ROTATION[i % len(_ROTATION)] for i, version in enumerate(sorted(found))}
            return lambda tokens, i: _by_version(tokens, i, styles)


def _by_source(tokens: Json, i: int) -> tuple[str, str]:
    source = str(tokens["source"][i])
    return source, _SOURCES.get(source, "")


def _by_version(tokens: Json, i: int, styles: dict[int, str]) -> tuple[str, str]:
    version = tokens["version"][i]
    return _by_source(tokens, i) if version is None else (f"version {version}", styles[version])


def _by_ratio(tokens: Json, i: int) -> tuple[str, str]:
    ratio = tokens["ratio"][i]
    if ratio is None:
        return ("no ratio", "dim")
    return next(((name, style) for bound, name, style in _RATIOS if ratio < bound), _LARGE_RATIO)


def segments(tokens: Json, positions: range, classify: Classify) -> Iterator[tuple[str, str, str]]:
    """(what it is, style, text) of successive tokens of one kind."""
    told, style, pieces = "", "", list[str]()
    for i in positions:
        now, its_style = classify(tokens, i)
        if pieces and now != told:
            yield told, style, "".join(pieces)
            pieces = []
        told, style = now, its_style
        pieces.append(str(tokens["text"][i]))
    if pieces:
        yield told, style, "".join(pieces)


def show_group(console: Console, group: Json, aspect: Aspect, member: int | None = None) -> None:
    """Print a group: its prompt once, then every trajectory, or the one that `member` counts from 1."""
    classify = classifier(aspect, group)
    _show_title(console, group)
    members = list(enumerate(group["trajectories"], start=1))
    chosen = [found for found in members if member in (None, found[0])]
    prompts = {_prompt_of(trajectory) for _, trajectory in chosen}
    seen: dict[str, str] = {}
    shown_prompt = ""
    for number, trajectory in chosen:
        tokens = trajectory["tokens"]
        begin = _prompt_length(tokens)
        if (prompt := _prompt_of(trajectory)) != shown_prompt:
            shown_prompt = prompt
            console.print(Text("\nprompt" if len(prompts) == 1 else f"\nprompt of {number}", style="bold"))
            console.print(Text(legible(prompt), style="dim"), soft_wrap=True)
        console.print(Text(f"\n{number}  {describe_trajectory(trajectory)}", style="bold"))
        console.print(_text(console, tokens, range(begin, len(tokens["id"])), classify, seen), soft_wrap=True)
    _show_legend(console, seen)


def _show_title(console: Console, group: Json) -> None:
    parts = [f"group {group['group_id']}", f"prompt {group['prompt_id']}", f"step {group['step']}"]
    parts += [f"revision {group['revision']} ({group['algorithm']})", f"from {group['generator']}"]
    console.print(Text(legible(" · ".join(parts)), style="bold"), soft_wrap=True)
    if group.get("notice"):
        console.print(Text(legible(group["notice"]), style="yellow"), soft_wrap=True)


def _text(console: Console, tokens: Json, positions: range, classify: Classify, seen: dict[str, str]) -> Text:
    """The text in colours; where there are none, each stretch says what it is."""
    text = Text()
    for told, style, stretch in segments(tokens, positions, classify):
        seen[told] = style
        if not has_colours(console):
            text.append(f"[{told}] ")
            stretch += "" if stretch.endswith("\n") else "\n"
        text.append(legible(stretch), style=style)
    text.rstrip()
    return text


def _show_legend(console: Console, seen: dict[str, str]) -> None:
    if not has_colours(console):
        return
    legend = Text("\n")
    for told, style in seen.items():
        legend.append("■ ", style=style).append(f"{told}   ")
    console.print(legend)


def has_colours(console: Console) -> bool:
    """Whether colours can be seen where this is printed."""
    return console.is_terminal and not console.no_color


def describe_trajectory(trajectory: Json) -> str:
    """A trajectory's figures in a line."""
    tokens = trajectory["tokens"]
    parts = [str(trajectory["kind"]), f"reward {_number(trajectory['reward'])}"]
    if len(trajectory["reward_parts"]) > 1:
        named = (f"{name} {_number(part)}" for name, part in trajectory["reward_parts"].items())
        parts[-1] += f" ({', '.join(named)})"
    advantage = trajectory["advantage"]
    parts.append("not used by the algorithm" if advantage is None else f"advantage {advantage:+.3f}")
    parts.append(f"{len(tokens['id']) - _prompt_length(tokens)} tokens")
    if trajectory["versions"]:
        parts.append(f"version {', '.join(map(str, trajectory['versions']))}")
    ratios = [ratio for ratio in tokens["ratio"] if ratio is not None]
    if ratios:
        parts.append(f"ratio {min(ratios):.3f} … {max(ratios):.3f}")
    return legible(" · ".join(parts))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


def token_table(trajectory: Json) -> Table:
    """Every token of a response with its numbers."""
    tokens = trajectory["tokens"]
    table = Table("#", "token", "source", "version")
    for heading in ("log π_old", "log π_θ", "log π_φ", "ratio"):
        table.add_column(heading, justify="right")
    for i in range(_prompt_length(tokens), len(tokens["id"])):
        version = tokens["version"][i]
        cells = [str(i), one_line(tokens["text"][i]), str(tokens["source"][i]), "" if version is None else str(version)]
        numbers = (tokens[name][i] for name in _COLUMNS)
        cells += ["" if value is None else f"{value:.4f}" for value in numbers]
        table.add_row(*(Text(cell) for cell in cells), style=_SOURCES.get(str(tokens["source"][i]), ""))
    return table


def _prompt_length(tokens: Json) -> int:
    """How many tokens stand before the response."""
    return next((i for i, source in enumerate(tokens["source"]) if source != _PROMPT), len(tokens["source"]))


def _prompt_of(trajectory: Json) -> str:
    tokens = trajectory["tokens"]
    return "".join(tokens["text"][: _prompt_length(tokens)])
