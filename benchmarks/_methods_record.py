"""What is kept of a comparison: one record a trial, appended to a JSON file that an interrupted comparison resumes."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks._methods_trial import HELD_OUT, ROOT, Trial

Json = dict[str, Any]
HALF = 0.5
_LAST_STEPS = 5


class Results:
    """The results file. Every trial is written as soon as it has ended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trials: list[Json] = []
        if path.exists():
            self.trials = json.loads(path.read_text(encoding="utf-8"))["trials"]

    def knows(self, trial: Trial) -> bool:
        """Whether this very trial has come to its end before; one that failed is tried again."""
        return any(known["status"] == "finished" and is_of(known, trial) for known in self.trials)

    def add(self, record: Json) -> None:
        """Keep a record, in place of an older one of the same method, setting, seed and number of steps."""
        place = ("method", "setting", "seed", "steps")
        self.trials = [t for t in self.trials if any(t[key] != record[key] for key in place)] + [record]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(".new")
        beside.write_text(json.dumps({"trials": self.trials}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        beside.replace(self.path)


def is_of(record: Json, trial: Trial) -> bool:
    """Whether a record is of this trial, with the same settings down to the last."""
    return all(record.get(key) == value for key, value in trial.key.items())


def finished(trial: Trial, summary: Json, final: Json, seconds: float, command: str) -> Json:
    """The record of a trial that came to its end. seconds: from its start to its end, engine start included."""
    steps: list[Json] = summary["curve"]["steps"]
    rollouts = int(trial.key["live"]["algorithm"]["rollouts"])
    curves = {name: curve(summary, name) for name in HELD_OUT}
    return trial.key | {
        "status": "finished",
        "final": {name: points[-1]["accuracy"] if points else None for name, points in curves.items()},
        "pass_at_k": final["pass_at_k"],
        "k": final["k"],
        "pass_at_1": final["pass_at_1"],
        "greedy_again": final["greedy"],
        "entropy": final["entropy"],
        "entropy_of_rollouts": _mean([s["entropy"] for s in steps[-_LAST_STEPS:] if s["entropy"] is not None]),
        "reward": _mean([s["reward"] for s in steps[-_LAST_STEPS:] if s["reward"] is not None]),
        "steps_done": len(steps),
        "trained_tokens": summary["trained_tokens"],
        "sampled_tokens": summary["measured"]["sampled_tokens"],
        "rollouts": rollouts * sum(int(s["groups"]) for s in steps),
        "training_s": steps[-1]["seconds"] if steps else None,
        "wall_s": round(seconds, 1),
        "half": half(curves["hard"]),
        "staleness": summary["staleness"],
        "quarantined": summary["quarantined"],
        "restarts": summary["measured"]["restarts"],
        "curve": curves,
        **_circumstances(command),
    }


def failed(trial: Trial, reason: str, seconds: float, command: str) -> Json:
    """The record of a trial that did not."""
    return trial.key | {"status": "failed", "reason": reason, "wall_s": round(seconds, 1), **_circumstances(command)}


def curve(summary: Json, dataset: str) -> list[Json]:
    """Step, seconds and accuracy of every evaluation of a held-out set, in order of steps."""
    rows = [row for row in summary["curve"]["evaluations"] if row["dataset"] == dataset and row["accuracy"] is not None]
    by_step = {row["step"]: {key: row[key] for key in ("step", "seconds", "accuracy")} for row in rows}
    return [by_step[step] for step in sorted(by_step)]


def half(points: list[Json]) -> Json | None:
    """The first evaluation that found at least half of the problems solved; None if none did."""
    return next(({"step": p["step"], "seconds": p["seconds"]} for p in points if p["accuracy"] >= HALF), None)


def _circumstances(command: str) -> Json:
    return {"command": command, "at": time.strftime("%Y-%m-%d %H:%M:%S"), "machine": machine(), "code": code()}


def machine() -> str:
    """What the trial ran on."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{len(os.sched_getaffinity(0))} cores of {model}, {platform.system()}, Python {platform.python_version()}"


def code() -> str:
    """The commit that the trial ran, marked if files differ from it; "" outside a checkout."""
    words = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout.strip()


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
