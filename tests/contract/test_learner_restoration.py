"""Every part of a checkpoint counts: each of these numbers comes out wrong if one of them is left out."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch

from common.settings import load_run
from learner.__main__ import open_trainer
from learner.storage.checkpoint import Checkpoint, CheckpointStore, Progress
from learner.storage.state_copy import StateCopy
from tests.contract.learner_rig import Rig, checkpoint_of, group_id, make_group, progress_of, write_run


@pytest_asyncio.fixture
async def rig(tmp_path: Path, redis_server: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    rig = Rig(write_run(tmp_path))
    yield rig
    await rig.close()


async def test_schedule_version_consumed_ids_and_what_is_unpublished_come_from_the_checkpoint(
    rig: Rig, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"publish_every": 3, "optimizer": {"warmup_steps": 20}}
    await rig.prepare(**changes)
    await rig.switch(max_staleness=99)
    await rig.emit(make_group(n) for n in range(8))
    rig.start()
    await rig.steps(4)
    assert await rig.stop() == 0
    progress = progress_of(checkpoint_of(tmp_path / "run", 4))
    told = {name: progress[name] for name in ("step", "updates", "version", "revision", "unpublished", "published")}
    assert told == {"step": 4, "updates": 4, "version": 1, "revision": 2, "unpublished": 1, "published": [3]}
    assert progress["seen"] == [group_id(n) for n in range(8)]
    await rig.process.redis.flushall()  # nothing but the checkpoint knows any of it
    shutil.rmtree(tmp_path / "run" / "weights")
    await rig.prepare(**changes)
    await rig.emit(make_group(n) for n in (0, 7, 8, 9, 10, 11))
    rig.start()
    steps = await rig.steps(2)
    assert [step["step"] for step in steps] == [5, 6]
    assert [step["learning_rate"] for step in steps] == pytest.approx([1e-3 * 5 / 20, 1e-3 * 6 / 20])
    assert rig.process.registry.get_sample_value("tributary_groups_repeated_total") == 2
    published = [(told["version"], told["step"]) for told in await rig.published(3)]
    assert published == [(2, 4), (3, 6)], "higher than any before, and when three updates had gathered"


def test_random_generators_and_the_count_of_updates_come_from_the_checkpoint(tmp_path: Path) -> None:
    trainer = open_trainer(load_run(write_run(tmp_path)))
    torch.rand(3)
    store, progress = CheckpointStore(tmp_path / "checkpoints", 1), Progress(1, 1, 1, 7, 0, (), (), (), ())
    files = trainer.tensors()
    store.commit(Checkpoint(progress, StateCopy().take(files)))
    expected = torch.rand(5)
    found = store.newest()
    assert found is not None
    torch.manual_seed(0)
    trainer.restore(found.tensors, found.progress.updates)
    assert torch.rand(5).equal(expected)
    assert trainer.updates == 7


async def test_an_order_that_a_death_cut_off_counts_as_carried_out_by_what_the_learner_comes_back_from(
    rig: Rig, tmp_path: Path
) -> None:
    await rig.prepare()
    await rig.emit(make_group(n) for n in range(4))
    rig.start()
    await rig.steps(2)
    assert await rig.stop() == 0
    await rig.emit(make_group(n) for n in range(4, 6))
    rig.start()
    await rig.steps(3)
    await rig.process.orders.pause("ada", at_s=1.0)
    await rig.crash()
    order = await rig.process.orders.checkpoint("ada", at_s=2.0)
    rig.start()

    async def done() -> bool:
        return rig.process.heartbeat().get("checkpoint_order") == order

    await rig.until(done)
    assert rig.process.heartbeat()["checkpoint_step"] == 2, "the answer names the step that is saved: not 3"
    assert rig.process.heartbeat()["step"] == 2
    assert not checkpoint_of(tmp_path / "run", 3).exists()
