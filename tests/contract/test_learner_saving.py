"""Checkpoints are written beside the training: what they hold, what waits for them, what they acknowledge and when."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from safetensors.torch import load_file, save
from transformers import AutoModelForCausalLM

from common.config.live import parse_live
from common.events import EventKind
from common.settings import load_run
from learner import export
from learner.__main__ import open_trainer
from learner.storage.checkpoint import CheckpointStore
from learner.storage.durable import NotWritten
from tests.contract.learner_rig import (
    LIVE,
    Rig,
    checkpoint_of,
    group_id,
    make_group,
    progress_of,
    saved_tensors,
    write_run,
)


class Disk:
    """A disk that takes a checkpoint when it is let; or that does not take it."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.fails = 0
        self._may = threading.Semaphore(0)

    def let(self, checkpoints: int) -> None:
        """Take so many more."""
        for _ in range(checkpoints):
            self._may.release()

    def around(self, commit: Callable[..., Path]) -> Callable[..., Path]:
        def gated(store: CheckpointStore, checkpoint: Any) -> Path:
            self.begun.append(checkpoint.progress.step)
            assert self._may.acquire(timeout=30)
            if self.fails:
                self.fails -= 1
                raise NotWritten("the disk is full")
            return commit(store, checkpoint)

        return gated


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk()
    monkeypatch.setattr(CheckpointStore, "commit", disk.around(CheckpointStore.commit))
    yield disk
    disk.let(100)


@pytest_asyncio.fixture
async def rig(tmp_path: Path, redis_server: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    rig = Rig(write_run(tmp_path, every_steps=2))
    await rig.prepare()
    yield rig
    await rig.close()


async def feed(rig: Rig, steps: range) -> None:
    """The groups of steps; two each."""
    await rig.emit(make_group(n) for step in steps for n in (2 * step - 2, 2 * step - 1))


async def saved(rig: Rig, step: int) -> None:
    """Wait until a checkpoint is committed, told and acknowledged."""

    async def so() -> bool:
        committed = rig.process.registry.get_sample_value("tributary_checkpoints_total")
        return rig.process.details.get("checkpoint_step") == step and bool(committed)

    await rig.until(so)


async def unacknowledged(rig: Rig, groups: int) -> None:
    async def so() -> bool:
        return await rig.process.delivery.groups.length() == groups

    await rig.until(so)


def sampled(rig: Rig, name: str, **labels: str) -> float | None:
    return rig.process.registry.get_sample_value(name, labels)


async def test_training_goes_on_while_a_checkpoint_is_written_and_only_what_it_holds_is_acknowledged(
    rig: Rig, disk: Disk, tmp_path: Path
) -> None:
    rig.start()
    await feed(rig, range(1, 6))
    steps = await rig.steps(5)
    assert [step["step"] for step in steps] == [1, 2, 3, 4, 5], "told in order"
    assert disk.begun == [2], "one at a time"
    assert await rig.process.delivery.groups.length() == 10, "nothing before it is committed"
    assert rig.process.details["checkpoint_step"] == 0
    disk.let(1)
    await saved(rig, 2)
    await unacknowledged(rig, 6)
    left = [entry.payload for entry in await rig.process.delivery.groups.pending("learner", "0", 99)]
    assert [f"group-{n:04d}".encode() in payload for n, payload in enumerate(left, 4)] == [True] * 6
    assert progress_of(checkpoint_of(tmp_path / "run", 2))["seen"] == [group_id(n) for n in range(4)]
    await feed(rig, range(6, 8))
    await rig.steps(7)
    assert disk.begun == [2, 6], "what fell due at step 4 was taken at the first boundary after"
    assert steps[1]["checkpoint_s"] > 0
    assert steps[1]["checkpoint_s"] < 1, "a copy, not the disk"
    assert sampled(rig, "tributary_checkpoint_seconds_count", stage="copy") == 2
    assert sampled(rig, "tributary_checkpoint_seconds_count", stage="write") == 1


async def test_what_is_written_late_is_the_state_of_its_own_step(rig: Rig, disk: Disk, tmp_path: Path) -> None:
    rig.start()
    await feed(rig, range(1, 6))
    await rig.steps(5)
    disk.let(1)
    await saved(rig, 2)
    await rig.crash()
    trainer, live = open_trainer(load_run(rig.run_file)), parse_live(LIVE)
    for n in (0, 2):
        trainer.step(live, [make_group(n), make_group(n + 1)], lambda: None)
    expected = {f"{name}.safetensors": save(dict(tensors)) for name, tensors in trainer.tensors().items()}
    assert saved_tensors(checkpoint_of(tmp_path / "run", 2)) == expected


async def test_a_learner_told_to_stop_finishes_what_is_being_written_and_saves_the_rest(
    rig: Rig, disk: Disk, tmp_path: Path
) -> None:
    rig.start()
    await feed(rig, range(1, 4))
    await rig.steps(3)
    assert disk.begun == [2]
    disk.let(2)
    assert await rig.stop() == 0
    assert disk.begun == [2, 3]
    assert [progress_of(checkpoint_of(tmp_path / "run", step))["step"] for step in (2, 3)] == [2, 3]
    assert await rig.process.delivery.groups.length() == 0


async def test_nothing_is_saved_twice_when_what_is_being_written_holds_everything(
    rig: Rig, disk: Disk, tmp_path: Path
) -> None:
    rig.start()
    await feed(rig, range(1, 3))
    await rig.steps(2)
    disk.let(1)
    assert await rig.stop() == 0
    assert disk.begun == [2]
    assert await rig.process.delivery.groups.length() == 0


async def test_the_last_step_is_saved_before_the_learner_says_that_it_is_done(rig: Rig, disk: Disk) -> None:
    write_run(rig.run_file.parent, learner="max_steps = 3", every_steps=2)
    rig.start()
    await feed(rig, range(1, 4))
    await rig.steps(3)
    await asyncio.sleep(0.2)
    assert not any("complete" in notice["text"] for notice in await rig.events(EventKind.NOTICE))
    disk.let(2)
    assert await rig.ended() == 0
    assert disk.begun == [2, 3]


async def test_an_ordered_checkpoint_is_done_when_it_is_committed_and_not_when_an_older_one_is(
    rig: Rig, disk: Disk
) -> None:
    rig.start()
    await feed(rig, range(1, 4))
    await rig.steps(3)
    assert disk.begun == [2]
    order = await rig.process.orders.checkpoint("ada", at_s=1.0)
    disk.let(1)

    async def begun() -> bool:
        return disk.begun == [2, 3]

    await rig.until(begun)
    assert rig.process.heartbeat()["checkpoint_order"] == order - 1
    disk.let(1)
    await saved(rig, 3)

    async def done() -> bool:
        return rig.process.heartbeat()["checkpoint_order"] == order

    await rig.until(done)
    assert await rig.process.delivery.groups.length() == 0


async def test_training_waits_for_the_disk_once_redis_holds_too_much(rig: Rig, disk: Disk) -> None:
    with rig.run_file.open("a") as run_file:
        run_file.write("unacknowledged_mb = 1\n")
    await rig.switch(groups_per_step=1)
    rig.start()
    await rig.emit(replace(make_group(n), prompt_id="p" * 300_000) for n in range(6))
    await rig.steps(4)  # 0.6 MB are in the checkpoint that is being written, 1.2 MB are too many
    await asyncio.sleep(0.3)
    assert len(await rig.events(EventKind.STEP)) == 4
    assert disk.begun == [2]
    disk.let(1)
    steps = await rig.steps(6)
    assert steps[4]["checkpoint_s"] >= 0.3, "the next step tells that it was held back"
    assert steps[4]["checkpoint_s"] <= steps[4]["step_s"]


async def test_a_disk_that_fails_beside_the_training_is_said_counted_and_tried_again_at_the_next_step(
    rig: Rig, disk: Disk, tmp_path: Path
) -> None:
    disk.fails = 1
    disk.let(2)
    rig.start()
    await feed(rig, range(1, 3))
    await rig.steps(2)

    async def said() -> bool:
        return len(await rig.events(EventKind.NOTICE)) == 1

    await rig.until(said)
    assert sampled(rig, "tributary_storage_failures_total", what="checkpoint") == 1
    assert await rig.process.delivery.groups.length() == 4
    await feed(rig, range(3, 4))
    await saved(rig, 3)
    await unacknowledged(rig, 0)
    assert disk.begun == [2, 3]
    assert not checkpoint_of(tmp_path / "run", 2).exists()
    notices = [notice["text"] for notice in await rig.events(EventKind.NOTICE)]
    assert ["was not written" in notices[0], "could be written again" in notices[1]] == [True, True]


async def test_what_was_being_written_when_the_learner_died_is_made_up_for(rig: Rig, disk: Disk) -> None:
    rig.start()
    await feed(rig, range(1, 4))
    await rig.steps(3)
    disk.fails = 1
    disk.let(1)
    await rig.crash()
    disk.let(9)
    rig.start()
    steps = await rig.steps(6)
    assert [step["step"] for step in steps] == [1, 2, 3, 1, 2, 3]
    assert [step["loss"] for step in steps[:3]] == [step["loss"] for step in steps[3:]]


async def test_a_writer_that_breaks_ends_the_learner_and_is_not_passed_over(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(store: CheckpointStore, checkpoint: Any) -> Path:
        raise ZeroDivisionError("a mistake of ours")

    monkeypatch.setattr(CheckpointStore, "commit", broken)
    rig.start()
    await feed(rig, range(1, 5))
    with pytest.raises(ZeroDivisionError):
        await rig.ended()


async def test_a_checkpoint_that_is_taken_while_training_goes_on_is_exported_and_loaded(
    rig: Rig, tmp_path: Path
) -> None:
    rig.run_file.write_text(rig.run_file.read_text().replace("keep = 2", "keep = 100"))
    rig.start()
    await feed(rig, range(1, 3))
    await saved(rig, 2)
    feeding = asyncio.create_task(feed(rig, range(3, 20)))
    arguments = [str(rig.run_file), "--to", str(tmp_path / "out"), "--step", "2"]
    assert await asyncio.to_thread(export.main, arguments) == 0
    state = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    await feeding
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert weights.keys() <= state.keys()
    assert all(state[name].equal(weight) for name, weight in weights.items())
    await rig.steps(19)
