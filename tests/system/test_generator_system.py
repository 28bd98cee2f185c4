"""Two generators with real vLLM engines on the addition base model: killed, given new weights, drained, stopped."""

from __future__ import annotations

import asyncio
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import pytest_asyncio
import torch
from fake_engine import ROOT
from generator_bench import GeneratorBench, until
from publications import Tensors
from redis_process import RedisProcess
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from common import connection
from common.events import EventKind
from common.orders import Orders
from common.trajectory import Demonstration, GroupPlan, Purpose, Request, Sampling, Source, Trajectory
from common.weights import Canary
from examples.addition import task
from learner.publication.canary import Singer, canary_tokens

pytestmark = [pytest.mark.asyncio, pytest.mark.engine, pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(1500)]
START_S, LIMIT_S = 600.0, 300.0
"""Far more than is needed: the machine may be busy with something else."""
BASE = ROOT / "examples" / "addition" / "base"
RUN = f"""
[run]
name = "test"
directory = "run"
[model]
path = "{BASE}"
dtype = "float32"
[data]
path = "train.jsonl"
[generator]
requests_in_flight = 8
reclaim_after_s = {{reclaim_after_s}}
kv_cache_mb = 64
"""


@pytest_asyncio.fixture
async def bench(
    tmp_path: Path, redis_server: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[GeneratorBench]:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    redis = connection.connect(redis_server.url)
    yield GeneratorBench(tmp_path, redis, reclaim_after_s=3.0, run=RUN)
    await redis.aclose()


@pytest.fixture
def spawn(bench: GeneratorBench) -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """Starts real generators; whatever still runs at the end is killed."""
    spawned: list[subprocess.Popen[bytes]] = []

    def start(name: str) -> subprocess.Popen[bytes]:
        spawned.append(bench.spawn(name, (sys.executable, "-m", "services.generator")))
        return spawned[-1]

    yield start
    for process in spawned:
        process.kill()
        process.wait()


def additions(count: int, **changes: object) -> list[Request]:
    """Training requests for eight rollouts of an easy problem each, four of them from a hint of one step."""
    encode = AutoTokenizer.from_pretrained(BASE)
    rng = random.Random(5)
    requests: list[Request] = []
    for i, problem in enumerate(task.draw_distinct(rng, task.EASY, count)):
        tokens = [
            np.array(encode(text)["input_ids"], np.int32)
            for text in (task.prompt(problem), task.demonstration(problem))
        ]
        made: dict[str, object] = {
            "request_id": f"r{i}",
            "prompt_id": f"p{i}",
            "purpose": Purpose.TRAIN,
            "revision": 1,
            "prompt_tokens": tokens[0],
            "answer": task.answer(problem),
            "plan": GroupPlan(plain=4, branched=4, hint_length=9, demonstrations=1),
            "sampling": Sampling(1.0, 64),
            "demonstrations": (Demonstration(np.append(tokens[1], np.int32(encode.eos_token_id))),),
        }
        requests.append(Request(**(made | changes)))  # type: ignore[arg-type]
    return requests


async def test_a_killed_generator_loses_nothing_new_weights_are_served_and_a_stopped_one_leaves_no_orphan(
    bench: GeneratorBench, spawn: Callable[[str], subprocess.Popen[bytes]]
) -> None:
    first, second = spawn("generator-1"), spawn("generator-2")
    await until(lambda: _states(bench, "running"), START_S)
    await _a_kill_in_the_middle_loses_nothing(bench, first)
    await _new_weights_are_served(bench)
    await _what_is_added_is_graded(bench)
    await _a_drained_generator_finishes_and_waits(bench, "generator-2")
    await _wrong_weights_are_not(bench)
    await _a_stop_in_the_middle_leaves_no_orphan(bench, second)


async def _a_kill_in_the_middle_loses_nothing(bench: GeneratorBench, victim: subprocess.Popen[bytes]) -> None:
    requests = additions(80)
    await bench.issue(*requests)
    await until(lambda: _busy(bench, "generator-1"), LIMIT_S)
    family = psutil.Process(victim.pid).children(recursive=True)
    victim.kill()
    victim.wait()
    assert await _busy(bench, "generator-1"), "it was killed in the middle of requests"
    await until(lambda: _answered(bench, 80), LIMIT_S)
    groups = await bench.groups()
    assert sorted(group.group_id for group in groups) == sorted(made.request_id for made in requests)
    assert len(await bench.outcomes()) == 80
    assert await bench.quarantined() == []
    _, alive = psutil.wait_procs(family, timeout=5)
    assert alive == [], "an engine core or a grader outlived its generator"
    for group in groups:
        _require_as_planned(group.trajectories, requests[int(group.group_id[1:])])


async def _new_weights_are_served(bench: GeneratorBench) -> None:
    tensors = load_file(BASE / "model.safetensors")
    await bench.weights.announce(bench.publications.anchor(1, tensors, canary_of(tensors)))
    await until(lambda: _applied(bench, 1), LIMIT_S)
    await bench.issue(*additions(32, purpose=Purpose.EVALUATE, plan=GroupPlan(plain=1), score_demonstration=True))
    await until(lambda: _outcomes(bench, 112), LIMIT_S)
    evaluated = [outcome for outcome in await bench.outcomes() if outcome.purpose is Purpose.EVALUATE]
    assert {outcome.version for outcome in evaluated} == {1}
    assert np.mean([outcome.rewards[0] for outcome in evaluated]) >= 0.85, "the base model masters easy problems"
    assert all(-40 < (outcome.demonstration_logprob or 0) < 0 for outcome in evaluated)


async def _what_is_added_is_graded(bench: GeneratorBench) -> None:
    right, wrong = additions(2, purpose=Purpose.GRADE, plan=GroupPlan(plain=0, demonstrations=1))
    groups = len(await bench.groups())
    await bench.issue(replace(right, request_id="right"), replace(wrong, request_id="wrong", answer="no number"))
    await until(lambda: _outcomes(bench, 114), LIMIT_S)
    graded = {o.request_id: o.rewards for o in await bench.outcomes() if o.purpose is Purpose.GRADE}
    assert graded == {"right": (1.0,), "wrong": (0.0,)}
    assert len(await bench.groups()) == groups


async def _a_drained_generator_finishes_and_waits(bench: GeneratorBench, name: str) -> None:
    before, orders = len(await bench.groups()), Orders(bench.redis, bench.keys)
    await bench.issue(*additions(80))
    await until(lambda: _busy(bench, name), LIMIT_S)
    await orders.drain(name, "test", at_s=0.0)
    await until(lambda: _drained(bench, name), LIMIT_S)
    answered = len(await bench.groups()) - before
    assert 0 < answered < 80, "it finished what it held, and no more"
    await asyncio.sleep(1.0)
    assert len(await bench.groups()) == before + answered
    assert await bench.delivery.requests.length() == 80 - answered
    await orders.admit(name)
    await until(lambda: _answered(bench, before + 80), LIMIT_S)


async def _wrong_weights_are_not(bench: GeneratorBench) -> None:
    base = load_file(BASE / "model.safetensors")
    trained = moved(base, seed=2)
    await bench.weights.announce(bench.publications.delta(2, 1, (base, trained), canary_of(moved(base, seed=3))))
    await until(lambda: _in_trouble(bench), LIMIT_S)
    trouble = (await bench.heartbeat("generator-2"))["trouble"]
    assert re.search(
        r"the canary refutes version 2: .* by up to [\d.]+ and by [\d.]+ in the mean; up to 0.001", trouble
    )
    before = len(await bench.groups())
    await bench.issue(*(replace(r, request_id=f"again-{r.request_id}") for r in additions(8, prompt_id="again")))
    await asyncio.sleep(1.0)
    assert len(await bench.groups()) == before, "nothing is given out under weights that are refuted"
    await bench.weights.announce(bench.publications.delta(3, 2, (trained, base), canary_of(base)))
    await until(lambda: _applied(bench, 3), LIMIT_S)
    assert (await bench.events(EventKind.UPDATE))[-1].data["canary"] < 1e-4
    await until(lambda: _answered(bench, before + 8), LIMIT_S)
    again = [group for group in await bench.groups() if group.prompt_id == "again"]
    assert {group.oldest_version for group in again} == {3}


def moved(tensors: Tensors, seed: int) -> Tensors:
    """Tensors of which one element in a hundred was changed."""
    rng = np.random.default_rng(seed)
    return {
        name: np.where(rng.random(t.shape) < 0.01, rng.normal(size=t.shape), t).astype(np.float32)
        for name, t in tensors.items()
    }


def canary_of(tensors: Tensors) -> Canary:
    """What a learner makes of weights of the base model."""
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    tokens = canary_tokens("test", 0, model.config.vocab_size, 256)
    return Singer(model, tokens).sing({name: torch.from_numpy(tensor.copy()) for name, tensor in tensors.items()})


async def _a_stop_in_the_middle_leaves_no_orphan(bench: GeneratorBench, stopped: subprocess.Popen[bytes]) -> None:
    before = len(await bench.groups())
    await bench.issue(*additions(40))
    await until(lambda: _busy(bench, "generator-2"), LIMIT_S)
    family = psutil.Process(stopped.pid).children(recursive=True)
    began_s = time.monotonic()
    stopped.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(stopped.wait, 60) == 0
    assert time.monotonic() - began_s < 20
    _, alive = psutil.wait_procs(family, timeout=2)
    assert alive == []
    answered = len(await bench.groups()) - before
    assert await bench.delivery.requests.length() == 40 - answered, "what was not answered waits for another"


def _require_as_planned(trajectories: tuple[Trajectory, ...], made: Request) -> None:
    prompt, demonstration = made.prompt_tokens.tolist(), made.demonstrations[0].tokens.tolist()
    assert len(trajectories) == 9
    for i, trajectory in enumerate(trajectories):
        start = prompt if i < 4 else prompt + (demonstration[:9] if i < 8 else demonstration)
        assert trajectory.tokens[: len(start)].tolist() == start
        assert trajectory.hint_length == (9 if 4 <= i < 8 else 0)
        sampled = trajectory.sources == Source.POLICY
        assert (trajectory.behaviour_logprobs[sampled] < 0).mean() > 0.5 if i < 8 else not sampled.any()
        assert [(s.version, s.start, s.end) for s in trajectory.versions] == (
            [(0, len(start), len(trajectory.tokens))] if i < 8 else []
        )
    assert trajectories[8].reward == 1.0


async def _states(bench: GeneratorBench, state: str) -> bool:
    return all([(await bench.heartbeat(f"generator-{i}")).get("state") == state for i in (1, 2)])


async def _in_trouble(bench: GeneratorBench) -> bool:
    return bool((await bench.heartbeat("generator-2")).get("trouble"))


async def _busy(bench: GeneratorBench, name: str) -> bool:
    """Whether a generator holds requests now, as Redis sees it."""
    consumers = await bench.redis.xinfo_consumers(bench.keys.requests, "generators")
    return any(c["pending"] > 0 for c in consumers if c["name"].decode().startswith(f"{name}."))


async def _answered(bench: GeneratorBench, count: int) -> bool:
    return len(await bench.groups()) >= count and len(await bench.outcomes()) >= count


async def _outcomes(bench: GeneratorBench, count: int) -> bool:
    return len(await bench.outcomes()) >= count


async def _drained(bench: GeneratorBench, name: str) -> bool:
    return bool((await bench.heartbeat(name)).get("drained"))


async def _applied(bench: GeneratorBench, version: int) -> bool:
    return any(event.data["version"] == version for event in await bench.events(EventKind.UPDATE))
