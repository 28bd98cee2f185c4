"""Which revision of the live configuration the learner has in force: the newest, changed between two steps only."""

from __future__ import annotations

import asyncio

from common.config.store import Revision
from common.process import Process

_POLL_S = 0.2


class Revisions:
    """Follows the live configuration for the learner."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._held: Revision | None = None

    async def first(self, step: int) -> Revision | None:
        """The newest revision, once there is one; None if the process was told to stop before."""
        while not self._process.stop.is_set():
            self._process.beat()
            revision = await self.newest(step)
            if revision is not None:
                return revision
            await asyncio.sleep(_POLL_S)
        return None

    async def newest(self, step: int) -> Revision | None:
        """The newest revision, in force from now on, first for step `step`. None before the first."""
        config = self._process.config
        number = await self._process.patiently("read the revision's number", config.number)
        if self._held is None or self._held.number != number:
            revision = await self._process.patiently("read the live configuration", config.current)
            if revision is not None:
                self._held = revision
                await self._process.enforce(revision.number, step=step)
        return self._held
