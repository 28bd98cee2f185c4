"""Groups over HTTP, on a real Redis: kept as the learner keeps them, shown token by token."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from control_bench import Bench, opened
from redis_process import RedisProcess
from tiny_tokenizer import ALPHABET, EOS, write_tokenizer

from common.examined import Examined, ExaminedGroup, ExaminedTrajectory
from common.trajectory import Source

NAN = float("nan")
PROMPT, POLICY, HINT, DEMONSTRATION = (int(s) for s in Source)


@pytest_asyncio.fixture
async def bench(redis_server: RedisProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    # The run file names the model directory m beside it.
    write_tokenizer(tmp_path / "m")
    async with opened(tmp_path) as bench:
        yield bench


def ids(text: str) -> list[int]:
    return [3 + ALPHABET.index(c) for c in text]


def trajectory(response: str, sources: list[int], reward: float, advantage: float | None) -> ExaminedTrajectory:
    tokens = [*ids("1+2="), *ids(response), EOS]
    sources = [PROMPT] * 4 + sources
    sampled = np.asarray([s == POLICY for s in sources])
    count = len(tokens)
    logprobs = np.where(sampled, -0.5, NAN).astype(np.float32)
    return ExaminedTrajectory(
        tokens=np.asarray(tokens, dtype=np.int32),
        sources=np.asarray(sources, dtype=np.uint8),
        versions=np.where(sampled, 6 + np.arange(count) % 2, -1).astype(np.int32),
        behaviour_logprobs=logprobs,
        expert_logprobs=np.full(count, NAN, dtype=np.float32),
        policy_logprobs=np.where(np.asarray(sources) != PROMPT, -0.25, NAN).astype(np.float32),
        ratios=np.where(sampled, 1.2840254, NAN).astype(np.float32),
        advantage=advantage,
        reward=reward,
        reward_parts={"marker": reward},
    )


def group(number: int, prompt_id: str = "train:0") -> ExaminedGroup:
    trajectories = (
        trajectory("4", [POLICY, POLICY], 0.0, -0.5),
        trajectory("3", [HINT, POLICY], 1.0, 0.5),
        trajectory("3", [DEMONSTRATION] * 2, 1.0, None),
    )
    return ExaminedGroup(f"g{number}", prompt_id, "generator-1", number, 2, 7, "luffy", time.time(), trajectories)


async def keep(bench: Bench, *groups: ExaminedGroup) -> None:
    examined = Examined(bench.process.redis, bench.process.keys)
    for kept in groups:
        assert await examined.keep(kept)


async def test_a_group_is_told_token_by_token_with_what_the_learner_saw(bench: Bench) -> None:
    await keep(bench, group(9))
    (summary,) = (await bench.http.get("/v1/groups")).json()["groups"]
    assert (summary["group_id"], summary["step"], summary["revision"], summary["version"]) == ("g9", 9, 2, 7)
    assert summary["kinds"] == ["rollout", "hinted", "demonstration"]
    assert (summary["rewards"], summary["tokens"]) == ([0.0, 1.0, 1.0], 6)
    answer = await bench.http.get(f"/v1/groups/{summary['id']}")
    told = answer.json()
    assert answer.headers["content-type"] == "application/json"
    assert {**told, "trajectories": 0, "notice": 0} == {**summary, "trajectories": 0, "notice": 0}
    assert told["notice"] == ""
    first, hinted, shown = told["trajectories"]
    assert (first["advantage"], first["reward_parts"], first["versions"]) == (-0.5, {"marker": 0.0}, [6, 7])
    tokens = first["tokens"]
    assert tokens["id"] == [*ids("1+2=4"), EOS]
    assert [piece.strip() for piece in tokens["text"]] == ["1", "+", "2", "=", "4", "<eos>"]
    assert tokens["source"] == ["prompt"] * 4 + ["policy"] * 2
    assert tokens["version"] == [None] * 4 + [6, 7]
    assert tokens["behaviour_logprob"] == [None] * 4 + [-0.5] * 2
    assert tokens["policy_logprob"] == [None] * 4 + [-0.25] * 2
    assert tokens["expert_logprob"] == [None] * 6
    assert tokens["ratio"] == [None] * 4 + [1.28403] * 2
    assert hinted["tokens"]["source"][4:] == ["hint", "policy"]
    assert (shown["advantage"], shown["versions"]) == (None, [])


async def test_groups_come_newest_first_in_pages_and_by_prompt(bench: Bench) -> None:
    await keep(bench, *(group(n, f"train:{n % 3}") for n in range(7)))
    first = (await bench.http.get("/v1/groups", params={"limit": 5})).json()
    assert [g["step"] for g in first["groups"]] == [6, 5, 4, 3, 2]
    assert first["previous"] == first["groups"][-1]["id"]
    rest = (await bench.http.get("/v1/groups", params={"limit": 5, "before": first["previous"]})).json()
    assert ([g["step"] for g in rest["groups"]], rest["previous"]) == ([1, 0], None)
    of_prompt = (await bench.http.get("/v1/groups", params={"prompt_id": "train:1"})).json()
    assert [g["step"] for g in of_prompt["groups"]] == [4, 1]
    assert (await bench.http.get("/v1/groups", params={"prompt_id": "train:8"})).json()["groups"] == []


async def test_a_group_that_is_not_kept_is_404_and_no_id_at_all_is_422(bench: Bench) -> None:
    assert (await bench.http.get("/v1/groups/1-1")).status_code == 404
    assert (await bench.http.get("/v1/groups", params={"before": "0-0"})).json()["groups"] == []
    for path in ("/v1/groups/x", "/v1/groups/99999999999999999999-1", "/v1/groups?before=x", "/v1/groups?limit=0"):
        assert (await bench.http.get(path)).status_code == 422, path


async def test_a_group_that_cannot_be_read_is_left_out(bench: Bench) -> None:
    await bench.process.redis.xadd(bench.process.keys.examined, {"payload": b"\xffnoise"}, id="5-1")
    await keep(bench, group(1))
    assert [g["step"] for g in (await bench.http.get("/v1/groups")).json()["groups"]] == [1]
    assert (await bench.http.get("/v1/groups/5-1")).status_code == 404


async def test_without_a_tokenizer_tokens_are_shown_by_their_ids_and_it_is_said_why(
    bench: Bench, tmp_path: Path
) -> None:
    (tmp_path / "m" / "tokenizer.json").write_text("{}")
    await keep(bench, group(1))
    listed = (await bench.http.get("/v1/groups")).json()
    assert "cannot be read" in listed["notice"]
    told = (await bench.http.get(f"/v1/groups/{listed['groups'][0]['id']}")).json()
    assert told["trajectories"][0]["tokens"]["text"][:2] == ["⟨4⟩", "⟨13⟩"]
    assert "shown by their ids" in told["notice"]


async def test_reading_a_large_group_leaves_others_served(bench: Bench) -> None:
    one = trajectory("4", [POLICY, POLICY], 0.0, -0.5)
    long: dict[str, Any] = {name: np.resize(getattr(one, name), 16_000) for name in ("tokens", "sources", "versions")}
    numbers = {n: np.resize(getattr(one, n), 16_000) for n in ("behaviour_logprobs", "policy_logprobs", "ratios")}
    large = ExaminedTrajectory(
        **long, **numbers, expert_logprobs=numbers["ratios"], advantage=0.1, reward=1.0, reward_parts={}
    )
    await keep(bench, ExaminedGroup("g", "train:0", "generator-1", 1, 1, 1, "grpo", 1.0, (large,) * 8))
    (summary,) = (await bench.http.get("/v1/groups")).json()["groups"]
    assert summary["tokens"] > 40_000
    told = (await bench.http.get(f"/v1/groups/{summary['id']}")).json()
    assert sum(len(t["tokens"]["text"]) for t in told["trajectories"]) == 128_000
