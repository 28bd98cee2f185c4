"""The learner's metrics that alerts are made of: waiting, publications, and what the disk did not take."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.contract.learner_rig import Rig, make_group, write_run


@pytest_asyncio.fixture
async def rig(tmp_path: Path, redis_server: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    rig = Rig(write_run(tmp_path, every_steps=1))
    yield rig
    await rig.close()


def shown(rig: Rig, name: str, **labels: str) -> float:
    value = rig.process.registry.get_sample_value(f"tributary_{name}", labels)
    return float("nan") if value is None else value


async def wait_for_groups(rig: Rig) -> None:
    async def waiting() -> bool:
        return shown(rig, "learner_waiting") == 1

    await rig.until(waiting)


async def test_waiting_publications_and_the_bound_of_staleness_are_shown(rig: Rig) -> None:
    await rig.prepare(publish_every=2, max_staleness=7)
    started_s = time.time()
    rig.start()
    await wait_for_groups(rig)
    before_s = shown(rig, "publication_timestamp_seconds")
    assert started_s <= before_s <= time.time(), "the clock runs from the learner's start"
    await rig.emit(make_group(n) for n in range(6))
    await rig.steps(3)
    await wait_for_groups(rig)
    await rig.published(1)
    assert shown(rig, "publication_timestamp_seconds") > before_s
    assert (shown(rig, "publications_total"), shown(rig, "unpublished_updates")) == (1, 1)
    assert shown(rig, "staleness_bound") == 7


async def test_what_the_disk_does_not_take_is_counted_and_updates_wait_unpublished(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for place in ("weights", "checkpoints"):
        (tmp_path / "run" / place).write_text("a file is in the way")
    await rig.prepare()
    rig.start()
    await wait_for_groups(rig)
    assert [shown(rig, "storage_failures_total", what=what) for what in ("weight version", "checkpoint")] == [0, 0]
    await rig.emit(make_group(n) for n in range(4))
    await rig.steps(2)

    async def both_wait() -> bool:  # they are lost beside the training
        return shown(rig, "unpublished_updates") == 2

    await rig.until(both_wait)
    assert shown(rig, "publications_total") == 0
    assert all(shown(rig, "storage_failures_total", what=what) >= 1 for what in ("weight version", "checkpoint"))


async def test_what_counts_from_the_first_event_is_there_before_it(rig: Rig) -> None:
    for stream in ("requests", "groups", "outcomes", "score_tasks", "demonstrations"):
        assert shown(rig, "quarantined_total", stream=stream) == 0
    assert shown(rig, "process_info", process="learner", role="learner", run="test") == 1
