"""A generator on a real Redis, in this event loop, with an engine that does as it is told."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_engine import POISON, UNSTABLE, FakeEngine, decode, encode
from generator_bench import GeneratorBench, request, serving, until
from redis.asyncio import Redis
from redis_process import RedisProcess

from common.events import EventKind
from common.trajectory import AnchorSearch, Demonstration, GroupPlan, Purpose
from services.generator.engine import EngineDead, EngineError
from services.generator.service import serve

pytestmark = pytest.mark.asyncio


@pytest.fixture
def make_bench(
    tmp_path: Path, redis_server: RedisProcess, client: Callable[[], Redis], monkeypatch: pytest.MonkeyPatch
) -> Callable[[float], GeneratorBench]:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    return lambda reclaim_after_s: GeneratorBench(tmp_path, client(), reclaim_after_s)


@pytest.fixture
def bench(make_bench: Callable[[float], GeneratorBench]) -> GeneratorBench:
    """A run whose generators are given up for dead after ten seconds."""
    return make_bench(10.0)


@pytest.fixture
def hasty(make_bench: Callable[[float], GeneratorBench]) -> GeneratorBench:
    """A run whose generators are given up for dead at once."""
    return make_bench(0.3)


async def test_a_request_becomes_one_group_one_outcome_and_nothing_is_left(bench: GeneratorBench) -> None:
    async with serving(bench, FakeEngine(version=0)) as process:
        await bench.issue(request(1))
        await until(bench.groups)
        [group] = await bench.groups()
        [outcome] = await bench.outcomes()
        assert (group.group_id, group.generator, len(group.trajectories)) == ("r1", "generator-1", 3)
        assert (outcome.request_id, outcome.rewards, outcome.failure) == ("r1", (1.0, 1.0), "")
        assert await bench.delivery.requests.length() == 0
        assert await bench.delivery.outstanding() == 1, "the credit comes back when the group is trained on, not before"
        assert process.registry.get_sample_value("tributary_groups_emitted_total") == 1


async def test_an_evaluation_makes_an_outcome_and_no_group(bench: GeneratorBench) -> None:
    async with serving(bench, FakeEngine()):
        await bench.issue(request(1, purpose=Purpose.EVALUATE, plan=GroupPlan(plain=3), score_demonstration=True))
        await until(bench.outcomes)
        [outcome] = await bench.outcomes()
        assert (len(outcome.rewards), outcome.demonstration_tokens) == (3, 7)
        assert await bench.groups() == []


async def test_what_cannot_be_carried_out_is_quarantined_with_the_reason_and_the_service_goes_on(
    bench: GeneratorBench,
) -> None:
    async with serving(bench, FakeEngine()) as process:
        await bench.issue(
            b"garbage",
            request(1, prompt_tokens=encode("1" * 64)),
            request(2, prompt_tokens=np.array([999], np.int32)),
            request(3, answer="raise"),
            request(4, answer="hang"),
            request(5, answer="crash"),
            request(6),
        )

        async def all_are_answered() -> bool:
            return len(await bench.outcomes()) == 6 and len(await bench.quarantined()) == 6

        await until(all_are_answered)
        assert [group.group_id for group in await bench.groups()] == ["r6"]
        failures = {outcome.request_id: outcome.failure for outcome in await bench.outcomes()}
        assert failures.pop("r6") == ""
        assert failures["r1"].startswith("the prompt has 64 tokens and the model's context 64")
        assert failures["r2"] == "token id 999 does not fit a vocabulary of 45"
        assert failures["r3"] == "the grader raised KeyError: 'no such answer'"
        assert failures["r4"] == "the grader hung for 1 s and was killed"
        assert failures["r5"] == "the grader crashed (exit code -9)"
        reasons = await bench.quarantined()
        assert set(failures.values()) < set(reasons)
        assert any(reason.startswith("not a msgpack message") for reason in reasons)
        assert await bench.delivery.outstanding() == 1, "only r6 still counts"
        assert process.registry.get_sample_value("tributary_quarantined_total", {"stream": "requests"}) == 6
        assert process.registry.get_sample_value("tributary_grader_failures_total", {"how": "hung"}) == 1
        assert len(await bench.events(EventKind.QUARANTINE)) == 6


async def test_a_search_is_carried_out_inside_one_request_and_counted(bench: GeneratorBench) -> None:
    search = AnchorSearch(cuts=(2, 4), members=3, probes=4, above=0.0, below=1.0)
    unneeded = request(1, search=search)
    always = request(2, search=replace(search, always=True))  # what is fine is right: the hint shrinks until it ends
    async with serving(bench, FakeEngine()) as process:
        await bench.issue(unneeded, always)
        await until(lambda: _all_groups(bench, 2))
        outcomes = {outcome.request_id: outcome for outcome in await bench.outcomes()}
        assert (outcomes["r1"].probes, outcomes["r1"].rewards) == (0, (1.0, 1.0))
        assert (outcomes["r2"].probes, outcomes["r2"].anchor, outcomes["r2"].hint_length) == (1, None, 2)

        def counted(result: str) -> float | None:
            return process.registry.get_sample_value("tributary_searches_total", {"result": result})

        await until(lambda: _holds(lambda: (counted("unneeded"), counted("exhausted")) == (1, 1)))
        assert process.registry.get_sample_value("tributary_search_probes_total") == 1


async def test_a_probe_with_log_probs_that_are_not_finite_quarantines_its_request(bench: GeneratorBench) -> None:
    search = AnchorSearch(cuts=(2,), members=3, probes=4, above=0.0, below=1.0, always=True)
    unstable = Demonstration(np.array([UNSTABLE, *encode("a;#3")], np.int32))
    async with serving(bench, FakeEngine()):
        await bench.issue(request(1, search=search, demonstrations=(unstable,)), request(2))
        await until(bench.groups)
        await until(bench.quarantined)
        [reason] = await bench.quarantined()
        assert reason == "1 log-probs are not finite, the first at position 4"
        failures = {outcome.request_id: outcome.failure for outcome in await bench.outcomes()}
        assert failures == {"r1": reason, "r2": ""}
        assert await bench.delivery.outstanding() == 1, "its credit came back"


async def test_an_unexpected_error_costs_one_request(bench: GeneratorBench) -> None:
    class Surprising(FakeEngine):
        async def score(self, tokens: object, start: int) -> np.ndarray:
            raise ZeroDivisionError("surprise")

    async with serving(bench, Surprising()):
        await bench.issue(request(1, purpose=Purpose.EVALUATE, score_demonstration=True), request(2))
        await until(bench.groups)
        assert await bench.quarantined() == ["unexpected ZeroDivisionError: surprise"]


async def test_never_more_requests_than_allowed_are_in_flight(bench: GeneratorBench) -> None:
    engine = FakeEngine()
    engine.pause()
    async with serving(bench, engine):
        await bench.issue(*(request(i) for i in range(9)))
        await until(lambda: _holds(lambda: len(engine.calls) == 4))

        async def four_are_told() -> bool:
            return (await bench.heartbeat("generator-1")).get("requests") == 4

        await until(four_are_told)
        assert len(engine.calls) == 4
        engine.resume()
        await until(lambda: _all_groups(bench, 9))


async def test_the_first_request_of_a_revision_puts_it_in_force(bench: GeneratorBench) -> None:
    async with serving(bench, FakeEngine()) as process:
        await bench.issue(request(1, revision=3), request(2, revision=4), request(3, revision=3))
        await until(lambda: _all_groups(bench, 3))
        assert process.revision == 4
        told = [event.data for event in await bench.events(EventKind.IN_FORCE)]
        assert told[-1] == {"process": "generator-1", "role": "generator", "revision": 4, "step": 0}
        marks = await bench.redis.hgetall(bench.keys.in_force)
        assert b"4:generator-1" in marks


async def test_rates_are_in_the_heartbeat_the_metrics_and_the_events(bench: GeneratorBench) -> None:
    async with serving(bench, FakeEngine(token_s=0.2)) as process:
        await bench.issue(*(request(i) for i in range(8)))

        async def all_is_told() -> bool:
            told = await bench.events(EventKind.GENERATION)
            beat = await bench.heartbeat("generator-1")
            return beat.get("generated_tokens") == 8 * 2 * 6 and told[-1].data["requests"] == 0

        await until(all_is_told)
        told = [event.data for event in await bench.events(EventKind.GENERATION)]
        assert told[0]["generator"] == "generator-1"
        assert max(data["tokens_per_s"] for data in told) > 5
        assert (await bench.heartbeat("generator-1"))["state"] == "running"
        assert process.registry.get_sample_value("tributary_generated_tokens_total") == 96


async def test_a_stopped_generator_gives_up_what_it_cannot_finish_and_another_takes_it_at_once(
    bench: GeneratorBench,
) -> None:
    stuck = FakeEngine()
    stuck.pause()
    async with serving(bench, stuck):
        await bench.issue(request(1), request(2))
        await until(lambda: _holds(lambda: len(stuck.calls) == 2))
    assert stuck.closed
    bench.settings = bench.settings.model_copy(
        update={"generator": bench.settings.generator.model_copy(update={"reclaim_after_s": 0.2})}
    )
    async with serving(bench, FakeEngine(), "generator-2") as process:
        await until(lambda: _all_groups(bench, 2), 5)
        assert process.registry.get_sample_value("tributary_requests_reclaimed_total") == 2
    assert {group.generator for group in await bench.groups()} == {"generator-2"}


async def test_a_stopped_generator_finishes_what_is_nearly_done(bench: GeneratorBench) -> None:
    engine = FakeEngine(token_s=0.1)
    async with serving(bench, engine):
        await bench.issue(request(1))
        await until(lambda: _holds(lambda: engine.calls))
    assert len(await bench.groups()) == 1
    assert await bench.redis.xinfo_consumers(bench.keys.requests, "generators") == []


async def test_a_kept_request_is_not_taken_over_however_long_it_takes(hasty: GeneratorBench) -> None:
    slow, idle = FakeEngine(), FakeEngine()
    slow.pause()
    async with serving(hasty, slow):
        await hasty.issue(request(1))
        await until(lambda: _holds(lambda: slow.calls))
        async with serving(hasty, idle, "generator-2"):
            await asyncio.sleep(1.5)
            assert idle.calls == []
        slow.resume()
        await until(hasty.groups)


async def test_a_request_whose_delivery_got_lost_is_found_by_its_own_consumer(hasty: GeneratorBench) -> None:
    await hasty.issue(request(1))
    assert await hasty.delivery.requests.take(f"generator-1.{os.getpid()}", 1, 10)
    async with serving(hasty, FakeEngine()):
        await until(hasty.groups)


async def test_a_late_second_answer_is_refused_and_counted(hasty: GeneratorBench) -> None:
    engine = FakeEngine()
    engine.pause()
    async with serving(hasty, engine) as process:
        await hasty.issue(request(1))
        await until(lambda: _holds(lambda: engine.calls))
        [entry] = await hasty.delivery.requests.reclaim("another", 0, 1)
        assert await hasty.delivery.emit(entry.entry_id, b"", b"")
        engine.resume()
        await until(lambda: _holds(lambda: process.registry.get_sample_value("tributary_duplicate_groups_total") == 1))
        assert await hasty.delivery.groups.length() == 0


async def test_a_dead_engine_ends_the_process_and_leaves_its_requests_to_others(bench: GeneratorBench) -> None:
    engine = FakeEngine(token_s=0.05)

    async def dies_at_work() -> None:
        async with serving(bench, engine):
            await bench.issue(request(1), request(2))
            await until(lambda: _holds(lambda: len(engine.calls) == 2))
            engine.die()
            await until(lambda: _holds(lambda: engine.closed))

    with pytest.raises(EngineDead):
        await dies_at_work()
    assert await bench.quarantined() == []
    assert len(await bench.delivery.requests.reclaim("another", 60_000, 10)) == 2, "given up, so nobody has to wait"


async def test_a_request_that_ends_every_generator_is_quarantined_at_last(hasty: GeneratorBench) -> None:
    await hasty.issue(request(1, prompt_tokens=np.array([POISON], np.int32)))

    async def outlives_it(name: str) -> bool:
        engine = FakeEngine()
        try:
            async with serving(hasty, engine, name):
                await until(lambda: _either(engine.closed, hasty.quarantined()))
        except EngineDead:
            return False
        return True

    lives = [await outlives_it(f"generator-{life}") for life in range(6)]
    assert lives == [False] * 5 + [True]
    assert await hasty.quarantined() == ["it was given out 5 times and no generator outlived it"]
    assert [outcome.request_id for outcome in await hasty.outcomes()] == ["r1"]
    assert await hasty.delivery.outstanding() == 0


async def test_an_engine_that_does_not_start_is_an_error_of_the_process(bench: GeneratorBench) -> None:
    async def broken(_: object) -> FakeEngine:
        raise EngineError("the engine did not start")

    process = bench.process()
    await process.delivery.prepare()
    with pytest.raises(EngineError, match="did not start"):
        await serve(process, broken, lambda _: decode)
    await process.redis.aclose()


async def _holds(condition: Callable[[], object]) -> bool:
    return bool(condition())


async def _either(known: bool, asked: Awaitable[object]) -> bool:
    return bool(await asked) or known


async def _all_groups(bench: GeneratorBench, count: int) -> bool:
    return len(await bench.groups()) >= count
