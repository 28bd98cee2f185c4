"""Answering: plans become groups token by token as the contract says, and impossible requests are refused."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
from fake_engine import FakeEngine, decode, encode, response_to
from tiny_tokenizer import EOS

from common.tasks import together
from common.trajectory import (
    Demonstration,
    Finish,
    Group,
    GroupPlan,
    Outcome,
    Purpose,
    Request,
    Sampling,
    Source,
    Trajectory,
    VersionSpan,
)
from common.wire import decode_group, decode_request, encode_group, encode_request
from services.generator.answering import Answerer
from services.generator.graders import Grade
from services.generator.rollouts import Rollouts

PROMPT = encode("1+2=")
DEMONSTRATION = Demonstration(
    tokens=np.array([*encode("a;b;#3"), EOS], np.int32),
    boundaries=(2, 4),
    expert_logprobs=np.array([-0.1, -0.2, -0.3, -0.4, -0.5, -0.6, -0.7], np.float32),
)
REQUEST = Request(
    request_id="r1",
    prompt_id="p1",
    purpose=Purpose.TRAIN,
    revision=3,
    prompt_tokens=PROMPT,
    answer="3",
    plan=GroupPlan(plain=2),
    sampling=Sampling(1.0, 16),
)


async def ends_with(response: str, answer: str) -> Grade:
    return Grade(float(response.endswith(f"#{answer}")), {"length": float(len(response))})


async def answered(request: Request, engine: FakeEngine | None = None) -> tuple[Group, Outcome]:
    engine = engine or FakeEngine()
    answer = await Answerer("g1", engine, Rollouts(engine, ends_with, decode)).answer(request)
    return answer.group or Group("", "", 0, "", ()), answer.outcome


def with_plan(plan: GroupPlan, **changes: object) -> Request:
    return replace(REQUEST, plan=plan, demonstrations=(DEMONSTRATION,), **changes)  # type: ignore[arg-type]


def sources(trajectory: Trajectory) -> list[int]:
    return trajectory.sources.tolist()


async def test_plain_rollouts_are_prompt_and_response_with_the_log_probs_of_the_policy() -> None:
    group, outcome = await answered(REQUEST)
    first, second = group.trajectories
    assert (group.group_id, group.prompt_id, group.revision, group.generator) == ("r1", "p1", 3, "g1")
    assert first.tokens.tolist() == [*PROMPT, *response_to(PROMPT, 0)]
    assert second.tokens.tolist() == [*PROMPT, *response_to(PROMPT, 1)]
    assert sources(first) == [Source.PROMPT] * 4 + [Source.POLICY] * 6
    expected = np.array([0, 0, 0, 0, -0.50, -0.51, -0.52, -0.53, -0.54, -0.55], np.float32)
    np.testing.assert_array_equal(first.behaviour_logprobs, expected)
    assert first.expert_logprobs is None
    assert first.versions == (VersionSpan(0, 4, 10),)
    assert first.finish is Finish.STOP
    right = int(response_to(PROMPT, 0)[-2] == encode("3")[0])
    assert outcome.rewards == (first.reward, second.reward)
    assert first.reward == right
    assert first.reward_parts == {"length": 5.0}
    assert (outcome.response_tokens, outcome.hint_length, outcome.version, outcome.failure) == (12, 0, 0, "")


async def test_a_hint_and_its_continuation_are_the_very_ids_that_the_engine_was_given() -> None:
    engine = FakeEngine()
    group, outcome = await answered(with_plan(GroupPlan(plain=1, branched=2, hint_length=3)), engine)
    start = [*PROMPT, *DEMONSTRATION.tokens[:3]]
    assert [(call[0], call[1], call[3]) for call in engine.calls] == [(PROMPT.tolist(), 1, 16), (start, 2, 13)]
    plain, branched, _ = group.trajectories
    assert plain.hint_length == 0
    assert branched.tokens.tolist() == [*start, *response_to(start, 0)]
    assert sources(branched) == [Source.PROMPT] * 4 + [Source.HINT] * 3 + [Source.POLICY] * 6
    assert branched.behaviour_logprobs[:7].tolist() == [0.0] * 7
    assert branched.expert_logprobs is not None
    np.testing.assert_array_equal(
        branched.expert_logprobs, np.array([0, 0, 0, 0, -0.1, -0.2, -0.3, 0, 0, 0, 0, 0, 0], np.float32)
    )
    assert branched.versions == (VersionSpan(0, 7, 13),)
    assert branched.reward_parts == {"length": 8.0}, "the hint is part of what is graded"
    assert (outcome.hint_length, outcome.response_tokens) == (3, 18)
    assert outcome.rewards == (plain.reward,), "only rollouts from the bare prompt say how well it is solved"
    assert outcome.hinted_rewards == tuple(t.reward for t in group.trajectories[1:])


async def test_a_whole_demonstration_joins_last_and_is_graded_like_the_others() -> None:
    group, outcome = await answered(with_plan(GroupPlan(plain=2, demonstrations=1)))
    whole = group.trajectories[2]
    assert whole.tokens.tolist() == [*PROMPT, *DEMONSTRATION.tokens]
    assert sources(whole) == [Source.PROMPT] * 4 + [Source.DEMONSTRATION] * 7
    assert not whole.behaviour_logprobs.any()
    assert whole.expert_logprobs is not None
    assert whole.expert_logprobs.tolist() == [0.0] * 4 + DEMONSTRATION.expert_logprobs.tolist()  # type: ignore[union-attr]
    assert (whole.finish, whole.versions, whole.reward) == (Finish.DEMONSTRATION, (), 1.0)
    assert len(outcome.rewards) == 2


async def test_a_demonstration_of_unknown_probability_has_no_expert_log_probs() -> None:
    unknown = Demonstration(DEMONSTRATION.tokens)
    request = replace(REQUEST, plan=GroupPlan(1, 1, 2, 1), demonstrations=(unknown,))
    group, _ = await answered(request)
    assert [t.expert_logprobs for t in group.trajectories] == [None] * 3


async def test_a_group_of_demonstrations_only_needs_no_sampling() -> None:
    engine = FakeEngine(version=5)
    group, outcome = await answered(with_plan(GroupPlan(plain=0, demonstrations=1)), engine)
    assert engine.calls == []
    assert [t.finish for t in group.trajectories] == [Finish.DEMONSTRATION]
    assert (outcome.rewards, outcome.version) == ((), 5)


async def test_rollouts_of_an_empty_hint_count_as_plain_ones() -> None:
    group, outcome = await answered(with_plan(GroupPlan(plain=1, branched=2)))
    assert outcome.rewards == tuple(t.reward for t in group.trajectories)
    assert (outcome.hinted_rewards, outcome.hint_length) == ((), 0)


async def test_version_spans_follow_an_update_in_the_middle_of_a_response() -> None:
    engine = FakeEngine(version=4)
    work = asyncio.ensure_future(answered(with_plan(GroupPlan(plain=0, branched=1, hint_length=2)), engine))
    while engine.statistics.tokens_generated < 3:
        await asyncio.sleep(0)
    engine.version = 6
    group, outcome = await work
    assert group.trajectories[0].versions == (VersionSpan(4, 6, 9), VersionSpan(6, 9, 12))
    assert (outcome.version, group.oldest_version) == (4, 4)


async def test_a_response_cut_by_the_limit_says_so() -> None:
    group, _ = await answered(replace(REQUEST, sampling=Sampling(1.0, 3)))
    assert [t.finish for t in group.trajectories] == [Finish.LENGTH, Finish.LENGTH]


async def test_an_evaluation_is_greedy_first_and_makes_no_group() -> None:
    engine = FakeEngine(version=7)
    request = with_plan(GroupPlan(plain=4), purpose=Purpose.EVALUATE, dataset="hard", for_version=7)
    answer = await Answerer("g1", engine, Rollouts(engine, ends_with, decode)).answer(request)
    assert answer.group is None
    assert [(n, temperature) for _, n, temperature, _ in engine.calls] == [(1, 0.0), (3, 1.0)]
    first = (int(PROMPT.sum()) + 0) % 10
    expected = [float((first + member) % 10 == 3) for member in (0, 0, 1, 2)]
    outcome = answer.outcome
    assert outcome.rewards == tuple(expected)
    assert (outcome.dataset, outcome.for_version, outcome.version) == ("hard", 7, 7)
    assert outcome.demonstration_logprob is None


async def test_an_evaluation_scores_the_first_demonstration_if_asked() -> None:
    request = with_plan(GroupPlan(plain=1), purpose=Purpose.EVALUATE, score_demonstration=True)
    _, outcome = await answered(request)
    assert (outcome.demonstration_logprob, outcome.demonstration_tokens) == (
        pytest.approx(-float(DEMONSTRATION.tokens.sum()) / 100),
        7,
    )


async def test_a_demonstration_beyond_the_context_is_not_scored_and_the_evaluation_goes_on() -> None:
    request = with_plan(GroupPlan(plain=1), purpose=Purpose.EVALUATE, score_demonstration=True)
    _, outcome = await answered(request, FakeEngine(context=11))
    assert (outcome.demonstration_logprob, outcome.demonstration_tokens, len(outcome.rewards)) == (None, 0, 1)


async def test_a_request_to_grade_samples_nothing_and_answers_with_the_reward_of_the_demonstration() -> None:
    engine = FakeEngine()
    for answer, reward in (("3", 1.0), ("4", 0.0)):
        group, outcome = await answered(
            with_plan(GroupPlan(0, demonstrations=1), purpose=Purpose.GRADE, answer=answer), engine
        )
        assert group.trajectories == ()
        assert (outcome.purpose, outcome.rewards, outcome.failure) == (Purpose.GRADE, (reward,), "")
        assert (outcome.response_tokens, outcome.hinted_rewards) == (0, ())
    assert engine.calls == []


async def test_max_tokens_shrinks_to_what_the_context_leaves() -> None:
    engine = FakeEngine(context=9)
    group, _ = await answered(REQUEST, engine)
    assert engine.calls[0][3] == 5
    assert [len(t.tokens) for t in group.trajectories] == [9, 9]


async def test_a_request_and_its_group_survive_the_wire_token_for_token() -> None:
    request = decode_request(encode_request(with_plan(GroupPlan(1, 1, 3, 1))))
    group, _ = await answered(request)
    again = decode_group(encode_group(group))
    for sent, received in zip(group.trajectories, again.trajectories, strict=True):
        assert sent.tokens.tolist() == received.tokens.tolist()
        assert sent.behaviour_logprobs.tolist() == received.behaviour_logprobs.tolist()
        assert sent.versions == received.versions


async def test_the_first_failure_ends_what_runs_beside_it() -> None:
    ended: list[str] = []

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("waits")

    async def fails() -> None:
        await asyncio.sleep(0)
        raise ValueError("first")

    with pytest.raises(ValueError, match="first"):
        await together(waits(), fails())
    assert ended == ["waits"]
