"""Delivery: streams that lose nothing and train nothing twice.

Every stream has one consumer group. An entry stays pending until it is acknowledged, *after* its effect, and is deleted
in the same breath; nothing is ever trimmed by length. Effects that belong together happen in one Lua script.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from common.keys import Keys

# The request is acknowledged, its group and outcome are added, all or nothing. An entry that is no longer pending was
# answered already (by a generator that had been given up for dead, or by us before a lost reply): refuse the second.
_EMIT = """
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
redis.call('XDEL', KEYS[1], ARGV[2])
if ARGV[3] ~= '' then redis.call('XADD', KEYS[2], '*', 'payload', ARGV[3]) end
redis.call('XADD', KEYS[3], '*', 'payload', ARGV[4])
return 1
"""

# A repeated call, after a lost reply, brings the state that is there already: nothing is issued twice.
_ISSUE = """
if redis.call('GET', KEYS[3]) == ARGV[1] then return 0 end
local n = tonumber(ARGV[2])
for i = 3, 1 + 2 * n, 2 do
  redis.call('XADD', KEYS[1], '*', 'payload', ARGV[i + 1])
  if ARGV[i] ~= '' then redis.call('SADD', KEYS[2], ARGV[i]) end
end
for i = 3 + 2 * n, #ARGV, 2 do redis.call('HSET', KEYS[4], ARGV[i], ARGV[i + 1]) end
redis.call('SET', KEYS[3], ARGV[1])
return n
"""

# Quarantine is no work queue: it keeps the newest messages, so that a grader that always fails does not fill Redis.
_QUARANTINE = """
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
redis.call('XDEL', KEYS[1], ARGV[2])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', 10000, '*',
  'stream', ARGV[3], 'reason', ARGV[4], 'by', ARGV[5], 'payload', ARGV[6], 'id', ARGV[7])
if ARGV[7] ~= '' then redis.call('SREM', KEYS[3], ARGV[7]) end
if ARGV[8] ~= '' then redis.call('XADD', KEYS[4], '*', 'payload', ARGV[8]) end
return 1
"""

# What cannot be used and never was a message. Whoever comes across it again (after a restart, too) adds nothing.
_RECORD = """
local added = 0
for i = 2, #ARGV, 3 do
  if redis.call('SADD', KEYS[2], ARGV[i]) == 1 then
    redis.call('XADD', KEYS[1], 'MAXLEN', '~', 10000, '*', 'stream', 'demonstrations',
      'reason', ARGV[i + 1], 'by', ARGV[1], 'payload', ARGV[i + 2], 'id', ARGV[i])
    added = added + 1
  end
end
return added
"""

_ABSORB = """
local n = tonumber(ARGV[2])
for i = 3 + n, #ARGV, 2 do redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1]) end
for i = 3, 2 + n do
  redis.call('XACK', KEYS[1], ARGV[1], ARGV[i])
  redis.call('XDEL', KEYS[1], ARGV[i])
end
return n
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One message of a stream: its id there, and its bytes. payload is empty if the entry has none."""

    entry_id: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class UnusableRecord:
    """A demonstration that cannot be used, for the quarantine. identity: it is kept once under this name."""

    identity: str
    reason: str
    payload: bytes


class Stream:
    """A stream with its one consumer group."""

    def __init__(self, redis: Redis, key: str, group: str) -> None:
        self.key = key
        self.group = group
        self._redis: Any = redis  # Any: redis-py's annotations mix its two clients

    async def prepare(self) -> None:
        """Create stream and consumer group unless they exist."""
        try:
            await self._redis.xgroup_create(self.key, self.group, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    async def take(self, consumer: str, count: int, block_ms: int) -> list[Entry]:
        """Up to `count` new entries, which become pending for `consumer`; waits up to `block_ms` for the first."""
        return await self._read(consumer, ">", count, block_ms)

    async def pending(self, consumer: str, after: str = "0", count: int = 100) -> list[Entry]:
        """Entries already pending for `consumer` with an id greater than `after`, oldest first."""
        return await self._read(consumer, after, count, None)

    async def _read(self, consumer: str, start: str, count: int, block_ms: int | None) -> list[Entry]:
        reply = await self._redis.xreadgroup(self.group, consumer, {self.key: start}, count=count, block=block_ms)
        if not reply:
            return []
        return _entries(reply[0][1])

    async def reclaim(self, consumer: str, idle_ms: int, count: int) -> list[Entry]:
        """Entries that nobody has kept alive for `idle_ms`, now pending for `consumer`.

        XPENDING and XCLAIM rather than XAUTOCLAIM, whose answer differs between Redis 6.2 and 7.
        """
        idle = await self._redis.xpending_range(self.key, self.group, min="-", max="+", count=count, idle=idle_ms)
        if not idle:
            return []
        ids = [entry["message_id"] for entry in idle]
        return _entries(await self._redis.xclaim(self.key, self.group, consumer, idle_ms, ids))

    async def deliveries(self, entry_id: str) -> int:
        """How many times a pending entry has been given to a consumer; 0 if it is not pending any more."""
        found = await self._redis.xpending_range(self.key, self.group, min=entry_id, max=entry_id, count=1)
        return int(found[0]["times_delivered"]) if found else 0

    async def keep(self, consumer: str, entry_ids: Sequence[str]) -> None:
        """Say that `consumer` still works on these entries, so that nobody reclaims them."""
        if entry_ids:
            ids = list(entry_ids)
            await self._redis.xclaim(self.key, self.group, consumer, 0, ids, idle=0, justid=True)

    async def release(self, consumer: str, entry_ids: Sequence[str], idle_ms: int) -> None:
        """Give entries up: they look `idle_ms` old at once, so that another consumer can reclaim them."""
        if entry_ids:
            ids = list(entry_ids)
            await self._redis.xclaim(self.key, self.group, consumer, 0, ids, idle=idle_ms, justid=True)

    async def acknowledge(self, entry_ids: Sequence[str]) -> None:
        """Acknowledge and delete entries whose effect is done."""
        if not entry_ids:
            return
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.xack(self.key, self.group, *entry_ids)
            pipe.xdel(self.key, *entry_ids)
            await pipe.execute()

    async def forget(self, consumer: str) -> None:
        """Remove a consumer that holds nothing. One with pending entries stays: they can still be reclaimed from it."""
        for known in await self._redis.xinfo_consumers(self.key, self.group):
            if known["name"].decode() == consumer and known["pending"] == 0:
                await self._redis.xgroup_delconsumer(self.key, self.group, consumer)

    async def length(self) -> int:
        """How many entries are not yet acknowledged."""
        return int(await self._redis.xlen(self.key))

    async def oldest(self) -> tuple[int, int] | None:
        """The id of the oldest entry that is not yet acknowledged, in numbers that can be compared; None without."""
        return _first_id(await self._redis.xrange(self.key, count=1))

    async def newest(self) -> tuple[int, int] | None:
        """The id of the newest entry that is not yet acknowledged."""
        return _first_id(await self._redis.xrevrange(self.key, count=1))


class Delivery:
    """The streams of one run and the scripts that move messages between them."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis: Any = redis  # Any: redis-py's annotations mix its two clients
        self._keys = keys
        self.requests = Stream(redis, keys.requests, "generators")
        self.groups = Stream(redis, keys.groups, "learner")
        self.outcomes = Stream(redis, keys.outcomes, "curriculum")
        self._emit = self._redis.register_script(_EMIT)
        self._issue = self._redis.register_script(_ISSUE)
        self._quarantine = self._redis.register_script(_QUARANTINE)
        self._absorb = self._redis.register_script(_ABSORB)
        self._record = self._redis.register_script(_RECORD)

    async def prepare(self) -> None:
        """Create whatever stream or consumer group is missing. Every process calls it at start and after NOGROUP."""
        for stream in (self.requests, self.groups, self.outcomes):
            await stream.prepare()

    async def issue(
        self, requests: Sequence[tuple[str, bytes]], state: bytes, texts: Mapping[str, str] | None = None
    ) -> None:
        """Add requests and move the curriculum's state, all or nothing.

        requests: (group id that counts against the credit, or "" where no group is asked for; payload). texts: of
        prompts, by their id, for display. `state` must differ from the one before: a second call with the same state is
        a repetition, and does nothing.
        """
        args: list[str | bytes | int] = [state, len(requests)]
        for credit_id, payload in requests:
            args += [credit_id, payload]
        for prompt_id, text in (texts or {}).items():
            args += [prompt_id, text]
        keys = [self._keys.requests, self._keys.outstanding, self._keys.curriculum, self._keys.prompt_texts]
        await self._issue(keys=keys, args=args)

    async def emit(self, entry_id: str, group: bytes, outcome: bytes) -> bool:
        """Answer a request: its group (empty bytes: none), its outcome and its acknowledgement in one script.

        False if the request had been answered before; then nothing is added.
        """
        keys = [self._keys.requests, self._keys.groups, self._keys.outcomes]
        return bool(await self._emit(keys=keys, args=[self.requests.group, entry_id, group, outcome]))

    async def quarantine(
        self, stream: Stream, entry: Entry, reason: str, *, by: str, group_id: str = "", outcome: bytes = b""
    ) -> bool:
        """Move an unusable message out of the way, with the reason; its credit returns.

        False if it was gone already.
        """
        keys = [stream.key, self._keys.quarantine, self._keys.outstanding, self._keys.outcomes]
        name = stream.key.rpartition(":")[2]
        args = [stream.group, entry.entry_id, name, reason, by, entry.payload, group_id, outcome]
        return bool(await self._quarantine(keys=keys, args=args))

    async def record_unusable(self, records: Sequence[UnusableRecord], *, by: str) -> int:
        """Put demonstrations that cannot be used into the quarantine, without a message to take out of the way.

        How many of them are news: each is kept once.
        """
        args: list[str | bytes] = [by]
        for record in records:
            args += [record.identity, record.reason, record.payload]
        return int(await self._record(keys=[self._keys.quarantine, self._keys.unusable], args=args))

    async def absorb(self, entry_ids: Sequence[str], prompts: Mapping[str, str]) -> None:
        """Take outcomes in: write the prompts' records and acknowledge the outcomes, all or nothing."""
        flat = [text for item in prompts.items() for text in item]
        args: list[str | int] = [self.outcomes.group, len(entry_ids), *entry_ids, *flat]
        await self._absorb(keys=[self._keys.outcomes, self._keys.prompts], args=args)

    async def outstanding(self) -> int:
        """The credit in use: training groups requested and not yet trained, dropped or quarantined."""
        return int(await self._redis.scard(self._keys.outstanding))

    async def settle(self, group_ids: Sequence[str], made: int = 0) -> None:
        """Return the credit of groups that were trained or dropped. Settling twice changes nothing.

        made: the newest weight version that the learner has made by then, announced or not; 0: that is no news.
        """
        async with self._redis.pipeline(transaction=True) as pipe:
            if made:
                pipe.hset(self._keys.facts, "made", made)
            if group_ids:
                pipe.srem(self._keys.outstanding, *group_ids)
            await pipe.execute()

    async def made(self) -> int:
        """The newest weight version that the learner has told with returned credit; 0 before the first."""
        return int(await self._redis.hget(self._keys.facts, "made") or 0)


def _first_id(raw: Any) -> tuple[int, int] | None:
    if not raw:
        return None
    milliseconds, sequence = raw[0][0].decode().split("-")
    return int(milliseconds), int(sequence)


def _entries(raw: Any) -> list[Entry]:
    """Entries of a reply; one that was deleted while pending comes without fields."""
    return [Entry(i.decode(), fields.get(b"payload", b"")) for i, fields in raw if i is not None and fields is not None]
