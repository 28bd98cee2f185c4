"""The panel: a run's progress as a live block in the terminal, or as one plain line."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from services.cli.legible import legible
from services.cli.progress import Accuracy, Progress, describe_rehearsal, describe_schedule, percent

_DASH = "–"
_WELL = ("running", "started", "restarted", "ready", "ended")


def panel(progress: Progress, now_s: float) -> RenderableType:
    """Everything at once, for a terminal."""
    grid = Table.grid(padding=(0, 2))
    for _ in range(4):
        grid.add_column(no_wrap=True)
    for row in _rows(progress, now_s):
        grid.add_row(*row)
    parts: list[RenderableType] = [grid]
    if progress.max_steps:
        # A bar alone ends no line; a row of a grid does.
        bar = Table.grid(expand=True)
        bar.add_row(ProgressBar(total=progress.max_steps, completed=progress.step))
        parts.insert(0, bar)
    if progress.processes:
        parts.append(_processes(progress))
    return Panel(
        Group(*parts), title=Text(progress.run, style="bold"), subtitle=Text(progress.dashboard), title_align="left"
    )


def _rows(progress: Progress, now_s: float) -> list[tuple[Text, Text, Text, Text]]:
    """Label and value, twice a row."""
    cells = [
        ("step", f"{progress.step}{f' / {progress.max_steps}' if progress.max_steps else ''}"),
        ("revision in force", _revision(progress)),
        ("algorithm", progress.algorithm or _DASH),
        ("hints", progress.hints or _DASH),
        ("reward", number(progress.reward)),
        ("entropy", number(progress.entropy)),
        ("generated", f"{progress.generated_tokens_per_s(now_s):.0f} tokens/s"),
        ("trained", f"{number(progress.trained_tokens_per_s, 0)} tokens/s"),
        ("weight version", _versions(progress)),
        ("staleness", number(progress.staleness, 1)),
    ]
    cells += [(f"held-out {name}", _accuracy(known)) for name, known in sorted(progress.accuracy.items())]
    if progress.schedule is not None:
        cells.append(("hint schedule", describe_schedule(progress.schedule)))
    elif progress.hint_length is not None:
        cells.append(("hint length", f"{progress.hint_length:.1f} tokens"))
    if progress.rehearsal is not None:
        cells.append(("rehearsal buffer", describe_rehearsal(progress.rehearsal)))
    if progress.paused_by:
        cells.append(("learner", f"paused by {progress.paused_by}"))
    if progress.quarantined:
        cells.append(("quarantined", str(progress.quarantined)))
    if len(cells) % 2:
        cells.append(("", ""))
    pairs = [(Text(legible(label), style="dim"), Text(legible(value), style="bold")) for label, value in cells]
    return [(*left, *right) for left, right in zip(pairs[::2], pairs[1::2], strict=True)]


def _revision(progress: Progress) -> str:
    asked = f" (asked: {progress.asked})" if progress.asked > progress.in_force else ""
    return f"{progress.in_force or _DASH}{asked}"


def _versions(progress: Progress) -> str:
    held = sorted(set(progress.versions.values()))
    behind = f" (generators: {', '.join(map(str, held))})" if held and held != [progress.version] else ""
    return f"{progress.version}{behind}"


def _accuracy(known: Accuracy) -> str:
    risen = f" (from {percent(known.first)})" if known.first is not None and known.value != known.first else ""
    return f"{percent(known.value)}{risen} at step {known.step}"


def _processes(progress: Progress) -> Text:
    text = Text("\n")
    for name, state in progress.processes.items():
        well = state in _WELL
        told = state if not well else "drained" if name in progress.drained else ""
        colour = "red" if not well else "yellow" if told else "green"
        text.append("● ", style=colour)
        text.append(legible(f"{name} ({told})" if told else name), style=colour if told else "")
        text.append("   ")
    return text


def plain_line(progress: Progress, now_s: float) -> str:
    """The same in one line, for logs and pipes."""
    parts = [
        f"step {progress.step}{f'/{progress.max_steps}' if progress.max_steps else ''}",
        f"revision {_revision(progress)} {progress.algorithm}+{progress.hints}",
        f"reward {number(progress.reward)}",
        *(f"held-out {name} {percent(known.value)}" for name, known in sorted(progress.accuracy.items())),
        f"staleness {number(progress.staleness, 1)}",
        f"entropy {number(progress.entropy)}",
        f"generated {progress.generated_tokens_per_s(now_s):.0f} tok/s",
        f"trained {number(progress.trained_tokens_per_s, 0)} tok/s",
        f"version {_versions(progress)}",
    ]
    if progress.paused_by:
        parts.append(f"paused by {progress.paused_by}")
    if progress.drained:
        parts.append(f"drained: {', '.join(sorted(progress.drained))}")
    if progress.schedule is not None:
        parts.append(f"hint schedule {describe_schedule(progress.schedule)}")
    if progress.rehearsal is not None:
        parts.append(f"rehearsal buffer {progress.rehearsal['waiting']}")
    return " | ".join(parts)


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many decimals; "–" if there is none."""
    return _DASH if value is None else f"{value:.{digits}f}"
