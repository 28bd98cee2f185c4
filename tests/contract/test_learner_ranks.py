"""Several ranks under torchrun: they train as one process does, end together, and resume on any number of them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from safetensors.torch import load_file

from common.events import EventKind
from common.trajectory import Group
from services.cli.up.logs import reason
from tests.contract.learner_rig import (
    ROOT,
    Rig,
    checkpoint_of,
    make_group,
    make_unsolved_group,
    progress_of,
    write_run,
)

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(600)]

GRPO: dict[str, Any] = {"algorithm": {"kind": "grpo", "rollouts": 4, "kl_coefficient": 0.1}}
LUFFY: dict[str, Any] = {"algorithm": {"kind": "luffy", "rollouts": 4}, "hints": {"kind": "demonstration"}}
RELIFT: dict[str, Any] = {
    "algorithm": {"kind": "relift", "rollouts": 4, "buffer_size": 2, "sft_learning_rate": 1e-3},
    "hints": {"kind": "if_unsolved"},
}
SRFT: dict[str, Any] = {
    "algorithm": {"kind": "srft", "rollouts": 4, "entropy_scope": "batch"},
    "hints": {"kind": "demonstration"},
}
PHASES = ((GRPO, 3), (LUFFY, 3), (RELIFT, 4))
STEPS = sum(steps for _, steps in PHASES)
START_S, END_S = 120, 60


class RankedLearner:
    """A learner of several ranks, in processes of their own under torchrun."""

    def __init__(self, run_file: Path, redis_url: str, ranks: int = 2) -> None:
        self.log = run_file.parent / "learner.log"
        environment = {"REDIS_URL": redis_url, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        torchrun = [sys.executable, "-m", "learner.ranks.launching", "--standalone", "--nproc-per-node", str(ranks)]
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                [*torchrun, "-m", "learner", str(run_file), "--name", "learner"],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env=os.environ | environment,
            )

    def children(self) -> list[int]:
        """The process ids of the ranks."""
        told = subprocess.run(["ps", "-o", "pid=", "--ppid", str(self.popen.pid)], capture_output=True, check=False)
        return [int(pid) for pid in told.stdout.split()]

    def ranks(self) -> dict[int, int]:
        """Rank → process id."""
        found: dict[int, int] = {}
        for pid in self.children():
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            found |= {int(v.partition(b"=")[2]): pid for v in variables if v.startswith(b"RANK=")}
        return found

    def kill(self) -> None:
        """kill -9 of torchrun, which takes the ranks with it."""
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait(10)


@pytest.fixture
def launch(tmp_path: Path, redis_server: Any) -> Iterator[Callable[..., RankedLearner]]:
    """Starts learners of several ranks, killed at the end if they still run."""
    started: list[RankedLearner] = []

    def start(run_file: Path, ranks: int = 2) -> RankedLearner:
        started.append(RankedLearner(run_file, redis_server.url, ranks))
        return started[-1]

    yield start
    for learner in started:
        learner.kill()


@pytest_asyncio.fixture
async def rigs(redis_server: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[..., Any]]:
    """Makes rigs that share a Redis, each a run with a name of its own."""
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    made: list[Rig] = []

    def make(directory: Path, learner: str = f"max_steps = {STEPS}", **options: Any) -> Rig:
        run_file = write_run(directory, learner=learner, **options)
        run_file.write_text(run_file.read_text().replace('name = "test"', f'name = "{directory.name}"'))
        made.append(Rig(run_file))
        return made[-1]

    yield make
    for rig in made:
        await rig.close()


def groups(numbers: range) -> list[Group]:
    """Of every two groups, one that no rollout solved, with a demonstration."""
    return [make_unsolved_group(n) if n % 2 else make_group(n) for n in numbers]


async def switched(rig: Rig, learner: RankedLearner | None = None) -> list[dict[str, Any]]:
    """The STEP events of a run that is switched from method to method while it trains."""
    done = 0
    for number, (phase, steps) in enumerate(PHASES):
        if number:
            await rig.switch(**phase)
        await rig.emit(groups(range(2 * done, 2 * (done + steps))))
        done += steps
        await reached(rig, done, learner)
    return await rig.steps(done)


async def reached(rig: Rig, steps: int, learner: RankedLearner | None = None) -> None:
    """Wait until so many steps are told; torchrun imports torch once for itself and once for each rank."""
    deadline_s = time.monotonic() + START_S
    while len(await rig.events(EventKind.STEP)) < steps:
        assert learner is None or learner.popen.poll() is None, learner.log.read_text()[-5000:]
        assert time.monotonic() < deadline_s, f"step {steps} did not come"
        await asyncio.sleep(0.05)


def tensors(run_file: Path, step: int) -> dict[str, dict[str, Any]]:
    checkpoint = checkpoint_of(run_file.parent / "run", step)
    return {path.stem: load_file(path) for path in sorted(checkpoint.glob("*.safetensors"))}


def differences(one: dict[str, dict[str, Any]], other: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The largest difference in each file."""
    assert {f: set(t) for f, t in one.items()} == {f: set(t) for f, t in other.items()}
    return {
        file: max(float((values.double() - other[file][name].double()).abs().max()) for name, values in t.items())
        for file, t in one.items()
    }


async def ended(learner: RankedLearner, limit_s: float = END_S) -> int:
    return await asyncio.to_thread(learner.popen.wait, limit_s)


def gone(pids: list[int], limit_s: float = 10.0) -> bool:
    """Whether these processes end in time."""
    deadline_s = time.monotonic() + limit_s
    while left := [pid for pid in pids if Path(f"/proc/{pid}").exists() and not _is_dead(pid)]:
        if time.monotonic() > deadline_s:
            return not left
        time.sleep(0.05)
    return True


def _is_dead(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def test_the_parts_of_a_shared_step_are_those_of_one_that_is_made_alone() -> None:
    """Layouts, surveys, evidence, steps that are flat or given up, publications, a state that is restored."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    told = subprocess.run(
        [*torchrun, "-m", "tests.contract.ranks_rehearsal"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=START_S,
        check=False,
    )
    assert told.returncode == 0, told.stderr[-5000:]
    assert told.stdout.count("all is the same") == 2
    assert "Warning" not in told.stderr.replace("elastic", ""), told.stderr


async def test_two_ranks_train_as_one_does_through_live_switches(
    rigs: Callable[..., Rig], launch: Callable[..., RankedLearner], tmp_path: Path
) -> None:
    alone, shared = rigs(tmp_path / "alone"), rigs(tmp_path / "shared")
    for rig in (alone, shared):
        await rig.prepare(**GRPO)
    alone.start()
    expected = await switched(alone)
    assert await alone.ended() == 0
    learner = launch(shared.run_file)
    told = await switched(shared, learner)
    assert await ended(learner) == 0
    for one, other in zip(expected, told, strict=True):
        for figure in ("loss", "grad_norm", "entropy"):
            assert other[figure] == pytest.approx(one[figure], rel=1e-5, abs=1e-5)
        for figure in ("algorithm", "tokens", "trajectories", "flat_groups", "groups", "updated", "learning_rate"):
            assert other[figure] == one[figure]
    found = differences(tensors(alone.run_file, STEPS), tensors(shared.run_file, STEPS))
    assert all(difference < 1e-5 for difference in found.values()), found
    assert progress_of(checkpoint_of(tmp_path / "shared" / "run", STEPS))["step"] == STEPS
    assert await shared.process.delivery.groups.length() == 0


async def test_a_run_goes_on_with_any_number_of_ranks_whether_stopped_or_broken_off(
    rigs: Callable[..., Rig], launch: Callable[..., RankedLearner], tmp_path: Path
) -> None:
    """Two are told to stop; one process goes on and breaks; two go on, one of them is killed; two go to the end."""
    alone, run = rigs(tmp_path / "alone"), rigs(tmp_path / "run", every_steps=2)
    for rig in (alone, run):
        await rig.prepare(**SRFT)
        await rig.emit(groups(range(8)))
    alone.start()
    await alone.emit(groups(range(8, 2 * STEPS)))
    assert await alone.ended() == 0

    learner = launch(run.run_file)
    await reached(run, 3, learner)
    ranks = learner.ranks()
    learner.popen.send_signal(signal.SIGTERM)
    await ended(learner)
    assert gone([*ranks.values()])
    assert progress_of(newest(run))["step"] >= 3, "the last step is saved"

    run.start()
    await run.emit(groups(range(8, 12)))
    await reached(run, 6)
    await run.crash()

    await run.emit(groups(range(12, 14)))
    learner = launch(run.run_file)
    await reached(run, 7, learner)
    ranks = learner.ranks()
    began_s = time.monotonic()
    os.kill(ranks[1], signal.SIGKILL)
    assert await ended(learner) != 0
    assert time.monotonic() - began_s < END_S
    assert gone([*ranks.values()]), "nobody is left of a job that lost one of its ranks"
    assert "rank 1 of the learner ended first, killed by signal 9" in learner.log.read_text()

    await run.emit(groups(range(14, 2 * STEPS)))
    learner = launch(run.run_file)
    assert await ended(learner, START_S) == 0, learner.log.read_text()[-5000:]
    found = differences(tensors(alone.run_file, STEPS), tensors(run.run_file, STEPS))
    assert all(difference < 1e-5 for difference in found.values()), found
    assert progress_of(newest(run))["seen"] == progress_of(newest(alone))["seen"]
    assert await run.process.delivery.groups.length() == 0


async def test_settings_that_rank_0_cannot_use_are_one_sentence_and_the_end_of_all(
    rigs: Callable[..., Rig], launch: Callable[..., RankedLearner], tmp_path: Path
) -> None:
    rig = rigs(tmp_path / "run")
    await rig.prepare(**GRPO)
    rig.run_file.write_text(re.sub(r'(?m)^path = ".*"', f'path = "{tmp_path}"', rig.run_file.read_text(), count=1))
    learner = launch(rig.run_file)
    assert await ended(learner) == 2
    lines = [line for line in learner.log.read_text().splitlines() if line.startswith("{")]
    errors = [record["message"] for record in map(json.loads, lines) if record["level"] == "error"]
    assert len(errors) == 1
    assert errors[0].startswith(f"model.path: {tmp_path} is not a Hugging Face model directory")
    assert reason(learner.log) == errors[0]


def newest(rig: Rig) -> Path:
    """The newest checkpoint of a run."""
    return max((rig.run_file.parent / "run" / "checkpoints").glob("step-??????"))


async def test_what_torchrun_leaves_behind_when_it_is_killed_ends_by_itself(
    rigs: Callable[..., Rig], launch: Callable[..., RankedLearner], tmp_path: Path
) -> None:
    rig = rigs(tmp_path / "run")
    await rig.prepare(**GRPO)
    await rig.emit(groups(range(4)))
    learner = launch(rig.run_file)
    await reached(rig, 2, learner)
    ranks = learner.ranks()
    assert sorted(ranks) == [0, 1]
    learner.kill()
    assert gone([*ranks.values()])
