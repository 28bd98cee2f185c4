"""Kill -9 of the learner at random moments: what is on disk after each is, to the bit, the uninterrupted training."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from safetensors.torch import save

from common.config.live import merge_patch, parse_live
from common.events import EventKind
from common.settings import load_run
from common.trajectory import Group
from learner.__main__ import open_trainer
from tests.contract import checkpoint_deaths, publication_deaths
from tests.contract.learner_rig import (
    LIVE,
    Nursery,
    Rig,
    group_id,
    make_group,
    make_unsolved_group,
    progress_of,
    saved_tensors,
    write_run,
)

SEED_VARIABLE = "TRIBUTARY_TEST_SEED"
EVERY = 2
STARTS, KILLS, STARTING = 3, 7, "kill, counted from the start"
LIFE_S = 90.0
# Of every two groups one is unsolved, so a rehearsal follows every third step; generator, moments and buffer change all
# the time. Groups are never too old.
CHANGES: dict[str, Any] = {
    "algorithm": {"kind": "relift", "rollouts": 4, "buffer_size": 3, "sft_learning_rate": 1e-3},
    "hints": {"kind": "if_unsolved"},
    "optimizer": {"learning_rate": 1e-3, "warmup_steps": 20},
    "max_staleness": 1000,
}


def groups(numbers: Iterable[int]) -> Iterator[Group]:
    return (make_unsolved_group(n) if n % 2 else make_group(n) for n in numbers)


@pytest_asyncio.fixture
async def rig(tmp_path: Path, redis_server: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    rig = Rig(write_run(tmp_path, every_steps=EVERY))
    await rig.prepare(**CHANGES)
    yield rig
    await rig.close()


def uninterrupted(run_file: Path, steps: int) -> list[dict[str, bytes]]:
    """The files of a checkpoint after 0, 1, ... `steps` steps of a trainer that nothing interrupts."""
    trainer, live = open_trainer(load_run(run_file)), parse_live(merge_patch(LIVE, CHANGES))
    states: list[dict[str, bytes]] = []
    for step in range(steps + 1):
        if step:
            trainer.step(live, list(groups((2 * step - 2, 2 * step - 1))), lambda: None)
        files = trainer.tensors().items()
        states.append({f"{name}.safetensors": save(dict(tensors)) for name, tensors in files})
    return states


class Lives:
    """Learners that live one after another on a stream that never dries up, and what each left on disk."""

    def __init__(self, rig: Rig, nursery: Nursery) -> None:
        self.emitted = 0
        self.left: list[tuple[str, int, dict[str, bytes]]] = []
        self._rig = rig
        self._nursery = nursery

    async def live(self, death: str, seconds: float | None) -> None:
        """One life. seconds: after so many it is killed, counted from its start or its first step; None: it kills
        itself at the stage `death`.
        """
        learner = await asyncio.to_thread(self._nursery.start, "" if seconds is not None else death)
        ended = asyncio.create_task(asyncio.to_thread(self._nursery.code))
        clock = asyncio.get_running_loop().time
        born_s, told = clock(), await self._told()
        since_s = born_s if death == STARTING else None
        while not ended.done():
            if since_s is None and await self._told() > told:
                since_s = clock()
            if seconds is not None and since_s is not None and clock() - since_s >= seconds:
                os.kill(learner, signal.SIGKILL)
                break
            assert clock() - born_s < LIFE_S, f"it did not die of {death!r}"
            if await self._rig.process.delivery.outstanding() <= 2:
                await self.feed(2)
            await asyncio.wait({ended}, timeout=0.02)
        assert await ended == -signal.SIGKILL, death
        newest = max((self._rig.run_file.parent / "run" / "checkpoints").glob("step-*"), default=None)
        if newest is not None:
            self.left.append((death, progress_of(newest)["step"], saved_tensors(newest)))

    async def _told(self) -> int:
        """Steps that were told so far."""
        return len(await self._rig.events(EventKind.STEP))

    async def feed(self, count: int) -> None:
        await self._rig.emit(groups(range(self.emitted, self.emitted + count)))
        self.emitted += count


def deaths(dice: random.Random) -> list[tuple[str, float | None]]:
    """At least one of every kind, in random order: the stage at which a life ends, or after how many seconds."""
    stages: list[tuple[str, float | None]] = [
        (f"{stage}:{dice.randint(1, 4)}", None) for stage in checkpoint_deaths.STAGES
    ]
    # All versions are anchors here: a delta that is torn has its test beside the other publications.
    stages += [(stage, None) for stage in publication_deaths.STAGES if stage != "partial file"]
    stages += [(STARTING, dice.uniform(0.1, 1.5)) for _ in range(STARTS)]
    stages += [("kill", dice.uniform(0.0, 0.5)) for _ in range(KILLS)]
    dice.shuffle(stages)
    return stages


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_kill_9_at_two_dozen_random_moments_does_not_change_a_bit(
    rig: Rig, tmp_path: Path, redis_server: Any, request: pytest.FixtureRequest
) -> None:
    seed = int(os.environ.get(SEED_VARIABLE) or random.SystemRandom().randrange(10**6))
    print(f"to repeat: {SEED_VARIABLE}={seed}")
    nursery = Nursery(rig.run_file, redis_server.url)
    request.addfinalizer(nursery.close)
    lives, planned = Lives(rig, nursery), deaths(random.Random(seed))
    assert len(planned) >= 20
    for death, seconds in planned:
        await lives.live(death, seconds)
    await lives.feed(2)
    steps = lives.emitted // 2
    write_run(tmp_path, learner=f"max_steps = {steps}", every_steps=EVERY)
    await asyncio.to_thread(nursery.start)
    assert await asyncio.to_thread(nursery.code) == 0
    await asyncio.to_thread(nursery.close)
    last = tmp_path / "run" / "checkpoints" / f"step-{steps:06d}"
    assert progress_of(last)["seen"] == [group_id(n) for n in range(lives.emitted)]
    assert await rig.process.delivery.groups.length() == 0
    assert await rig.process.delivery.outstanding() == 0
    undisturbed = await asyncio.to_thread(uninterrupted, rig.run_file, steps)
    for death, step, files in [*lives.left, ("none", steps, saved_tensors(last))]:
        assert files.keys() == undisturbed[step].keys(), (death, step)
        differing = [name for name in files if files[name] != undisturbed[step][name]]
        assert differing == [], (death, step)
    told = [event["step"] for event in await rig.events(EventKind.STEP)]
    assert all(after <= before + 1 for before, after in pairwise(told)), "a step in a checkpoint was told before"
    assert told[0] == 1
    assert len(lives.left) >= len(planned) // 2
    print(f"{len(planned)} deaths, {steps} steps, checkpoints compared: {[left[:2] for left in lives.left]}")
