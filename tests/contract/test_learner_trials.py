"""Dry runs in a learner that trains: answered from the step that it makes, without touching what it makes of it."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from common.config.live import merge_patch, parse_live
from common.examined import Examined
from common.trials import KEPT_S, Candidate, Trial, Trials
from tests.contract.learner_rig import LIVE, Rig, make_group, make_unsolved_group, saved_tensors, write_run
from tests.contract.learner_rig import checkpoint_of as checkpoint

FIGURES = {
    *("algorithm", "loss", "terms", "gradient_weight", "pull", "entropy", "ratio", "effective_sample_size"),
    *("clip_fraction", "cosine", "tokens", "trajectories", "missing_trajectories", "notes"),
}
LUFFY = {"algorithm": {"kind": "luffy", "rollouts": 4}, "hints": {"kind": "demonstration"}}


@pytest_asyncio.fixture
async def rig(tmp_path: Path, redis_server: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    rig = Rig(write_run(tmp_path))
    yield rig
    await rig.close()


def trial(name: str, **patches: Any) -> Trial:
    candidates = tuple(Candidate(label, parse_live(merge_patch(LIVE, patch))) for label, patch in patches.items())
    return Trial(name, candidates, asked_s=9e9)


def trials(rig: Rig) -> Trials:
    return Trials(rig.process.redis, rig.process.keys)


async def answer(rig: Rig, trial_id: str) -> dict[str, Any]:
    async def answered() -> bool:
        return await trials(rig).finding(trial_id) is not None

    await rig.until(answered)
    found = await trials(rig).finding(trial_id)
    assert found is not None
    return found


async def test_a_trial_is_answered_from_the_very_next_step(rig: Rig) -> None:
    await rig.prepare(**LUFFY)
    small_gamma = {**LUFFY, "algorithm": {"kind": "luffy", "rollouts": 4, "gamma": 0.3}}
    asked = trial("t1", **{"γ=0.3": small_gamma, "srft": {**LUFFY, "algorithm": {"kind": "srft", "rollouts": 4}}})
    assert await trials(rig).ask(asked)
    await rig.emit([make_unsolved_group(0), make_group(1)])
    rig.start()
    (step,) = await rig.steps(1)
    found = await answer(rig, "t1")
    assert (found["step"], found["revision"]) == (1, 1)
    assert found["seconds"] > 0
    assert found["active"].keys() == FIGURES
    assert [c["label"] for c in found["candidates"]] == ["γ=0.3", "srft"]
    assert all(c["problem"] == "" and c["finding"].keys() == FIGURES for c in found["candidates"])
    for figure in ("loss", "terms", "gradient_weight", "entropy", "ratio", "effective_sample_size", "clip_fraction"):
        assert found["active"][figure] == step[figure], figure
    assert found["active"]["cosine"] == pytest.approx(1, abs=1e-12)
    assert (found["active"]["tokens"], found["active"]["notes"]) == (step["tokens"], [])
    first = found["candidates"][0]["finding"]
    assert 0.9 < first["cosine"] < 1
    assert first["gradient_weight"]["policy"] == step["gradient_weight"]["policy"]
    assert first["pull"]["demonstration"] != found["active"]["pull"]["demonstration"]
    assert await trials(rig).waiting() == []


async def test_a_trial_leaves_the_training_as_it_would_have_been(rig: Rig, tmp_path: Path, redis_server: Any) -> None:
    weights: list[dict[str, bytes]] = []
    for name, asks in (("alone", False), ("tried", True)):
        twin = Rig(write_run(tmp_path / name))
        await twin.process.redis.flushall()
        await twin.prepare(**LUFFY)
        if asks:
            assert await trials(twin).ask(trial("t", srft={**LUFFY, "algorithm": {"kind": "srft", "rollouts": 4}}))
        await twin.emit([make_unsolved_group(0), make_group(1), make_group(2), make_unsolved_group(3)])
        twin.start()
        await twin.steps(2)
        assert await twin.stop() == 0
        weights.append(saved_tensors(checkpoint(tmp_path / name / "run", 2)))
        await twin.close()
    assert weights[0] == weights[1]


async def test_a_candidate_that_cannot_be_evaluated_is_answered_with_its_problem(rig: Rig) -> None:
    await rig.prepare()
    with_kl = {"algorithm": {"kind": "grpo", "rollouts": 4, "kl_coefficient": 0.1}}
    await trials(rig).ask(trial("t", kl=with_kl, fine={"sampling": {"temperature": 0.5}}))
    await rig.emit([make_group(0), make_group(1)])
    rig.start()
    found = await answer(rig, "t")
    refused, fine = found["candidates"]
    assert refused["finding"] is None
    assert "needs the frozen reference" in refused["problem"]
    assert fine["finding"]["notes"] == ["log-probs and entropy are those at the temperature in force, 1.0, not at 0.5"]
    assert rig.process.registry.get_sample_value("tributary_trial_candidates_total", {"result": "failed"}) == 1


async def test_an_unexpected_failure_of_a_candidate_stops_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr("learner.insight.inspection.effect", broken)
    await rig.prepare()
    await trials(rig).ask(trial("t", same={}))
    await rig.emit(make_group(n) for n in range(4))
    rig.start()
    found = await answer(rig, "t")
    assert found["active"] is None
    assert found["candidates"][0]["problem"] == (
        "it could not be evaluated on this step: ZeroDivisionError: by nothing"
    )
    await rig.steps(2)


def failures(rig: Rig, count: int) -> Callable[[], Awaitable[bool]]:
    async def counted() -> bool:
        return (rig.process.registry.get_sample_value("tributary_redis_failures_total") or 0) >= count

    return counted


async def test_a_redis_that_does_not_take_what_is_for_display_stops_nothing(rig: Rig) -> None:
    await rig.prepare()
    await rig.process.redis.set(rig.process.keys.examined, "no stream")
    await rig.process.redis.set(rig.process.keys.trials, "no list")
    await rig.emit(make_group(n) for n in range(4))
    rig.start()
    await rig.steps(2)
    await rig.until(failures(rig, 2))  # the second step is inspected after its event
    await rig.process.redis.delete(rig.process.keys.trials)
    await rig.emit(make_group(n) for n in range(4, 6))
    await rig.steps(3)
    await rig.until(failures(rig, 3))
    assert rig.process.registry.get_sample_value("tributary_examined_groups_total", {"result": "failed"}) == 2


async def test_old_trials_are_dropped_and_unreadable_ones_answered_away(rig: Rig) -> None:
    await rig.prepare()
    board = trials(rig)
    old = Trial("old", trial("x", same={}).candidates, asked_s=9e8 - KEPT_S)
    await board.ask(old)
    await rig.process.redis.rpush(rig.process.keys.trials, b"{not json", json.dumps({"id": "half"}))
    await rig.emit([make_group(0), make_group(1)])
    rig.start()

    async def nothing_waits() -> bool:
        return not await rig.process.redis.exists(rig.process.keys.trials)

    await rig.until(nothing_waits)
    assert await board.finding("old") is None


async def test_a_trial_waits_while_there_are_no_groups(rig: Rig) -> None:
    await rig.prepare()
    rig.start()

    async def waits() -> bool:
        return bool(rig.process.details.get("waiting"))

    await rig.until(waits)
    await trials(rig).ask(trial("t", same={}))
    assert await trials(rig).is_waiting("t")
    await rig.emit([make_group(0), make_group(1)])
    assert (await answer(rig, "t"))["step"] == 1


async def test_trials_are_answered_when_no_groups_are_to_be_examined(
    tmp_path: Path, redis_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    rig = Rig(write_run(tmp_path, learner="examined_groups = 0"))
    await rig.prepare()
    await trials(rig).ask(trial("t", same={}))
    await rig.emit([make_group(0), make_group(1)])
    rig.start()
    assert (await answer(rig, "t"))["candidates"][0]["finding"]["cosine"] == pytest.approx(1, abs=1e-12)
    assert await Examined(rig.process.redis, rig.process.keys).newest(9) == []
    await rig.close()


async def test_a_few_groups_of_each_step_are_kept_as_the_learner_saw_them(rig: Rig) -> None:
    await rig.prepare(groups_per_step=3, **LUFFY)
    groups = [make_unsolved_group(0), *(make_group(n) for n in range(1, 6))]
    await rig.emit(groups)
    rig.start()
    await rig.steps(2)
    examined = Examined(rig.process.redis, rig.process.keys)

    async def kept() -> bool:
        return len(await examined.newest(9)) == 4

    await rig.until(kept)
    found = list(reversed(await examined.newest(9)))
    # Two of three: the first two, then the third and the first again.
    assert [k.group.group_id for k in found] == [groups[i].group_id for i in (0, 1, 5, 3)]
    first = found[0].group
    assert (first.step, first.revision, first.version, first.algorithm) == (1, 1, 0, "luffy")
    assert found[2].group.version == 1
    rollout, expert = first.trajectories[0], first.trajectories[4]
    assert (rollout.reward, expert.reward) == (0, 1)
    assert expert.advantage == pytest.approx(0.8)
    assert math.isnan(rollout.ratios[3])
    assert not math.isnan(rollout.ratios[4])
    sampled = groups[0].trajectories[0].behaviour_logprobs[4:]
    assert rollout.ratios[4:] == pytest.approx(
        [math.exp(p - b) for p, b in zip(rollout.policy_logprobs[4:], sampled, strict=True)], rel=1e-5
    )
    assert rig.process.registry.get_sample_value("tributary_examined_groups_total", {"result": "done"}) == 4
