"""Requests that look before they decide: demonstrations behind a gate, and the search for an anchor in one request."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fake_engine import FakeEngine, decode, encode
from tiny_tokenizer import EOS

from common.trajectory import (
    AnchorSearch,
    Demonstration,
    Finish,
    GroupPlan,
    Purpose,
    Request,
    Sampling,
    Source,
    Tokens,
    Trajectory,
)
from common.wire import decode_group, decode_outcome, encode_group, encode_outcome
from services.generator.answering import Answer, Answerer
from services.generator.engine import EngineError
from services.generator.graders import Grade
from services.generator.rollouts import Rollouts
from services.generator.search import SearchResult

PROMPT = encode("1+2=")
DEMONSTRATION = Demonstration(
    np.array([*encode("a;b;c;d;#3"), EOS], np.int32), boundaries=(2, 4, 6, 8), expert_logprobs=np.full(11, -0.5, "<f4")
)
REQUEST = Request(
    request_id="r1",
    prompt_id="p1",
    purpose=Purpose.TRAIN,
    revision=3,
    prompt_tokens=PROMPT,
    answer="3",
    plan=GroupPlan(plain=2),
    sampling=Sampling(1.0, 32),
    demonstrations=(DEMONSTRATION,),
)
SEARCH = AnchorSearch(cuts=(2, 4, 6, 8), members=4, probes=4, above=0.0, below=1.0)


class Scripted(FakeEngine):
    """How many members of a draw succeed is decided by how much of the demonstration they are shown."""

    def __init__(self, rights: dict[int, int], **options: Any) -> None:
        super().__init__(**options)
        self._rights = rights

    @property
    def probed(self) -> list[int]:
        """The hint length of each draw, in order."""
        return [len(call[0]) - len(PROMPT) for call in self.calls]

    def respond(self, prompt: list[int], member: int) -> Tokens:
        right = member < self._rights.get(len(prompt) - len(PROMPT), 0)
        return np.array([*encode("#3" if right else "abc#4"), EOS], np.int32)


class Graders:
    """A grader that remembers what it graded."""

    def __init__(self) -> None:
        self.graded: list[str] = []

    async def grade(self, response: str, answer: str) -> Grade:
        self.graded.append(response)
        return Grade(float(response.endswith(f"#{answer}")))


async def answered(request: Request, engine: FakeEngine, graders: Graders | None = None) -> Answer:
    graders = graders or Graders()
    return await Answerer("g1", engine, Rollouts(engine, graders.grade, decode)).answer(request)


def members(answer: Answer) -> tuple[Trajectory, ...]:
    assert answer.group is not None
    return answer.group.trajectories


def searching(plan: GroupPlan | None = None, **changes: Any) -> Request:
    return replace(REQUEST, plan=plan or GroupPlan(plain=2), search=replace(SEARCH, **changes))


@pytest.mark.parametrize(
    ("gate", "right", "joins"), [(0, 0, True), (0, 1, False), (1, 1, True), (1, 2, False), (None, 2, True)]
)
async def test_a_demonstration_joins_only_if_at_most_so_many_rollouts_are_right(
    gate: int | None, right: int, joins: bool
) -> None:
    graders = Graders()
    request = replace(REQUEST, plan=GroupPlan(plain=3, demonstrations=1, gate=gate))
    answer = await answered(request, Scripted({0: right}), graders)
    assert [t.is_demonstration for t in members(answer)] == [False] * 3 + [True] * joins
    assert ("a;b;c;d;#3" in graders.graded) is joins, "a demonstration that does not join is not graded either"
    assert len(answer.outcome.rewards) == 3


async def test_a_gate_counts_rollouts_that_continue_a_hint_too() -> None:
    request = replace(REQUEST, plan=GroupPlan(plain=1, branched=2, hint_length=4, demonstrations=1, gate=0))
    assert [t.finish for t in members(await answered(request, Scripted({4: 1})))] == [Finish.STOP] * 3


async def test_a_right_plain_rollout_makes_a_search_unneeded() -> None:
    engine = Scripted({0: 1})
    answer = await answered(searching(), engine)
    assert engine.probed == [0]
    assert answer.search is SearchResult.UNNEEDED
    assert [t.hint_length for t in members(answer)] == [0, 0]
    outcome = answer.outcome
    assert (outcome.rewards, outcome.hinted_rewards, outcome.hint_length) == ((1.0, 0.0), (), 0)
    assert (outcome.probes, outcome.anchor) == (0, None)


async def test_after_failure_the_group_is_the_branch_that_was_taken_token_by_token() -> None:
    # Four cuts: the middle of (-1, 4) is index 1 (4 tokens); all succeed: (-1, 1) → index 0 (2 tokens).
    engine = Scripted({4: 4, 2: 3})
    answer = await answered(searching(), engine)
    assert engine.probed == [0, 4, 2]
    assert [(call[1], call[3]) for call in engine.calls] == [(2, 32), (4, 28), (4, 30)]
    start = [*PROMPT.tolist(), *DEMONSTRATION.tokens[:2].tolist()]
    for trajectory, call in zip(members(answer), [engine.calls[2]] * 4, strict=True):
        assert call[0] == start
        assert trajectory.tokens[:6].tolist() == start, "the ids that were continued are the ids that are trained on"
        assert trajectory.sources[:7].tolist() == [Source.PROMPT] * 4 + [Source.HINT] * 2 + [Source.POLICY]
        assert trajectory.expert_logprobs is not None
        assert trajectory.expert_logprobs[4:6].tolist() == [-0.5, -0.5]
    outcome = answer.outcome
    assert (outcome.rewards, outcome.hinted_rewards) == ((0.0, 0.0), (1.0, 1.0, 1.0, 0.0))
    assert (outcome.hint_length, outcome.anchor, outcome.probes) == (2, 2, 2)
    assert outcome.response_tokens == 2 * 6 + 4 * 3 + (3 * 3 + 6), "everything that was sampled counts"
    assert answer.search is SearchResult.TAKEN


async def test_a_remembered_anchor_is_probed_first() -> None:
    engine = Scripted({8: 2})
    answer = await answered(searching(anchor=9), engine)
    assert engine.probed == [0, 8]
    assert (answer.outcome.anchor, answer.outcome.probes) == (8, 1)


async def test_a_search_that_finds_nothing_leaves_the_plain_group() -> None:
    engine = Scripted({})
    answer = await answered(searching(probes=2), engine)
    assert engine.probed == [0, 4, 6]
    assert answer.search is SearchResult.EXHAUSTED
    assert [t.hint_length for t in members(answer)] == [0, 0]
    outcome = answer.outcome
    assert (outcome.rewards, outcome.hinted_rewards, outcome.hint_length) == ((0.0, 0.0), (), 0)
    assert (outcome.probes, outcome.anchor, outcome.response_tokens) == (2, None, 10 * 6)


async def test_always_searches_at_once_and_leaves_the_last_probe_where_nothing_is_taken() -> None:
    engine = Scripted({0: 2})
    answer = await answered(searching(always=True, probes=2), engine)
    assert engine.probed == [4, 6], "no plain group first"
    assert [t.hint_length for t in members(answer)] == [6] * 4
    outcome = answer.outcome
    assert (outcome.rewards, outcome.hinted_rewards, outcome.hint_length) == ((), (0.0,) * 4, 6)
    assert (outcome.probes, outcome.anchor, outcome.response_tokens) == (2, None, 8 * 6)


async def test_always_takes_a_branch_like_any_search_and_needs_no_plain_rollouts() -> None:
    answer = await answered(searching(GroupPlan(plain=0), always=True), Scripted({4: 2}))
    assert [t.hint_length for t in members(answer)] == [4] * 4
    assert (answer.outcome.anchor, answer.outcome.rewards) == (4, ())


async def test_cuts_that_leave_nothing_to_sample_are_passed_over() -> None:
    engine = Scripted({2: 2})
    request = replace(searching(), sampling=Sampling(1.0, 4))
    answer = await answered(request, engine)
    assert engine.probed == [0, 2], "of the cuts only the first is shorter than max_tokens"
    assert answer.outcome.anchor == 2
    narrow = await answered(searching(always=True), FakeEngine(context=6))
    assert narrow.search is SearchResult.UNUSABLE
    assert [t.hint_length for t in members(narrow)] == [0, 0], "without a cut even `always` samples plainly"


async def test_the_plans_demonstrations_join_the_branch_and_its_gate_looks_at_the_branch() -> None:
    joined = await answered(searching(GroupPlan(plain=2, demonstrations=1)), Scripted({4: 2}))
    assert [t.is_demonstration for t in members(joined)] == [False] * 4 + [True]
    gated = await answered(searching(GroupPlan(plain=2, demonstrations=1, gate=1)), Scripted({4: 2}))
    assert [t.is_demonstration for t in members(gated)] == [False] * 4


async def test_a_probe_whose_log_probs_are_not_finite_fails_the_request_with_the_reason() -> None:
    unstable = Demonstration(encode("a;yb;c;d;#3"))
    request = replace(searching(), demonstrations=(unstable,))
    with pytest.raises(EngineError, match="not finite"):
        await answered(request, Scripted({}))


async def test_weights_that_change_between_two_probes_are_told_by_the_spans() -> None:
    engine = Scripted({4: 4, 2: 2}, version=3)
    work = asyncio.ensure_future(answered(searching(), engine))
    while len(engine.calls) < 3:
        await asyncio.sleep(0)
    engine.version = 4
    answer = await work
    assert {span.version for t in members(answer) for span in t.versions} == {4}
    assert answer.outcome.version == 3, "the oldest version of all that was sampled"


async def test_a_search_that_is_cancelled_ends_its_probe() -> None:
    engine = Scripted({})
    engine.pause()
    work = asyncio.ensure_future(answered(searching(always=True), engine))
    while not engine.calls:
        await asyncio.sleep(0)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert engine.statistics.running == 0


async def test_a_branched_group_and_its_outcome_survive_the_wire() -> None:
    answer = await answered(searching(), Scripted({4: 1}))
    assert answer.group is not None
    again = decode_group(encode_group(answer.group))
    assert [t.tokens.tolist() for t in again.trajectories] == [t.tokens.tolist() for t in members(answer)]
    assert decode_outcome(encode_outcome(answer.outcome)) == answer.outcome
