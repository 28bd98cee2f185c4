"""The plot at the end of a run: held-out accuracy and reward over the steps, revisions as vertical lines."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from common.events import Event, EventKind
from services.cli.up import caches
from services.cli.up.phases import phases_of, steps_of

_SIZE_INCHES = (9.0, 5.0)
_RECENT = 5


def draw(run: str, events: Sequence[Event], path: Path) -> None:
    """Write the plot of a run as a PNG file."""
    # Imported here: it takes most of a second, and only the end of a run needs it.
    os.environ.update(caches.beside_home("MPLCONFIGDIR"))
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    steps = [(step.number, step.data["reward"]) for step in steps_of(events) if step.data.get("reward") is not None]
    if steps:
        numbers, rewards = [number for number, _ in steps], [float(reward) for _, reward in steps]
        axes.plot(numbers, rewards, color="0.75", linewidth=1)
        axes.plot(numbers, _smoothed(rewards), color="0.35", linewidth=1.5, label=f"reward (mean of {_RECENT} steps)")
    for name, points in _accuracies(events).items():
        axes.plot([step for step, _ in points], [value for _, value in points], marker="o", label=f"held-out {name}")
    later = phases_of(events)[1:]
    for phase in later:
        axes.axvline(phase.first, color="0.5", linestyle="--", linewidth=1)
        place = axes.get_xaxis_transform()
        axes.text(phase.first, 1.01, str(phase.revision), ha="center", fontsize=8, color="0.3", transform=place)
    axes.set_title(run, pad=16)
    axes.set(xlabel="optimiser step", ylabel="share correct", ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    told = "\n".join(f"revision {phase.revision}, step {phase.first}: {phase.what}" for phase in later)
    figure.supxlabel(told, x=0.01, ha="left", fontsize=8, color="0.3")
    figure.savefig(path, dpi=120)


def _accuracies(events: Sequence[Event]) -> dict[str, list[tuple[int, float]]]:
    """Data set → (step, accuracy) in order of steps."""
    found: dict[str, dict[int, float]] = {}
    for event in events:
        if event.kind is EventKind.EVALUATION and event.data.get("accuracy") is not None:
            found.setdefault(str(event.data["dataset"]), {})[int(event.data["step"])] = float(event.data["accuracy"])
    return {name: sorted(points.items()) for name, points in found.items()}


def _smoothed(values: Sequence[float]) -> list[float]:
    """The mean of each value and the few before it."""
    windows = [values[max(0, end - _RECENT) : end] for end in range(1, len(values) + 1)]
    return [sum(window) / len(window) for window in windows]
