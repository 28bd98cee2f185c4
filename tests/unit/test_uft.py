"""UFT: numbers worked by hand."""

from __future__ import annotations

import math
from math import sqrt

import pytest
from learner_cases import Lengths, asked, at_ratios, close, group, rollout, told, trajectory

from common.config.algorithm import UFT
from common.config.base import HintNorm, Norm

RIGHT = trajectory(Lengths(hint=2, sampled=2), 1.0, seed=1)
WRONG = trajectory(Lengths(hint=2, sampled=1), 0.0, seed=2)
"""Two continuations of one hint, of two tokens and of one."""

A = 0.5 / (sqrt(0.5) + 1e-6)
HINT = [-1.0, -2.0]
RIGHT_SAMPLED, WRONG_SAMPLED = at_ratios([RIGHT], [1.0, 1.0, 1.0, 1.5])[2:], at_ratios([WRONG], [1.0, 1.0, 0.5])[2:]
LOGPROBS = [*HINT, *RIGHT_SAMPLED, *HINT, *WRONG_SAMPLED]
ENTROPY = [9.0, 9.0, 1.0, 2.0, 9.0, 9.0, 6.0]


def test_uft_reinforces_what_was_sampled_and_imitates_the_hint() -> None:
    """Three sampled tokens: L_RL = -(A (1 + 1.2) - 0.8A)/3, where 1.5 and 0.5 are clipped.

    Four hint tokens: β (1 + 2 + 1 + 2)/4. Entropy: -0.001 (1 + 2 + 6)/3. The reference agrees: no KL.
    """
    result = told(asked(UFT()), [group(RIGHT, WRONG)], LOGPROBS, ENTROPY)
    assert result.terms == {
        "policy": pytest.approx(-A * 1.4 / 3, rel=1e-12),
        "hint": pytest.approx(0.001 * 6 / 4, rel=1e-12),
        "entropy": pytest.approx(-0.001 * 3, rel=1e-12),
        "kl": 0.0,
    }
    assert result.value == pytest.approx(sum(result.terms.values()), rel=1e-12)
    hint = [-0.001 / 4] * 2
    close(result.by_logprob_T, [*hint, -A / 3, 0.0, *hint, 0.0])
    close(result.by_entropy_T, [0.0, 0.0, -0.001 / 3, -0.001 / 3, 0.0, 0.0, -0.001 / 3])


def test_the_hint_may_be_summed_per_sequence_as_in_equation_fifteen() -> None:
    """β (3 + 3)/2, slope -β/2 on each of its tokens; RL as in Eq. 15, a mean per sequence: (-A 2.2/2 + 0.8A)/2."""
    config = UFT(hint_norm=HintNorm.SUM, norm=Norm.SEQUENCE_MEAN, beta=0.5, kl_coefficient=0.0, entropy_bonus=0.0)
    result = told(asked(config), [group(RIGHT, WRONG)], LOGPROBS)
    assert result.terms == {
        "policy": pytest.approx((-A * 1.1 + A * 0.8) / 2, rel=1e-12),
        "hint": pytest.approx(0.5 * 6 / 2, rel=1e-12),
    }
    hint = [-0.5 / 2] * 2
    close(result.by_logprob_T, [*hint, -A / 4, 0.0, *hint, 0.0])


def test_a_sequence_without_a_hint_counts_in_the_mean_over_sequences() -> None:
    """Three sequences, one of them plain: β (3 + 3)/3."""
    config = UFT(hint_norm=HintNorm.SUM, beta=0.5, kl_coefficient=0.0, entropy_bonus=0.0)
    plain = rollout(1, 0.0, seed=3)
    result = told(asked(config), [group(RIGHT, WRONG, plain)], [*LOGPROBS, *at_ratios([plain], [1.0])])
    assert result.terms["hint"] == pytest.approx(0.5 * 6 / 3, rel=1e-12)


def test_the_divergence_from_the_reference_is_on_sampled_tokens_only() -> None:
    """π_ref = 2π_θ on all seven: k3 = 1 - log 2 and slope -1 on each of the three sampled ones, a third of 0.001."""
    config = UFT(beta=0.0, entropy_bonus=0.0)
    flat = [group(trajectory(Lengths(hint=2, sampled=2), seed=1), trajectory(Lengths(hint=2, sampled=1), seed=2))]
    result = told(asked(config), flat, LOGPROBS, reference=[p + math.log(2) for p in LOGPROBS])
    assert result.value == pytest.approx(0.001 * (1 - math.log(2)), rel=1e-12)
    close(result.by_logprob_T, [0.0, 0.0, -0.001 / 3, -0.001 / 3, 0.0, 0.0, -0.001 / 3])


def test_no_token_is_both_imitated_and_reinforced() -> None:
    """Eq. 15 as printed has position l in both of its sums."""
    algorithm = asked(UFT())
    result = told(algorithm, [group(RIGHT, WRONG)], LOGPROBS)
    policy, hint = (
        next(term for term in algorithm.terms if term.name == name).on(result.micro.tokens)
        for name in ("policy", "hint")
    )
    assert not (policy & hint).any()
    assert (policy | hint).all()


def test_equal_rewards_leave_only_the_imitation() -> None:
    config = UFT(entropy_bonus=0.0)
    flat = [group(trajectory(Lengths(hint=2, sampled=2), 1.0, seed=1), trajectory(Lengths(hint=1, sampled=2), 1.0))]
    result = told(asked(config), flat, [-1.0] * 7)
    close(result.by_logprob_T, [-0.001 / 3] * 2 + [0.0] * 2 + [-0.001 / 3] + [0.0] * 2)
