"""Cases for the tests of the learner's pure core: trajectories, groups, and policies whose answers are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from common.config.algorithm import (
    BREAD,
    DAPO,
    GRPO,
    HPT,
    LUFFY,
    REINFORCE,
    SFT,
    SRFT,
    UFT,
    AlgorithmConfig,
    Corrections,
    DrGRPO,
    LUFFYPaper,
    Mix,
    NaiveMix,
    PrefixRFT,
    ReLIFT,
)
from common.config.base import (
    Baseline,
    EntropyScope,
    HintNorm,
    Norm,
    Selection,
    SelfReward,
    Shaping,
    Statistics,
    Surrogate,
)
from common.trajectory import Finish, Group, Source, Trajectory
from learner.algorithms import build
from learner.batch import MicroBatch, PolicyOutputs
from learner.forward.attending import NAME
from learner.forward.policy import evaluate
from learner.objective import StepSums, empty_sums, loss
from learner.packing.layout import Layout
from learner.packing.plan import StepPlan, plan_step
from learner.terms import Algorithm, surveyed

VOCABULARY = 11

CORRECTED = Corrections(decoupled=True, truncate_at=2.0, keep_low=0.1, keep_high=5.0)

CONFIGS: tuple[AlgorithmConfig, ...] = (
    SFT(),
    SFT(norm=Norm.SEQUENCE_MEAN),
    REINFORCE(),
    REINFORCE(baseline=Baseline.GROUP_MEAN, norm=Norm.TOKEN_MEAN, corrections=CORRECTED),
    REINFORCE(baseline=Baseline.LEAVE_ONE_OUT, statistics=Statistics.POLICY_ONLY, kl_coefficient=0.1),
    GRPO(),
    GRPO(norm=Norm.TOKEN_MEAN, clip_high=0.28, entropy_bonus=0.01, dual_clip=3.0),
    GRPO(surrogate=Surrogate.GSPO, corrections=CORRECTED),
    GRPO(surrogate=Surrogate.GSPO, gspo_clip_low=0.5, gspo_clip_high=5.0, norm=Norm.CONSTANT, dual_clip=2.0),
    GRPO(surrogate=Surrogate.CISPO, kl_coefficient=0.05, entropy_bonus=0.01),
    DrGRPO(),
    DrGRPO(surrogate=Surrogate.UNCLIPPED, statistics=Statistics.POLICY_ONLY, dual_clip=1.5),
    DrGRPO(corrections=CORRECTED),
    DAPO(),
    DAPO(drop_flat_groups=False, overlong_buffer=1.0),
    NaiveMix(),
    NaiveMix(norm=Norm.SEQUENCE_MEAN, surrogate=Surrogate.GSPO),
    Mix(),
    Mix(surrogate=Surrogate.UNCLIPPED, kl_coefficient=0.01, dual_clip=3.0),
    LUFFY(),
    LUFFY(norm=Norm.SEQUENCE_MEAN, shaping=Shaping.NONE, divide_by_std=True, corrections=CORRECTED),
    LUFFY(shaping=Shaping.SQRT, statistics=Statistics.POLICY_ONLY),
    LUFFY(shaping=Shaping.POWER, exponent=0.3, ratio_min=0.02, ratio_max=0.8),
    LUFFY(shaping=Shaping.LOG, negatives_in_failed_groups=False),
    LUFFYPaper(),
    LUFFYPaper(surrogate=Surrogate.CISPO, dual_clip=1.1),
    ReLIFT(),
    UFT(),
    UFT(hint_norm=HintNorm.SUM, norm=Norm.SEQUENCE_MEAN, kl_coefficient=0.0, beta=0.5),
    BREAD(),
    PrefixRFT(),
    PrefixRFT(selection=Selection.BATCH, keep_share=0.5, norm=Norm.TOKEN_MEAN),
    SRFT(),
    SRFT(entropy_scope=EntropyScope.TOKEN, self_reward=SelfReward.ADVANTAGE, shaping=Shaping.NONE),
    SRFT(entropy_scope=EntropyScope.BATCH, sft_entropy_sign=1, negatives_in_failed_groups=False),
    HPT(),
    HPT(gate=1, surrogate=Surrogate.UNCLIPPED, corrections=CORRECTED),
)


@dataclass(frozen=True, slots=True)
class Lengths:
    """How many tokens of a trajectory come from where."""

    prompt: int = 2
    hint: int = 0
    sampled: int = 0
    demonstration: int = 0


def trajectory(lengths: Lengths, reward: float = 0.0, *, seed: int = 0, expert_known: bool = False) -> Trajectory:
    """A trajectory of random tokens whose log-probs are random where they mean something."""
    random = np.random.default_rng(seed)
    runs = [
        (lengths.prompt, Source.PROMPT),
        (lengths.hint, Source.HINT),
        (lengths.sampled, Source.POLICY),
        (lengths.demonstration, Source.DEMONSTRATION),
    ]
    sources = np.concatenate([np.full(count, source, dtype=np.uint8) for count, source in runs])
    total = len(sources)
    expert = np.isin(sources, [Source.HINT, Source.DEMONSTRATION])
    logprobs = random.uniform(-3.0, -0.1, size=total).astype(np.float32)
    return Trajectory(
        tokens=random.integers(0, VOCABULARY, size=total).astype(np.int32),
        sources=sources,
        behaviour_logprobs=np.where(sources == Source.POLICY, logprobs, np.float32(0)),
        reward=reward,
        finish=Finish.DEMONSTRATION if lengths.demonstration else Finish.STOP,
        expert_logprobs=np.where(expert, logprobs, np.float32(0)) if expert_known else None,
    )


def rollout(sampled: int, reward: float = 0.0, *, seed: int = 0) -> Trajectory:
    """A plain rollout behind a prompt of two tokens."""
    return trajectory(Lengths(sampled=sampled), reward, seed=seed)


def demonstration(length: int, reward: float = 1.0, *, seed: int = 0) -> Trajectory:
    """A demonstration whose π_φ is not known."""
    return trajectory(Lengths(demonstration=length), reward, seed=seed)


def group(*members: Trajectory) -> Group:
    """A group of these members."""
    return Group("group", "prompt", 1, "generator-1", members)


def mixed_groups() -> list[Group]:
    """Three groups with every kind of member, of many lengths; rewards differ inside each."""
    return [
        group(rollout(7, 1.0, seed=1), rollout(3, 0.0, seed=2), rollout(5, 0.0, seed=3), demonstration(9, 1.0, seed=4)),
        group(
            rollout(2, 0.0, seed=5),
            rollout(4, 0.0, seed=6),
            trajectory(Lengths(hint=3, sampled=4), 1.0, seed=7),
            trajectory(Lengths(demonstration=6), 1.0, seed=8, expert_known=True),
        ),
        group(
            trajectory(Lengths(prompt=4, sampled=1), 0.0, seed=9),
            trajectory(Lengths(prompt=4, hint=2, sampled=6), 0.0, seed=10, expert_known=True),
            trajectory(Lengths(prompt=4, demonstration=5), 1.0, seed=11),
        ),
    ]


def group_strategy() -> st.SearchStrategy[list[Group]]:
    """Up to three groups of up to five members of any kind."""
    lengths = st.one_of(
        st.builds(Lengths, prompt=st.integers(1, 4), hint=st.integers(0, 3), sampled=st.integers(1, 8)),
        st.builds(Lengths, prompt=st.integers(1, 4), demonstration=st.integers(1, 8)),
    )
    members = st.builds(
        trajectory,
        lengths,
        st.sampled_from([0.0, 0.5, 1.0]),
        seed=st.integers(0, 999),
        expert_known=st.booleans(),
    )
    return st.lists(st.lists(members, min_size=1, max_size=5).map(lambda m: group(*m)), min_size=1, max_size=3)


class BigramPolicy(nn.Module):
    """A policy that looks at one token only, in float64, with the parts of a transformers model that we use."""

    def __init__(self, *, bias: bool = True, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64))

        self.embedding = parameter(VOCABULARY, 3)
        self.weight = parameter(VOCABULARY, 3)
        self.bias = parameter(VOCABULARY) if bias else None
        self.config = SimpleNamespace(_attn_implementation=NAME)  # what a token sees makes no difference to it

    def base_model(self, *, input_ids: Tensor, use_cache: bool, **_: Any) -> Any:
        """Hidden states.    [B, S] -> [B, S, 3]"""
        assert not use_cache
        return SimpleNamespace(last_hidden_state=self.embedding[input_ids])

    def get_output_embeddings(self) -> Any:
        """The head: weight and bias."""
        return SimpleNamespace(weight=self.weight, bias=self.bias)


def asked(config: AlgorithmConfig, *, longest_response: int = 16) -> Algorithm:
    """The algorithm that a configuration of the union describes."""
    return build(config, longest_response=longest_response)  # pyright: ignore[reportArgumentType]


def in_float64(micro: MicroBatch) -> MicroBatch:
    """The micro-batch for an exact test."""
    return micro.to("cpu", torch.float64)


def said(algorithm: Algorithm, micro: MicroBatch, model: nn.Module) -> PolicyOutputs:
    """What `model` says about a micro-batch, beside another one as the reference where the algorithm needs it."""
    outputs = evaluate(model, micro, 1.0)
    if not algorithm.needs_reference:
        return outputs
    with torch.no_grad():
        return replace(outputs, reference_logprobs_T=evaluate(BigramPolicy(seed=1), micro, 1.0).logprobs_T)


def completed(algorithm: Algorithm, plan: StepPlan, model: nn.Module) -> Algorithm:
    """The algorithm after its survey of a whole step, if it has one."""
    return surveyed(algorithm, ((m.tokens, said(algorithm, m, model)) for m in map(in_float64, plan.micro_batches)))


def run_step(algorithm: Algorithm, plan: StepPlan, model: nn.Module) -> tuple[list[Tensor], StepSums]:
    """The gradient of a whole step, parameter by parameter, and its sums."""
    model.zero_grad(set_to_none=True)
    algorithm = completed(algorithm, plan, model)
    sums = empty_sums(algorithm)
    for micro in map(in_float64, plan.micro_batches):
        value, part = loss(algorithm, plan, micro, said(algorithm, micro, model))
        value.backward()
        sums = sums + part
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]
    return gradients, sums


@dataclass(frozen=True, slots=True)
class Told:
    """What an algorithm makes of one micro-batch, given what the policy says: loss, gradients and sums."""

    value: float
    by_logprob_T: Tensor
    by_entropy_T: Tensor
    sums: StepSums
    plan: StepPlan
    micro: MicroBatch

    @property
    def terms(self) -> dict[str, float]:
        """Each term's part of the loss."""
        return self.sums.record()["terms"]


def told(
    algorithm: Algorithm,
    groups: Sequence[Group],
    logprobs: Sequence[float],
    entropy: Sequence[float] | None = None,
    *,
    reference: Sequence[float] | None = None,
) -> Told:
    """One big micro-batch on which the policy gives these log-probs (and entropies) to the response tokens in order.

    The order is that of the plan: longer trajectories first, else as in the groups. The reference agrees with the
    policy unless its log-probs are given.
    """
    plan = plan_step(algorithm, groups, Layout(10**6))
    (micro,) = map(in_float64, plan.micro_batches)
    assert len(micro.tokens.labels_T) == len(logprobs), "one log-prob per response token"
    leaf_T = torch.tensor(logprobs, dtype=torch.float64, requires_grad=True)
    entropy_T = torch.tensor(entropy or [1.0] * len(logprobs), dtype=torch.float64, requires_grad=True)
    reference_T = torch.tensor(reference or logprobs, dtype=torch.float64) if algorithm.needs_reference else None
    outputs = PolicyOutputs(leaf_T, entropy_T, reference_T)
    value, sums = loss(surveyed(algorithm, [(micro.tokens, outputs)]), plan, micro, outputs)
    value.backward()
    zero_T = torch.zeros_like(leaf_T)
    by_logprob_T = zero_T if leaf_T.grad is None else leaf_T.grad
    by_entropy_T = zero_T if entropy_T.grad is None else entropy_T.grad
    return Told(value.item(), by_logprob_T, by_entropy_T, sums, plan, micro)


def at_ratios(members: Sequence[Trajectory], ratios: Sequence[float]) -> list[float]:
    """Log-probs at which the members' sampled tokens have these ratios π_θ/π_old, and the others these probabilities.

    In the order of the members, each behind a prompt of two tokens.
    """
    behaviour = [p for member in members for p in member.behaviour_logprobs[2:].tolist()]
    return [b + math.log(r) for b, r in zip(behaviour, ratios, strict=True)]


def close(found: Tensor, wanted: Sequence[float], tolerance: float = 1e-12) -> None:
    """Assert that a tensor holds these numbers, to a relative tolerance."""
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=tolerance, atol=1e-15)
