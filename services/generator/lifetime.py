"""The lifetime of an engine inside a process: started unless the process is told to stop, and closed within a limit."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from common.process import Process
from services.generator.engine_settings import EngineSettings
from services.generator.rollouts import SamplingEngine

CLOSE_S = 2.5

log = logging.getLogger(__name__)

StartEngine = Callable[[EngineSettings], Awaitable[SamplingEngine]]


@asynccontextmanager
async def running_engine(
    process: Process, start: StartEngine, settings: EngineSettings, threads: int | None
) -> AsyncIterator[SamplingEngine]:
    """A started engine, closed at the end. threads: its CPU threads; None leaves them to the environment."""
    engine = await _started(process, start, settings, threads)
    try:
        yield engine
    finally:
        await _closed(process, engine)


async def _started(
    process: Process, start: StartEngine, settings: EngineSettings, threads: int | None
) -> SamplingEngine:
    """The engine, started. Does not return if the process is told to stop meanwhile."""
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    starting = asyncio.ensure_future(start(settings))
    stopping = asyncio.ensure_future(process.stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not starting.done():
        # A starting engine cannot be interrupted, and an orderly exit would wait for it: the kernel ends it with us.
        process.state = "stopped"
        await _leave(process, 0)
    return starting.result()


async def _closed(process: Process, engine: SamplingEngine) -> None:
    """Close the engine, within a limit."""
    try:
        await asyncio.wait_for(engine.close(), CLOSE_S)
    except TimeoutError:
        log.warning("the engine did not close in time", extra={"limit_s": CLOSE_S})
        process.state = "stopped" if process.stop.is_set() else "failed"
        await _leave(process, 0 if process.stop.is_set() else 1)


async def _leave(process: Process, code: int) -> None:
    """End this process now; the kernel ends the engine core and the graders with it."""
    await process.farewell()
    os._exit(code)
