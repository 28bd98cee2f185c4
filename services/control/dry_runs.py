"""Dry runs: what callers ask the learner to try on its next step, kept until the answer expires.

A trial (common/trials.py) carries configurations only; what the caller called them and how they differ from what is
current is kept beside it.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from redis.asyncio import Redis

from common.config.live import Json, LiveConfig, dump_live
from common.config.store import Change, Revision, difference
from common.keys import Keys
from common.trials import KEPT_S, Candidate, Trial, Trials

_ID_BYTES = 8


@dataclass(frozen=True, slots=True)
class Tried:
    """A candidate as it was asked: its configuration, and what it changes in the revision that was current then."""

    label: str
    config: Json
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class DryRun:
    """What was asked, and the learner's answer if there is one. asked_s: Unix time in seconds."""

    trial_id: str
    asked_s: float
    candidates: tuple[Tried, ...]
    answer: Json | None = None


class DryRuns:
    """The dry runs of one run, as callers see them."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis: Any = redis  # Any: redis-py's annotations mix its two clients
        self._keys = keys
        self._trials = Trials(redis, keys)

    async def ask(self, current: Revision, candidates: Sequence[tuple[str, LiveConfig]], now_s: float) -> DryRun | None:
        """Have labelled configurations tried at the learner's next step. None if too many trials wait already."""
        trial = Trial(
            secrets.token_hex(_ID_BYTES), tuple(Candidate(label, live) for label, live in candidates), asked_s=now_s
        )
        base = dump_live(current.live)
        tried = tuple(_tried(label, base, dump_live(live)) for label, live in candidates)
        asked = DryRun(trial.trial_id, now_s, tried)
        # What was asked must outlast its answer, which is kept for KEPT_S from when it is given.
        text = json.dumps({"asked_s": now_s, "candidates": [asdict(t) for t in tried]})
        await self._redis.set(self._asked_key(trial.trial_id), text, ex=2 * KEPT_S + 60)
        if await self._trials.ask(trial) or (await self._clear(now_s) and await self._trials.ask(trial)):
            return asked
        await self._redis.delete(self._asked_key(trial.trial_id))
        return None

    async def find(self, trial_id: str, now_s: float) -> DryRun | None:
        """A dry run, answered or not; None if there is none of this id, or if it has expired."""
        text = await self._redis.get(self._asked_key(trial_id))
        asked = None if text is None else _asked(trial_id, text)
        if asked is None:
            return None
        answer = await self._trials.finding(trial_id)
        if answer is None and now_s - asked.asked_s > KEPT_S:
            return None
        return replace(asked, answer=answer)

    async def answer(self, trial_id: str) -> Json | None:
        """The learner's answer, once there is one."""
        return await self._trials.finding(trial_id)

    async def _clear(self, now_s: float) -> int:
        """Withdraw trials that nobody can ask after any more, as a learner that is away does not; how many."""
        waiting = (w.trial for w in await self._trials.waiting() if w.trial is not None)
        expired = [trial for trial in waiting if now_s - trial.asked_s > KEPT_S]
        for trial in expired:
            await self._trials.withdraw(trial)
        return len(expired)

    def _asked_key(self, trial_id: str) -> str:
        return self._keys.trial(f"{trial_id}:asked")


def _asked(trial_id: str, text: bytes) -> DryRun | None:
    """What was asked; None if it cannot be read."""
    try:
        told = json.loads(text)
        tried = tuple(
            Tried(str(t["label"]), t["config"], tuple(Change(**c) for c in t["changes"])) for t in told["candidates"]
        )
        return DryRun(trial_id, float(told["asked_s"]), tried)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _tried(label: str, base: Json, config: Json) -> Tried:
    return Tried(label, config, tuple(difference(base, config)))
