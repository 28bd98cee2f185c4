"""The compute thread gives long work up, but not at once."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from learner.compute import GRACE_S, ComputeThread
from learner.outcome import Abandoned


def fake_process() -> Any:
    beats: list[None] = []
    return SimpleNamespace(stop=asyncio.Event(), beat=lambda: beats.append(None), beats=beats)


def test_work_beats_and_goes_on_while_nobody_stops_it() -> None:
    process = fake_process()
    compute = ComputeThread(process, clock=lambda: 1e9)
    compute.heed()
    compute.heed()
    assert len(process.beats) == 2
    compute.close()


def test_work_has_a_grace_period_after_the_process_was_told_to_stop() -> None:
    process = fake_process()
    times = iter([10.0, 10.0 + GRACE_S, 10.1 + GRACE_S])
    compute = ComputeThread(process, clock=lambda: next(times))
    process.stop.set()
    compute.heed()
    compute.heed()
    with pytest.raises(Abandoned):
        compute.heed()
    compute.close()


async def test_work_is_done_in_one_thread_of_its_own() -> None:
    compute = ComputeThread(fake_process())
    names = {await compute.run(lambda: threading.current_thread().name) for _ in range(3)}
    assert names == {"compute_0"}
    compute.close()
