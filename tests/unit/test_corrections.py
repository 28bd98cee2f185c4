"""Corrections for the asynchronous gap: on sampled tokens only, weighted without a gradient; worked by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from learner_cases import (
    Lengths,
    asked,
    at_ratios,
    close,
    demonstration,
    group,
    in_float64,
    rollout,
    told,
    trajectory,
)

from common.config.algorithm import GRPO, LUFFY, Corrections, DrGRPO, Mix, NaiveMix
from common.config.base import Surrogate
from learner.batch import PolicyOutputs, TokenBatch
from learner.losses import is_weightless
from learner.packing.layout import Layout
from learner.packing.plan import plan_step
from learner.ratios import correction_weight

LONG, SHORT = rollout(3, 1.0, seed=1), rollout(1, 0.0, seed=2)
"""A = ½ on three tokens and -½ on one."""

RATIOS = [1.0, 1.5, 0.5, 4.0]
"""π_θ/π_old of those four tokens, which is w: the learner's policy at the start of the step is π_θ."""

EVERY = Corrections(decoupled=True, truncate_at=2.0, keep_low=0.6, keep_high=3.0)


@pytest.mark.parametrize(
    ("corrections", "weights", "clipped"),
    [
        (Corrections(decoupled=True), [1.0, 1.5, 0.5, 4.0], 0.0),
        (Corrections(truncate_at=2.0), [1.0, 1.5, 0.5, 2.0], 0.0),
        (Corrections(keep_low=0.6), [1.0, 1.5, 0.0, 4.0], 1 / 4),
        (Corrections(keep_high=3.0), [1.0, 1.5, 0.5, 0.0], 1 / 4),
        (Corrections(keep_low=0.6, truncate_at=1.2), [1.0, 1.2, 0.0, 1.2], 1 / 4),
        (EVERY, [1.0, 1.5, 0.0, 0.0], 2 / 4),
    ],
)
@pytest.mark.parametrize("kind", [Surrogate.CLIPPED, Surrogate.UNCLIPPED])
def test_a_correction_weighs_a_ratio_of_one(
    corrections: Corrections, weights: list[float], clipped: float, kind: Surrogate
) -> None:
    """L = -½ (w₁ + w₂ + w₃ - w₄)/20 and slopes -A w/20: π_θ/π_prox is one, so no clip acts, whatever the gap."""
    config = DrGRPO(surrogate=kind, corrections=corrections)
    result = told(asked(config, longest_response=10), [group(LONG, SHORT)], at_ratios((LONG, SHORT), RATIOS))
    *right, wrong = weights
    assert result.value == pytest.approx(-0.5 * (sum(right) - wrong) / 20, rel=1e-12)
    close(result.by_logprob_T, [-0.5 * w / 20 for w in right] + [0.5 * wrong / 20])
    assert result.sums.record()["clip_fraction"] == {"policy": clipped}


def test_the_reported_ratio_stays_the_one_to_what_sampled() -> None:
    """(1 + 1.5 + 0.5 + 4)/4, and (Σr)²/(n Σr²) = 49/(4 · 19.5)."""
    config = DrGRPO(corrections=EVERY)
    result = told(asked(config), [group(LONG, SHORT)], at_ratios((LONG, SHORT), RATIOS))
    assert result.sums.record()["ratio"] == {"policy": pytest.approx(7 / 4)}
    assert result.sums.record()["effective_sample_size"] == {"policy": pytest.approx(49 / 78)}


def test_cispo_under_a_correction_weighs_log_probs_with_it() -> None:
    """sg(clip(1)) w A log p: slopes -A w/20 with w = 1, 1.5, 0, 0."""
    config = DrGRPO(surrogate=Surrogate.CISPO, corrections=EVERY)
    result = told(asked(config, longest_response=10), [group(LONG, SHORT)], at_ratios((LONG, SHORT), RATIOS))
    close(result.by_logprob_T, [-0.5 / 20, -0.75 / 20, 0.0, 0.0])
    assert result.sums.record()["clip_fraction"] == {"policy": 0.5}


@pytest.mark.parametrize(("truncate_at", "weight"), [(None, 1.1), (1.05, 1.05)])
def test_gspo_is_corrected_by_the_weight_of_the_sequence(truncate_at: float | None, weight: float) -> None:
    """w = (2 · ½ · 1.331)^⅓ = 1.1 on each token of LONG: slope -½ w/3 there, mean over two sequences."""
    corrections = Corrections(decoupled=True, truncate_at=truncate_at)
    config = GRPO(surrogate=Surrogate.GSPO, divide_by_std=False, corrections=corrections)
    logprobs = at_ratios((LONG, SHORT), [2.0, 0.5, 1.331, 1.0])
    result = told(asked(config), [group(LONG, SHORT)], logprobs)
    assert result.value == pytest.approx((-0.5 * weight + 0.5) / 2, rel=1e-12)
    close(result.by_logprob_T, [-0.5 * weight / 3 / 2] * 3 + [0.5 / 2])


def test_gspo_drops_a_sequence_whose_weight_is_out_of_bounds_as_a_whole() -> None:
    config = GRPO(surrogate=Surrogate.GSPO, divide_by_std=False, corrections=Corrections(keep_high=1.05))
    logprobs = at_ratios((LONG, SHORT), [2.0, 0.5, 1.331, 1.0])
    result = told(asked(config), [group(LONG, SHORT)], logprobs)
    close(result.by_logprob_T, [0.0, 0.0, 0.0, 0.5 / 2])
    assert result.sums.record()["clip_fraction"] == {"policy": 3 / 4}


@pytest.mark.parametrize("config_class", [LUFFY, Mix, NaiveMix])
def test_expert_tokens_are_never_corrected(config_class: type[LUFFY | Mix | NaiveMix]) -> None:
    """Far outside every bound, the tokens of a demonstration and of a hint have the slope they have without."""
    hinted = trajectory(Lengths(hint=1, sampled=2), 0.0, seed=4)
    members = (demonstration(4, 1.0, seed=3), hinted)
    logprobs = [math.log(p) for p in (0.001, 0.9, 0.01, 0.5, 0.002)] + at_ratios((hinted,), [1.0, 0.5, 4.0])[1:]
    with_it, without = (
        told(asked(config_class(corrections=corrections)), [group(*members)], logprobs)
        for corrections in (EVERY, Corrections())
    )
    close(with_it.by_logprob_T[:5], without.by_logprob_T[:5].tolist())
    assert with_it.by_logprob_T[:4].any()
    assert not with_it.by_logprob_T[5:].any()


@given(st.lists(st.floats(0.01, 100), min_size=4, max_size=4))
def test_decoupling_alone_keeps_the_gradient_of_the_unclipped_surrogate(ratios: list[float]) -> None:
    """π_θ/π_prox · π_prox/π_old is π_θ/π_old."""
    logprobs = at_ratios((LONG, SHORT), ratios)
    found, wanted = (
        told(asked(DrGRPO(surrogate=Surrogate.UNCLIPPED, corrections=c)), [group(LONG, SHORT)], logprobs)
        for c in (Corrections(decoupled=True), Corrections())
    )
    assert found.value == pytest.approx(wanted.value, rel=1e-12, abs=1e-15)
    close(found.by_logprob_T, wanted.by_logprob_T.tolist())


def test_without_a_correction_nothing_is_weighted() -> None:
    assert not Corrections().any
    config, same = DrGRPO(), DrGRPO(corrections=Corrections(truncate_at=1e6))
    logprobs = at_ratios((LONG, SHORT), [1.0, 1.1, 0.9, 1.1])
    plain, weighed = (told(asked(c), [group(LONG, SHORT)], logprobs) for c in (config, same))
    close(weighed.by_logprob_T, plain.by_logprob_T.tolist())


def test_the_weight_of_what_the_expert_wrote_is_one() -> None:
    """Whatever its probability: a hint of two tokens, one sampled token at ratio 9, a demonstration of two."""
    hinted = trajectory(Lengths(hint=2, sampled=1), seed=4)
    logprobs = [*at_ratios((hinted,), [1e-4, 0.5, 9.0]), math.log(1e-4), math.log(0.5)]
    (micro,) = map(in_float64, plan_step(asked(LUFFY()), [group(hinted, demonstration(2))], Layout(99)).micro_batches)
    outputs = PolicyOutputs(torch.tensor(logprobs, dtype=torch.float64, requires_grad=True), torch.zeros(5))
    weight_T = correction_weight(micro.tokens, outputs, truncate_at=2.0, keep_low=0.5)
    assert not weight_T.requires_grad
    close(weight_T, [1.0, 1.0, 2.0, 1.0, 1.0])


def test_a_token_without_a_weight_is_marked_beside_those_that_are_marked_already() -> None:
    """Weights 1, 0, 0, 0; the first was marked; the last has no advantage, so nothing was cut off there."""
    batch = micro_of_four((0.5, 0.5, -0.5, 0.0))
    outputs = PolicyOutputs(torch.zeros(4), torch.zeros(4))

    def weight(batch: TokenBatch, policy: PolicyOutputs) -> torch.Tensor:
        return torch.tensor([1.0, 0.0, 0.0, 0.0])

    def first(batch: TokenBatch, policy: PolicyOutputs) -> torch.Tensor:
        return torch.tensor([True, False, False, False])

    assert is_weightless(batch, outputs, mark=first, weight=weight).tolist() == [True, True, True, False]
    assert is_weightless(batch, outputs, mark=None, weight=weight).tolist() == [False, True, True, False]


def micro_of_four(advantages: tuple[float, ...]) -> TokenBatch:
    """The four tokens of LONG and SHORT with advantages of their own."""
    (micro,) = map(in_float64, plan_step(asked(DrGRPO()), [group(LONG, SHORT)], Layout(99)).micro_batches)
    return replace(micro.tokens, advantages_T=torch.tensor(advantages, dtype=torch.float64))
