"""A learner that runs out of memory says so, goes on with smaller micro-batches, and begins with them the next time."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch

from common.events import EventKind
from learner.forward.policy import Policy
from learner.memory import Budget, Extent, OutOfMemory
from tests.contract.learner_rig import Rig, make_group, write_run


@pytest_asyncio.fixture
async def rig(tmp_path: Path, redis_server: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    rig = Rig(write_run(tmp_path))
    yield rig
    await rig.close()


@pytest.fixture
def failures(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens of each forward that did not fit: those with more than 40."""
    failed: list[int] = []

    def cramped(policy: Policy, micro: Any, temperature: float) -> Any:
        if micro.input_ids.numel() > 40:
            failed.append(micro.input_ids.numel())
            raise torch.OutOfMemoryError("CUDA out of memory")
        return evaluate(policy, micro, temperature)

    evaluate = Policy.evaluate
    monkeypatch.setattr(Policy, "evaluate", cramped)
    return failed


async def test_a_learner_that_runs_out_of_memory_goes_on_and_remembers(
    rig: Rig, failures: list[int], tmp_path: Path
) -> None:
    await rig.prepare()
    await rig.emit(make_group(n) for n in range(4))
    rig.start()
    steps = await rig.steps(2)
    assert [(s["trajectories"], s["updated"]) for s in steps] == [(8, True)] * 2
    assert len(failures) == 1
    notices = [told["text"] for told in await rig.events(EventKind.NOTICE)]
    assert any("memory ran out in a micro-batch" in text and "at most 32 tokens" in text for text in notices)
    assert rig.process.registry.get_sample_value("tributary_learner_out_of_memory_total") == 1
    assert rig.process.heartbeat()["micro_batch_tokens"] == 32
    assert await rig.stop() == 0
    assert json.loads((tmp_path / "run" / "checkpoints" / "memory.json").read_text())["tokens"] == 32
    rig.start()
    await rig.emit(make_group(n) for n in range(4, 6))
    assert (await rig.steps(3))[2]["trajectories"] == 8
    assert (len(failures), rig.process.heartbeat()["micro_batch_tokens"]) == (1, 32)


async def test_a_shortage_that_ended_several_ranks_is_counted_and_told_by_the_next_start(rig: Rig) -> None:
    settings = rig.process.settings
    with pytest.raises(OutOfMemory):
        Budget.of(settings.learner, settings.checkpoints_directory, retries=False).lower(Extent(3, 60))
    await rig.prepare()
    for start in (0, 1):
        rig.start()
        await rig.emit(make_group(n) for n in range(2 * start, 2 * start + 2))
        await rig.steps(start + 1)
        counted = rig.process.registry.get_sample_value("tributary_learner_out_of_memory_total")
        assert counted == (1 - start)
        assert await rig.stop() == 0
    notices = [told["text"] for told in await rig.events(EventKind.NOTICE)]
    assert sum("memory ran out in a micro-batch of 60 tokens" in text for text in notices) == 1


async def test_a_trajectory_that_does_not_fit_ends_the_learner_with_the_way_out(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(policy: Policy, micro: Any, temperature: float) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Policy, "evaluate", never)
    await rig.prepare()
    await rig.emit(make_group(n) for n in range(2))
    rig.start()
    with pytest.raises(OutOfMemory, match=r"set learner\.activation_checkpointing = true"):
        await rig.ended()
    assert await rig.process.delivery.groups.length() == 2, "its groups are still there"
