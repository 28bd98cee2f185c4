"""The other side of a generator's streams: a run's files, requests to issue, and what comes back."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from fake_engine import ROOT, FakeEngine, decode, encode
from publications import Publications, Tensors
from redis.asyncio import Redis
from tiny_tokenizer import EOS, write_tokenizer

from common.events import Event, EventKind, EventLog
from common.keys import Keys
from common.process import Process
from common.settings import load_run
from common.stores.directory import DirectoryStorage
from common.streams import Delivery
from common.trajectory import Demonstration, Group, GroupPlan, Outcome, Purpose, Request, Sampling
from common.weights import ANCHOR_FILE, WeightAnnouncements
from common.wire import decode_group, decode_outcome, encode_request
from services.generator.service import serve

RUN = """
[run]
name = "test"
directory = "run"
[model]
path = "./model"
[data]
path = "train.jsonl"
[grader]
name = "bad_graders:by_answer"
timeout_s = 1.0
[generator]
requests_in_flight = 4
reclaim_after_s = {reclaim_after_s}
"""
DEMONSTRATION = Demonstration(np.array([*encode("a;b;#3"), EOS], np.int32))


def request(number: int, **changes: Any) -> Request:
    """A training request for two rollouts and a demonstration, all of which the grader finds fine."""
    made = Request(
        request_id=f"r{number}",
        prompt_id=f"p{number}",
        purpose=Purpose.TRAIN,
        revision=1,
        prompt_tokens=encode(f"{number}+1="),
        answer="fine",
        plan=GroupPlan(plain=2, demonstrations=1),
        sampling=Sampling(1.0, 16),
        demonstrations=(DEMONSTRATION,),
    )
    return replace(made, **changes)


class GeneratorBench:
    """A run directory and its Redis, seen from outside the generator."""

    def __init__(self, directory: Path, redis: Redis, reclaim_after_s: float = 10.0, run: str = RUN) -> None:
        self.directory = directory
        self.run_file = directory / "run.toml"
        self.redis: Any = redis
        write_tokenizer(directory / "model")
        (directory / "model" / "model.safetensors").touch()
        self.run_file.write_text(run.format(reclaim_after_s=reclaim_after_s))
        self.settings = load_run(self.run_file)
        self.keys = Keys("test")
        self.delivery = Delivery(redis, self.keys)
        self.weights = WeightAnnouncements(redis, self.keys)
        self.publications = Publications(DirectoryStorage(self.settings.weights_directory))
        self._events = EventLog(redis, self.keys)
        self._groups: list[Group] = []
        self._outcomes: list[Outcome] = []

    async def issue(self, *requests: Request | bytes) -> None:
        """Add requests, or payloads that are none, to the stream; training requests use credit."""
        await self.delivery.prepare()
        await self.delivery.issue([_issued(r) for r in requests], os.urandom(8))  # a state that was never there

    async def groups(self) -> list[Group]:
        """Every group so far, in the order of emission."""
        self._groups += [decode_group(e.payload) for e in await self.delivery.groups.take("learner", 1000, 1)]
        return self._groups

    async def outcomes(self) -> list[Outcome]:
        """Every outcome so far."""
        self._outcomes += [decode_outcome(e.payload) for e in await self.delivery.outcomes.take("curriculum", 1000, 1)]
        return self._outcomes

    async def quarantined(self) -> list[str]:
        """The reasons of everything in quarantine."""
        return [fields[b"reason"].decode() for _, fields in await self.redis.xrange(self.keys.quarantine)]

    async def events(self, kind: EventKind) -> list[Event]:
        """Every event of a kind."""
        return [event for event in await self._events.read() if event.kind is kind]

    async def heartbeat(self, name: str) -> dict[str, Any]:
        """The last heartbeat of a process; empty if it has sent none."""
        return json.loads(await self.redis.hget(self.keys.processes, name) or "{}")

    async def publish(self, version: int, tensors: Tensors | None = None, *, damaged: bool = False) -> Path:
        """Publish a version in full, as a learner does; its directory."""
        manifest = self.publications.anchor(version, tensors)
        directory = self.settings.weights_directory / manifest.location
        if damaged:
            (directory / ANCHOR_FILE).write_bytes(b"damaged")
        await self.weights.announce(manifest)
        return directory

    def process(self, name: str = "generator-1") -> Process:
        """A process of this run in this event loop."""
        return Process("generator", name, self.settings)

    def spawn(self, name: str, program: Sequence[str] = (), **environment: str) -> subprocess.Popen[bytes]:
        """A generator in a process of its own; on the fake engine unless another program is given."""
        command = program or (sys.executable, "-m", "fake_engine")
        path = f"{ROOT}:{ROOT / 'tests'}"
        with (self.directory / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [*command, str(self.run_file), "--name", name],
                env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | environment,
                stderr=log,
                stdout=log,
                cwd=ROOT,
            )


@asynccontextmanager
async def serving(bench: GeneratorBench, engine: FakeEngine, name: str = "generator-1") -> AsyncIterator[Process]:
    """A generator at work in this event loop, on `engine`; stopped and found to have ended well afterwards."""
    process = bench.process(name)
    await process.delivery.prepare()
    heartbeats = asyncio.create_task(process.send_heartbeats())

    async def start(_: object) -> FakeEngine:
        return engine

    task = asyncio.create_task(serve(process, start, lambda _: decode))
    try:
        yield process
    finally:
        process.stop.set()
        heartbeats.cancel()
        await asyncio.wait({task}, timeout=10)
        await process.redis.aclose()
    assert task.result() == 0


async def until(condition: Callable[[], Awaitable[object]], limit_s: float = 20.0) -> None:
    """Wait until a condition holds."""
    deadline_s = time.monotonic() + limit_s
    while not await condition():
        if time.monotonic() > deadline_s:
            raise AssertionError(f"not within {limit_s} s")
        await asyncio.sleep(0.02)


def _issued(made: Request | bytes) -> tuple[str, bytes]:
    if isinstance(made, bytes):
        return "", made
    return (made.request_id if made.purpose is Purpose.TRAIN else ""), encode_request(made)
