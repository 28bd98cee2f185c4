"""The whole system through `tributary up`: real Redis, real engine, a scenario, an interruption, a resume."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from up_process import UpProcess, command, write_run

pytestmark = [pytest.mark.system, pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]
STEPS = 16
SCENARIO = """
[[change]]
at_step = 4
say = "teach it"
patch = { algorithm = { kind = "luffy" }, hints = { kind = "demonstration" } }
[[change]]
at_step = 12
say = "sharpen"
patch = { algorithm = { gamma = 0.05 } }
"""


@pytest.fixture
def ups() -> Iterator[list[UpProcess]]:
    """Every `up` of a test; none outlives it."""
    started: list[UpProcess] = []
    yield started
    for up in started:
        up.clean_up()


def test_a_run_is_steered_interrupted_resumed_and_summed_up(ups: list[UpProcess], tmp_path: Path) -> None:
    run_file = write_run(tmp_path, generators=1, max_steps=STEPS)
    scenario = tmp_path / "scenario.toml"
    scenario.write_text(SCENARIO)
    directory = tmp_path / "run"

    up = UpProcess(run_file, "--scenario", str(scenario))
    ups.append(up)
    up.wait_for("first optimiser step", limit_s=240)
    up.wait_for("curl -X PATCH http://127.0.0.1:.*/v1/config", limit_s=120)
    up.wait_for("revision 2 in force at the learner from step", limit_s=60)
    _wait_for_step(directory, 7)
    began_s = time.monotonic()
    up.signal(signal.SIGINT)
    assert up.wait(20) == 130
    assert time.monotonic() - began_s < 10
    assert up.left() == []

    again = UpProcess(run_file, "--scenario", str(scenario))
    ups.append(again)
    assert again.wait(400) == 0, again.output
    assert again.left() == []
    assert "resuming the run in" in again.output
    assert "held-out easy after step" in again.output

    summary = json.loads((directory / "summary.json").read_text())
    assert summary["steps"] == STEPS
    assert [phase["algorithm"] for phase in summary["phases"]] == ["dr_grpo", "luffy", "luffy"]
    assert [phase["revision"] for phase in summary["phases"]] == [1, 2, 3], "the scenario sends every change once"
    assert sum(phase["last"] - phase["first"] + 1 for phase in summary["phases"]) == STEPS
    for phase, asked_at in zip(summary["phases"][1:], (4, 12), strict=True):
        assert asked_at < phase["first"] <= phase["asked_after"] + 2, "in force at the next step that begins"
    assert summary["quarantined"] == 0
    assert summary["accuracy"]["easy"] is not None
    assert 2**28 < summary["measured"]["peak_memory_bytes"] < 6 * 2**30
    assert (directory / "summary.png").read_bytes().startswith(b"\x89PNG")


def _wait_for_step(directory: Path, step: int) -> None:
    """Return once the learner has come that far."""
    deadline_s = time.monotonic() + 180
    while time.monotonic() < deadline_s:
        answer = command("status", "--json", "--run", str(directory))
        if answer.returncode == 0 and json.loads(answer.stdout)["learner"]["step"] >= step:
            return
        time.sleep(0.5)
    raise AssertionError(f"step {step} did not come: {answer.stderr}")
