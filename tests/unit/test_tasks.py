"""Tasks are ended for certain, and one failure ends its siblings."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from common.tasks import end, together


async def test_a_task_that_loses_its_cancellation_is_cancelled_again() -> None:
    async def deaf() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()

    task = asyncio.create_task(deaf())
    await asyncio.wait({task}, timeout=0)
    await end([task])
    assert task.cancelled()


async def test_the_first_failure_ends_the_others_and_is_raised() -> None:
    ended = asyncio.Event()

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def failing() -> None:
        await asyncio.sleep(0)
        raise KeyError("x")

    with pytest.raises(KeyError):
        await together(endless(), failing())
    assert ended.is_set()
