"""Trials: dry runs. What would another configuration do with the very batch that the learner trains on now?

The control plane asks; the learner takes every waiting trial at its next step, answers each from the forward passes of
that step, and the answer expires after a while:

    step, revision, seconds   which step it was tried on, under which revision, and how long all candidates took
    active                    the finding about the configuration in force; null if it could not be told
    candidates                for each, in order: label, finding (or null), problem (why there is no finding, or "")

A finding has the figures of a STEP event that come from the loss (loss, terms, gradient_weight, entropy, ratio,
effective_sample_size, clip_fraction) and: algorithm; pull (Σ|∂L/∂log p| by source); cosine (of ∂L/∂log p with that of
the configuration in force, null where one is zero); tokens, trajectories, missing_trajectories (those that it would see
and that were not in the forward, which are left out); notes (sentences on how to read it).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from redis.asyncio import Redis

from common.config.live import Json, LiveConfig, dump_live, parse_live
from common.errors import ConfigRejected
from common.keys import Keys

MOST_WAITING = 16
MOST_CANDIDATES = 8
KEPT_S = 600

_ASK = """
if redis.call('LLEN', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
redis.call('RPUSH', KEYS[1], ARGV[1])
return 1
"""
_ANSWER = """
redis.call('SET', KEYS[2], ARGV[2], 'EX', ARGV[3])
return redis.call('LREM', KEYS[1], 0, ARGV[1])
"""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A configuration to try. label: what the asker calls it."""

    label: str
    live: LiveConfig


@dataclass(frozen=True, slots=True)
class Trial:
    """Candidates to evaluate on one step. asked_s: Unix time in seconds."""

    trial_id: str
    candidates: tuple[Candidate, ...]
    asked_s: float

    def encode(self) -> str:
        """The trial as JSON; the same trial is always the same text."""
        candidates = [{"label": c.label, "config": dump_live(c.live)} for c in self.candidates]
        return json.dumps({"id": self.trial_id, "asked_s": self.asked_s, "candidates": candidates}, sort_keys=True)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A trial that waits, with the text it was asked in. trial: None if that cannot be read."""

    text: bytes
    trial: Trial | None


class Trials:
    """The dry runs of one run."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis: Any = redis  # Any: redis-py's annotations mix its two clients
        self._keys = keys
        self._ask = self._redis.register_script(_ASK)
        self._answer = self._redis.register_script(_ANSWER)

    async def ask(self, trial: Trial) -> bool:
        """Have a trial wait for the learner. False if too many wait already."""
        return bool(await self._ask(keys=[self._keys.trials], args=[trial.encode(), MOST_WAITING]))

    async def waiting(self) -> list[Waiting]:
        """The trials that wait, oldest first."""
        texts: list[bytes] = await self._redis.lrange(self._keys.trials, 0, -1)
        return [Waiting(text, _trial(text)) for text in texts]

    async def answer(self, waiting: Waiting, finding: Mapping[str, Any]) -> None:
        """Say, as the learner, what a trial found; finite numbers or None only. Answering twice changes nothing."""
        trial_id = waiting.trial.trial_id if waiting.trial else "unreadable"
        keys = [self._keys.trials, self._keys.trial(trial_id)]
        await self._answer(keys=keys, args=[waiting.text, json.dumps(finding, allow_nan=False), KEPT_S])

    async def drop(self, waiting: Waiting) -> None:
        """Forget, as the learner, a trial that has waited too long for anyone to look at its answer."""
        await self._redis.lrem(self._keys.trials, 0, waiting.text)

    async def finding(self, trial_id: str) -> Json | None:
        """What a trial found; None while it waits, and once its answer has expired."""
        text = await self._redis.get(self._keys.trial(trial_id))
        return None if text is None else _answer(text)

    async def is_waiting(self, trial_id: str) -> bool:
        """Whether a trial still waits for the learner."""
        return any(w.trial is not None and w.trial.trial_id == trial_id for w in await self.waiting())

    async def withdraw(self, trial: Trial) -> None:
        """Take back a trial that nobody waits for any more."""
        await self._redis.lrem(self._keys.trials, 0, trial.encode())


def _answer(text: bytes) -> Json:
    """The learner's answer; an empty one if it cannot be read."""
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return cast(Json, answer) if isinstance(answer, dict) else {}


def _trial(text: bytes) -> Trial | None:
    try:
        fields = json.loads(text)
        candidates: Sequence[Json] = fields["candidates"]
        tried = tuple(Candidate(str(c["label"]), parse_live(c["config"])) for c in candidates)
        return Trial(str(fields["id"]), tried, float(fields["asked_s"]))
    except (ConfigRejected, ValueError, KeyError, TypeError, RecursionError):
        return None
