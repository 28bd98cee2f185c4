"""What the end-to-end comparison found: the results file, and the page that tells it."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from benchmarks._end_to_end_cell import Json, Training

TARGETS = {"equal": 1.0, "tail": 2.0}
EFFICIENCY = 0.85

_HEAD = """# Tributary beside TRL's GRPOTrainer

Written by `python -m benchmarks.end_to_end`: {machine}.{quick}

Same base model, prompts, reward, group size 8, 16 groups a step, learning rate, AdamW betas, clipping and cores. TRL
{version} samples with its own generation (transformers) and uses both cores in every phase; Tributary runs as
`tributary up` runs it: vLLM, learner, curriculum, control plane and Redis on the same cores, one thread each.

* **trained tokens/s**: response tokens that reached a gradient (of groups whose rewards differ, in steps that changed
  the weights; nothing dropped or stale) per second from the start of training to the end of its last step.
* **ratio**: of the turn in the middle, if both trained several times, in turns; all of them in parentheses.
* **time to accuracy**: seconds of training until the held-out accuracy of the weights reached the value named.
* **η**: Tributary's response tokens/s ÷ the smaller of generator alone and learner alone, measured in the same run of
  the program; beside it the same from the first quarter of the steps on, once the pipeline is full.
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

    Cells that were measured earlier on such a machine stay until they are measured again; full and quick do not mix.
    """

    def __init__(self, path: Path, command: str, *, quick: bool) -> None:
        self._path = path
        self._command = command
        about = {"machine": _machine(), "quick": quick}
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        kept = known.get("cells", {}) if about.items() <= known.items() else {}
        self._document: Json = {**about, "cells": kept}

    def add(self, name: str, cell: Json) -> None:
        """Take in the figures of a cell."""
        date = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
        cell |= {"command": self._command, "date": date, "load_1min_after": round(os.getloadavg()[0], 2)}
        cells = {**self._document["cells"], name: cell}
        self._document["cells"] = {known: cells[known] for known in sorted(cells, key=_place)}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(self._document, indent=1) + "\n", encoding="utf-8")
        self._path.with_suffix(".md").write_text(self._page(), encoding="utf-8")

    def _page(self) -> str:
        known = self._document
        versions = [c["sides"]["trl"]["notes"]["version"] for c in known["cells"].values() if "trl" in c["sides"]]
        version = versions[0] if versions else "-"
        head = _HEAD.format(
            machine=known["machine"],
            version=version,
            quick=" **Few steps: these figures only show that it works.**" if known["quick"] else "",
        )
        return "\n".join([head, self.table(), "", *self._details()]) + "\n"

    def table(self) -> str:
        """The figures of all cells as a table."""
        lines = [
            "| workload | parameters | TRL tokens/s | Tributary tokens/s | ratio | aim "
            "| time to accuracy TRL → Tributary | η (full pipeline) | start-up TRL, Tributary |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [_row(cell) for cell in self._document["cells"].values()]
        return "\n".join(lines)

    def _details(self) -> list[str]:
        lines: list[str] = []
        for name, cell in self._document["cells"].items():
            ours = cell["sides"]["tributary"]
            lengths, cores = ours["response_lengths"], sum(ours["cpu_s"].values()) / ours["seconds"]
            lines += [f"## {name}", "", f"Measured until {cell['date']} by `{cell['command']}`.", ""]
            lines += [
                f"Sampled responses: median {lengths['median']:.0f}, mean {lengths['mean']:.0f}, 90th percentile "
                f"{lengths['p90']:.0f}, longest {lengths['longest']} tokens. Tributary kept {cores:.2f} cores busy; "
                f"processor seconds: {_counted(ours['cpu_s'])}."
            ]
            if "generator_alone" in cell:
                alone = {half: cell[f"{half}_alone"]["tokens_per_s"] for half in ("generator", "learner")}
                lines += [f"Alone: generator {alone['generator']:,.0f}, learner {alone['learner']:,.0f} tokens/s."]
            means = ours["notes"]["learner_step_means"]
            lines += [
                f"Mean step: {_counted(means)} s. Staleness {ours['notes']['staleness_mean']}, "
                f"{ours['notes']['stale_groups_dropped']} groups dropped as stale, "
                f"{ours['notes']['versions_applied']} versions applied, each with a pause of "
                f"{ours['notes']['engine_pause_ms_mean']} ms.",
                "",
            ]
        return lines


def _row(cell: Json) -> str:
    ours, theirs = cell["sides"]["tributary"], cell["sides"].get("trl")
    ratio = "-" if theirs is None else f"**{ours['trained_tokens_per_s'] / theirs['trained_tokens_per_s']:.2f}×**"
    if len(turns := cell.get("ratios", [])) > 1:
        ratio += f" ({', '.join(f'{one:.2f}' for one in sorted(turns))})"
    efficiency = cell.get("efficiency")
    columns = [
        cell["workload"],
        f"{cell['parameters'] / 1e6:.2f} M",
        "-" if theirs is None else f"{theirs['trained_tokens_per_s']:,.0f}",
        f"{ours['trained_tokens_per_s']:,.0f}",
        ratio,
        f"≥ {TARGETS[cell['workload']]:g}×",
        f"{100 * cell['accuracy']:.0f} %: {_seconds(theirs)} → {_seconds(ours)}",
        "-" if efficiency is None else f"{efficiency['whole']:.2f} ({efficiency['after_the_first_quarter']:.2f})",
        ", ".join(f"{side['start_up_s']:.0f} s" for side in (theirs, ours) if side is not None),
    ]
    return f"| {' | '.join(columns)} |"


def _seconds(side: Json | None) -> str:
    if side is None:
        return "-"
    seconds = side["seconds_to_accuracy"]
    return "not reached" if seconds is None else f"{seconds:.1f} s (step {side['steps_to_accuracy']})"


def _counted(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name.removesuffix('_s')} {value:g}" for name, value in values.items())


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
