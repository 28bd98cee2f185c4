"""One trial of the comparison: a run file, `tributary up` on it to the end, and what the run left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._methods_variants import Variant

Json = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]
HELD_OUT = {"hard": 128, "easy": 64}
EVALUATE_EVERY = 10
SCARCE_DEMONSTRATIONS = 32
TRAIN_PROMPTS = 512
_GRACE_S = 30.0


class TrialFailed(Exception):
    """A run that did not come to its end, or left nothing to measure."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A variant in one setting under one seed."""

    variant: Variant
    setting: str
    seed: int
    steps: int

    @property
    def name(self) -> str:
        """Its name, unique in a comparison."""
        return f"{self.variant.name}-{self.setting}-{self.seed}"

    @property
    def key(self) -> Json:
        """What says that a recorded trial is this one: the same, down to the last setting."""
        live = self.variant.live(self.steps)
        return {"method": self.variant.name, "setting": self.setting, "seed": self.seed, "steps": self.steps} | {
            "live": live
        }


@dataclass(frozen=True, slots=True)
class Workshop:
    """Where trials are made. base: the model that all of them begin with. limit_s: what a trial may take."""

    out: Path
    base: Path
    limit_s: float

    def directory(self, trial: Trial) -> Path:
        """Where the run of a trial lies."""
        return self.out / trial.name

    def prepare(self, settings: set[str]) -> None:
        """Make the base model and the data of these settings, as far as they are missing."""
        if not (self.base / "model.safetensors").exists():
            print(f"making the base model in {self.base}", flush=True)
            self._make("make_base.py", "--out", str(self.base))
        for setting in sorted(settings):
            if not (self.out / f"data-{setting}" / "train.jsonl").exists():
                without = 1 - SCARCE_DEMONSTRATIONS / TRAIN_PROMPTS if setting == "scarce" else 0.0
                out = str(self.out / f"data-{setting}")
                words = ("--train", str(TRAIN_PROMPTS), "--without-demonstration", str(without))
                self._make("make_data.py", "--out", out, *words)

    def _make(self, program: str, *words: str) -> None:
        command = [sys.executable, str(ROOT / "examples" / "addition" / program), *words]
        subprocess.run(command, check=True, timeout=1800)

    def carry_out(self, trial: Trial) -> tuple[Json, float]:
        """Run a trial; its summary, and the seconds that it took. TrialFailed says why there is none."""
        home = self.directory(trial)
        home.mkdir(parents=True, exist_ok=True)
        run_file = home / "run.toml"
        run_file.write_text(as_toml(run_document(trial, self)), encoding="utf-8")
        began_s = time.monotonic()
        code = self._up(run_file, home / "up.jsonl")
        seconds = time.monotonic() - began_s
        if code:
            raise TrialFailed(f"tributary up ended with {code}: {last_error(home / 'up.jsonl')}")
        try:
            return json.loads((home / "run" / "summary.json").read_text(encoding="utf-8")), seconds
        except (OSError, ValueError) as error:
            raise TrialFailed(f"the run left no summary: {error}") from error

    def _up(self, run_file: Path, told: Path) -> int:
        """Let `tributary up` run to its end; its exit code. Interrupted, it stops everything first."""
        command = [sys.executable, "-m", "services.cli", "up", str(run_file), "--fresh", "--json"]
        # A Redis of its own for every trial: they must not meet in one that the environment names.
        environment = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
        with told.open("w") as output:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
            try:
                return process.wait(self.limit_s)
            except subprocess.TimeoutExpired:
                raise TrialFailed(f"it had not ended after {self.limit_s:.0f} s") from None
            finally:
                end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Stop a program that is still there: politely, then for certain."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def run_document(trial: Trial, workshop: Workshop) -> Json:
    """The run file of a trial, every path absolute."""
    data = (workshop.out / f"data-{trial.setting}").resolve()
    sets = [
        {"name": name, "path": str(data / f"heldout_{name}.jsonl"), "limit": limit} for name, limit in HELD_OUT.items()
    ]
    return {
        "run": {
            "name": trial.name.replace("_", "-"),
            "directory": str((workshop.directory(trial) / "run").resolve()),
            "seed": trial.seed,
        },
        "model": {"path": str(workshop.base.resolve()), "dtype": "float32"},
        "data": {"path": str(data / "train.jsonl"), "step_separator": ";"},
        "evaluation": {"every_versions": EVALUATE_EVERY, "samples": 0, "sets": sets},
        "grader": {"name": "marker", "options": {"marker": "#"}},
        "control": {"port": 0},
        "generator": {"count": 1, "max_num_seqs": 256, "kv_cache_mb": 256, "requests_in_flight": 48},
        "learner": {"max_steps": trial.steps},
        "checkpoints": {"every_steps": 25},
        "live": trial.variant.live(trial.steps),
    }


def as_toml(document: Json) -> str:
    """A TOML document; what is null is left out."""
    lines = [f"{key} = {_value(table)}" for key, table in document.items() if not isinstance(table, dict)]
    for key, table in document.items():
        if isinstance(table, dict):
            lines += ["", f"[{key}]", *(f"{k} = {_value(v)}" for k, v in table.items() if v is not None)]
    return "\n".join(lines).strip() + "\n"


def _value(value: Any) -> str:
    """A value as TOML writes it; strings and numbers as in JSON, tables inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {_value(v)}" for k, v in value.items() if v is not None) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    return json.dumps(value)


def last_error(told: Path) -> str:
    """The last thing that `up` complained of, as its JSON lines tell; else its last line."""
    complaint, last = "", "it said nothing"
    for line in told.read_text(encoding="utf-8", errors="replace").splitlines():
        last = line.strip() or last
        try:
            document = json.loads(line)
        except ValueError:
            continue
        if isinstance(document, dict) and document.get("kind") in ("error", "log"):
            complaint = f"{complaint} | {document['text'].strip()}" if document["kind"] == "log" else document["text"]
    return (complaint or last)[:600]
