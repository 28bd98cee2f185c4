"""What the learner keeps through its own death and that of Redis: every group once, and the same weights to the bit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from common.events import EventKind
from tests.contract.learner_rig import (
    LearnerProcess,
    Rig,
    checkpoint_of,
    group_id,
    make_group,
    progress_of,
    saved_tensors,
    write_run,
)

STEPS = 12
GROUPS = 2 * STEPS
EVERY = 4


@pytest.fixture(autouse=True)
def _redis_url(redis_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", redis_server.url)


@pytest_asyncio.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    rig = Rig(write_run(tmp_path, learner=f"max_steps = {STEPS}", every_steps=EVERY))
    await rig.prepare()
    yield rig
    await rig.close()


@pytest.fixture
def learners(rig: Rig, redis_server: Any) -> Iterator[list[LearnerProcess]]:
    """Learner processes, killed at the end if they still run."""
    started: list[LearnerProcess] = []
    yield started
    for learner in started:
        learner.kill()


async def train_undisturbed(rig: Rig, steps: int = STEPS) -> dict[str, bytes]:
    """The tensors after all steps on groups 0.. without any disturbance."""
    await rig.emit(make_group(n) for n in range(2 * steps))
    rig.start()
    assert await rig.ended() == 0
    return saved_tensors(checkpoint_of(rig.run_file.parent / "run", steps))


@pytest.mark.parametrize(("killed_after", "interval_s"), [(2, 0), (6, 0), (11, 0), (7, 0.05)])
async def test_a_learner_that_was_broken_off_ends_with_the_same_bits(
    rig: Rig, tmp_path: Path, killed_after: int, interval_s: float, client: Any
) -> None:
    if interval_s:  # the clock decides when there is a version; no group is stale, so it does not matter
        await rig.switch(publish_min_interval_s=interval_s)
    await rig.emit(make_group(n) for n in range(2 * killed_after))
    rig.start()
    await rig.steps(killed_after)
    await rig.emit(make_group(n) for n in range(2 * killed_after, GROUPS))
    await rig.crash()
    rig.start()
    assert await rig.ended() == 0
    run = tmp_path / "run"
    progress = progress_of(checkpoint_of(run, STEPS))
    assert progress["seen"] == [group_id(n) for n in range(GROUPS)]
    assert await rig.process.delivery.groups.length() == 0
    assert await rig.process.delivery.outstanding() == 0
    resumed = saved_tensors(checkpoint_of(run, STEPS))
    await client().flushall()
    other = Rig(write_run(tmp_path / "undisturbed", learner=f"max_steps = {STEPS}", every_steps=EVERY))
    await other.prepare()
    undisturbed = await train_undisturbed(other)
    await other.close()
    assert resumed == undisturbed


@pytest.mark.slow
async def test_kill_9_of_the_learner_loses_no_group_and_trains_none_twice(
    rig: Rig, tmp_path: Path, redis_server: Any, learners: list[LearnerProcess]
) -> None:
    await rig.emit(make_group(n) for n in range(12))
    learners.append(LearnerProcess(rig.run_file, redis_server.url))
    await rig.steps(6, by=learners[0])
    learners[0].kill()
    assert await rig.process.delivery.groups.length() in (4, 12), "those of steps 5 and 6 are in no checkpoint"
    await rig.emit(make_group(n) for n in range(12, GROUPS))
    learners.append(LearnerProcess(rig.run_file, redis_server.url))
    assert await asyncio.to_thread(learners[1].popen.wait, 120) == 0
    steps = [s["step"] for s in await rig.events(EventKind.STEP)]
    assert steps in ([1, 2, 3, 4, 5, 6, *range(first, STEPS + 1)] for first in (1, 5))
    progress = progress_of(checkpoint_of(tmp_path / "run", STEPS))
    assert progress["seen"] == [group_id(n) for n in range(GROUPS)]
    assert await rig.process.delivery.groups.length() == 0
    assert await rig.process.delivery.outstanding() == 0
    versions = [p["version"] for p in await rig.events(EventKind.PUBLICATION)]
    assert versions == sorted(set(versions))


@pytest.mark.slow
async def test_sigterm_saves_and_leaves_within_five_seconds(
    rig: Rig, tmp_path: Path, redis_server: Any, learners: list[LearnerProcess]
) -> None:
    await rig.emit(make_group(n) for n in range(4))
    learners.append(LearnerProcess(rig.run_file, redis_server.url))
    await rig.steps(2, by=learners[0])
    started_s = time.monotonic()
    learners[0].popen.terminate()
    assert await asyncio.to_thread(learners[0].popen.wait, 20) == 0
    assert time.monotonic() - started_s < 5
    assert progress_of(checkpoint_of(tmp_path / "run", 2))["seen"] == [group_id(n) for n in range(4)]
    assert await rig.process.delivery.groups.length() == 0


@pytest.mark.slow
def test_a_directory_that_is_no_model_ends_it_with_2_and_one_sentence(
    rig: Rig, tmp_path: Path, redis_server: Any, learners: list[LearnerProcess]
) -> None:
    (tmp_path / "model" / "config.json").unlink()
    learners.append(LearnerProcess(rig.run_file, redis_server.url))
    assert learners[0].popen.wait(60) == 2
    said = [line for line in learners[0].log.read_text().splitlines() if not line.startswith("{")]
    assert said == [
        f"learner: model.path: {tmp_path / 'model'} is not a Hugging Face model directory (it has no config.json): "
        "correct it"
    ]


async def test_a_restarted_redis_is_only_a_pause(rig: Rig, redis_server: Any, tmp_path: Path) -> None:
    await rig.emit(make_group(n) for n in range(6))
    rig.start()
    await rig.steps(3)
    await asyncio.sleep(1.1)  # the append-only file is written once a second
    redis_server.kill()
    await asyncio.sleep(0.5)
    await asyncio.to_thread(redis_server.start)
    await rig.emit(make_group(n) for n in range(6, GROUPS))
    assert await rig.ended() == 0
    progress = progress_of(checkpoint_of(tmp_path / "run", STEPS))
    assert progress["seen"] == [group_id(n) for n in range(GROUPS)]
    assert await rig.process.delivery.groups.length() == 0


async def test_a_learner_told_to_stop_while_redis_is_away_still_saves(
    rig: Rig, redis_server: Any, tmp_path: Path
) -> None:
    await rig.emit(make_group(n) for n in range(4))
    rig.start()
    await rig.steps(2)
    await asyncio.sleep(1.1)
    redis_server.kill()
    assert await rig.stop() == 0
    assert progress_of(checkpoint_of(tmp_path / "run", 2))["seen"] == [group_id(n) for n in range(4)]
    await asyncio.to_thread(redis_server.start)
    await rig.emit(make_group(n) for n in range(4, GROUPS))
    rig.start()
    assert await rig.ended() == 0
    assert await rig.process.delivery.groups.length() == 0
    assert await rig.process.delivery.outstanding() == 0


async def test_restored_weights_are_published_under_a_higher_number(rig: Rig) -> None:
    rig.start()
    for version in range(1, 7):
        await rig.emit([make_group(2 * version), make_group(2 * version + 1)])
        await rig.published(version)
    await rig.crash()
    rig.start()
    published = [(p["version"], p["step"], p["kind"]) for p in await rig.published(7)]
    assert [told[:2] for told in published[:7]] == [*((n, n) for n in range(1, 7)), (7, 4)]
    assert published[6][2] == "anchor"


async def test_staleness_is_counted_along_the_surviving_history(rig: Rig) -> None:
    await rig.switch(max_staleness=2)
    rig.start()
    for version in range(7):
        await rig.emit(make_group(n, version=version) for n in (2 * version, 2 * version + 1))
        await rig.published(version + 1)
    await rig.crash()
    await rig.emit([make_group(n, version=7) for n in (14, 15)])  # sampled before the crash
    rig.start()  # from step 4, which is now version 8: groups of versions 4, 5, 6, 7 follow
    steps = await rig.steps(7 + 4)
    assert [s["staleness"] for s in steps[7:]] == [0, 0, 0, 0]
    assert [s["stale_dropped"] for s in steps] == [0] * 11


async def test_a_damaged_checkpoint_is_skipped_and_the_one_before_it_is_used(rig: Rig, tmp_path: Path) -> None:
    await rig.emit(make_group(n) for n in range(16))
    rig.start()
    await rig.steps(8)

    async def committed() -> bool:
        return checkpoint_of(tmp_path / "run", 8).exists()

    await rig.until(committed)
    await rig.crash()
    weights = checkpoint_of(tmp_path / "run", 8) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    rig.start()

    async def restored() -> bool:
        return rig.process.details.get("step") == 4

    await rig.until(restored)
    assert (tmp_path / "run" / "checkpoints" / "step-000008.damaged").exists()
    (notice,) = await rig.events(EventKind.NOTICE)
    assert "step-000008 is damaged" in notice["text"]
    assert "trained after step 4" in notice["text"]
