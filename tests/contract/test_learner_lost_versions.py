"""Versions and checkpoints that are lost on their way: made good, with and without further steps."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from common.events import EventKind
from learner.publication.snapshot import Snapshots
from learner.storage.state_copy import StateCopy
from tests.contract.learner_rig import Rig, checkpoint_of, make_group, progress_of, write_run
from tests.contract.publishing_rig import Gate, shown, step


@pytest_asyncio.fixture
async def rig(tmp_path: Path, redis_server: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    rig = Rig(write_run(tmp_path))
    yield rig
    await rig.close()


async def test_a_version_that_is_lost_is_made_good_by_the_next_step(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learner.loop._RETRY_S", 1000.0)
    gate = Gate(monkeypatch)
    gate.failing = {1}
    gate.open()
    await rig.prepare(publish_every=2)
    rig.start()
    await step(rig, 1)
    assert shown(rig, "unpublished_updates") == 1
    await step(rig, 2)

    async def lost() -> bool:
        return shown(rig, "unpublished_updates") == 2

    await rig.until(lost)
    await step(rig, 3)  # due at step 4 by itself
    told = (await rig.published(2))[0]
    assert (told["version"], told["step"], told["kind"]) == (2, 3, "anchor")
    assert shown(rig, "unpublished_updates") == 0


async def test_versions_that_are_lost_are_made_good_while_groups_are_waited_for_and_groups_kept_until_then(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("learner.loop._RETRY_S", 0.05)
    gate = Gate(monkeypatch)
    gate.failing = set(range(1, 1000))
    gate.open()
    await rig.prepare(max_staleness=1)
    rig.start()
    await step(rig, 1)
    await step(rig, 2)
    await rig.emit([make_group(6), make_group(7)])  # of version 0, the newest there is, and yet two behind
    tried = len(gate.versions)

    async def tried_again() -> bool:
        return len(gate.versions) > tried + 3

    await rig.until(tried_again)
    assert shown(rig, "groups_stale_total") == 0
    assert shown(rig, "unpublished_updates") == 2
    gate.failing.clear()
    told = (await rig.published(1))[0]
    assert (told["step"], told["kind"]) == (2, "anchor")
    assert shown(rig, "unpublished_updates") == 0

    async def dropped() -> bool:
        return shown(rig, "groups_stale_total") == 2

    await rig.until(dropped)  # now there are better ones to be had
    await rig.emit(make_group(number, version=told["version"]) for number in (8, 9))
    third = (await rig.steps(3))[2]
    assert (third["groups"], third["staleness_max"], third["updates"]) == (2, 0, 3)


async def test_a_paused_learner_makes_a_lost_version_good(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learner.loop._RETRY_S", 0.05)
    gate = Gate(monkeypatch)
    gate.failing = {1}
    await rig.prepare()
    rig.start()
    await step(rig, 1)
    await rig.process.orders.pause("tester", at_s=0.0)

    async def paused() -> bool:
        return rig.process.details.get("paused", False)

    await rig.until(paused)
    gate.open()
    assert [(p["version"], p["step"]) for p in await rig.published(2)] == [(2, 1)]


async def test_a_copy_that_finds_no_memory_costs_a_version_or_a_checkpoint_and_not_the_run(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("learner.loop._RETRY_S", 0.05)
    take, copy, left = Snapshots.take, StateCopy.take, {"version": 1, "checkpoint": 1}

    def short(what: str, made: Any) -> Any:
        if left[what]:
            left[what] -= 1
            raise MemoryError("no room")
        return made()

    monkeypatch.setattr(Snapshots, "take", lambda *args: short("version", lambda: take(*args)))
    monkeypatch.setattr(StateCopy, "take", lambda *args: short("checkpoint", lambda: copy(*args)))
    write_run(tmp_path, every_steps=1)
    await rig.prepare()
    rig.start()
    await step(rig, 1)
    assert [(p["version"], p["step"]) for p in await rig.published(2)] == [(2, 1)]
    await step(rig, 2)
    assert await rig.stop() == 0
    assert progress_of(checkpoint_of(tmp_path / "run", 2))["step"] == 2
    notices = [notice["text"] for notice in await rig.events(EventKind.NOTICE)]
    assert sum("memory does not suffice for a copy of the weights" in notice for notice in notices) == 1
    assert sum("memory does not suffice for a copy of the state" in notice for notice in notices) == 1


async def test_the_updates_of_a_snapshot_that_was_replaced_are_lost_with_the_one_that_replaced_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    gate.failing = {3}
    monkeypatch.setattr("learner.loop._RETRY_S", 1000.0)
    await rig.prepare()
    rig.start()
    for number in (1, 2, 3):
        await step(rig, number)
    gate.open()

    async def both_lost() -> bool:
        return shown(rig, "unpublished_updates") == 2

    await rig.until(both_lost)
