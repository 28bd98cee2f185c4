"""SRFT: numbers worked by hand, switch by switch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from learner_cases import Lengths as Tokens
from learner_cases import Told, asked, close, demonstration, group, rollout, told, trajectory

from common.config.algorithm import SRFT, Corrections
from common.config.base import EntropyScope, Norm, SelfReward, Shaping

EXPERT, FAILED, RIGHT = demonstration(3, 1.0, seed=1), rollout(2, 0.0, seed=2), rollout(1, 1.0, seed=3)
"""Rewards 1, 0, 1: mean ⅔, unbiased std √⅓; the rows are in this order."""

ADVANTAGE = (1 / 3) / (math.sqrt(1 / 3) + 1e-6)
P = (0.1, 0.9, 1.0)
LOGPROBS = [*(math.log(p) for p in P), -0.7, -0.8, -0.9]
ENTROPY = [1.0, 2.0, 3.0, 5.0, 9.0, 1.5]


def outcome(logprobs: list[float] = LOGPROBS, **switches: Any) -> Told:
    """What SRFT makes of the three members."""
    groups = [group(FAILED, RIGHT, EXPERT)]
    return told(asked(SRFT(**switches), longest_response=10), groups, logprobs, ENTROPY)


def slopes(w_sft: list[float], w_rl: float, *, gamma: float | None = 0.1, off_policy: float = 1.0) -> list[float]:
    """The gradient by log p, where the mean is over three tokens each."""
    shape = [p if gamma is None else gamma * p / (p + gamma) ** 2 for p in P]
    expert = [-(w + off_policy * ADVANTAGE * s) / 3 for w, s in zip(w_sft, shape, strict=True)]
    return [*expert, 1 / 3, 1 / 3, -w_rl / 3]


def test_srft_as_its_authors_define_it() -> None:
    """H = 2 on the demonstration, 1.5 on the right rollout: w_SFT = ½ e⁻², w_RL = 0.1 e^1.5."""
    result = outcome()
    w_sft, w_rl = 0.5 * math.exp(-2), 0.1 * math.exp(1.5)
    terms = result.sums.record()["terms"]
    assert terms["imitation"] == pytest.approx(-w_sft * (math.log(0.1) + math.log(0.9)) / 3, rel=1e-12)
    assert terms["off_policy"] == pytest.approx(-ADVANTAGE * (0.5 + 0.9 + 1 / 1.1) / 3, rel=1e-12)
    assert terms["policy"] == pytest.approx((w_rl * 0.9 - 0.7 - 0.8) / 3, rel=1e-12)
    close(result.by_logprob_T, slopes([w_sft] * 3, w_rl))
    assert not result.by_entropy_T.any()


def test_the_paper_does_not_shape_the_experts_ratio() -> None:
    w_sft, w_rl = 0.5 * math.exp(-2), 0.1 * math.exp(1.5)
    close(outcome(shaping=Shaping.NONE).by_logprob_T, slopes([w_sft] * 3, w_rl, gamma=None))
    close(outcome(gamma=0.5).by_logprob_T, slopes([w_sft] * 3, w_rl, gamma=0.5))


def test_the_weights_are_parameters() -> None:
    result = outcome(sft_weight=2.0, off_policy_weight=0.25, rl_weight=0.3, sft_entropy_sign=1)
    close(result.by_logprob_T, slopes([2 * math.exp(2)] * 3, 0.3 * math.exp(1.5), off_policy=0.25))


def test_the_entropy_may_be_each_tokens_own() -> None:
    w_sft = [0.5 * math.exp(-h) for h in (1, 2, 3)]
    close(outcome(entropy_scope=EntropyScope.TOKEN).by_logprob_T, slopes(w_sft, 0.1 * math.exp(1.5)))


def test_the_entropy_may_be_that_of_the_whole_step() -> None:
    """2 over all demonstration tokens; (5 + 9 + 1.5)/3 over all sampled ones."""
    result = outcome(entropy_scope=EntropyScope.BATCH)
    close(result.by_logprob_T, slopes([0.5 * math.exp(-2)] * 3, 0.1 * math.exp(15.5 / 3)))


def test_a_rollout_may_be_weighed_with_its_advantage_and_ratio() -> None:
    """Failed: A = -⅔/std at ratios 1 and 2. Right: A = ⅓/std at ratio ½, times w_RL."""
    behaviour = [*FAILED.behaviour_logprobs[2:].tolist(), *RIGHT.behaviour_logprobs[2:].tolist()]
    sampled = [b + math.log(r) for b, r in zip(behaviour, (1.0, 2.0, 0.5), strict=True)]
    result = outcome([*LOGPROBS[:3], *sampled], self_reward=SelfReward.ADVANTAGE)
    w_rl = 0.1 * math.exp(1.5)
    wanted = [2 * ADVANTAGE / 3, 4 * ADVANTAGE / 3, -w_rl * ADVANTAGE / 2 / 3]
    close(result.by_logprob_T[3:], wanted)
    assert result.sums.record()["terms"]["policy"] == pytest.approx(sum(wanted), rel=1e-12)


def test_a_failed_group_may_be_spared() -> None:
    groups = [group(FAILED, EXPERT)]
    logprobs, entropy = LOGPROBS[:5], ENTROPY[:5]
    spared, pushed = (
        told(asked(SRFT(negatives_in_failed_groups=keep)), groups, logprobs, entropy) for keep in (False, True)
    )
    assert not spared.by_logprob_T[3:].any()
    close(pushed.by_logprob_T[3:], [0.5, 0.5])
    assert spared.by_logprob_T[:3].equal(pushed.by_logprob_T[:3])
    rest = outcome(negatives_in_failed_groups=False)
    assert rest.by_logprob_T.equal(outcome().by_logprob_T), "a group with a right rollout has not failed"


def test_a_constant_norm_divides_each_sum_by_all_sequences() -> None:
    result = outcome(norm=Norm.CONSTANT)
    whole = slopes([0.5 * math.exp(-2)] * 3, 0.1 * math.exp(1.5))
    close(result.by_logprob_T, [slope * 3 / 30 for slope in whole])


def test_corrections_weigh_sampled_tokens_only() -> None:
    """w = π_θ/π_old of the same forward, truncated at 2."""
    behaviour = [*FAILED.behaviour_logprobs[2:].tolist(), *RIGHT.behaviour_logprobs[2:].tolist()]
    logprobs = [*LOGPROBS[:3], *(b + math.log(r) for b, r in zip(behaviour, (0.5, 5.0, 1.5), strict=True))]
    w_rl = 0.1 * math.exp(1.5)
    result = outcome(logprobs, corrections=Corrections(truncate_at=2.0))
    close(result.by_logprob_T[3:], [0.5 / 3, 2 / 3, -1.5 * w_rl / 3])
    assert result.by_logprob_T[:3].equal(outcome().by_logprob_T[:3])


def test_a_hint_is_context_only() -> None:
    hinted = trajectory(Tokens(hint=2, sampled=1), 1.0, seed=4)
    result = told(asked(SRFT()), [group(hinted, FAILED)], [-1.0] * 5, [1.0, 1.0, 2.0, 1.0, 1.0])
    close(result.by_logprob_T, [0.0, 0.0, -0.1 * math.exp(2) / 3, 1 / 3, 1 / 3])
    assert set(result.sums.record()["ratio"]) == {"policy"}


@pytest.mark.parametrize("scope", EntropyScope)
@pytest.mark.parametrize("extreme", [1e30, -1e30, float("inf")])
def test_an_impossible_entropy_leaves_the_weights_finite(scope: EntropyScope, extreme: float) -> None:
    algorithm = asked(SRFT(entropy_scope=scope, sft_entropy_sign=1))
    result = told(algorithm, [group(FAILED, RIGHT, EXPERT)], LOGPROBS, [extreme] * 6)
    assert math.isfinite(result.value)
    assert torch.isfinite(result.by_logprob_T).all()
