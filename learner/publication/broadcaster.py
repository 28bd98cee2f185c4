"""The broadcaster: the learner's part in the fast path. What it sends lies in the store too, whatever happens here."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from common.events import EventKind
from common.muster import Muster, Word
from common.process import Process
from learner.publication.nccl import BroadcastFailed, NcclGroup
from learner.publication.snapshot import Snapshot

log = logging.getLogger(__name__)


class Group(Protocol):
    """Who broadcasts are sent to. See learner.publication.nccl.NcclGroup, which is one."""

    @property
    def unique_id(self) -> str:
        """How the others find the group."""
        ...

    def broadcast(self, tensors: Sequence[Tensor], limit_s: float) -> None:
        """Send tensors. BroadcastFailed."""
        ...

    def abort(self) -> None:
        """Leave the group."""
        ...


class Broadcaster:
    """Sends announced versions to the members that the run file names, if it asks for that."""

    def __init__(self, process: Process, make_group: Callable[[int], Group] = NcclGroup) -> None:
        self._process = process
        self._settings = process.settings.weights
        self._make_group = make_group
        self._muster = Muster(process.redis, process.keys)
        self._group: Group | None = None
        self._is_well = True

    async def send(self, snapshot: Snapshot) -> None:
        """Broadcast a version to all members, or to none: then they take it from the store."""
        settings, version = self._settings, snapshot.version
        if settings.transfer != "nccl" or not settings.members:
            return
        try:
            if self._group is None:  # kept whatever comes of this muster: a group listens until it is met in
                self._group = self._make_group(1 + len(settings.members) * self._workers)
            group = self._group
            tensors = [
                [name, str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in snapshot.tensors.items()
            ]
            told = json.dumps({"unique_id": group.unique_id, "tensors": tensors})
            word = await self._process.patiently(
                "call a muster",
                lambda: self._muster.call(version, told, settings.members, settings.muster_s),
            )
            if word is Word.STORE:
                await self._say(False, f"version {version} is not broadcast: not every member was ready in time")
                return
            sent = list(snapshot.tensors.values())
            await asyncio.to_thread(group.broadcast, sent, settings.broadcast_s)
        except BroadcastFailed as error:
            await self._process.patiently("call a broadcast off", lambda: self._muster.call_off(version))
            if self._group is not None:
                self._group.abort()
            self._group = None  # the next version is broadcast in a new one
            await self._say(False, f"version {version} is not broadcast: {error}")
        else:
            await self._say(True, f"version {version} is broadcast again")

    @property
    def _workers(self) -> int:
        return self._process.settings.generator.tensor_parallel_size

    async def _say(self, is_well: bool, sentence: str) -> None:
        """Tell operators when it changes; the log every time."""
        log.log(logging.INFO if is_well else logging.WARNING, sentence)
        if is_well != self._is_well:
            self._is_well = is_well
            rest = "" if is_well else "; the store serves all"
            await self._process.tell(EventKind.NOTICE, {"text": f"{self._process.name}: {sentence}{rest}"})
