"""Any cut: however a step is laid out, cut and shared among ranks, its gradient is that of one big batch.

This pins the two bugs of arXiv 2604.23747: the mean of per-micro-batch means, and the mean of per-rank means.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learner_cases import (
    CONFIGS,
    VOCABULARY,
    BigramPolicy,
    asked,
    demonstration,
    group,
    group_strategy,
    in_float64,
    mixed_groups,
    rollout,
)
from span_cases import prompted_groups
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from common.config.algorithm import GRPO, LUFFY, SFT, AlgorithmConfig
from common.config.base import Norm
from common.trajectory import Group
from learner.batch import MicroBatch, PolicyOutputs
from learner.forward.attending import equip
from learner.forward.policy import evaluate
from learner.objective import StepSums, empty_sums, loss
from learner.packing.layout import WHOLE, Layout, Share
from learner.packing.plan import StepPlan, plan_step
from learner.terms import Algorithm, surveyed

Said = Callable[[MicroBatch], PolicyOutputs]

WHOLE_STEP = Layout(10**6)

LAYOUTS = (
    Layout(1),
    Layout(13),
    Layout(30),
    Layout(1, packed=True),
    Layout(25, packed=True),
    Layout(10**6, packed=True),
    Layout(25, packed=False, shared_prompts=True),
    Layout(20, packed=True, shared_prompts=True),
    Layout(10**6, packed=True, shared_prompts=True),
)


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A policy and the reference beside it."""

    policy: nn.Module
    reference: nn.Module

    def says(self, algorithm: Algorithm, micro: MicroBatch) -> PolicyOutputs:
        outputs = evaluate(self.policy, micro, 1.0)
        if not algorithm.needs_reference:
            return outputs
        with torch.no_grad():
            return replace(outputs, reference_logprobs_T=evaluate(self.reference, micro, 1.0).logprobs_T)


def bigram() -> Model:
    """One that looks at a single token: exact in float64, blind for what a token sees."""
    return Model(BigramPolicy(), BigramPolicy(seed=1))


def llama() -> Model:
    """One with attention, in float64 but for its norms."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
    made: list[Any] = [LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **sizes, **heads)) for _ in range(2)]
    for model in made:
        assert equip(model, None)
        for parameter in model.parameters():  # far from uniform, so that a mistake shows
            parameter.data.mul_(5)
    return Model(made[0].double().eval(), made[1].double().eval())


def of_ranks(
    algorithm: Algorithm, groups: Sequence[Group], model: Model, layout: Layout, ranks: int
) -> tuple[list[Tensor], StepSums]:
    """The gradient of a step that `ranks` ranks make together, and its sums: what a sum over ranks gives."""
    shares = [WHOLE] if ranks == 1 else [Share(rank, ranks) for rank in range(ranks)]
    plans = [plan_step(algorithm, groups, layout, share) for share in shares]
    counts = {name: sum(plan.counts[name] for plan in plans) for name in plans[0].counts}
    micros = [[in_float64(micro) for micro in plan.micro_batches] for plan in plans]
    assert len({len(each) for each in micros}) == 1, "ranks that differ in their number of micro-batches wait for ever"
    looks = [(micro.tokens, model.says(algorithm, micro)) for each in micros for micro in each]
    algorithm = surveyed(algorithm, looks)
    model.policy.zero_grad(set_to_none=True)
    sums = empty_sums(algorithm)
    for plan, each in zip(plans, micros, strict=True):
        for micro in each:
            value, part = loss(algorithm, plan.with_counts(counts), micro, model.says(algorithm, micro))
            value.backward()
            sums = sums + part
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.policy.parameters()], sums


def assert_same(one: tuple[list[Tensor], StepSums], other: tuple[list[Tensor], StepSums], tolerance: float) -> None:
    """That two steps are the same to a relative tolerance."""
    ours, theirs = (torch.cat([g.flatten() for g in gradients]) for gradients, _ in (one, other))
    assert (ours - theirs).norm() <= tolerance * theirs.norm()
    for name in ("values_K", "pulls_K", "sources_S4", "entropy"):
        torch.testing.assert_close(getattr(one[1], name), getattr(other[1], name), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("number", range(len(CONFIGS)), ids=lambda number: f"{CONFIGS[number].kind}-{number}")
def test_a_step_of_every_algorithm_is_the_same_in_any_layout_and_on_any_number_of_ranks(number: int) -> None:
    """Every algorithm in a third of the layouts: those in turn."""
    algorithm, model = asked(CONFIGS[number]), bigram()
    for groups in (mixed_groups(), prompted_groups()):
        whole = of_ranks(algorithm, groups, model, WHOLE_STEP, 1)
        for turn, layout in enumerate(LAYOUTS[number % 3 :: 3]):
            assert_same(of_ranks(algorithm, groups, model, layout, 1 + (number + turn) % 4), whole, 1e-11)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 40])
@pytest.mark.parametrize("layout", LAYOUTS, ids=repr)
def test_a_step_of_a_model_with_attention_is_the_same_in_any_layout_and_on_any_number_of_ranks(
    layout: Layout, ranks: int
) -> None:
    """40: more ranks than trajectories."""
    algorithm, model = asked(LUFFY(norm=Norm.SEQUENCE_MEAN)), llama()
    whole = of_ranks(algorithm, prompted_groups(), model, WHOLE_STEP, 1)
    assert_same(of_ranks(algorithm, prompted_groups(), model, layout, ranks), whole, 1e-5)


@settings(max_examples=15, deadline=None)
@given(
    groups=group_strategy(),
    config=st.sampled_from(CONFIGS),
    limit=st.integers(1, 64),
    packed=st.booleans(),
    shared=st.booleans(),
    ranks=st.integers(1, 5),
)
def test_any_groups_give_the_same_step_however_they_are_cut(
    groups: list[Group], config: AlgorithmConfig, limit: int, packed: bool, shared: bool, ranks: int
) -> None:
    algorithm, model = asked(config), bigram()
    whole = of_ranks(algorithm, groups, model, WHOLE_STEP, 1)
    assert_same(of_ranks(algorithm, groups, model, Layout(limit, packed, shared), ranks), whole, 1e-9)


@pytest.mark.parametrize("ranks", [2, 3, 40])
@pytest.mark.parametrize("layout", LAYOUTS, ids=repr)
def test_the_figures_of_all_shares_add_up_to_those_of_the_step(layout: Layout, ranks: int) -> None:
    algorithm, groups = asked(GRPO()), [*prompted_groups(), group(rollout(2, 1.0), rollout(3, 1.0))]
    whole = plan_step(algorithm, groups, layout)
    plans = [plan_step(algorithm, groups, layout, Share(rank, ranks)) for rank in range(ranks)]
    for figure in ("groups", "flat_groups", "trajectories", "tokens"):
        assert sum(getattr(plan, figure) for plan in plans) == getattr(whole, figure)
    assert {name: sum(plan.counts[name] for plan in plans) for name in whole.counts} == whole.counts
    assert (plans[0].groups, plans[1].groups, plans[1].flat_groups) == (whole.groups, 0, 0)
    everyone = [place for plan in plans for micro in plan.micro_batches for place in micro.places]
    assert len(everyone) == len(set(everyone)) == whole.trajectories


def test_the_mean_of_micro_batch_means_would_be_another_gradient() -> None:
    """The bug itself, so that we know the cases above would show it."""
    algorithm, model = asked(SFT()), bigram()
    groups = [group(demonstration(9, seed=1)), group(demonstration(1, seed=2))]
    whole, _ = of_ranks(algorithm, groups, model, WHOLE_STEP, 1)
    plan = plan_step(algorithm, groups, Layout(1))
    model.policy.zero_grad()
    for micro in map(in_float64, plan.micro_batches):
        alone = {name: term.norm.count(micro.tokens) * 2 for name, term in ((t.name, t) for t in algorithm.terms)}
        loss(algorithm, plan.with_counts(alone), micro, model.says(algorithm, micro))[0].backward()
    ours, theirs = (
        torch.cat([g.flatten() for g in gradients])
        for gradients in ([p.grad for p in model.policy.parameters() if p.grad is not None], whole)
    )
    assert (ours - theirs).norm() > 0.1 * theirs.norm()


def test_a_rank_without_work_computes_one_token_that_teaches_nothing() -> None:
    algorithm, model = asked(LUFFY()), llama()
    groups = [group(rollout(3, 1.0), rollout(2, 0.0))]
    plans: list[StepPlan] = [plan_step(algorithm, groups, Layout(99), Share(rank, 4)) for rank in range(4)]
    (idle,) = plans[3].micro_batches
    assert idle.input_ids.shape == (1, 1)
    assert (len(idle.tokens.labels_T), idle.tokens.sequences, idle.places) == (0, 0, ())
    model.policy.zero_grad(set_to_none=True)
    here = in_float64(idle)
    value, sums = loss(algorithm, plans[0], here, model.says(algorithm, here))
    value.backward()
    assert value.item() == 0
    gradients = [p.grad for p in model.policy.parameters()]
    assert all(g is not None and not g.any() for g in gradients)
    assert sums.record()["entropy"] is None


@pytest.mark.parametrize("packed", [False, True])
def test_the_tokens_of_ranks_differ_by_little(packed: bool) -> None:
    groups = [group(*(rollout(5 + (7 * i) % 40, float(i % 2), seed=i) for i in range(40)))]
    for ranks in (2, 3, 5):
        plans = [plan_step(asked(GRPO()), groups, Layout(100, packed), Share(rank, ranks)) for rank in range(ranks)]
        loads = [sum(micro.input_ids.numel() for micro in plan.micro_batches) for plan in plans]
        assert max(loads) <= 1.15 * sum(loads) / ranks
        assert all(micro.input_ids.numel() <= 100 for plan in plans for micro in plan.micro_batches)
