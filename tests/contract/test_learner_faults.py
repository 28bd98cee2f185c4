"""What would starve, flood or mislead a run if the learner did not guard against it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest
import pytest_asyncio

from common.events import EventKind
from common.wire import encode_group
from tests.contract.learner_rig import Rig, checkpoint_of, group_id, make_group, progress_of, write_run


@pytest_asyncio.fixture
async def rig(tmp_path: Path, redis_server: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    rig = Rig(write_run(tmp_path))
    yield rig
    await rig.close()


def counted(rig: Rig, name: str) -> float | None:
    return rig.process.registry.get_sample_value(name)


async def hold(rig: Rig, groups: int) -> None:
    """Wait until the learner has so many groups in hand and waits for more."""

    async def held() -> bool:
        key, waits = rig.process.delivery.groups.key, rig.process.details.get("waiting")
        return bool(waits) and (await rig.process.redis.xpending(key, "learner"))["pending"] == groups

    await rig.until(held)
    await asyncio.sleep(0.6)  # longer than the gathering waits before it looks again


async def test_the_credit_of_a_group_that_was_issued_again_returns_although_it_is_dropped(rig: Rig) -> None:
    await rig.prepare()
    await rig.emit([make_group(0), make_group(1)])
    rig.start()
    await rig.steps(1)
    await rig.emit([make_group(0), make_group(1)])  # a curriculum that lost its state issues the same ids

    async def dropped() -> bool:
        return counted(rig, "tributary_groups_repeated_total") == 2

    async def returned() -> bool:
        return await rig.process.delivery.outstanding() == 0

    await rig.until(dropped)
    await rig.until(returned, limit_s=5)


async def test_a_group_that_comes_twice_is_not_lost_when_the_size_of_a_step_changes(rig: Rig) -> None:
    await rig.prepare()
    await rig.emit([make_group(0), make_group(0)])
    rig.start()
    await hold(rig, 2)
    await rig.switch(groups_per_step=1)
    assert (await rig.steps(1))[0]["groups"] == 1

    async def dropped() -> bool:
        return counted(rig, "tributary_groups_repeated_total") == 1

    await rig.until(dropped)
    assert await rig.stop() == 0
    assert await rig.process.delivery.groups.length() == 0


async def test_a_group_that_comes_twice_is_not_lost_when_the_learner_stops_before_its_step(
    rig: Rig, tmp_path: Path
) -> None:
    await rig.prepare()
    await rig.emit([make_group(0), make_group(0)])
    rig.start()
    await hold(rig, 2)
    assert await rig.stop() == 0
    assert await rig.process.delivery.groups.length() == 2
    await rig.emit([make_group(1)])
    rig.start()
    assert (await rig.steps(1))[0]["groups"] == 2
    assert await rig.stop() == 0
    assert progress_of(checkpoint_of(tmp_path / "run", 1))["seen"] == [group_id(0), group_id(1)]
    assert await rig.process.delivery.groups.length() == 0


async def test_every_copy_of_a_group_whose_step_was_not_finite_goes_to_quarantine(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.wire.LARGEST_REWARD", 1e39)
    await rig.prepare(algorithm={"kind": "grpo", "rollouts": 4, "divide_by_std": False})
    poison = replace(make_group(0), trajectories=make_group(0, rewards=(1e38, -3e38, 1e38, 1e38)).trajectories)
    await rig.emit([poison, poison])
    rig.start()
    await hold(rig, 2)
    await rig.emit([make_group(1)])
    await rig.steps(1)
    assert await rig.process.redis.xlen(rig.process.keys.quarantine) == 3
    assert await rig.process.delivery.groups.length() == 0


async def test_a_run_that_goes_on_beyond_its_old_end_is_not_finished_any_more(rig: Rig, tmp_path: Path) -> None:
    write_run(tmp_path, learner="max_steps = 1")
    await rig.prepare()
    await rig.emit([make_group(0), make_group(1)])
    rig.start()
    assert await rig.ended() == 0
    redis, facts = rig.process.redis, rig.process.keys.facts
    await redis.hset(facts, mapping={"evaluated": "1", "dashboard": "here"})
    rig.start()  # still at its end
    assert await rig.ended() == 0
    assert set(await rig.process.redis.hgetall(facts)) == {b"finished", b"evaluated", b"dashboard", b"made"}
    write_run(tmp_path, learner="max_steps = 2")
    rig.start()

    async def taken_back() -> bool:
        return set(await rig.process.redis.hgetall(facts)) == {b"dashboard", b"made"}

    await rig.until(taken_back)
    await rig.emit([make_group(2), make_group(3)])
    assert await rig.ended() == 0
    assert b"finished" in await rig.process.redis.hgetall(facts)


async def test_a_full_disk_stops_training_once_redis_holds_too_much(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("learner.loop._RETRY_S", 0.05)
    with write_run(tmp_path).open("a") as run_file:
        run_file.write("unacknowledged_mb = 1\n")
    place = tmp_path / "run" / "checkpoints"
    place.parent.mkdir()
    place.write_text("a file is in the way")
    await rig.prepare(groups_per_step=1)
    await rig.emit(replace(make_group(n), prompt_id="p" * 600_000) for n in range(4))
    rig.start()
    await rig.steps(2)  # 1.2 MB wait for a checkpoint
    await asyncio.sleep(0.5)
    assert len(await rig.events(EventKind.STEP)) == 2
    notices = [notice["text"] for notice in await rig.events(EventKind.NOTICE)]
    assert len(notices) == 2
    assert "training waits until a checkpoint can be written" in notices[1]
    place.unlink()
    await rig.steps(4)
    assert checkpoint_of(tmp_path / "run", 2).exists()


async def test_a_learner_that_waits_for_its_disk_can_be_stopped(rig: Rig, tmp_path: Path) -> None:
    with write_run(tmp_path).open("a") as run_file:
        run_file.write("unacknowledged_mb = 1\n")
    place = tmp_path / "run" / "checkpoints"
    place.parent.mkdir()
    place.write_text("a file is in the way")
    await rig.prepare(groups_per_step=1)
    await rig.emit(replace(make_group(n), prompt_id="p" * 1_200_000) for n in range(2))
    rig.start()
    await rig.steps(1)
    assert await rig.stop() == 0
    assert len(await rig.events(EventKind.STEP)) == 1


async def test_a_group_that_cannot_be_decoded_returns_its_credit(rig: Rig) -> None:
    await rig.prepare()
    fields = msgpack.unpackb(encode_group(make_group(0)))
    fields["trajectories"] = "none"
    await rig.emit_bytes(group_id(0), msgpack.packb(fields) or b"")
    rig.start()

    async def quarantined() -> bool:
        return bool(await rig.events(EventKind.QUARANTINE))

    await rig.until(quarantined)
    assert [told["id"] for told in await rig.events(EventKind.QUARANTINE)] == [group_id(0)]
    assert await rig.process.delivery.outstanding() == 0
