"""What the end-to-end comparison found: the results file, and the page that tells it."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import median

from benchmarks._end_to_end_box import Failed
from benchmarks._end_to_end_cell import Json, Training

NAMES = {"trl": "TRL", "tributary": "Tributary"}
TARGETS = {"equal": 1.0, "tail": 2.0}

_HEAD = """# Tributary beside TRL's GRPOTrainer

Written by `python -m benchmarks.end_to_end`: {machine}.{quick}

Same base model, prompts, reward, group size 8, 16 groups a step, learning rate, AdamW betas, clipping and cores. TRL
{version} samples with its own generation (transformers) and uses both cores in every phase; Tributary runs as
`tributary up` runs it: vLLM, learner, curriculum, control plane and Redis on the same cores, one thread each.

* **trained tokens/s**: response tokens that reached a gradient (of groups whose rewards differ, in steps that changed
  the weights; nothing dropped or stale) per second from the start of training to the end of its last step. The aim is
  about these.
* **all tokens/s**: every response token of the groups of the same steps, in the same seconds. Both are shown because a
  group trains nothing once all its responses are right, nor while all are wrong: who converges first has fewer tokens
  left to train, so that the first ratio alone can flatter who learns more slowly.
* **ratio**: Tributary ÷ TRL, of the turn in the middle (by trained tokens) if both trained several times, in turns; all
  of them in parentheses, where they were kept.
* **accuracy**: held-out, the best of the whole training and the last of it.
* **time to accuracy**: seconds of training until the held-out accuracy of the weights reached the value named.
* **η**: Tributary's response tokens/s ÷ the smaller of generator alone and learner alone; beside it the same from the
  first quarter of the steps on, once the pipeline is full. In every turn the generator alone is measured right before
  our training, and the learner alone right after it, on the groups that were sampled in it. Of several turns either
  figure is the median.
"""


def sentence(training: Training) -> str:
    """A training in one line."""
    return (
        f"{training.side}: {training.trained_per_s:,.0f} trained tokens/s over {training.seconds:.1f} s "
        f"(start-up {training.start_up_s:.1f} s)"
    )


def told(accuracies: Mapping[int, float]) -> str:
    """Accuracies by step in one line."""
    return ", ".join(f"{step}: {100 * value:.0f} %" for step, value in accuracies.items())


def document(training: Training, accuracies: Mapping[int, float], times: Mapping[int, float], aim: float) -> Json:
    """A training for the results file."""
    reached = next((step for step, accuracy in sorted(accuracies.items()) if accuracy >= aim), None)
    return {
        "trained_tokens_per_s": round(training.trained_per_s, 1),
        "tokens_per_s": round(training.tokens_per_s, 1),
        "seconds": round(training.seconds, 2),
        "start_up_s": round(training.start_up_s, 2),
        "steps_to_accuracy": reached,
        "seconds_to_accuracy": None if reached is None else round(times.get(reached, 0.0), 2),
        "accuracy_by_step": {step: round(accuracy, 4) for step, accuracy in accuracies.items()},
        "response_lengths": asdict(training.lengths),
        "cpu_s": training.cpu_s,
        "notes": training.notes,
        "steps": [[s.number, round(s.at_s, 3), s.tokens, s.trained, s.flat_groups, s.reward] for s in training.steps],
    }


class Results:
    """The results of a comparison, written whenever a cell is done.

    Cells that were measured earlier stay until they are measured again. A file of another machine, or of quick figures
    where these are full (or the reverse), is left as it is: Failed.
    """

    def __init__(self, path: Path, command: str, *, quick: bool) -> None:
        self._path = path
        self._command = command
        about = {"machine": _machine(), "quick": quick}
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else about
        if not about.items() <= known.items():
            raise Failed(
                f"{path} holds {_kind(known)} and these would be {_kind(about)}: "
                "name another file with --results, or move that one away"
            )
        self._document: Json = {**about, "cells": known.get("cells", {})}

    def add(self, name: str, cell: Json) -> None:
        """Take in the figures of a cell."""
        date = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
        cell |= {"command": self._command, "date": date, "load_1min_after": round(os.getloadavg()[0], 2)}
        cells = {**self._document["cells"], name: cell}
        self._document["cells"] = {known: cells[known] for known in sorted(cells, key=_place)}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(self._document, indent=1) + "\n", encoding="utf-8")
        self._path.with_suffix(".md").write_text(page(self._document), encoding="utf-8")

    def table(self) -> str:
        """The figures of all cells as a table."""
        return _table(self._document)


def page(known: Json) -> str:
    """What a results file holds, for readers."""
    versions = [cell["sides"]["trl"]["notes"]["version"] for cell in known["cells"].values() if "trl" in cell["sides"]]
    head = _HEAD.format(
        machine=known["machine"],
        version=versions[0] if versions else "-",
        quick=" **Few steps: these figures only show that it works.**" if known["quick"] else "",
    )
    details = [line for name, cell in known["cells"].items() for line in _details(name, cell)]
    return "\n".join([head, _table(known), "", *details]) + "\n"


def _table(known: Json) -> str:
    columns = [
        "workload",
        "parameters",
        "trained tokens/s TRL → Tributary",
        "ratio",
        "aim",
        "all tokens/s TRL → Tributary",
        "ratio",
        "accuracy, best and last, TRL → Tributary",
        "time to accuracy TRL → Tributary",
        "η (full pipeline)",
        "start-up TRL, Tributary",
    ]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return "\n".join(lines + [_row(cell) for cell in known["cells"].values()])


def _details(name: str, cell: Json) -> list[str]:
    """What a cell has to tell beside its row."""
    ours = cell["sides"]["tributary"]
    lengths, cpu_s, notes = ours["response_lengths"], ours["cpu_s"], ours["notes"]
    version = f" at commit {cell['commit']}" if "commit" in cell else ""
    lines = [f"## {name}", "", f"Measured until {cell['date']}{version} by `{cell['command']}`.", ""]
    if len(turns := cell.get("ratios", [])) > 1:
        # Before it was noted who began, TRL always did.
        began = [NAMES[side] for side in cell.get("first", ["trl"] * len(turns))]
        lines += [f"{len(turns)} turns, begun by {', '.join(began)}."]
    lines += [
        f"Sampled responses: median {lengths['median']:.0f}, mean {lengths['mean']:.0f}, 90th percentile "
        f"{lengths['p90']:.0f}, longest {lengths['longest']} tokens. Tributary kept "
        f"{sum(cpu_s.values()) / ours['seconds']:.2f} cores busy{'' if 'redis' in cpu_s else ' (Redis not counted)'}; "
        f"processor seconds: {_counted(cpu_s)}."
    ]
    if "generator_alone" in cell:
        alone = {half: cell[f"{half}_alone"]["tokens_per_s"] for half in ("generator", "learner")}
        lines += [f"Alone: generator {alone['generator']:,.0f}, learner {alone['learner']:,.0f} tokens/s."]
    if len(efficiencies := cell.get("efficiencies", [])) > 1:
        lines += [f"η of the turns: {', '.join(_efficiency([one]) for one in efficiencies)}."]
    return [
        *lines,
        f"Mean step: {_counted(notes['learner_step_means'])} s. {notes['tuning']['requests_in_flight']} requests in "
        f"flight, staleness {notes['staleness_mean']}, {notes['stale_groups_dropped']} groups dropped as stale, "
        f"{notes['versions_applied']} versions applied, each with a pause of {notes['engine_pause_ms_mean']} ms.",
        "",
    ]


def _row(cell: Json) -> str:
    ours, theirs = cell["sides"]["tributary"], cell["sides"].get("trl")
    columns = [
        cell["workload"],
        f"{cell['parameters'] / 1e6:.2f} M",
        *_compared(ours, theirs, "trained_tokens_per_s", cell.get("ratios", [])),
        f"≥ {TARGETS[cell['workload']]:g}×",
        *_compared(ours, theirs, "tokens_per_s", cell.get("token_ratios", [])),
        f"{_accuracy(theirs)} → {_accuracy(ours)}",
        f"{100 * cell['accuracy']:.0f} %: {_seconds(theirs)} → {_seconds(ours)}",
        _efficiency(cell.get("efficiencies", [])),
        ", ".join(f"{side['start_up_s']:.0f} s" for side in (theirs, ours) if side is not None),
    ]
    return f"| {' | '.join(columns)} |"


def _compared(ours: Json, theirs: Json | None, rate: str, turns: list[float]) -> tuple[str, str]:
    """A rate of both sides, and their ratio, with those of all turns if there are several."""
    if theirs is None:
        return f"- → {ours[rate]:,.0f}", "-"
    ratio = f"**{ours[rate] / theirs[rate]:.2f}×**"
    if len(turns) > 1:
        ratio += f" ({', '.join(f'{one:.2f}' for one in sorted(turns))})"
    return f"{theirs[rate]:,.0f} → {ours[rate]:,.0f}", ratio


def _efficiency(turns: list[Json]) -> str:
    """η of the whole and of the full pipeline, each the median of these turns."""
    if not turns:
        return "-"
    whole, full = (median(turn[name] for turn in turns) for name in ("whole", "after_the_first_quarter"))
    return f"{whole:.2f} ({full:.2f})"


def _accuracy(side: Json | None) -> str:
    if side is None:
        return "-"
    by_step = {int(step): accuracy for step, accuracy in side["accuracy_by_step"].items()}
    return f"{100 * max(by_step.values()):.0f}, {100 * by_step[max(by_step)]:.0f} %"


def _seconds(side: Json | None) -> str:
    if side is None:
        return "-"
    seconds = side["seconds_to_accuracy"]
    return "not reached" if seconds is None else f"{seconds:.1f} s (step {side['steps_to_accuracy']})"


def _counted(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name.removesuffix('_s')} {value:g}" for name, value in values.items())


def _kind(about: Json) -> str:
    return f"{'quick' if about.get('quick') else 'full'} figures of {about.get('machine', 'an unknown machine')}"


def _machine() -> str:
    """The machine in words."""
    model = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{os.cpu_count()} cores ({model})"


def _place(name: str) -> tuple[str, str]:
    """The order of cells: small models first, then by workload."""
    workload, _, size = name.partition("-")
    return size, workload
