"""Slow storage: while something is written the process counts as moving, for longer than other work may take."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from common.process import BEAT_LIMIT_S, Process
from common.tasks import end

EVERY_S = BEAT_LIMIT_S / 4
LIMIT_S = 1800.0
"""After this, and the limit that all work has, a disk that hangs shows in the health of the process."""


@asynccontextmanager
async def writing(process: Process) -> AsyncGenerator[None]:
    """Around awaited work on the disk, of which nothing is heard until it is done."""
    beats = asyncio.create_task(_beat(process))
    try:
        yield
    finally:
        await end([beats])


async def _beat(process: Process) -> None:
    for _ in range(int(LIMIT_S / EVERY_S)):
        process.beat()
        await asyncio.sleep(EVERY_S)
