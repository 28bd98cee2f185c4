"""Tasks that run side by side, and how they are ended."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any

_PATIENCE_S = 0.1


async def together(*work: Coroutine[Any, Any, Any]) -> list[Any]:
    """The results of coroutines that run side by side. The first to fail ends the others, and is what is raised."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        await end(tasks)


async def end(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel tasks and return when all are done, whatever they raise.

    One cancellation is not enough: until Python 3.12 `asyncio.wait_for`, which redis-py uses, can lose one.
    """
    tasks = list(tasks)
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=_PATIENCE_S)
    await asyncio.gather(*tasks, return_exceptions=True)
