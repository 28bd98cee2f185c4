"""A busy learner plans its next step while the current one computes; a live switch in between costs one plan."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from common.trajectory import Group
from learner import opening, trainer
from learner.forward.policy import Policy
from learner.packing.foresight import Foresight
from learner.packing.plan import plan_step
from learner.trainer import Trainer
from tests.contract.learner_rig import Rig, make_group, write_run

WAIT_S = 10


@pytest_asyncio.fixture
async def rig(tmp_path: Path, redis_server: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    rig = Rig(write_run(tmp_path))
    yield rig
    await rig.close()


def foreseeing(*given: Any, **named: Any) -> Trainer:
    """A trainer that foresees, although it is on a CPU."""
    return Trainer(*given, **{**named, "foresight": True})


class Pace:
    """Steps that begin to compute once some step was foreseen.

    late: the steps that had to be planned when they began.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.late: list[str] = []
        self.foreseen = threading.Semaphore(0)

        def begin(foresight: Foresight, live: Any, groups: Sequence[Group], layout: Any) -> None:
            begin_as_ever(foresight, live, groups, layout)
            self.foreseen.release()

        def plan(algorithm: Any, groups: Sequence[Group], *where: Any) -> Any:
            self.late.append(groups[0].group_id)
            return plan_step(algorithm, groups, *where)

        def slowly(policy: Policy, micro: Any, temperature: float) -> Any:
            assert self.foreseen.acquire(timeout=WAIT_S)
            self.foreseen.release()
            return evaluate_as_ever(policy, micro, temperature)

        begin_as_ever, evaluate_as_ever = Foresight.begin, Policy.evaluate
        monkeypatch.setattr(Foresight, "begin", begin)
        monkeypatch.setattr(trainer, "plan_step", plan)
        monkeypatch.setattr(Policy, "evaluate", slowly)
        monkeypatch.setattr(opening, "Trainer", foreseeing)


async def test_only_the_first_step_and_one_that_was_switched_are_planned_when_they_begin(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    pace = Pace(monkeypatch)
    await rig.prepare()
    await rig.emit(make_group(n) for n in range(4))
    rig.start()
    await rig.steps(2)
    assert pace.late == ["group-0000"]
    await rig.switch(algorithm={"kind": "dr_grpo", "rollouts": 4})
    await rig.emit(make_group(n) for n in range(4, 6))
    steps = await rig.steps(3)
    assert [step["algorithm"] for step in steps] == ["grpo", "grpo", "dr_grpo"]
    assert pace.late == ["group-0000", "group-0004"]
    assert steps[1]["pack_s"] < steps[0]["pack_s"]
