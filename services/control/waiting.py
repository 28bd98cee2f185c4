"""Waiting: looking again until something is there, for as long as a caller is willing to wait."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from services.control.deps import Control

PACE_S = 0.05
_Found = TypeVar("_Found")


async def awaited(look: Callable[[], Awaitable[_Found | None]], wait_s: float, control: Control) -> _Found | None:
    """What `look` finds within `wait_s` seconds; it looks once in any case. None if nothing, or if we stop first.

    However many wait, only some of them look at the same time: connections to Redis are left for everyone else.
    """
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + wait_s
    while True:
        async with control.chronicle.reading:
            found = await look()
        left_s = deadline_s - loop.time()
        if found is not None or left_s <= 0 or control.stop.is_set():
            return found
        await asyncio.sleep(min(PACE_S, left_s))
