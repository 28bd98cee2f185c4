"""The thread that torch works on, so that heartbeats, intake and signals go on meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from common.process import Process
from learner.outcome import Abandoned

Result = TypeVar("Result")
GRACE_S = 3.0


class ComputeThread:
    """Runs one piece of work at a time. A process that is told to stop finishes it, but not for longer than GRACE_S."""

    def __init__(self, process: Process, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._process = process
        self._clock = clock
        self._stop_seen_s: float | None = None
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="compute")

    async def run(self, work: Callable[[], Result]) -> Result:
        """The result of `work`, done in the thread."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def heed(self) -> None:
        """Called by long work in between: it moves. Raises Abandoned when the process cannot wait any longer."""
        self._process.beat()
        if self._process.stop.is_set():
            now_s = self._clock()
            if self._stop_seen_s is None:
                self._stop_seen_s = now_s
            if now_s - self._stop_seen_s > GRACE_S:
                raise Abandoned("the step was given up: the process has to stop")

    def close(self) -> None:
        """Take no more work."""
        self._executor.shutdown(wait=False, cancel_futures=True)
