"""Notices about storage that does not take what the learner writes: said when it begins, and when it is over."""

from __future__ import annotations

import logging

from common.errors import TributaryError
from common.events import EventKind
from common.process import Process

log = logging.getLogger(__name__)


class StorageNotices:
    """Tells operators once per trouble; every failed attempt is in the log."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._troubled: set[str] = set()

    async def failed(self, what: str, error: TributaryError) -> None:
        """`what` (checkpoint, weight version) could not be written."""
        log.error(str(error))
        if what not in self._troubled:
            self._troubled.add(what)
            text = f"the {what} was not written, training goes on and it is tried again: {error}"
            await self._process.tell(EventKind.NOTICE, {"text": text})

    async def worked(self, what: str) -> None:
        """`what` was written."""
        if what in self._troubled:
            self._troubled.remove(what)
            await self._process.tell(EventKind.NOTICE, {"text": f"the {what} could be written again"})
