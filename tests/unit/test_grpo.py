"""GRPO and Dr.GRPO: numbers worked by hand."""

from __future__ import annotations

from math import sqrt

import pytest
from learner_cases import Lengths, asked, at_ratios, close, group, rollout, told, trajectory

from common.config.algorithm import GRPO, DrGRPO
from common.config.base import Norm, Surrogate

LONG, SHORT = rollout(3, 1.0, seed=1), rollout(1, 0.0, seed=2)


def test_grpo_is_equation_seven() -> None:
    """Rewards 1 and 0: A = ±½/(√½ + 10⁻⁶). Ratios 1, 1.5 (clipped at 1.2), 0.5 and 0.5 (clipped at 0.8).

    L = -½ [A (1 + 1.2 + 0.5)/3 - A 0.8]: only the first and the third token keep a slope, -½ · ⅓ · A · ratio.
    """
    a = 0.5 / (sqrt(0.5) + 1e-6)
    result = told(asked(GRPO()), [group(LONG, SHORT)], at_ratios((LONG, SHORT), [1.0, 1.5, 0.5, 0.5]))
    assert result.value == pytest.approx(-0.5 * (a * 2.7 / 3 - a * 0.8), rel=1e-12)
    close(result.by_logprob_T, [-a / 6, 0.0, -a * 0.5 / 6, 0.0])
    assert not result.by_entropy_T.any()


def test_dr_grpo_divides_by_a_constant_and_not_by_the_standard_deviation() -> None:
    """A = ±½; two sequences of at most 10: L = -½ (1 + 1.2 + 0.5 - 0.8)/20."""
    result = told(
        asked(DrGRPO(), longest_response=10), [group(LONG, SHORT)], at_ratios((LONG, SHORT), [1.0, 1.5, 0.5, 0.5])
    )
    assert result.value == pytest.approx(-0.5 * 1.9 / 20, rel=1e-12)
    close(result.by_logprob_T, [-0.5 / 20, 0.0, -0.25 / 20, 0.0])


def test_unclipped_tokens_all_keep_their_slope() -> None:
    config = DrGRPO(surrogate=Surrogate.UNCLIPPED)
    result = told(
        asked(config, longest_response=10), [group(LONG, SHORT)], at_ratios((LONG, SHORT), [1.0, 1.5, 0.5, 0.5])
    )
    assert result.value == pytest.approx(-0.5 * 2.5 / 20, rel=1e-12)
    close(result.by_logprob_T, [-0.5 / 20, -0.75 / 20, -0.25 / 20, 0.25 / 20])
    assert result.sums.record()["clip_fraction"] == {"policy": 0.0}


def test_the_token_mean_gives_every_token_the_same_say() -> None:
    """DAPO: four tokens, room of 0.28 above."""
    config = GRPO(norm=Norm.TOKEN_MEAN, divide_by_std=False, clip_high=0.28)
    result = told(asked(config), [group(LONG, SHORT)], at_ratios((LONG, SHORT), [1.0, 1.5, 0.5, 1.0]))
    assert result.value == pytest.approx(-0.5 * (1 + 1.28 + 0.5 - 1) / 4, rel=1e-12)
    close(result.by_logprob_T, [-0.5 / 4, 0.0, -0.25 / 4, 0.5 / 4])


def test_the_entropy_bonus_is_a_mean_over_the_sampled_tokens_of_the_step() -> None:
    config = DrGRPO(entropy_bonus=0.01)
    flat = [group(rollout(3, 1.0, seed=1), rollout(1, 1.0, seed=2))]
    result = told(asked(config), flat, [-1.0] * 4, [1.0, 2.0, 3.0, 6.0])
    assert result.value == pytest.approx(-0.01 * 3.0, rel=1e-12)
    close(result.by_entropy_T, [-0.01 / 4] * 4)
    assert not result.by_logprob_T.any()


def test_a_hint_is_context_only() -> None:
    """Its tokens have no loss, and the sequence's length is that of what was sampled."""
    hinted = trajectory(Lengths(hint=2, sampled=2), 1.0, seed=3)
    logprobs = at_ratios((hinted, SHORT), [0.3, 0.6, 1.0, 1.0, 1.0])
    result = told(asked(GRPO(divide_by_std=False)), [group(hinted, SHORT)], logprobs)
    close(result.by_logprob_T, [0.0, 0.0, -0.5 / 4, -0.5 / 4, 0.5 / 2])
    assert set(result.sums.record()["ratio"]) == {"policy"}


def test_on_policy_grpo_has_the_gradient_of_reinforce_with_a_baseline() -> None:
    """At ratio 1 the slope on log p is -A over the norm (survey Eq. 5), clipped or not."""
    logprobs = at_ratios((LONG, SHORT), [1.0] * 4)
    for surrogate in Surrogate:
        result = told(asked(DrGRPO(surrogate=surrogate), longest_response=10), [group(LONG, SHORT)], logprobs)
        close(result.by_logprob_T, [-0.5 / 20] * 3 + [0.5 / 20])
