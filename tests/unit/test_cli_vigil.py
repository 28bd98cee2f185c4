"""The vigil of `up`: how often it looks at the memory that its programs use."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from services.cli.progress import Progress
from services.cli.up import process_table, vigil
from services.cli.up.vigil import Vigil


def _vigil() -> Vigil:
    """A vigil over no program."""

    async def nothing() -> None:
        return None

    async def nobody() -> dict[str, int]:
        return {}

    supervisor: Any = SimpleNamespace(tick=lambda: None, sessions=list)
    ledger: Any = SimpleNamespace(write=nothing, ready=nobody, hint_schedule=nothing, orders=nothing, facts=nothing)
    voice: Any = SimpleNamespace(show=lambda progress: None)
    return Vigil(supervisor, ledger, Progress(), voice, lambda address: None)


@pytest.fixture(autouse=True)
def _no_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_table, "members", lambda sessions: [])
    monkeypatch.setattr(vigil, "_MEASURE_S", 0.0)
    monkeypatch.setattr(vigil, "_TICK_S", 0.01)


async def test_memory_is_measured_again_and_the_peak_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    found, watching = iter([5 << 20, 7 << 20, 6 << 20]), _vigil()
    monkeypatch.setattr(process_table, "memory_bytes", lambda pids: next(found))
    with pytest.raises(RuntimeError):  # as a coroutine says that there is no fourth
        await asyncio.wait_for(watching.for_ever(), 30)
    assert watching.peak_memory_bytes == 7 << 20


async def test_a_measurement_that_takes_long_is_not_made_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[float] = []

    def memory_bytes(pids: list[int]) -> int:
        measured.append(0.05)  # seconds that pass meanwhile: half a percent of ten
        return 0

    monkeypatch.setattr(process_table, "memory_bytes", memory_bytes)
    monkeypatch.setattr(vigil, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + sum(measured)))
    with suppress(TimeoutError):
        await asyncio.wait_for(_vigil().for_ever(), 0.5)
    assert len(measured) == 1
