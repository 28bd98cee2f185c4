"""Calibration: what the generator gives with nobody to wait for it, and what the learner takes with everything there.

Generator alone: the real service with its engine, graders and Redis. In place of curriculum and learner stands a sink,
which asks for the next prompts as far as the run's credit allows, takes the groups that come, and returns their credit.
No weights change. Learner alone: the real learner with its publisher, and a stream that holds, before it starts, the
groups that were sampled in the run it is compared with. Both under the run's own run file and settings.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count, cycle
from pathlib import Path
from subprocess import Popen

import numpy as np
from transformers import AutoTokenizer

from benchmarks._end_to_end_box import Failed, Server, cpu_seconds, environment, module, program, used_between
from benchmarks._end_to_end_cell import GROUPS, ROLLOUTS, TEMPERATURE, Cell, Json
from benchmarks._end_to_end_run import Tuning, live, run_document
from benchmarks._methods_trial import as_toml
from common import connection
from common.config.live import parse_live
from common.config.store import Author, ConfigStore
from common.events import EventKind, EventLog
from common.keys import Keys
from common.streams import Delivery
from common.trajectory import GroupPlan, Purpose, Request, Sampling
from common.wire import decode_group, encode_request

_BLOCK_MS = 250
_READ = 256
_SETTLE_STEPS = 2
"""Steps of the learner that are not counted: its first ones, while memory is allocated."""


@dataclass(frozen=True, slots=True)
class Alone:
    """What one half does by itself. tokens_per_s: response tokens. cpu_s: seconds of processor time, by program."""

    tokens_per_s: float
    tokens: int
    seconds: float
    cpu_s: dict[str, float]


class Bench:
    """A run of which one half is started. Its Redis is made ready as the control plane would."""

    def __init__(self, cell: Cell, tuning: Tuning, out: Path, server: Server, half: str) -> None:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        self.cell, self.tuning, self.out, self.server = cell, tuning, out, server
        name = f"{half}-alone-{cell.name}".lower()
        self.run_file = out / "run.toml"
        self.run_file.write_text(as_toml(run_document(cell, tuning, out / "run", name)), encoding="utf-8")
        self.keys = Keys(name)
        self.redis = connection.connect(server.url)
        self.delivery = Delivery(self.redis, self.keys)

    async def prepare(self) -> None:
        """Remove what an earlier run left, and put the live configuration in force."""
        if old := await self.redis.keys(
            self.keys.requests.replace("{", "[{]").replace("}", "[}]")[: -len("requests")] + "*"
        ):
            await self.redis.delete(*old)
        await self.delivery.prepare()
        document = live(self.cell, self.tuning) | {"max_staleness": 1000}
        store = ConfigStore(self.redis, self.keys)
        await store.replace(parse_live(document), 0, Author("benchmark", "benchmark"), at_s=time.time())

    def start(self, stack: ExitStack, role: str) -> Popen[bytes]:
        """Start the half, with as many threads as in a run."""
        name = {"services.generator": "generator-1"}.get(role, role)
        threads = str(self.tuning.learner_threads if role == "learner" else 1)
        env = environment(REDIS_URL=self.server.url, OMP_NUM_THREADS=threads, PYTHONUNBUFFERED="1")
        command = ["nice", "-n", "10", *module(role, str(self.run_file), "--name", name)]
        return stack.enter_context(program(command, self.out / f"{name}.log", env))

    def cpu_seconds(self, process: Popen[bytes]) -> dict[str, float]:
        """Processor time so far of the half and of Redis, by program."""
        return cpu_seconds(process.pid, self.server.pid)

    def require(self, process: Popen[bytes], deadline_s: float) -> None:
        """Failed if the half has ended, or takes too long."""
        if process.poll() is not None or time.monotonic() > deadline_s:
            raise Failed(f"the calibration did not come to its end: see {self.out}")


def generator_alone(cell: Cell, tuning: Tuning, out: Path, server: Server, seconds: float, limit_s: float) -> Alone:
    """How many response tokens the generator gives per second, over `seconds` after it has filled its engine."""
    bench = Bench(cell, tuning, out, server, "generator")
    with ExitStack() as stack:
        return asyncio.run(_drain(bench, stack, seconds, time.monotonic() + limit_s))


async def _drain(bench: Bench, stack: ExitStack, seconds: float, deadline_s: float) -> Alone:
    await bench.prepare()
    process = bench.start(stack, "services.generator")
    asked, groups = _requests(bench.cell), bench.delivery.groups
    credit = (bench.tuning.max_staleness + 1) * GROUPS
    await _ask(bench, asked, credit)
    settling, tokens, began_s, cpu_s = credit, 0, 0.0, dict[str, float]()
    while not began_s or time.monotonic() - began_s < seconds:
        bench.require(process, deadline_s)
        entries = await groups.take("sink", _READ, _BLOCK_MS)
        if not entries:
            continue
        found = [decode_group(entry.payload) for entry in entries]
        await groups.acknowledge([entry.entry_id for entry in entries])
        await bench.delivery.settle([group.group_id for group in found])
        await _ask(bench, asked, len(found))
        settling -= len(found)
        if began_s:
            tokens += sum(member.response_length for group in found for member in group.trajectories)
        elif settling <= 0:
            began_s, cpu_s = time.monotonic(), bench.cpu_seconds(process)
    passed_s = time.monotonic() - began_s
    used = used_between(cpu_s, bench.cpu_seconds(process))
    await bench.redis.aclose()
    return Alone(tokens / passed_s, tokens, passed_s, used)


async def _ask(bench: Bench, asked: Iterator[Request], number: int) -> None:
    """Issue the next requests, as the curriculum does; nobody reads their outcomes."""
    payloads = [(request.request_id, encode_request(request)) for request in (next(asked) for _ in range(number))]
    await bench.delivery.issue(payloads, state=payloads[-1][0].encode())
    await bench.redis.xtrim(bench.keys.outcomes, maxlen=0)


def _requests(cell: Cell) -> Iterator[Request]:
    """Requests for the prompts of a cell, in the order of its data, without an end."""
    tokenizer = AutoTokenizer.from_pretrained(cell.base)
    rows = [json.loads(line) for line in (cell.data / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    for number, row in zip(count(), cycle(rows)):
        yield Request(
            request_id=f"train:{number}",
            prompt_id=f"{number % len(rows)}",
            purpose=Purpose.TRAIN,
            revision=1,
            prompt_tokens=np.asarray(tokenizer.encode(row["prompt"]), np.int32),
            answer=row["answer"],
            plan=GroupPlan(plain=ROLLOUTS),
            sampling=Sampling(TEMPERATURE, cell.task.longest),
        )


def learner_alone(cell: Cell, tuning: Tuning, out: Path, server: Server, groups: list[bytes], limit_s: float) -> Alone:
    """How many response tokens the learner takes per second when all groups are there before it starts."""
    bench = Bench(cell, tuning, out, server, "learner")
    with ExitStack() as stack:
        return asyncio.run(_feed(bench, stack, groups, time.monotonic() + limit_s))


async def _feed(bench: Bench, stack: ExitStack, groups: list[bytes], deadline_s: float) -> Alone:
    await bench.prepare()
    steps = min(len(groups) // GROUPS, bench.cell.steps)
    if steps < 2 * _SETTLE_STEPS:
        raise Failed(f"{len(groups)} groups are too few to calibrate the learner with")
    for payload in groups:
        await bench.redis.xadd(bench.keys.groups, {"payload": payload})
    process = bench.start(stack, "learner")
    events, last, told = EventLog(bench.redis, bench.keys), "0", list[tuple[float, Json]]()
    cpu_s = dict[str, float]()
    while len(told) < steps:
        bench.require(process, deadline_s)
        for event in await events.read(last, block_ms=_BLOCK_MS):
            last = event.event_id
            if event.kind is EventKind.STEP:
                told.append((event.at_s, event.data))
        if not cpu_s and len(told) > _SETTLE_STEPS:
            cpu_s = bench.cpu_seconds(process)
    used = used_between(cpu_s, bench.cpu_seconds(process))
    await bench.redis.aclose()
    sizes = [sum(m.response_length for m in decode_group(payload).trajectories) for payload in groups]
    tokens = sum(sizes[_SETTLE_STEPS * GROUPS : steps * GROUPS])
    seconds = told[steps - 1][0] - told[_SETTLE_STEPS - 1][0]
    return Alone(tokens / seconds, tokens, seconds, used)
