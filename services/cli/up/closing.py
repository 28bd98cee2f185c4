"""The end of a run: its summary as a table in the terminal, and as files beside its logs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from common.events import Event
from services.cli.panel import number
from services.cli.progress import percent
from services.cli.up.curve import curve_of
from services.cli.up.phases import Held, Phase
from services.cli.up.plot import draw
from services.cli.up.summary import Summary

PLOT_FILE = "summary.png"
JSON_FILE = "summary.json"


def write(summary: Summary, events: Sequence[Event], directory: Path) -> None:
    """Write summary.json, the whole curve included, and summary.png into the run directory."""
    text = json.dumps(summary.as_json() | {"curve": curve_of(events)}, indent=1, ensure_ascii=False)
    (directory / JSON_FILE).write_text(text + "\n", encoding="utf-8")
    draw(summary.run, events, directory / PLOT_FILE)


def render(summary: Summary) -> RenderableType:
    """The summary for a terminal."""
    return Group(Text(), _phase_table(summary), Text(), _figures(summary), Text(), _places(summary))


def _phase_table(summary: Summary) -> Table:
    names = list(dict.fromkeys(name for phase in summary.phases for name in phase.held))
    table = Table(title=f"{summary.run}: {summary.steps} steps", title_justify="left", title_style="bold")
    for heading in ("revision", "what changed", "steps", "seconds", "reward", *(f"held-out {name}" for name in names)):
        is_text = heading == "what changed"
        table.add_column(heading, justify="left" if is_text else "right", overflow="fold" if is_text else "ellipsis")
    for phase in summary.phases:
        held = [_held(phase.held.get(name)) for name in names]
        table.add_row(
            str(phase.revision), _what(phase), _steps(phase), f"{phase.seconds:.0f}", number(phase.reward), *held
        )
    return table


def _what(phase: Phase) -> str:
    is_first = phase.revision == 1
    return f"{phase.algorithm}, hints {phase.hints} ({phase.what})" if is_first else phase.what


def _steps(phase: Phase) -> str:
    return f"{phase.first} to {phase.last} ({phase.steps})"


def _held(held: Held | None) -> str:
    return "–" if held is None else f"{percent(held.before)} → {percent(held.after)}"


def _figures(summary: Summary) -> Table:
    measured = summary.measured
    delays = [
        phase.first - 1 - phase.asked_after for phase in summary.phases if phase.asked_after and phase.revision > 1
    ]
    rows = [
        (
            "first optimiser step",
            "–" if measured.first_step_s is None else f"{measured.first_step_s:.1f} s after the start",
        ),
        ("this session", f"{measured.seconds:.0f} s, {measured.restarts} restarts of processes"),
        ("peak memory", f"{measured.peak_memory_bytes / 2**30:.2f} GiB, all processes together"),
        ("tokens", f"{summary.trained_tokens} trained, {measured.sampled_tokens} sampled in this session"),
        ("weight versions", f"{summary.publications} published, {summary.updates} applied in flight"),
        ("pause per update", _pause(summary)),
        ("staleness", f"{number(summary.staleness, 2)} versions on average"),
        ("quarantined", str(summary.quarantined)),
    ]
    if delays:
        rows.insert(3, ("revisions in force", f"at most {max(delays)} steps later than asked for"))
    grid = Table.grid(padding=(0, 2))
    for label, value in rows:
        grid.add_row(Text(label, style="dim"), value)
    return grid


def _pause(summary: Summary) -> str:
    if summary.mean_pause_s is None:
        return "–"
    share = "" if summary.pause_share is None else f", {percent(summary.pause_share)} of the time between two"
    return f"{1000 * summary.mean_pause_s:.0f} ms on average{share}"


def _places(summary: Summary) -> Table:
    grid = Table.grid(padding=(0, 2))
    for name, place in summary.places.items():
        grid.add_row(Text(name, style="dim"), Text(place, overflow="fold"))
    return grid
