"""What feeds an algorithm: refusals when policy or data do not, the schedule of hints, the buffer of demonstrations."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from control_bench import Bench, opened
from pretended_run import PretendedRun
from redis_process import RedisProcess

from common.config.algorithm import ALGORITHMS, AlgorithmConfig
from common.config.base import Material
from common.config.hints import HINT_POLICIES, HintConfig

LUFFY = {"algorithm": {"kind": "luffy"}, "hints": {"kind": "demonstration"}}
FEEDING = [a for a in ALGORITHMS if a.requires]
# No algorithm that does without demonstrations takes whole ones: those policies are refused for its sake already.
SHOWING = [h for h in HINT_POLICIES if h.model_validate(h.suggestion).provides == {Material.HINTS}]


@pytest_asyncio.fixture
async def bench(redis_server: RedisProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    async with opened(tmp_path) as bench:
        yield bench


@pytest.mark.parametrize("algorithm", FEEDING, ids=lambda a: str(a.model_fields["kind"].default))
async def test_an_algorithm_that_needs_demonstrations_is_refused_when_the_data_has_none(
    bench: Bench, algorithm: type[AlgorithmConfig]
) -> None:
    await bench.process.redis.hset(bench.process.keys.facts, "train_demonstrations", "0")  # pyright: ignore
    kind = str(algorithm.model_fields["kind"].default)
    document = {"algorithm": {"kind": kind}, "hints": algorithm.published_hints}
    answer = await bench.patch(document)
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error["path"] == "algorithm.kind"
    assert f'algorithm "{kind}" learns from' in error["message"]
    assert 'choose one of "reinforce", "grpo", "dr_grpo", "dapo" with {"hints": {"kind": "none"}}' in error["message"]
    assert await bench.process.config.number() == 1
    await bench.process.redis.hset(bench.process.keys.facts, "train_demonstrations", "1")  # pyright: ignore
    assert (await bench.patch(document)).status_code == 200


@pytest.mark.parametrize("policy", SHOWING, ids=lambda h: str(h.model_fields["kind"].default))
async def test_a_hint_policy_that_shows_demonstrations_is_refused_when_the_data_has_none(
    bench: Bench, policy: type[HintConfig]
) -> None:
    await bench.process.redis.hset(bench.process.keys.facts, "train_demonstrations", "0")  # pyright: ignore
    hints = policy.model_validate(policy.suggestion)
    answer = await bench.patch({"algorithm": {"kind": "grpo"}, "hints": hints.model_dump(mode="json")})
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error["path"] == "hints.kind"
    assert 'set {"hints": {"kind": "none"}} in the same change' in error["message"]
    assert await bench.process.config.number() == 1


async def test_a_rollback_to_an_algorithm_that_the_data_cannot_feed_is_refused(bench: Bench) -> None:
    assert (await bench.patch(LUFFY)).status_code == 200
    assert (await bench.http.post("/v1/config/rollback", json={"revision": 1})).status_code == 200
    await bench.process.redis.hset(bench.process.keys.facts, "train_demonstrations", "0")  # pyright: ignore
    answer = await bench.http.post("/v1/config/rollback", json={"revision": 2})
    assert (answer.status_code, answer.json()["errors"][0]["path"]) == (422, "algorithm.kind")


async def test_every_algorithm_is_accepted_with_its_published_hint_policy_and_refused_with_the_remedy_without(
    bench: Bench,
) -> None:
    algorithms = (await bench.http.get("/v1/algorithms")).json()["algorithms"]
    assert len(algorithms) == len(ALGORITHMS)
    for algorithm in algorithms:
        asked = {"algorithm": {"kind": algorithm["kind"]}}
        assert (await bench.patch({**asked, "hints": algorithm["published_hints"]})).status_code == 200
        assert (await bench.patch({"algorithm": {"kind": "dr_grpo"}, "hints": {"kind": "none"}})).status_code == 200
        answer = await bench.patch(asked)
        if algorithm["requires"]:
            assert answer.status_code == 422
            remedy = json.dumps({"hints": algorithm["published_hints"]})
            assert f"set {remedy} in the same change" in answer.json()["errors"][0]["message"]
        else:
            assert answer.status_code == 200


@pytest.mark.parametrize(("kind", "level"), [("cosine_binomial", {"p": 0.62}), ("uniform_decay", {"low": 0.31})])
async def test_status_tells_where_the_hint_schedule_is(bench: Bench, kind: str, level: dict[str, float]) -> None:
    assert (await bench.status())["hint_schedule"] is None
    algorithm = {"cosine_binomial": "uft", "uniform_decay": "prefix_rft"}[kind]
    await bench.patch({"algorithm": {"kind": algorithm}, "hints": {"kind": kind}})
    await PretendedRun(bench.process.redis, "test").advance(time.time())
    told = {"kind": kind, "phase": 0.25, "p": None, "low": None, "mean_hint_length": 12.5}
    assert (await bench.status())["hint_schedule"] == told | level


async def test_status_tells_what_waits_in_the_rehearsal_buffer(bench: Bench) -> None:
    await bench.patch({"algorithm": {"kind": "relift"}, "hints": {"kind": "if_unsolved"}})
    await PretendedRun(bench.process.redis, "test").advance(time.time())
    following = asyncio.create_task(bench.control.chronicle.follow())
    while (status := await bench.status())["last_step"] is None:
        await asyncio.sleep(0)
    following.cancel()
    assert (status["rehearsal"]["waiting"], status["rehearsal"]["updated"]) == (7, False)


async def test_a_heartbeat_that_tells_of_its_schedule_in_another_form_leaves_status_whole(bench: Bench) -> None:
    beat = json.dumps({"role": "curriculum", "state": "running", "at_s": time.time(), "hint_schedule": {"kind": 3}})
    await bench.process.redis.hset(bench.process.keys.processes, "curriculum", beat)  # pyright: ignore
    assert (await bench.status())["hint_schedule"] is None
