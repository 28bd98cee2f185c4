"""The batch: selectors, per-sequence sums, and the move to a device."""

from __future__ import annotations

import torch
from learner_cases import Lengths, asked, demonstration, group, rollout, trajectory

from common.config.algorithm import LUFFY
from common.trajectory import Source
from learner.batch import MicroBatch
from learner.packing.layout import Layout
from learner.packing.plan import plan_step
from learner.selectors import (
    Selector,
    admitting,
    demonstration_tokens,
    demonstrations_only,
    expert_tokens,
    hint_tokens,
    policy_tokens,
    response_tokens,
)

MEMBERS = (
    trajectory(Lengths(hint=1, sampled=2), 0.5, seed=1, expert_known=True),
    rollout(1, 0.25, seed=2),
    demonstration(4, 1.0, seed=3),
)


def micro_batch() -> MicroBatch:
    """Rows in the plan's order: the demonstration, the hinted rollout, the plain rollout."""
    (micro,) = plan_step(asked(LUFFY()), [group(*MEMBERS)], Layout(10**6)).micro_batches
    return micro


def test_selectors_tell_who_wrote_a_token() -> None:
    batch = micro_batch().tokens

    def chosen(selector: Selector) -> list[int]:
        return selector(batch).int().tolist()

    assert chosen(policy_tokens) == [0, 0, 0, 0, 0, 1, 1, 1]
    assert chosen(hint_tokens) == [0, 0, 0, 0, 1, 0, 0, 0]
    assert chosen(demonstration_tokens) == [1, 1, 1, 1, 0, 0, 0, 0]
    assert chosen(expert_tokens) == [1, 1, 1, 1, 1, 0, 0, 0]
    assert chosen(response_tokens) == [1] * 8


def test_admission_leaves_out_what_an_algorithm_cannot_use() -> None:
    hinted, plain, demonstrated = MEMBERS
    assert admitting(LUFFY.accepts)(MEMBERS) == [hinted, plain, demonstrated]
    assert admitting(frozenset())(MEMBERS) == [plain]
    assert demonstrations_only(MEMBERS) == [demonstrated]


def test_a_batch_holds_what_its_trajectories_say() -> None:
    batch = micro_batch().tokens
    hinted, plain, demonstrated = MEMBERS
    rows = (demonstrated, hinted, plain)
    assert batch.segment_T.tolist() == [0, 0, 0, 0, 1, 1, 1, 2]
    assert batch.labels_T.tolist() == [int(token) for row in rows for token in row.tokens[2:]]
    assert batch.behaviour_logprobs_T.tolist() == [float(p) for row in rows for p in row.behaviour_logprobs[2:]]
    assert batch.rewards_N.tolist() == [1.0, 0.5, 0.25]
    assert batch.is_demonstration_N.tolist() == [True, False, False]
    assert batch.sequences == 3
    assert hinted.expert_logprobs is not None
    assert batch.expert_logprobs_T.tolist() == [0.0] * 4 + [float(hinted.expert_logprobs[2])] + [0.0] * 3
    assert batch.has_expert_T.tolist() == [False] * 4 + [True] + [False] * 3


def test_a_sum_per_sequence_adds_the_tokens_of_each_trajectory() -> None:
    values_T = torch.arange(8, dtype=torch.float64)
    assert micro_batch().tokens.sum_per_sequence(values_T).tolist() == [6.0, 15.0, 7.0]


def test_a_plan_is_kept_in_float64_and_moved_as_float32() -> None:
    micro = micro_batch()
    moved = micro.to("cpu")
    assert micro.tokens.advantages_T.dtype == torch.float64
    for real in ("advantages_T", "behaviour_logprobs_T", "expert_logprobs_T", "rewards_N"):
        assert getattr(moved.tokens, real).dtype == torch.float32
    assert moved.tokens.labels_T.dtype == moved.input_ids.dtype == moved.predictor_T.dtype == torch.int64
    assert moved.tokens.has_expert_T.dtype == torch.bool
    assert set(moved.tokens.sources_T.tolist()) == {Source.POLICY, Source.HINT, Source.DEMONSTRATION}
