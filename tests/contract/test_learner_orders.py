"""Orders that a learner is given: to wait at its step boundary, to go on, to write a checkpoint now."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from common.events import EventKind
from common.process import Process
from learner.storage.checkpoint import CheckpointStore
from learner.storage.durable import NotWritten
from learner.storage.slow_storage import writing
from tests.contract.learner_rig import (
    LearnerProcess,
    Rig,
    checkpoint_of,
    make_group,
    progress_of,
    saved_tensors,
    write_run,
)


@pytest_asyncio.fixture
async def rig(tmp_path: Path, redis_server: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    rig = Rig(write_run(tmp_path))
    yield rig
    await rig.close()


async def shows(rig: Rig, **details: Any) -> None:
    """Wait until the heartbeat tells these details."""

    async def so() -> bool:
        told = rig.process.heartbeat()
        return all(told.get(key) == value for key, value in details.items())

    await rig.until(so)


async def test_a_paused_learner_begins_no_step_and_says_so_until_it_is_told_to_go_on(rig: Rig) -> None:
    await rig.prepare()
    assert await rig.process.orders.pause("ada", at_s=1.0)
    await rig.emit(make_group(n) for n in range(4))
    rig.start()
    await shows(rig, paused=True, state="running", waiting=False)
    assert rig.process.registry.get_sample_value("tributary_learner_paused") == 1
    number = await rig.switch(optimizer={"learning_rate": 5e-4})
    await shows(rig, revision=number)  # what an operator changes meanwhile comes into force
    assert await rig.events(EventKind.STEP) == []
    assert await rig.process.orders.resume()
    steps = await rig.steps(2)
    assert steps[0]["wait_s"] < 0.5, "time in a pause is not time spent waiting for groups"
    assert steps[0]["learning_rate"] < 5e-4
    await shows(rig, paused=False)
    assert rig.process.registry.get_sample_value("tributary_learner_paused") == 0


async def test_a_pause_takes_effect_after_the_step_in_progress(rig: Rig) -> None:
    await rig.prepare()
    await rig.emit(make_group(n) for n in range(2))
    rig.start()
    await rig.steps(1)
    await rig.process.orders.pause("ada", at_s=1.0)
    await shows(rig, paused=True)
    await rig.emit(make_group(n) for n in range(2, 6))
    await asyncio.sleep(0.7)  # longer than it takes to look again
    assert len(await rig.events(EventKind.STEP)) == 1
    await rig.process.orders.resume()
    await rig.steps(3)


async def test_a_paused_learner_stops_when_told_to_and_loses_nothing(rig: Rig, tmp_path: Path) -> None:
    await rig.prepare()
    await rig.emit(make_group(n) for n in range(4))
    rig.start()
    await rig.steps(2)
    await rig.process.orders.pause("ada", at_s=1.0)
    await shows(rig, paused=True)
    await rig.emit([make_group(4), make_group(5)])
    assert await rig.stop() == 0
    assert progress_of(checkpoint_of(tmp_path / "run", 2))["step"] == 2
    rig.start()
    await shows(rig, paused=True, step=2)
    await rig.process.orders.resume()
    assert [step["step"] for step in await rig.steps(3)] == [1, 2, 3]


@pytest.mark.parametrize("paused", [False, True])
async def test_a_checkpoint_is_written_on_order_also_while_nothing_is_trained(
    rig: Rig, tmp_path: Path, paused: bool
) -> None:
    await rig.prepare()
    await rig.emit(make_group(n) for n in range(4))
    rig.start()
    await rig.steps(2)
    if paused:
        await rig.process.orders.pause("ada", at_s=1.0)
        await shows(rig, paused=True)
    assert not checkpoint_of(tmp_path / "run", 2).exists()
    number = await rig.process.orders.checkpoint("ada", at_s=2.0)
    await shows(rig, checkpoint_order=number, checkpoint_step=2)
    assert progress_of(checkpoint_of(tmp_path / "run", 2))["step"] == 2
    assert await rig.process.delivery.groups.pending("learner", "0", 9) == [], "it acknowledges as any other does"


async def test_an_order_with_nothing_new_to_save_is_carried_out_at_once(rig: Rig, tmp_path: Path) -> None:
    await rig.prepare()
    rig.start()
    await shows(rig, checkpoint_order=0)
    number = await rig.process.orders.checkpoint("ada", at_s=1.0)
    await shows(rig, checkpoint_order=number, checkpoint_step=0)
    assert not checkpoint_of(tmp_path / "run", 0).exists()


async def test_orders_from_before_its_start_are_taken_as_carried_out(rig: Rig) -> None:
    await rig.prepare()
    await rig.process.orders.checkpoint("ada", at_s=1.0)
    await rig.process.orders.checkpoint("ada", at_s=2.0)
    rig.start()
    await shows(rig, checkpoint_order=2, paused=False)
    assert await rig.process.orders.checkpoint("ada", at_s=3.0) == 3
    await shows(rig, checkpoint_order=3)


async def test_orders_that_are_counted_anew_after_a_loss_of_redis_are_carried_out(rig: Rig, tmp_path: Path) -> None:
    await rig.prepare()
    await rig.process.orders.checkpoint("ada", at_s=1.0)
    await rig.process.orders.checkpoint("ada", at_s=2.0)
    rig.start()
    await shows(rig, checkpoint_order=2)
    await rig.emit(make_group(n) for n in range(2))
    await rig.steps(1)
    await rig.process.redis.delete(rig.process.keys.orders)
    assert await rig.process.orders.checkpoint("ada", at_s=3.0) == 1
    await shows(rig, checkpoint_order=1, checkpoint_step=1)
    assert progress_of(checkpoint_of(tmp_path / "run", 1))["step"] == 1


async def test_pauses_ordered_checkpoints_and_a_crash_leave_the_training_as_it_would_have_been(
    tmp_path: Path, redis_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    weights: list[dict[str, bytes]] = []
    for name, act in (("alone", _let_be), ("ordered", _interrupt)):
        twin = Rig(write_run(tmp_path / name))
        await twin.process.redis.flushall()
        await twin.prepare()
        await act(twin)
        assert await twin.stop() == 0
        assert [step["step"] for step in await twin.events(EventKind.STEP)] == [1, 2]
        assert await twin.process.delivery.outstanding() == 0
        weights.append(saved_tensors(checkpoint_of(tmp_path / name / "run", 2)))
        await twin.close()
    assert weights[0] == weights[1]


async def _let_be(rig: Rig) -> None:
    await rig.emit(make_group(n) for n in range(4))
    rig.start()
    await rig.steps(2)


async def _interrupt(rig: Rig) -> None:
    """Pause with half of a step's groups at hand; checkpoints then, and between the steps; a crash while paused."""
    orders = rig.process.orders
    await rig.emit([make_group(0)])
    rig.start()
    await shows(rig, waiting=True)
    await orders.pause("ada", at_s=1.0)
    await shows(rig, paused=True)
    await rig.emit([make_group(1), make_group(2)])
    await shows(rig, checkpoint_order=await orders.checkpoint("ada", at_s=2.0))
    await orders.resume()
    await rig.steps(1)
    await orders.pause("ada", at_s=3.0)
    await shows(rig, paused=True)
    await shows(rig, checkpoint_order=await orders.checkpoint("ada", at_s=4.0), checkpoint_step=1)
    await rig.emit([make_group(3)])
    await rig.crash()
    rig.start()
    await shows(rig, paused=True, step=1)
    await orders.resume()
    await rig.steps(2)


async def test_a_checkpoint_that_the_disk_does_not_take_is_tried_again_until_it_does(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, attempts = CheckpointStore.commit, [0]

    def reluctant(store: CheckpointStore, checkpoint: Any) -> Path:
        attempts[0] += 1
        if attempts[0] == 1:
            raise NotWritten("the disk is full")
        return commit(store, checkpoint)

    monkeypatch.setattr(CheckpointStore, "commit", reluctant)
    monkeypatch.setattr("learner.attention._RETRY_S", 0.1)
    await rig.prepare()
    await rig.emit(make_group(n) for n in range(2))
    rig.start()
    await rig.steps(1)
    number = await rig.process.orders.checkpoint("ada", at_s=1.0)
    await shows(rig, checkpoint_order=number, checkpoint_step=1)
    assert attempts == [2]
    notices = [event["text"] for event in await rig.events(EventKind.NOTICE)]
    assert "the checkpoint was not written" in notices[0]
    assert "could be written again" in notices[1]


async def test_a_checkpoint_ordered_during_the_last_step_is_there_when_the_learner_ends(
    tmp_path: Path, redis_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    rig = Rig(write_run(tmp_path, learner="max_steps = 1"))
    await rig.prepare()
    rig.start()
    await shows(rig, checkpoint_order=0)
    number = await rig.process.orders.checkpoint("ada", at_s=1.0)
    await rig.emit(make_group(n) for n in range(2))
    assert await rig.ended() == 0
    assert rig.process.heartbeat()["checkpoint_order"] == number
    assert progress_of(checkpoint_of(tmp_path / "run", 1))["step"] == 1
    await rig.close()


async def test_a_learner_of_its_own_process_tells_in_its_heartbeat_what_it_carried_out(
    rig: Rig, tmp_path: Path, redis_server: Any
) -> None:
    await rig.prepare()
    await rig.emit(make_group(n) for n in range(2))
    learner = LearnerProcess(rig.run_file, redis_server.url)

    async def told(**wanted: Any) -> None:
        async def so() -> bool:
            beat = json.loads(await rig.process.redis.hget(rig.process.keys.processes, "learner") or "{}")
            return all(beat.get(key) == value for key, value in wanted.items())

        await rig.until(so, limit_s=100)

    try:
        await told(step=1)
        await rig.process.orders.pause("ada", at_s=1.0)
        await told(paused=True, state="running", step=1, checkpoint_step=0, checkpoint_order=0)
        await rig.process.orders.checkpoint("ada", at_s=2.0)
        await told(paused=True, checkpoint_step=1, checkpoint_order=1)
        await rig.process.orders.resume()
        await told(paused=False)
    finally:
        learner.kill()
    assert progress_of(checkpoint_of(tmp_path / "run", 1))["step"] == 1


async def test_a_slow_disk_does_not_make_the_learner_unhealthy(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    commit, begun = CheckpointStore.commit, threading.Event()

    def slow(store: CheckpointStore, checkpoint: Any) -> Path:
        begun.set()
        time.sleep(1.2)
        return commit(store, checkpoint)

    monkeypatch.setattr(CheckpointStore, "commit", slow)
    await rig.prepare()
    await rig.emit(make_group(n) for n in range(2))
    rig.start()
    await rig.steps(1)
    monkeypatch.setattr("common.process.BEAT_LIMIT_S", 0.6)
    monkeypatch.setattr("learner.storage.slow_storage.EVERY_S", 0.1)
    number = await rig.process.orders.checkpoint("ada", at_s=1.0)
    complaints: set[str] = set()

    async def done() -> bool:
        complaints.add(rig.process.why_unhealthy())
        return rig.process.heartbeat().get("checkpoint_order") == number

    await rig.until(done)
    assert begun.is_set()
    assert complaints == {""}


async def test_a_disk_that_hangs_for_very_long_shows_after_all(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    beats: list[None] = []

    class Beaten(Process):
        def beat(self) -> None:
            beats.append(None)

    process = Beaten("learner", "learner", rig.process.settings)
    monkeypatch.setattr("learner.storage.slow_storage.EVERY_S", 0.01)
    monkeypatch.setattr("learner.storage.slow_storage.LIMIT_S", 0.035)
    async with writing(process):
        await asyncio.sleep(0.1)
    assert len(beats) == 3
    await process.redis.aclose()
