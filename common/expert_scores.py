"""Expert scores: log π_φ of every token of a demonstration, asked for once, kept by content hash for the whole run.

The curriculum asks; a scorer (an expert model served by an engine) takes the tasks as one consumer group, like any
stream, and answers. What was scored or is being scored is never asked for again, across restarts too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from redis.asyncio import Redis

from common.keys import Keys
from common.streams import Entry, Stream
from common.trajectory import Logprobs, ScoreTask, Tokens
from common.wire import encode_score_task

EXPERT_IDENTITY = "expert_identity"
"""The field of the run's facts in which a scorer says who the expert is: the `model_identity` of `score_key`."""

_SCORED, _REFUSED = b"+", b"-"
_TASKS_AT_ONCE = 32

# A key that is known, or was asked for already, is passed over. KEYS: tasks, asked, scores.
_ASK = """
local added = 0
for i = 1, #ARGV, 2 do
  if redis.call('HEXISTS', KEYS[3], ARGV[i]) == 0 and redis.call('SADD', KEYS[2], ARGV[i]) == 1 then
    redis.call('XADD', KEYS[1], '*', 'payload', ARGV[i + 1])
    added = added + 1
  end
end
return added
"""

# A task that is no longer pending was answered before (by a scorer given up for dead, or by us before a lost reply).
# Without a value it is only taken off the stream, so that it can be asked for anew.
_ANSWER = """
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
redis.call('XDEL', KEYS[1], ARGV[2])
redis.call('SREM', KEYS[2], ARGV[3])
if ARGV[4] ~= '' then redis.call('HSET', KEYS[3], ARGV[3], ARGV[4]) end
return 1
"""


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """What became of a task. logprobs [D]: log π_φ of every demonstration token, at temperature 1; None: see reason."""

    logprobs: Logprobs | None
    reason: str = ""


def score_key(model_identity: str, prompt_tokens: Tokens, demonstration_tokens: Tokens) -> str:
    """The content hash under which a score is kept: which expert, after which prompt, of which demonstration."""
    digest = hashlib.sha256()
    for part in (model_identity.encode(), _bytes(prompt_tokens), _bytes(demonstration_tokens)):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


class ExpertScores:
    """The scores of one run: what was asked for, what is known, and the stream of tasks between."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis: Any = redis  # Any: redis-py's annotations mix its two clients
        self._keys = keys
        self.tasks = Stream(redis, keys.score_tasks, "scorers")
        self._ask = self._redis.register_script(_ASK)
        self._answer = self._redis.register_script(_ANSWER)

    async def prepare(self) -> None:
        """Create the stream of tasks and its consumer group unless they exist. Asking does without."""
        await self.tasks.prepare()

    async def ask(self, tasks: Sequence[ScoreTask]) -> int:
        """Ask for scores; how many of them are news. What is known or was asked for is passed over, atomically."""
        added = 0
        keys = [self._keys.score_tasks, self._keys.scores_asked, self._keys.scores]
        for start in range(0, len(tasks), _TASKS_AT_ONCE):  # a script blocks Redis: a few at a time
            args: list[str | bytes] = []
            for task in tasks[start : start + _TASKS_AT_ONCE]:
                args += [task.key, encode_score_task(task)]
            added += int(await self._ask(keys=keys, args=args))
        return added

    async def known(self, keys: Sequence[str]) -> dict[str, Score]:
        """Those of the scores that are there, by key."""
        if not keys:
            return {}
        values = await self._redis.hmget(self._keys.scores, list(keys))
        return {key: _decoded(value) for key, value in zip(keys, values, strict=True) if value is not None}

    async def identity(self) -> str:
        """Who the expert is; "" until a scorer has said so."""
        return (await self._redis.hget(self._keys.facts, EXPERT_IDENTITY) or b"").decode()

    async def identify(self, model_identity: str) -> None:
        """Say, as a scorer, who the expert is."""
        await self._redis.hset(self._keys.facts, EXPERT_IDENTITY, model_identity)

    async def answer(self, entry: Entry, key: str, score: Score) -> bool:
        """Keep the score of a task and acknowledge the task, in one script. False if it was answered before."""
        return await self._finish(entry, key, _encoded(score))

    async def withdraw(self, entry: Entry, key: str) -> bool:
        """Take a task off the stream without a score: it can be asked for anew. False if it was answered before."""
        return await self._finish(entry, key, b"")

    async def _finish(self, entry: Entry, key: str, value: bytes) -> bool:
        keys = [self._keys.score_tasks, self._keys.scores_asked, self._keys.scores]
        return bool(await self._answer(keys=keys, args=[self.tasks.group, entry.entry_id, key, value]))


def _bytes(tokens: Tokens) -> bytes:
    return np.ascontiguousarray(tokens, dtype="<i4").tobytes()


def _encoded(score: Score) -> bytes:
    if score.logprobs is None:
        return _REFUSED + score.reason.encode()
    return _SCORED + np.ascontiguousarray(score.logprobs, dtype="<f4").tobytes()


def _decoded(value: bytes) -> Score:
    kind, rest = value[:1], value[1:]
    if kind == _SCORED and len(rest) % 4 == 0:
        return Score(np.frombuffer(rest, dtype="<f4"))
    if kind == _REFUSED:
        return Score(None, rest.decode("utf-8", "replace"))
    return Score(None, f"its stored score cannot be read ({len(value)} bytes)")
