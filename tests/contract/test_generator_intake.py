"""What an intake gives up stays given up: saying that entries are worked on and giving them up never cross."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import pytest_asyncio
from generator_bench import GeneratorBench, request, until
from prometheus_client import Counter
from redis.asyncio import Redis
from redis_process import RedisProcess

from common.process import Process
from common.streams import Entry, Stream
from services.generator.intake import Intake

pytestmark = pytest.mark.asyncio
RECLAIM_AFTER_S = 0.06  # so that what is held is kept every 20 ms


class SlowStream(Stream):
    """A Redis that answers late: time enough for a loop beside to come between a command and what follows it."""

    slow_s = 0.0

    async def keep(self, consumer: str, entry_ids: Sequence[str]) -> None:
        await asyncio.sleep(self.slow_s)
        await super().keep(consumer, entry_ids)

    async def release(self, consumer: str, entry_ids: Sequence[str], idle_ms: int) -> None:
        await super().release(consumer, entry_ids, idle_ms)
        await asyncio.sleep(self.slow_s)

    async def forget(self, consumer: str) -> None:
        await asyncio.sleep(self.slow_s)
        await super().forget(consumer)


@pytest.fixture
def bench(
    tmp_path: Path, redis_server: RedisProcess, client: Callable[[], Redis], monkeypatch: pytest.MonkeyPatch
) -> GeneratorBench:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    return GeneratorBench(tmp_path, client(), reclaim_after_s=RECLAIM_AFTER_S)


@pytest.fixture
def stream(bench: GeneratorBench) -> SlowStream:
    return SlowStream(bench.redis, bench.keys.requests, "generators")


@pytest.fixture
def process(bench: GeneratorBench) -> Process:
    return bench.process()


@pytest_asyncio.fixture
async def intake(bench: GeneratorBench, process: Process, stream: SlowStream) -> Intake:
    """An intake that works for ever on what it takes; two entries wait for it."""
    await bench.issue(request(1), request(2))
    return Intake(process, stream, _never_done, Counter("reclaimed", "Entries", registry=process.registry), limit=2)


async def _never_done(entry: Entry, deliveries: int) -> None:
    await asyncio.Event().wait()


async def _holds_two(intake: Intake) -> bool:
    return intake.in_flight == 2


async def test_a_process_that_stops_leaves_its_entries_to_be_taken_at_once(
    bench: GeneratorBench, process: Process, stream: SlowStream, intake: Intake
) -> None:
    serving = asyncio.ensure_future(intake.serve())
    await until(lambda: _holds_two(intake))
    stream.slow_s = 0.1
    await asyncio.sleep(RECLAIM_AFTER_S)  # a word that they are kept is on its way
    process.stop.set()
    await serving
    assert len(await bench.delivery.requests.reclaim("another", 60_000, 10)) == 2


async def test_an_intake_that_is_shut_leaves_its_entries_to_be_taken_at_once(
    bench: GeneratorBench, stream: SlowStream, intake: Intake
) -> None:
    serving = asyncio.ensure_future(intake.serve())
    await until(lambda: _holds_two(intake))
    stream.slow_s = 0.1
    await asyncio.sleep(RECLAIM_AFTER_S)
    await intake.shut()
    assert intake.in_flight == 0
    await asyncio.sleep(0.3)  # time for a word that they are kept, if one were said
    assert len(await bench.delivery.requests.reclaim("another", 60_000, 10)) == 2
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
