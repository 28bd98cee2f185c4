"""Prefix-RFT: numbers worked by hand, and which tokens of a hint are learnt."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from learner_cases import Lengths, asked, close, demonstration, group, rollout, told, trajectory

from common.config.algorithm import DrGRPO, PrefixRFT
from common.config.base import Norm, Selection, Statistics, Surrogate

HYBRID = trajectory(Lengths(hint=5, sampled=2), 1.0, seed=1)
FAILED = rollout(2, 0.0, seed=2)
"""A hint of five tokens, continued rightly by two, and a failed rollout: A = ½ and -½; the hybrid comes first."""

ENTROPY = [1.0, 3.0, 2.0, 3.0, 0.0, 9.0, 9.0, 9.0, 9.0]
"""On the hint tokens 1 and 3 are the least certain ones; what was sampled is not ranked."""


def at(ratios: list[float]) -> list[float]:
    """Log-probs: any on the hint, then those at which what was sampled has these ratios."""
    behaviour = [*HYBRID.behaviour_logprobs[7:].tolist(), *FAILED.behaviour_logprobs[2:].tolist()]
    return [-0.1, -1.0, -2.0, -3.0, -4.0, *(b + math.log(r) for b, r in zip(behaviour, ratios, strict=True))]


def test_prefix_rft_as_its_authors_define_it() -> None:
    """Two sequences of at most 10. Of five hint tokens ceil(0.4 · 5) = 2 keep A = ½, at ratio 1.

    Sampled: ratios 1 and 1.5 (clipped at 1.2) with A = ½, 1 and 4 (bounded at 3 by the dual clip) with A = -½.
    """
    config = PrefixRFT(keep_share=0.4)
    result = told(asked(config, longest_response=10), [group(FAILED, HYBRID)], at([1.0, 1.5, 1.0, 4.0]), ENTROPY)
    terms = result.sums.record()["terms"]
    assert terms["prefix"] == pytest.approx(-0.5 * 2 / 20, rel=1e-12)
    assert terms["policy"] == pytest.approx((-0.5 * (1 + 1.2) + 0.5 * (1 + 3)) / 20, rel=1e-12)
    close(result.by_logprob_T, [s / 20 for s in (0, -0.5, 0, -0.5, 0, -0.5, 0, 0.5, 0)])
    assert not result.by_entropy_T.any()
    assert result.sums.record()["clip_fraction"] == {"policy": 0.5, "hint": 0.6}


def test_by_default_a_fifth_is_kept_and_of_equal_tokens_the_earlier_one() -> None:
    result = told(asked(PrefixRFT(), longest_response=10), [group(FAILED, HYBRID)], at([1.0] * 4), ENTROPY)
    close(result.by_logprob_T, [s / 20 for s in (0, -0.5, 0, 0, 0, -0.5, -0.5, 0.5, 0.5)])


def test_tokens_that_are_not_kept_stay_in_the_denominator() -> None:
    config = PrefixRFT(norm=Norm.TOKEN_MEAN)
    result = told(asked(config), [group(FAILED, HYBRID)], at([1.0] * 4), ENTROPY)
    close(result.by_logprob_T, [s / 9 for s in (0, -0.5, 0, 0, 0, -0.5, -0.5, 0.5, 0.5)])


def test_a_hint_whose_continuation_failed_is_pushed_down() -> None:
    wrong, right = trajectory(Lengths(hint=5, sampled=2), 0.0, seed=1), rollout(2, 1.0, seed=2)
    result = told(asked(PrefixRFT(), longest_response=10), [group(wrong, right)], at([1.0] * 4), ENTROPY)
    close(result.by_logprob_T[:5], [0, 0.5 / 20, 0, 0, 0])


@pytest.mark.parametrize("selection", Selection)
@pytest.mark.parametrize(("share", "kept"), [(0.0, 0), (1.0, 5), (0.6, 3), (0.61, 4)])
def test_the_number_of_kept_tokens_is_rounded_up(selection: Selection, share: float, kept: int) -> None:
    config = PrefixRFT(keep_share=share, selection=selection)
    entropy = [0.1, 0.2, 0.3, 0.4, 0.5, *[1.0] * 4]
    result = told(asked(config, longest_response=10), [group(FAILED, HYBRID)], at([1.0] * 4), entropy)
    close(result.by_logprob_T[:5], [0.0] * (5 - kept) + [-0.5 / 20] * kept)


def test_over_the_step_tokens_of_all_hints_are_ranked_together() -> None:
    """Five tokens of 1.. and three of 5..: of eight, the ceil(0.5 · 8) = 4 highest are the second hint's and one more.

    Within each trajectory it would be three and two.
    """
    first = trajectory(Lengths(hint=5, sampled=1), 1.0, seed=3)
    second = trajectory(Lengths(hint=3, sampled=2), 1.0, seed=4)
    groups = [group(first, rollout(2, 0.0, seed=5)), group(second, rollout(1, 0.0, seed=6))]
    entropy = [1.0, 1.4, 1.2, 1.3, 1.1, 9.0, 5.0, 6.0, 7.0, *[9.0] * 5]
    taught = {
        selection: told(asked(PrefixRFT(keep_share=0.5, selection=selection)), groups, [-1.0] * 14, entropy)
        for selection in Selection
    }
    step, single = (taught[s].by_logprob_T != 0 for s in (Selection.BATCH, Selection.TRAJECTORY))
    assert step[:5].tolist() == [False, True, False, False, False]
    assert step[6:9].all()
    assert single[:5].tolist() == [False, True, True, True, False]
    assert single[6:9].tolist() == [False, True, True]


def test_over_the_step_all_tokens_that_tie_are_kept() -> None:
    config = PrefixRFT(keep_share=0.2, selection=Selection.BATCH)
    result = told(asked(config, longest_response=10), [group(FAILED, HYBRID)], at([1.0] * 4), ENTROPY)
    assert (result.by_logprob_T[:5] != 0).tolist() == [False, True, False, True, False]


def test_the_statistics_may_be_those_of_plain_rollouts() -> None:
    """Rewards 0 and 1 of plain rollouts, 1 of the hinted one: mean ½, or ⅔ of all."""
    members = (HYBRID, FAILED, rollout(1, 1.0, seed=7))
    policy_only, joint = (
        told(asked(PrefixRFT(statistics=s), longest_response=10), [group(*members)], [*at([1.0] * 4), -1.0])
        for s in (Statistics.POLICY_ONLY, Statistics.JOINT)
    )
    assert policy_only.by_logprob_T[5].item() == pytest.approx(-0.5 / 30)
    assert joint.by_logprob_T[5].item() == pytest.approx(-1 / 3 / 30)


@pytest.mark.parametrize("surrogate", Surrogate)
def test_a_hint_is_learnt_alike_under_every_surrogate(surrogate: Surrogate) -> None:
    config = PrefixRFT(surrogate=surrogate)
    result = told(asked(config, longest_response=10), [group(FAILED, HYBRID)], at([1.0] * 4), ENTROPY)
    close(result.by_logprob_T[:5], [0, -0.5 / 20, 0, 0, 0])


def test_without_hints_it_is_clipped_dr_grpo() -> None:
    groups = [group(FAILED, rollout(3, 1.0, seed=8), demonstration(4))]
    prefix, plain = (
        told(asked(config), groups, [-1.0, -2.0, -0.5, -1.5, -2.5]) for config in (PrefixRFT(), DrGRPO(dual_clip=3.0))
    )
    assert prefix.value == plain.value
    assert prefix.by_logprob_T.equal(plain.by_logprob_T)


@given(entropy=st.lists(st.floats(0, 12), min_size=5, max_size=5), share=st.floats(0, 1))
def test_no_token_that_is_left_out_is_less_certain_than_one_that_is_kept(entropy: list[float], share: float) -> None:
    config = PrefixRFT(keep_share=share)
    result = told(asked(config), [group(FAILED, HYBRID)], at([1.0] * 4), [*entropy, *[0.0] * 4])
    kept = [bool(slope) for slope in result.by_logprob_T[:5]]
    assert sum(kept) == math.ceil(share * 5 - 1e-9)
    lowest = min((e for e, k in zip(entropy, kept, strict=True) if k), default=math.inf)
    assert all(e <= lowest for e, k in zip(entropy, kept, strict=True) if not k)
