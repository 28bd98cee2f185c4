"""The grader pool with real processes: whatever a grader does costs one response, and the next is graded."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from common.settings import GraderSettings
from services.generator.graders import Grade
from services.generator.grading import Failure, GraderFailed, Grading

pytestmark = pytest.mark.asyncio
ROOT = Path(__file__).resolve().parents[2]
OBEDIENT = GraderSettings(name="bad_graders:obedient", timeout_s=0.5)


@pytest_asyncio.fixture
async def grading() -> AsyncIterator[Grading]:
    grading = Grading(OBEDIENT)
    yield grading
    await grading.close()


@pytest.mark.parametrize(
    ("response", "how", "sentence"),
    [
        ("hang", Failure.HUNG, "the grader hung for 0.5 s and was killed"),
        ("hang in C", Failure.HUNG, "the grader hung for 0.5 s and was killed"),
        ("crash", Failure.CRASHED, r"the grader crashed \(exit code -9\)"),
        ("exit", Failure.RAISED, "the grader raised SystemExit: 3"),
        ("raise", Failure.RAISED, "the grader raised KeyError: 'no such answer'"),
        ("nan", Failure.RAISED, r"the grader raised ValueError: a reward is a finite number up to 1e\+06, not nan"),
    ],
)
async def test_a_grader_that_fails_costs_one_response(
    grading: Grading, response: str, how: Failure, sentence: str
) -> None:
    spoilt, *graded = await asyncio.gather(
        grading.grade(response, "7"), *(grading.grade(str(i), "7") for i in range(5, 9)), return_exceptions=True
    )
    assert isinstance(spoilt, GraderFailed)
    assert spoilt.how is how
    with pytest.raises(GraderFailed, match=sentence):
        raise spoilt
    assert graded == [Grade(0.0), Grade(0.0), Grade(1.0), Grade(0.0)]


async def test_a_worker_that_dies_between_two_responses_is_replaced(grading: Grading) -> None:
    pid = int((await grading.grade("pid", "")).reward)
    os.kill(pid, signal.SIGKILL)
    await asyncio.sleep(0.5)
    assert await grading.grade("7", "7") == Grade(1.0)
    assert int((await grading.grade("pid", "")).reward) != pid


async def test_an_abandoned_response_does_not_hold_the_worker(grading: Grading) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(grading.grade("hang", ""), 0.2)
    assert await asyncio.wait_for(grading.grade("7", "7"), 10) == Grade(1.0)


async def test_workers_ignore_sigint_which_a_terminal_sends_to_all(grading: Grading) -> None:
    assert await grading.grade("ignores", "") == Grade(1.0)


async def test_workers_end_with_the_pool_even_while_a_grader_hangs() -> None:
    grading = Grading(OBEDIENT.model_copy(update={"timeout_s": 60.0}))
    pid = int((await grading.grade("pid", "")).reward)
    hanging = asyncio.ensure_future(grading.grade("hang", ""))
    await asyncio.sleep(0.3)
    began_s = time.monotonic()
    await grading.close()
    assert time.monotonic() - began_s < 2
    assert not Path(f"/proc/{pid}").exists()
    hanging.cancel()


PARENT = """
import asyncio, sys, time
from common.settings import GraderSettings
from services.generator.grading import Grading

async def main():
    grading = Grading(GraderSettings(name="bad_graders:obedient", timeout_s=60))
    print(int((await grading.grade("pid", "")).reward), flush=True)
    await grading.grade("hang", "")

if __name__ == "__main__":
    asyncio.run(main())
"""


async def test_workers_die_with_their_parent_however_it_dies(tmp_path: Path) -> None:
    program = tmp_path / "parent.py"
    program.write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    parent = await asyncio.create_subprocess_exec(
        sys.executable, str(program), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )
    assert parent.stdout is not None
    worker = int(await parent.stdout.readline())
    parent.kill()
    await parent.wait()
    deadline_s = time.monotonic() + 5
    while _is_running(worker) and time.monotonic() < deadline_s:
        await asyncio.sleep(0.05)
    assert not _is_running(worker)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
