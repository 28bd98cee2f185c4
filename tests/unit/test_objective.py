"""The objective: the same gradient however a step is cut, for every algorithm, and figures worked by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import reduce
from operator import add

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learner_cases import (
    CONFIGS,
    BigramPolicy,
    asked,
    completed,
    demonstration,
    group,
    group_strategy,
    in_float64,
    mixed_groups,
    rollout,
    run_step,
    said,
    told,
)
from torch import Tensor

from common.config.algorithm import (
    BREAD,
    DAPO,
    GRPO,
    LUFFY,
    REINFORCE,
    SFT,
    UFT,
    AlgorithmConfig,
    Corrections,
    DrGRPO,
    LUFFYPaper,
    Mix,
    NaiveMix,
)
from common.config.base import Baseline, Shaping, Statistics, Surrogate
from common.trajectory import Group
from learner.batch import PolicyOutputs
from learner.objective import empty_sums, loss
from learner.packing.layout import Layout
from learner.packing.plan import plan_step

every_algorithm = pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.kind}-{CONFIGS.index(c)}")


def assert_same(found: list[Tensor], wanted: list[Tensor], tolerance: float = 1e-12) -> None:
    one, other = (torch.cat([t.flatten() for t in tensors]) for tensors in (found, wanted))
    assert (one - other).norm() <= tolerance * other.norm()


@every_algorithm
@pytest.mark.parametrize("micro_batch_tokens", [1, 13, 30])
def test_a_step_cut_into_micro_batches_has_the_gradient_of_one_big_batch(
    config: AlgorithmConfig, micro_batch_tokens: int
) -> None:
    algorithm, model = asked(config), BigramPolicy()
    whole, whole_sums = run_step(algorithm, plan_step(algorithm, mixed_groups(), Layout(10**6)), model)
    plan = plan_step(algorithm, mixed_groups(), Layout(micro_batch_tokens))
    cut, cut_sums = run_step(algorithm, plan, model)
    assert len(plan.micro_batches) > 1
    assert any(gradient.any() for gradient in whole)
    assert_same(cut, whole)
    for mine, other in (
        (cut_sums.values_K, whole_sums.values_K),
        (cut_sums.pulls_K, whole_sums.pulls_K),
        (cut_sums.sources_S4, whole_sums.sources_S4),
        (cut_sums.entropy, whole_sums.entropy),
    ):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-14)


@settings(max_examples=25)
@given(groups=group_strategy(), limit=st.integers(1, 40), config=st.sampled_from(CONFIGS))
def test_any_groups_cut_anyhow_have_the_same_finite_gradient(
    groups: list[Group], limit: int, config: AlgorithmConfig
) -> None:
    algorithm, model = asked(config), BigramPolicy()
    whole, sums = run_step(algorithm, plan_step(algorithm, groups, Layout(10**6)), model)
    cut, _ = run_step(algorithm, plan_step(algorithm, groups, Layout(limit)), model)
    assert all(torch.isfinite(gradient).all() for gradient in whole)
    assert_same(cut, whole, tolerance=1e-11)  # advantages that cancel leave little to compare with
    json.dumps(sums.record(), allow_nan=False)


@every_algorithm
def test_two_ranks_that_share_their_counts_have_the_gradient_of_one(config: AlgorithmConfig) -> None:
    algorithm, model, groups = asked(config), BigramPolicy(), mixed_groups()
    algorithm = completed(algorithm, plan_step(algorithm, groups, Layout(30)), model)
    one, one_sums = run_step(algorithm, plan_step(algorithm, groups, Layout(30)), model)
    plans = [plan_step(algorithm, part, Layout(30)) for part in (groups[:1], groups[1:])]
    counts = {name: sum(plan.counts[name] for plan in plans) for name in plans[0].counts}
    ranks = [run_step(algorithm, plan.with_counts(counts), model) for plan in plans]
    assert_same([first + second for first, second in zip(ranks[0][0], ranks[1][0], strict=True)], one)
    both = reduce(add, (sums for _, sums in ranks))
    assert both.record()["loss"] == pytest.approx(one_sums.record()["loss"], rel=1e-12)


@pytest.mark.parametrize(
    "config",
    [
        GRPO(),
        DrGRPO(),
        LUFFY(entropy_bonus=0.0),
        LUFFY(entropy_bonus=0.0, divide_by_std=True, negatives_in_failed_groups=False),
        LUFFYPaper(entropy_bonus=0.0, shaping=Shaping.LOG),
        NaiveMix(),
        Mix(statistics=Statistics.POLICY_ONLY),
        DAPO(drop_flat_groups=False),
        GRPO(surrogate=Surrogate.GSPO, corrections=Corrections(truncate_at=2.0)),
        GRPO(surrogate=Surrogate.CISPO, dual_clip=3.0),
        REINFORCE(baseline=Baseline.GROUP_MEAN),
        REINFORCE(baseline=Baseline.LEAVE_ONE_OUT),
        BREAD(),
        UFT(entropy_bonus=0.0, kl_coefficient=0.0),
    ],
)
@given(reward=st.floats(-2, 2))
@settings(max_examples=10)
def test_equal_rewards_give_no_policy_gradient_at_all(config: AlgorithmConfig, reward: float) -> None:
    members = (rollout(3, reward, seed=1), rollout(5, reward, seed=2), demonstration(4, reward, seed=3))
    algorithm = asked(config)
    gradients, _ = run_step(algorithm, plan_step(algorithm, [group(*members)], Layout(99)), BigramPolicy())
    assert not any(gradient.any() for gradient in gradients)


@every_algorithm
def test_the_pull_of_each_term_is_the_gradient_that_it_sends_to_the_policy(config: AlgorithmConfig) -> None:
    """A term alone sends to log p and H what `pulls_K` says of it; the loss is the sum of the terms."""
    algorithm, model = asked(config), BigramPolicy()
    plan = plan_step(algorithm, mixed_groups(), Layout(10**6))
    algorithm = completed(algorithm, plan, model)
    (micro,) = map(in_float64, plan.micro_batches)
    with torch.no_grad():
        told = said(algorithm, micro, model)
    for k, term in enumerate(algorithm.terms):
        logprobs_T, entropy_T = (t.clone().requires_grad_() for t in (told.logprobs_T, told.entropy_T))
        outputs = replace(told, logprobs_T=logprobs_T, entropy_T=entropy_T)
        value, sums = loss(algorithm, plan, micro, outputs)
        on_T = term.on(micro.tokens)
        alone = term.weight / plan.counts[term.name] * term.loss(micro.tokens, outputs) * term.norm.shares(micro.tokens)
        gradients = torch.autograd.grad(
            alone[on_T].sum(), [logprobs_T, entropy_T], allow_unused=True, retain_graph=True
        )
        pull = sum(g.abs().sum().item() for g in gradients if g is not None)
        assert sums.pulls_K[k].item() == pytest.approx(pull, rel=1e-12)
        assert sums.values_K[k].item() == pytest.approx(alone[on_T].sum().item(), rel=1e-12)
        assert value.item() == pytest.approx(sums.values_K.sum().item(), rel=1e-12)


def test_the_figures_of_a_step_are_those_worked_by_hand() -> None:
    """Two rollouts of two tokens, ratios 1.5, 0.5 (A > 0) and 1.5, 0.5 (A < 0): one token of each is clipped.

    Σr = 4, Σr² = 5, n = 4: mean 1, effective sample size 16/20.
    """
    members = (rollout(2, 1.0, seed=1), rollout(2, 0.0, seed=2))
    ratios = torch.tensor([1.5, 0.5, 1.5, 0.5], dtype=torch.float64)
    behaviour = torch.tensor([p for m in members for p in m.behaviour_logprobs[2:].tolist()], dtype=torch.float64)
    result = told(
        asked(GRPO(divide_by_std=False)), [group(*members)], (behaviour + ratios.log()).tolist(), [1.0, 2.0, 3.0, 4.0]
    )
    record = result.sums.record()
    assert record["ratio"] == {"policy": pytest.approx(1.0)}
    assert record["effective_sample_size"] == {"policy": pytest.approx(0.8)}
    assert record["clip_fraction"] == {"policy": 0.5}
    assert record["entropy"] == 2.5
    # A = ±½, half a sequence each of two: -(1.2 + 0.5)/2·½·½ + (1.5 + 0.8)/2·½·½
    assert record["terms"] == {"policy": pytest.approx(0.075)}
    assert record["loss"] == pytest.approx(0.075)
    # Unclipped are the ratios 0.5 (A > 0) and 1.5 (A < 0): (0.5 + 1.5)·½·½·½
    assert record["gradient_weight"] == {"policy": pytest.approx(0.25)}


def test_a_record_names_only_sources_that_are_taught() -> None:
    members = (rollout(2, 1.0), demonstration(2, 0.0))
    record = told(asked(LUFFY()), [group(*members)], [-1.0] * 4).sums.record()
    assert set(record["ratio"]) == {"policy", "demonstration"}
    record = told(asked(SFT()), [group(*members)], [-1.0] * 2).sums.record()
    assert set(record["clip_fraction"]) == {"demonstration"}
    assert record["entropy"] is None


def test_a_step_without_micro_batches_has_a_record_too() -> None:
    record = empty_sums(asked(LUFFY())).record()
    assert record["loss"] == 0.0
    assert record["ratio"] == {}
    assert record["entropy"] is None
    json.dumps(record, allow_nan=False)


def test_sums_of_other_terms_do_not_add() -> None:
    with pytest.raises(ValueError, match="different terms"):
        _ = empty_sums(asked(SFT())) + empty_sums(asked(GRPO()))


@every_algorithm
@pytest.mark.parametrize("extreme", [-float("inf"), -1e4, 0.0])
def test_no_value_of_a_token_that_is_not_taught_reaches_the_gradient(config: AlgorithmConfig, extreme: float) -> None:
    """Neither as NaN nor as anything else: masks cut the gradient, not only the sum."""
    algorithm = asked(config)
    plan = plan_step(algorithm, mixed_groups(), Layout(10**6))
    (micro,) = map(in_float64, plan.micro_batches)
    for term in algorithm.terms:
        on_T = term.on(micro.tokens)
        logprobs_T = torch.where(on_T, -1.0, extreme).double().requires_grad_()
        entropy_T = torch.ones_like(logprobs_T).requires_grad_()
        alone = replace(algorithm, terms=(term,))
        value, _ = loss(alone, plan, micro, PolicyOutputs(logprobs_T, entropy_T, torch.full_like(logprobs_T, -1.0)))
        value.backward()
        assert torch.isfinite(value)
        if logprobs_T.grad is not None:
            assert torch.isfinite(logprobs_T.grad).all()
            assert not logprobs_T.grad[~on_T].any()


@every_algorithm
def test_hopelessly_stale_tokens_give_finite_gradients(config: AlgorithmConfig) -> None:
    algorithm = asked(config)
    plan = plan_step(algorithm, mixed_groups(), Layout(10**6))
    micro = plan.micro_batches[0].to("cpu")
    for logprob in (-1e4, -0.0):
        logprobs_T = torch.full_like(micro.tokens.advantages_T, logprob).requires_grad_()
        reference_T = torch.full_like(logprobs_T, -1.0)
        value, sums = loss(algorithm, plan, micro, PolicyOutputs(logprobs_T, logprobs_T.detach() + 1, reference_T))
        value.backward()
        assert logprobs_T.grad is not None
        assert torch.isfinite(logprobs_T.grad).all()
        json.dumps(sums.record(), allow_nan=False)
