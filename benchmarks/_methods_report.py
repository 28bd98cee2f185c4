"""The report of a comparison: a table, the deviations from published settings, and a plot for each setting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks._methods_variants import EXTRAS, SHARED_REASONS, VARIANTS

Json = dict[str, Any]
_DASH = "–"
_COLUMNS: tuple[tuple[str, Callable[[Json], float | None], Callable[[float], str]], ...] = (
    ("hard", lambda r: r["final"]["hard"], lambda x: f"{100 * x:.1f}"),
    ("easy", lambda r: r["final"]["easy"], lambda x: f"{100 * x:.1f}"),
    ("pass@8", lambda r: r["pass_at_k"], lambda x: f"{100 * x:.1f}"),
    ("entropy", lambda r: r["entropy"], lambda x: f"{x:.3f}"),
    ("steps to 50 %", lambda r: r["half"] and r["half"]["step"], lambda x: f"{x:.0f}"),
    ("s to 50 %", lambda r: r["half"] and r["half"]["seconds"], lambda x: f"{x:.0f}"),
    ("rollouts", lambda r: r["rollouts"], lambda x: f"{x:.0f}"),
    ("sampled tokens", lambda r: r["sampled_tokens"], lambda x: f"{x / 1000:.0f} k"),
    ("trained tokens", lambda r: r["trained_tokens"], lambda x: f"{x / 1000:.0f} k"),
    ("training s", lambda r: r["training_s"], lambda x: f"{x:.0f}"),
    ("wall s", lambda r: r["wall_s"], lambda x: f"{x:.0f}"),
)
_LINES = ("-", "--", ":")


def write(trials: Sequence[Json], results: Path) -> list[Path]:
    """Write table and plots beside the results file; where they lie."""
    settings = sorted({trial["setting"] for trial in trials})
    page = results.with_suffix(".md")
    page.write_text(as_markdown(trials), encoding="utf-8")
    places = [page]
    for setting in settings:
        chosen = [t for t in trials if t["setting"] == setting and t["status"] == "finished"]
        if chosen:
            places.append(results.with_name(f"{results.stem}-{setting}.png"))
            draw(chosen, setting, places[-1])
    return places


def as_markdown(trials: Sequence[Json]) -> str:
    """The whole page."""
    lines = ["# Methods on the addition task", ""]
    lines += [
        "Held-out greedy accuracy on 128 hard and 64 easy problems and pass@8 on the hard ones, in percent; entropy in "
        "nats per token of responses sampled to the hard ones; after the last step. Mean over seeds (least – most). "
        "Rollouts: those that groups were made of. Sampled tokens: all that the generator sampled, evaluations and "
        "searches included. Seconds to 50 % are of training, without the start of the engine. A difference below about "
        "8 points means nothing.",
        "",
    ]
    for setting in sorted({trial["setting"] for trial in trials}):
        lines += [f"## Demonstrations {setting}", "", *_table([t for t in trials if t["setting"] == setting]), ""]
    lines += ["## What differs from the published settings", "", *_deviations(), ""]
    lines += ["## Made by", ""]
    for trial in {t["command"]: t for t in trials}.values():
        dates = sorted(t["at"] for t in trials if t["command"] == trial["command"])
        lines.append(f"* `{trial['command']}`, {dates[0]} to {dates[-1]}, on {trial['machine']}, code {trial['code']}")
    return "\n".join(lines) + "\n"


def _table(trials: Sequence[Json]) -> list[str]:
    heads = ["method", "seeds", *(name for name, _, _ in _COLUMNS)]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for name, own in _by_name(trials).items():
        done = [t for t in own if t["status"] == "finished"]
        cells = [spread([read(t) for t in done], show) for _, read, show in _COLUMNS]
        lines.append(f"| {' | '.join([f'`{name}`', _seeds(own, done), *cells])} |")
    for trial in (t for t in trials if t["status"] == "failed"):
        lines += ["", f"`{trial['method']}`, seed {trial['seed']}, failed: {trial['reason']}"]
    return lines


def _by_name(trials: Sequence[Json]) -> dict[str, list[Json]]:
    """The trials of each method; those of another length than most have a name of their own."""
    usual = Counter(t["steps"] for t in trials).most_common(1)[0][0] if trials else 0
    found: dict[str, list[Json]] = {}
    for trial in sorted(trials, key=lambda t: (_rank(t["method"]), t["steps"])):
        steps = "" if trial["steps"] == usual else f", {trial['steps']} steps"
        found.setdefault(trial["method"] + steps, []).append(trial)
    return found


def _seeds(own: Sequence[Json], done: Sequence[Json]) -> str:
    return str(len(done)) if len(done) == len(own) else f"{len(done)} of {len(own)}"


def _rank(method: str) -> int:
    names = [variant.name for variant in (*VARIANTS, *EXTRAS)]
    return names.index(method) if method in names else len(names)


def spread(values: Sequence[float | None], show: Callable[[float], str]) -> str:
    """Mean (least – most) of the values; how many there are, if some are missing."""
    there = [value for value in values if value is not None]
    if not there:
        return _DASH
    mean, least, most = show(sum(there) / len(there)), show(min(there)), show(max(there))
    told = mean if least == most else f"{mean} ({least} – {most})"
    return told if len(there) == len(values) else f"{told}, {len(there)} of {len(values)} seeds"


def _deviations() -> list[str]:
    lines = ["| method | setting | why |", "|---|---|---|"]
    lines += [f"| all | `{path}` | {why} |" for path, why in SHARED_REASONS.items()]
    for variant in (*VARIANTS, *EXTRAS):
        lines += [f"| `{variant.name}` | `{path}` | {why} |" for path, why in variant.reasons.items()]
    return lines


def draw(trials: Sequence[Json], setting: str, path: Path) -> None:
    """Held-out accuracy on hard problems over the steps: a line a method, the mean of its seeds."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 6.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    colours = colormaps["tab10"]
    for place, (name, own) in enumerate(_by_name(trials).items()):
        points = mean_curve([t["curve"]["hard"] for t in own])
        style = {"color": colours(place % 10), "linestyle": _LINES[place // 10 % len(_LINES)]}
        axes.plot([step for step, _ in points], [value for _, value in points], label=name, linewidth=1.8, **style)
    seeds = len({t["seed"] for t in trials})
    axes.set_title(f"held-out hard problems, demonstrations {setting}, mean of {seeds} seeds")
    axes.set(xlabel="optimiser step", ylabel="greedy accuracy", ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=9, frameon=False)
    figure.savefig(path, dpi=120)


def mean_curve(curves: Sequence[Sequence[Json]]) -> list[tuple[int, float]]:
    """The mean over seeds, at the steps that every seed was evaluated at or has a value before and after.

    Versions are counted, not steps: the evaluations of two seeds may lie a step or two apart, so each is read off its
    own line.
    """
    known = [points for points in curves if points]
    if not known:
        return []
    last = min(points[-1]["step"] for points in known)
    steps = sorted({p["step"] for points in known for p in points if p["step"] <= last})
    return [(step, sum(_at(points, step) for points in known) / len(known)) for step in steps]


def _at(points: Sequence[Json], step: int) -> float:
    """A curve's value at a step, straight between two evaluations."""
    before = [p for p in points if p["step"] <= step][-1:] or list(points[:1])
    after = [p for p in points if p["step"] >= step][:1] or list(points[-1:])
    (x0, y0), (x1, y1) = ((p["step"], p["accuracy"]) for p in (before[0], after[0]))
    return y0 if x1 == x0 else y0 + (y1 - y0) * (step - x0) / (x1 - x0)
