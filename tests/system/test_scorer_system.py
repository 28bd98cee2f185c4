"""The scorer as a program with a real engine: its log-probs are a forward's, and a kill in the middle loses nothing."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import pytest_asyncio
from generator_bench import GeneratorBench, until
from redis_process import RedisProcess

from common import connection
from common.expert_scores import ExpertScores, score_key
from common.trajectory import ScoreTask
from tests.system.engine_rig import EOS, VOCABULARY, PublishedLlama

pytestmark = [pytest.mark.asyncio, pytest.mark.engine, pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(1200)]
TOLERANCE = 1e-4
LIMIT_S = 300.0
"""Far more than is needed: the machine may be busy with something else."""
RUN = """
[run]
name = "test"
directory = "run"
[model]
path = "./llama"
dtype = "float32"
max_model_len = 128
[data]
path = "train.jsonl"
[generator]
reclaim_after_s = {reclaim_after_s}
[expert]
policy = "scored"
model = "./llama"
kv_cache_mb = 64
max_num_seqs = 8
"""


@pytest_asyncio.fixture
async def bench(
    tmp_path: Path, redis_server: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[GeneratorBench]:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    redis = connection.connect(redis_server.url)
    yield GeneratorBench(tmp_path, redis, reclaim_after_s=1.0, run=RUN)
    await redis.aclose()


@pytest.fixture
def spawn(bench: GeneratorBench) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts real scorers; whatever still runs at the end is killed."""
    spawned: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        spawned.append(bench.spawn("scorer-1", (sys.executable, "-m", "services.generator.scoring")))
        return spawned[-1]

    yield start
    for process in spawned:
        process.kill()
        process.wait()


async def test_scores_equal_a_forward_and_survive_a_kill(
    bench: GeneratorBench, spawn: Callable[[], subprocess.Popen[bytes]]
) -> None:
    model = PublishedLlama(bench.directory / "llama", tied=False)
    scores = ExpertScores(bench.redis, bench.keys)
    victim = spawn()
    await until(scores.identity, LIMIT_S)
    tasks = _tasks(await scores.identity(), 400)
    await scores.ask(tasks)
    await until(lambda: _are_known(scores, tasks, 8), LIMIT_S)
    family = psutil.Process(victim.pid).children(recursive=True)
    victim.kill()
    victim.wait()
    _, alive = psutil.wait_procs(family, timeout=5)
    assert alive == [], "the engine core outlived its scorer"
    kept = await scores.known([task.key for task in tasks])
    assert 8 <= len(kept) < 400, "it was killed in the middle"

    second = spawn()
    await until(lambda: _are_known(scores, tasks, 400), LIMIT_S)
    assert await scores.tasks.length() == 0
    known = await scores.known([task.key for task in tasks])
    for task in tasks[:20]:
        _require_forward(model, task, known[task.key].logprobs)
    for key, score in kept.items():
        np.testing.assert_array_equal(np.asarray(score.logprobs), np.asarray(known[key].logprobs))
    await _require_the_longest_and_refuse_the_too_long(scores, model)
    second.terminate()
    assert await asyncio.to_thread(second.wait, 20) == 0


async def _require_the_longest_and_refuse_the_too_long(scores: ExpertScores, model: PublishedLlama) -> None:
    """What just fills the policy's context of 128 is scored; one token more is not, and neither is a foreign token."""
    identity = await scores.identity()
    longest, too_long = (_task(identity, np.full(8, 9, np.int32), np.full(n, 11, np.int32)) for n in (120, 121))
    foreign = _task(identity, np.full(8, 9, np.int32), np.array([11, VOCABULARY], np.int32))
    await scores.ask([longest, too_long, foreign])
    await until(lambda: _are_known(scores, [longest, too_long, foreign], 3), LIMIT_S)
    known = await scores.known([longest.key, too_long.key, foreign.key])
    _require_forward(model, longest, known[longest.key].logprobs)
    assert known[too_long.key].reason == "it has 129 tokens with its prompt, and the expert scores up to 128"
    assert "vocabulary of 64" in known[foreign.key].reason


def _require_forward(model: PublishedLlama, task: ScoreTask, logprobs: object) -> None:
    sequence = [*task.prompt_tokens.tolist(), *task.tokens.tolist()]
    expected = model.logprobs(0, sequence)[len(task.prompt_tokens) - 1 :]
    np.testing.assert_allclose(np.asarray(logprobs), expected, atol=TOLERANCE)


def _task(identity: str, prompt: np.ndarray, tokens: np.ndarray) -> ScoreTask:
    return ScoreTask(score_key(identity, prompt, tokens), prompt, tokens)


def _tasks(identity: str, count: int) -> list[ScoreTask]:
    """Random demonstrations that end with EOS, each after a prompt of its own."""
    rng = np.random.default_rng(3)
    made: list[ScoreTask] = []
    for _ in range(count):
        prompt, tokens = (rng.integers(2, VOCABULARY, rng.integers(1, 60)).astype(np.int32) for _ in range(2))
        made.append(_task(identity, prompt, np.append(tokens, np.int32(EOS))))
    return made


async def _are_known(scores: ExpertScores, tasks: list[ScoreTask], count: int) -> bool:
    return len(await scores.known([task.key for task in tasks])) >= count
