"""The fast path: whether a weight version reaches this generator by a broadcast of the learner, or from the store."""

from __future__ import annotations

import json
import logging
from typing import Any

from common.muster import Muster
from common.process import Process
from services.generator.weight_update import BroadcastUpdate

_PATIENCE = 2.0
"""A member waits so many times as long as the learner does, which has to write a version before it calls."""

log = logging.getLogger(__name__)


class FastPath:
    """One generator's part in the broadcasts of its run; none, unless the run file names it as a member."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._settings = process.settings.weights
        self._muster = Muster(process.redis, process.keys)
        self._answered = 0

    async def invitation(self, version: int) -> BroadcastUpdate | None:
        """What is about to be broadcast, once every member is ready; None: take the version from the store.

        A version is broadcast once: who asks again takes it from the store.
        """
        settings, process = self._settings, self._process
        if not self._is_member or version <= self._answered:
            return None
        self._answered = version
        group = await process.patiently(
            "answer a muster",
            lambda: self._muster.answer(version, process.name, _PATIENCE * settings.muster_s),
        )
        if group is None:
            log.info("no broadcast", extra={"announced": version})
            return None
        told: dict[str, Any] = json.loads(group)
        workers = process.settings.generator.tensor_parallel_size
        return BroadcastUpdate(
            version=version,
            unique_id=told["unique_id"],
            rank=1 + settings.members.index(process.name) * workers,
            world_size=1 + len(settings.members) * workers,
            tensors=tuple((name, dtype, tuple(shape)) for name, dtype, shape in told["tensors"]),
            limit_s=settings.broadcast_s,
        )

    async def decline(self, version: int) -> None:
        """Have the others not wait for this member, which takes a version from the store."""
        if self._is_member and version > self._answered:
            self._answered = version
            await self._process.patiently("decline a muster", lambda: self._muster.call_off(version))

    @property
    def _is_member(self) -> bool:
        return self._settings.transfer == "nccl" and self._process.name in self._settings.members
