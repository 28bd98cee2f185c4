"""Tributary beside TRL's GRPOTrainer: the same model, task, group size, batch, learning rate and cores, start to end.

    python -m benchmarks.end_to_end [--quick] [--cells equal-0.3M tail-0.3M] [--trl-python PYTHON]

For each of two workloads (equal lengths, long-tailed lengths) and two sizes (0.3 M and about 10 M parameters), one
after the other: TRL trains with its own generation, Tributary trains with `tributary up` (vLLM, learner, curriculum,
control plane, Redis), and Tributary's halves are measured alone on the same box. These figures come of it:

  trained tokens/s  response tokens that reached a gradient (of groups whose rewards differ, in steps that changed the
                    weights; nothing dropped or stale) per second from the start of training to the end of its last
                    step. Starting up (imports, loading, the engine's start) is told apart.
  all tokens/s      every response token of the groups of these steps, in the same time: what converges has fewer groups
                    whose rewards differ, so trained tokens alone can flatter who learns more slowly.
  accuracy          held-out accuracy: the best of the training, and the last.
  time to accuracy  seconds of training until held-out accuracy reached a given value, which both are measured by.
  efficiency η      Tributary's response tokens/s ÷ the smaller of generator alone and learner alone.

With equal lengths both train several times, in turns that TRL and Tributary begin alternately: a shared machine is
faster at one time than at another. The figures of a cell are those of the turn whose ratio of trained tokens/s is the
median, but η is the median of all; the ratios and η of all are told.

Base models are made once (some minutes) and kept in --out. TRL runs under --trl-python, or under this interpreter if it
has trl; without it only our own side runs. Run it on a quiet machine. Results: benchmarks/results/end_to_end.{json,md},
which only the machine that began them adds to; those of --quick: quick.{json,md} in --out.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from benchmarks import _end_to_end_report as report
from benchmarks._end_to_end_accuracy import Scale, curve, split
from benchmarks._end_to_end_alone import Alone, generator_alone, learner_alone
from benchmarks._end_to_end_box import ROOT, Failed, Server, commit, environment, module, redis_server
from benchmarks._end_to_end_cell import Cell, Json, Training
from benchmarks._end_to_end_other import train_with_trl, without_trl
from benchmarks._end_to_end_plan import PLANS, Plan
from benchmarks._end_to_end_run import train
from benchmarks._end_to_end_task import WORKLOADS

_PROMPTS = 2048
_LIMIT_S = 1800.0
_PUBLISHED = ROOT / "benchmarks/results/end_to_end.json"


@dataclass(frozen=True, slots=True)
class Turn:
    """Both sides' trainings of a cell, one right after the other.

    first: the side that began. halves: generator and learner alone, right before and right after our training; none of
    them if they were not asked for.
    """

    first: str
    found: dict[str, Training]
    halves: dict[str, Alone]

    @property
    def ratio(self) -> float:
        """Our trained tokens/s ÷ the other side's; ∞ without it."""
        theirs = self.found.get("trl")
        return math.inf if theirs is None else self.found["tributary"].trained_per_s / theirs.trained_per_s

    @property
    def token_ratio(self) -> float:
        """The same of all response tokens/s."""
        theirs = self.found.get("trl")
        return math.inf if theirs is None else self.found["tributary"].tokens_per_s / theirs.tokens_per_s

    @property
    def efficiency(self) -> Json:
        """η of our training: of the whole, and from the end of its first quarter on, once the pipeline is full."""
        ours, alone = self.found["tributary"], min(half.tokens_per_s for half in self.halves.values())
        return {"whole": ours.tokens_per_s / alone, "after_the_first_quarter": ours.steady_tokens_per_s / alone}


class Comparison:
    """Measures cells one after the other. trl_python: the interpreter that has trl; None: none has."""

    def __init__(self, asked: argparse.Namespace, server: Server, trl_python: str | None) -> None:
        self._asked = asked
        self._server = server
        self._trl_python = trl_python

    def cell(self, plan: Plan) -> Cell:
        """A cell with its base and data, made if they are missing."""
        asked, out = self._asked, self._asked.out
        bases, data = out / f"bases-{plan.size}", out / "data"
        if not (bases / plan.workload / "parameters").exists():
            say(f"making the base models of {plan.size} parameters in {bases}")
            words = ["--size", plan.size, "--out", str(bases), "--threads", str(asked.cores)]
            subprocess.run(
                module("benchmarks._end_to_end_base", *words), cwd=ROOT, env=environment(), check=True, timeout=7200
            )
        trained, _ = split(asked.seed, _PROMPTS)
        data.mkdir(parents=True, exist_ok=True)
        (data / "train.jsonl").write_text("".join(json.dumps(e.row) + "\n" for e in trained), encoding="utf-8")
        steps, save_every = (plan.quick_steps, 2) if asked.quick else (plan.steps, plan.save_every)
        return Cell(plan.workload, plan.size, bases / plan.workload, data, steps, plan.rate, save_every, asked.seed)

    def measure(self, plan: Plan) -> Json:
        """All figures of one cell, for the results file."""
        measured, cell = commit(), self.cell(plan)
        out, turns = self._asked.out / cell.name, list[Turn]()
        count = 1 if self._asked.quick else plan.turns
        for number in range(1, count + 1):
            say(f"{cell.name}: turn {number} of {count}")
            turns.append(self.turn(cell, plan, out / f"turn-{number}", number))
        turn = sorted(turns, key=lambda turn: turn.ratio)[len(turns) // 2]
        document = self._document(cell, plan, turn.found) | {"commit": measured}
        if self._trl_python is not None:
            document["first"] = [turn.first for turn in turns]
            document["ratios"] = [round(turn.ratio, 3) for turn in turns]
            document["token_ratios"] = [round(turn.token_ratio, 3) for turn in turns]
        if turn.halves:
            document |= {f"{half}_alone": asdict(alone) for half, alone in turn.halves.items()}
            document |= {"efficiencies": [turn.efficiency for turn in turns]}
        if not self._asked.keep:
            shutil.rmtree(out, ignore_errors=True)
        return document

    def turn(self, cell: Cell, plan: Plan, out: Path, number: int) -> Turn:
        """Train a cell with either side, one right after the other: TRL begins the first turn, Tributary the next."""
        sides = ["tributary"] if self._trl_python is None else ["trl", "tributary"]
        order, found, halves = sides if number % 2 else sides[::-1], dict[str, Training](), dict[str, Alone]()
        for side in order:
            if side == "trl" and self._trl_python is not None:
                say(f"{cell.name}: TRL, {cell.steps} steps ...")
                cores, limit_s = self._asked.cores, self._asked.limit_s
                found[side] = train_with_trl(cell, plan, out / side, self._trl_python, cores, limit_s)
                say(f"{cell.name}: {report.sentence(found[side])}")
            else:
                found[side], halves = self._ours(cell, plan, out)
        return Turn(order[0], {side: found[side] for side in sides}, halves)

    def _ours(self, cell: Cell, plan: Plan, out: Path) -> tuple[Training, dict[str, Alone]]:
        """Our training, with its halves alone around it: a machine that grows slower meanwhile slows all three."""
        asked, halves = self._asked, dict[str, Alone]()
        if not asked.no_calibration:
            seconds = 8.0 if asked.quick else plan.calibration_s
            alone = generator_alone(cell, plan.tuning, out / "generator", self._server, seconds, asked.limit_s)
            halves["generator"] = alone
            say(f"{cell.name}: generator alone {alone.tokens_per_s:,.0f} tokens/s")
        say(f"{cell.name}: Tributary, {cell.steps} steps ...")
        training, groups = train(cell, plan.tuning, out / "tributary", self._server, asked.limit_s)
        say(f"{cell.name}: {report.sentence(training)}")
        if not asked.no_calibration:
            halves["learner"] = learner_alone(cell, plan.tuning, out / "learner", self._server, groups, asked.limit_s)
            say(f"{cell.name}: learner alone {halves['learner'].tokens_per_s:,.0f} tokens/s")
        return training, halves

    def _document(self, cell: Cell, plan: Plan, found: dict[str, Training]) -> Json:
        """Both trainings, with the accuracies of what they saved."""
        sides: Json = {}
        for side, training in found.items():
            accuracies = curve(Scale(cell), training.saved)
            times = {step.number: step.at_s for step in training.steps}
            sides[side] = report.document(training, accuracies, times, plan.accuracy)
            say(f"{cell.name}: {side}: accuracy {report.told(accuracies)}")
        parameters = int((cell.base / "parameters").read_text(encoding="utf-8"))
        about = {"workload": cell.workload, "size": cell.size, "parameters": parameters, "steps": cell.steps}
        return about | {"learning_rate": cell.rate, "accuracy": plan.accuracy, "sides": sides}


def say(text: str) -> None:
    """A line of progress, with the time."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [f"{workload}-{size}" for size in ("0.3M", "10M") for workload in WORKLOADS]
    parser.add_argument("--cells", nargs="+", choices=names, default=names, metavar="CELL", help=", ".join(names))
    parser.add_argument("--quick", action="store_true", help="few steps: to see that it works, not to compare")
    parser.add_argument("--trl-python", help="an interpreter that has trl")
    parser.add_argument("--no-trl", action="store_true", help="only our own side")
    parser.add_argument("--no-calibration", action="store_true", help="neither half alone")
    parser.add_argument("--cores", type=int, default=min(2, os.cpu_count() or 1), help="threads of the other side")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "runs/end_to_end", help="where bases and runs lie")
    parser.add_argument("--keep", action="store_true", help="keep the directories of the runs")
    parser.add_argument("--limit-s", type=float, default=_LIMIT_S, help="a part that takes longer has failed")
    parser.add_argument("--results", type=Path, help="the JSON file, in place of the published or the quick one")
    asked = parser.parse_args(arguments)
    asked.out = asked.out.resolve()
    asked.results = asked.results or (asked.out / "quick.json" if asked.quick else _PUBLISHED)
    return asked


def find_trl(asked: argparse.Namespace) -> str | None:
    """The interpreter that runs the other side."""
    if asked.no_trl:
        return None
    if asked.trl_python or find_spec("trl"):
        return asked.trl_python or sys.executable
    say(without_trl())
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the cells that were asked for; 1 if one failed, 2 if their results would have no place."""
    asked = parse(arguments)
    torch.set_num_threads(asked.cores)
    plans, failures = [plan for plan in PLANS if plan.name in asked.cells], 0
    try:
        results = report.Results(asked.results, _command(asked, arguments), quick=asked.quick)
    except Failed as error:
        print(error, file=sys.stderr)
        return 2
    with redis_server(asked.out / "redis") as server:
        comparison = Comparison(asked, server, find_trl(asked))
        for plan in plans:
            try:
                results.add(plan.name, comparison.measure(plan))
            except Failed as error:
                say(f"{plan.name} failed: {error}")
                failures += 1
    print(results.table())
    return 1 if failures else 0


def _command(asked: argparse.Namespace, arguments: Sequence[str] | None) -> str:
    """What was typed, for the results: without what lies where on this machine."""
    typed = sys.argv[1:] if arguments is None else arguments
    words = ["PYTHON" if word == asked.trl_python else "PATH" if Path(word).is_absolute() else word for word in typed]
    return shlex.join(["python", "-m", "benchmarks.end_to_end", *words])


if __name__ == "__main__":
    # Told to end, we end as if interrupted: what is under way is stopped first.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    raise SystemExit(main())
