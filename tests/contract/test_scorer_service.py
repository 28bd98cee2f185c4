"""The scorer on a real Redis with an engine that does as it is told: every demonstration once, whatever happens."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from fake_engine import POISON, UNSTABLE, VOCABULARY, FakeEngine, encode
from generator_bench import RUN, GeneratorBench, until
from redis.asyncio import Redis
from redis_process import RedisProcess
from tiny_tokenizer import EOS

from common.expert_scores import ExpertScores, Score, score_key
from common.process import Process
from common.settings import load_run
from common.trajectory import ScoreTask
from services.generator.engine import EngineDead
from services.generator.scoring.expert import open_expert
from services.generator.scoring.service import serve

pytestmark = pytest.mark.asyncio
EXPERT = """
[expert]
policy = "scored"
model = "./expert"
max_num_seqs = 2
"""


class ScorerBench(GeneratorBench):
    """A run with an expert, seen from where the curriculum stands."""

    def __init__(self, directory: Path, redis: Redis) -> None:
        super().__init__(directory, redis, reclaim_after_s=0.3, run=RUN + EXPERT)
        shutil.copytree(directory / "model", directory / "expert")
        self.scores = ExpertScores(redis, self.keys)
        self.expert = open_expert(self.settings).identity

    def task(self, number: int, tokens: list[int] | None = None, prompt: list[int] | None = None) -> ScoreTask:
        """A demonstration of the prompt `number`."""
        asked = np.array(encode(f"{number}+1=") if prompt is None else prompt, np.int32)
        shown = np.array([*encode("a;b;#3"), EOS] if tokens is None else tokens, np.int32)
        return ScoreTask(score_key(self.expert, asked, shown), asked, shown)

    async def score(self, task: ScoreTask) -> Score | None:
        """What is known of a task."""
        return (await self.scores.known([task.key])).get(task.key)

    async def until_answered(self, *tasks: ScoreTask, limit_s: float = 20.0) -> list[Score]:
        """The scores of tasks, once all of them are there."""
        keys = [task.key for task in tasks]

        async def answered() -> bool:
            return len(await self.scores.known(keys)) == len(set(keys))

        await until(answered, limit_s)
        known = await self.scores.known(keys)
        return [known[key] for key in keys]


@pytest.fixture
def bench(
    tmp_path: Path, redis_server: RedisProcess, client: Callable[[], Redis], monkeypatch: pytest.MonkeyPatch
) -> ScorerBench:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    return ScorerBench(tmp_path, client())


@asynccontextmanager
async def scoring(bench: ScorerBench, engine: FakeEngine) -> AsyncIterator[Process]:
    """A scorer at work in this event loop, on `engine`; stopped and found to have ended well afterwards."""
    process = Process("scorer", "scorer-1", bench.settings)
    await process.delivery.prepare()
    heartbeats = asyncio.create_task(process.send_heartbeats())

    async def start(_: object) -> FakeEngine:
        return engine

    task = asyncio.create_task(serve(process, start))
    try:
        yield process
    finally:
        process.stop.set()
        heartbeats.cancel()
        await asyncio.wait({task}, timeout=10)
        await process.redis.aclose()
    assert task.result() == 0


@pytest_asyncio.fixture
async def spawn(bench: ScorerBench) -> AsyncIterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts scorers in processes of their own; whatever still runs at the end is killed."""
    spawned: list[subprocess.Popen[bytes]] = []

    def start(name: str, **environment: str) -> subprocess.Popen[bytes]:
        spawned.append(bench.spawn(name, (sys.executable, "-m", "fake_scorer"), **environment))
        return spawned[-1]

    yield start
    for process in spawned:
        process.kill()
        process.wait()


async def test_a_demonstration_is_scored_after_its_prompt_and_nothing_is_left_to_do(bench: ScorerBench) -> None:
    engine = FakeEngine()
    async with scoring(bench, engine) as process:
        task = bench.task(1)
        await bench.scores.ask([task])
        [score] = await bench.until_answered(task)
        assert engine.scored == [([*task.prompt_tokens.tolist(), *task.tokens.tolist()], len(task.prompt_tokens))]
        assert score.logprobs is not None
        np.testing.assert_array_equal(score.logprobs, task.tokens.astype(np.float32) / -100)
        assert await bench.scores.tasks.length() == 0
        assert await bench.redis.scard(bench.keys.scores_asked) == 0
        assert process.registry.get_sample_value("tributary_scores_total", {"result": "scored"}) == 1
        assert process.registry.get_sample_value("tributary_scored_tokens_total") == 7

        async def told() -> bool:
            beat = await bench.heartbeat("scorer-1")
            return (beat.get("state"), beat.get("scored"), beat.get("waiting")) == ("running", 1, 0)

        await until(told)
    assert engine.closed


async def test_nothing_is_scored_twice_across_restarts_either(bench: ScorerBench) -> None:
    tasks = [bench.task(number) for number in range(5)]
    first, second = FakeEngine(), FakeEngine()
    async with scoring(bench, first):
        await bench.scores.ask(tasks)
        await bench.until_answered(*tasks)
    assert len(first.scored) == 5
    new = bench.task(5)
    async with scoring(bench, second):
        assert await bench.scores.ask([*tasks, new]) == 1
        await bench.until_answered(new)
    assert len(second.scored) == 1


async def test_what_cannot_be_scored_is_answered_with_the_reason(bench: ScorerBench) -> None:
    tasks = [
        bench.task(0, tokens=[5] * 60),
        bench.task(1, tokens=[5, VOCABULARY]),
        bench.task(2, tokens=[5, UNSTABLE]),
        bench.task(3, tokens=[]),
        bench.task(4, prompt=[]),
        bench.task(5),
    ]
    async with scoring(bench, FakeEngine()) as process:
        await bench.scores.ask(tasks)
        *refused, fine = await bench.until_answered(*tasks)
        assert all(score.logprobs is None for score in refused)
        reasons = [score.reason for score in refused]
        assert reasons[0] == "it has 64 tokens with its prompt, and the expert scores up to 63"
        assert "token id 45 does not fit a vocabulary of 45" in reasons[1]
        assert "not finite" in reasons[2]
        assert reasons[3] == reasons[4] == "its prompt or the demonstration itself is empty"
        assert fine.logprobs is not None
        assert process.registry.get_sample_value("tributary_scores_total", {"result": "refused"}) == 5
    assert await bench.quarantined() == []


async def test_a_task_that_cannot_be_read_is_answered_or_else_quarantined(bench: ScorerBench) -> None:
    nameless, named = b"garbage", b"\x83\xa1k\xa5score\xa1v\x01\xa2id\xa3key"
    async with scoring(bench, FakeEngine()):
        for payload in (nameless, named):
            await bench.redis.xadd(bench.keys.score_tasks, {"payload": payload})
        await until(bench.quarantined)

        async def answered() -> bool:
            return "key" in await bench.scores.known(["key"])

        await until(answered)
        assert (await bench.scores.known(["key"]))["key"].reason.startswith("malformed score")
        assert len(await bench.quarantined()) == 1
        assert await bench.scores.tasks.length() == 0


async def test_a_task_for_another_expert_is_withdrawn_and_never_answered_by_this_one(bench: ScorerBench) -> None:
    engine, task = FakeEngine(), bench.task(1)
    foreign = ScoreTask(score_key("another", task.prompt_tokens, task.tokens), task.prompt_tokens, task.tokens)
    async with scoring(bench, engine):
        await bench.scores.ask([foreign, task])
        await bench.until_answered(task)

        async def none_waits() -> bool:
            return await bench.scores.tasks.length() == 0

        await until(none_waits)
        assert await bench.score(foreign) is None
    assert len(engine.scored) == 1
    assert await bench.scores.ask([foreign]) == 1


async def test_the_identity_of_the_expert_changes_with_its_files(bench: ScorerBench) -> None:
    async with scoring(bench, FakeEngine()):
        await until(bench.scores.identity)
    assert await bench.scores.identity() == bench.expert
    (bench.directory / "expert" / "model.safetensors").write_bytes(b"other weights")
    assert open_expert(bench.settings).identity not in ("", bench.expert)


async def test_a_scorer_killed_in_the_middle_loses_nothing_and_what_it_had_scored_stays(
    bench: ScorerBench, spawn: Callable[..., subprocess.Popen[bytes]]
) -> None:
    tasks = [bench.task(number) for number in range(10)]
    await bench.scores.ask(tasks)
    victim = spawn("scorer-1", FAKE_SCORE_S="0.4")
    keys = [task.key for task in tasks]

    async def some() -> bool:
        return len(await bench.scores.known(keys)) >= 2

    await until(some, 60)
    victim.kill()
    assert victim.wait() == -signal.SIGKILL
    known = await bench.scores.known(keys)
    assert 2 <= len(known) < 10
    engine = FakeEngine()
    async with scoring(bench, engine):
        scores = await bench.until_answered(*tasks)
    assert all(score.logprobs is not None for score in scores)
    assert len(engine.scored) == 10 - len(known), "what was known is not scored again"
    assert await bench.scores.tasks.length() == 0


async def test_a_redis_that_restarts_empty_does_not_end_the_scorer(
    bench: ScorerBench, redis_server: RedisProcess
) -> None:
    async with scoring(bench, FakeEngine()):
        await until(bench.scores.identity)
        await bench.redis.flushall()
        await until(bench.scores.identity)  # else a curriculum that starts now would never ask
        task = bench.task(1)
        await bench.scores.ask([task])
        await bench.until_answered(task)


async def test_a_stopped_scorer_leaves_its_tasks_to_the_next_one_at_once(bench: ScorerBench) -> None:
    stuck = FakeEngine()
    stuck.pause()
    task = bench.task(1)
    async with scoring(bench, stuck):
        await bench.scores.ask([task])
        await until(lambda: _holds(lambda: stuck.scored))
    assert len(await bench.scores.tasks.reclaim("another", 60_000, 10)) == 1


async def test_a_demonstration_that_ends_every_scorer_is_refused_at_last(bench: ScorerBench) -> None:
    deadly, harmless = bench.task(1, tokens=[POISON]), bench.task(2)
    await bench.scores.ask([deadly])

    async def outlives_it() -> bool:
        engine = FakeEngine()
        try:
            async with scoring(bench, engine):
                await until(lambda: _either(engine.closed, bench.scores.known([deadly.key])))
        except EngineDead:
            return False
        return True

    assert [await outlives_it() for _ in range(6)] == [False] * 5 + [True]
    score = await bench.score(deadly)
    assert score is not None
    assert score.reason == "it was given out 5 times and no scorer outlived it"
    async with scoring(bench, FakeEngine()):
        await bench.scores.ask([harmless])
        await bench.until_answered(harmless)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda expert: _swap(expert, "a", "b"),
            "differs from the policy's in 2 of 45 tokens (the first, 'a', is 17 here and is 18 there)",
        ),
        (lambda expert: _swap(expert, "z", "é"), "differs from the policy's in 1 of 45 tokens (the first, 'z', is 42"),
        (lambda expert: (expert / "tokenizer.json").write_text("{"), "has no tokenizer that can be read"),
        (lambda expert: (expert / "config.json").unlink(), "[expert] model: "),
        (lambda expert: (expert / "model.safetensors").unlink(), "has no weights"),
    ],
)
async def test_an_expert_that_cannot_score_the_policys_tokens_is_one_sentence_and_exit_code_two(
    bench: ScorerBench, spawn: Callable[..., subprocess.Popen[bytes]], spoil: Callable[[Path], object], said: str
) -> None:
    spoil(bench.directory / "expert")
    assert await asyncio.to_thread(spawn("scorer-1").wait, 60) == 2
    lines = (bench.directory / "scorer-1.log").read_text().strip().splitlines()
    assert any(line.startswith("scorer-1: [expert] model: ") and said in line for line in lines), lines[-3:]
    assert await bench.scores.identity() == ""


async def test_an_expert_may_know_more_tokens_than_the_policy(bench: ScorerBench) -> None:
    path = bench.directory / "expert" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"]["é"] = 45
    path.write_text(json.dumps(tokenizer))
    assert open_expert(bench.settings).model.max_model_len == 64


async def test_a_scorer_in_a_run_without_a_scored_expert_says_what_to_do(
    tmp_path: Path, bench: ScorerBench, spawn: Callable[..., subprocess.Popen[bytes]]
) -> None:
    bench.run_file.write_text(RUN.format(reclaim_after_s=1.0))
    assert load_run(bench.run_file).expert.policy == "unit"
    assert await asyncio.to_thread(spawn("scorer-1").wait, 60) == 2
    assert '[expert] policy is "unit"' in (bench.directory / "scorer-1.log").read_text()


def _swap(expert: Path, one: str, other: str) -> None:
    path = expert / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    ids = vocabulary.pop(one), vocabulary.pop(other, None)
    vocabulary[other] = ids[0]
    if ids[1] is not None:
        vocabulary[one] = ids[1]
    path.write_text(json.dumps(tokenizer))


async def _holds(condition: Callable[[], object]) -> bool:
    return bool(condition())


async def _either(known: bool, asked: object) -> bool:
    return bool(await asked) or known  # type: ignore[misc]
