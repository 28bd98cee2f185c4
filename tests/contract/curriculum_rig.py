"""A run's files and the other side of the curriculum's streams, for contract tests of the curriculum."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from tiny_tokenizer import write_tokenizer

from common.config.live import parse_live
from common.config.store import Author, ConfigStore
from common.events import Event, EventKind, EventLog
from common.process import Process
from common.settings import load_run
from common.streams import Delivery, Entry
from common.trajectory import Outcome, Request
from common.weights import Manifest, PublicationKind, WeightAnnouncements, location_of
from common.wire import decode_request, encode_outcome
from services.curriculum.__main__ import main as curriculum

RUN = """
[run]
name = "test"
directory = "run"
[model]
path = "model"
[data]
path = "train.jsonl"
step_separator = ";"
[evaluation]
every_versions = 5
samples = 2
nll = true
[[evaluation.sets]]
name = "heldout"
path = "heldout.jsonl"
"""
LIVE: dict[str, Any] = {
    "groups_per_step": 2,
    "max_staleness": 1,
    "sampling": {"max_response_tokens": 16},
    "algorithm": {"kind": "grpo"},
}
LUFFY: dict[str, Any] = {**LIVE, "algorithm": {"kind": "luffy"}, "hints": {"kind": "demonstration"}}
TEST = Author("test", "test")
ROWS = [{"prompt": f"{i}+1=", "answer": str(i + 1), "demonstration": f"a;#{i + 1}"} for i in range(9)]


def write_run(directory: Path, rows: Sequence[dict[str, Any]] = ROWS, more: str = "") -> Path:
    """The files of a run; `more`: what its run file says besides."""
    write_tokenizer(directory / "model")
    (directory / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (directory / "heldout.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ROWS[:3]))
    (directory / "run.toml").write_text(RUN + more)
    return directory / "run.toml"


class Bench:
    """A run's settings, and the other side of the curriculum's streams."""

    def __init__(self, redis: Redis, run_file: Path) -> None:
        self.settings = load_run(run_file)
        self.redis: Any = redis
        process = Process("test", "test", self.settings)
        self.keys = process.keys
        self.delivery = Delivery(redis, self.keys)
        self.config = ConfigStore(redis, self.keys)
        self.events = EventLog(redis, self.keys)

    async def ask(self, live: dict[str, Any], revision: int) -> None:
        """Put a live configuration in force as the revision after `revision`."""
        await self.config.replace(parse_live(live), revision, TEST, at_s=0.0)

    async def take(self, count: int = 100) -> list[tuple[Entry, Request]]:
        """Requests waiting, of either purpose."""
        return [(e, decode_request(e.payload)) for e in await self.delivery.requests.take("g", count, 50)]

    async def answer(self, entry: Entry, request: Request, reward: float, **found: Any) -> None:
        """Answer a request as a generator would, without a group. found: what else the outcome says."""
        outcome = Outcome(
            request.request_id,
            request.prompt_id,
            request.purpose,
            request.revision,
            request.dataset,
            (reward,) * request.plan.plain,
            version=0,
            for_version=request.for_version,
            demonstration_logprob=-2.0 if request.score_demonstration else None,
            demonstration_tokens=4 if request.score_demonstration else 0,
        )
        await self.delivery.emit(entry.entry_id, b"", encode_outcome(replace(outcome, **found)))

    async def next_request(self, revision: int) -> tuple[Entry, Request]:
        """The next request of a revision; whatever comes before it is trained at once."""
        async with asyncio.timeout(10):
            while True:
                for entry, request in await self.take(1):
                    await self.delivery.settle([request.request_id])
                    if request.revision == revision:
                        return entry, request
                    await self.answer(entry, request, 0.0)

    async def publish(self, version: int, step: int) -> None:
        """Announce a weight version of a learner step."""
        manifest = Manifest(version, step, 1, PublicationKind.ANCHOR, 0, location_of(version), {}, {}, 0, 0.0)
        await WeightAnnouncements(self.redis, self.keys).announce(manifest)

    async def evaluations(self) -> list[Event]:
        return [e for e in await self.events.read() if e.kind is EventKind.EVALUATION]

    async def notices(self) -> list[str]:
        return [str(e.data["text"]) for e in await self.events.read() if e.kind is EventKind.NOTICE]

    async def generator_beats(self, version: int) -> None:
        beat = {"role": "generator", "at_s": time.time(), "version": version}
        await self.redis.hset(self.keys.processes, "generator-1", json.dumps(beat))


@asynccontextmanager
async def running(bench: Bench) -> AsyncIterator[Process]:
    """The curriculum at work in this event loop."""
    process = Process("curriculum", "curriculum", bench.settings)
    await process.delivery.prepare()
    task = asyncio.create_task(curriculum(process))
    try:
        yield process
    finally:
        process.stop.set()
        code = await asyncio.wait_for(task, 10)
        await process.redis.aclose()
    assert code == 0


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for a condition, ten seconds at most."""
    async with asyncio.timeout(10):
        while not await condition():
            await asyncio.sleep(0.02)
