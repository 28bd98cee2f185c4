"""Every method on the addition task's hard sums: the same base model, data, rollout budget and seeds, real services.

    python -m benchmarks.methods [--methods grpo luffy] [--seeds 0 1 2] [--setting plentiful scarce] [--steps 50]

Each trial is a run of `tributary up` with a Redis of its own. Results are kept trial by trial: interrupted, the same
command goes on where it was. Beside the results file a table and plots are written, with the command, the date and the
machine. Run it on a quiet machine: a trial takes one and a half to two minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import _methods_record as record
from benchmarks import _methods_report as report
from benchmarks._methods_trial import HELD_OUT, ROOT, Trial, TrialFailed, Workshop
from benchmarks._methods_variants import EXTRAS, VARIANTS, choose

SETTINGS = ("plentiful", "scarce")
_FINAL_S = 300.0


def trials_of(asked: argparse.Namespace) -> list[Trial]:
    """The trials that were asked for, seed by seed: an interrupted comparison has all methods under the first seeds."""
    variants = choose(asked.methods)
    return [
        Trial(variant, setting, seed, asked.steps)
        for setting in asked.setting
        for seed in asked.seeds
        for variant in variants
    ]


def carry_out(trial: Trial, workshop: Workshop, command: str) -> dict[str, Any]:
    """Run a trial and measure what it made; its record, whatever became of it."""
    began_s = time.monotonic()
    try:
        summary, seconds = workshop.carry_out(trial)
        if summary["steps"] < trial.steps:
            raise TrialFailed(f"it ended after {summary['steps']} of {trial.steps} steps")
        final = measure_final(trial, workshop, published=summary["publications"] > 0)
    except TrialFailed as error:
        return record.failed(trial, str(error), time.monotonic() - began_s, command)
    return record.finished(trial, summary, final, seconds, command)


def measure_final(trial: Trial, workshop: Workshop, *, published: bool) -> dict[str, Any]:
    """What sampling from the trial's last weights finds: those of the base model if no step ever changed them."""
    store = workshop.directory(trial) / "run" / "weights"
    versions = [place.parent for place in sorted(store.glob("v*/model.safetensors"))] if published else [workshop.base]
    if not versions:
        raise TrialFailed(f"the weights that the run published are not in {store}")
    data = workshop.out / f"data-{trial.setting}" / "heldout_hard.jsonl"
    words = ["--base", str(workshop.base), "--weights", str(versions[-1]), "--data", str(data)]
    words += ["--limit", str(HELD_OUT["hard"]), "--seed", str(trial.seed)]
    command = [sys.executable, "-m", "benchmarks._methods_final", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_FINAL_S, check=False)
    if done.returncode:
        raise TrialFailed(f"its last weights could not be measured: {done.stderr.strip()[-300:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names, extras = [v.name for v in VARIANTS], [v.name for v in EXTRAS]
    parser.add_argument(
        "--methods",
        nargs="+",
        default=names,
        metavar="NAME",
        help=f"default: {', '.join(names)}; also: {', '.join(extras)}",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--setting", nargs="+", choices=SETTINGS, default=["plentiful"], help="of demonstrations")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--base", type=Path, default=ROOT / "examples/addition/base", help="made if it is missing")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/methods", help="where the runs lie")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results/methods.json")
    parser.add_argument("--limit-s", type=float, default=600.0, help="a trial that takes longer has failed")
    parser.add_argument("--again", action="store_true", help="also run what has finished before")
    parser.add_argument("--report", action="store_true", help="run nothing: write table and plots of what is known")
    asked = parser.parse_args(arguments)
    try:
        choose(asked.methods)
    except ValueError as error:
        parser.error(str(error))
    if asked.steps < 1 or min(asked.seeds) < 0:
        parser.error("--steps must be at least 1, and --seeds not negative")
    return asked


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every trial that is not known yet; 1 if one failed."""
    asked = parse(arguments)
    command = shlex.join(["python", "-m", "benchmarks.methods", *(sys.argv[1:] if arguments is None else arguments)])
    results = record.Results(asked.results)
    workshop = Workshop(asked.out.resolve(), asked.base.resolve(), asked.limit_s)
    trials = [] if asked.report else [t for t in trials_of(asked) if asked.again or not results.knows(t)]
    if trials:
        workshop.prepare(set(asked.setting))
    failures = 0
    for number, trial in enumerate(trials, 1):
        print(f"[{number}/{len(trials)}] {trial.name} ...", end=" ", flush=True)
        found = carry_out(trial, workshop, command)
        results.add(found)
        report.write(results.trials, asked.results)
        failures += found["status"] == "failed"
        print(sentence(found), flush=True)
    if results.trials:
        print(*(f"written: {place}" for place in report.write(results.trials, asked.results)), sep="\n")
    return 1 if failures else 0


def sentence(found: dict[str, Any]) -> str:
    """A record in one line."""
    if found["status"] == "failed":
        return f"failed after {found['wall_s']:.0f} s: {found['reason']}"
    hard, easy = (100 * (found["final"][name] or 0.0) for name in HELD_OUT)
    return f"hard {hard:.1f} %, easy {easy:.1f} %, pass@8 {100 * found['pass_at_k']:.1f} %, {found['wall_s']:.0f} s"


if __name__ == "__main__":
    # Told to end, we end as if interrupted: the run that is under way is stopped first.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    raise SystemExit(main())
