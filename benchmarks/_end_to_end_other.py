"""The other side of the comparison, from here: TRL's program is started, and what it wrote is read."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

from benchmarks._end_to_end_box import Failed, environment, program
from benchmarks._end_to_end_cell import Cell, Lengths, Step, Training
from benchmarks._end_to_end_plan import Plan

VERSION = "1.16.0"


def without_trl() -> str:
    """What to say when nothing is compared."""
    return f"trl is not here, so only our own side runs: install trl=={VERSION} (extra `bench`), or name --trl-python"


def train_with_trl(cell: Cell, plan: Plan, out: Path, python: str, cores: int, limit_s: float) -> Training:
    """Train one cell with TRL."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    cell.write(out / "cell.json")
    began_s, deadline_s, log = time.time(), time.monotonic() + limit_s, out / "trl.log"
    command = [python, "-W", "ignore", "-m", "benchmarks._end_to_end_trl", str(out / "cell.json"), str(out)]
    command += [str(plan.trl_rows)]
    with program(command, log, environment(OMP_NUM_THREADS=str(cores))) as process:
        while process.poll() is None:
            if time.monotonic() > deadline_s:
                raise Failed(f"TRL took longer than {limit_s:.0f} s: see {log}")
            time.sleep(0.5)
    if process.returncode:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise Failed(f"TRL ended with {process.returncode}: {' '.join(last)}")
    told = json.loads((out / "trl.json").read_text(encoding="utf-8"))
    return Training(
        side="trl",
        start_up_s=told["started_s"] - began_s,
        steps=[Step(**step) for step in told["steps"]],
        lengths=Lengths.of(told["lengths"]),
        saved={int(step): Path(path) for step, path in told["saved"].items()},
        cpu_s={"trl": round(told["cpu_s"], 2)},
        notes={"version": told["version"], "threads": cores, "rows_of_a_forward": plan.trl_rows},
    )
