"""The objective: a sum of terms, each divided by its count over the whole step. The only place that divides.

Adding the gradients of all micro-batches of a step gives the gradient of one big batch, however it was cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from common.trajectory import Source
from learner.batch import MicroBatch, PolicyOutputs, TokenBatch
from learner.packing.plan import StepPlan
from learner.ratios import importance_ratio
from learner.selectors import policy_tokens
from learner.terms import Algorithm, Term, taught_tokens

_SOURCES = (Source.POLICY, Source.HINT, Source.DEMONSTRATION)


@dataclass(frozen=True, slots=True, eq=False)
class StepSums:
    """Detached sums over tokens, which add over micro-batches and ranks; `record` makes the figures of a step of them.

    names: the K terms. values_K: each term's part of the loss. pulls_K: how hard each term pulls on its tokens, the sum
    of |∂L/∂log p| and |∂L/∂H|. sources_S4: of the policy, hint and demonstration tokens that some term is about, their
    number, the sum of the ratio, of its square, and how many were clipped. entropy: its sum over those policy tokens.
    All float64, on the outputs' device.
    """

    names: tuple[str, ...]
    values_K: Tensor
    pulls_K: Tensor
    sources_S4: Tensor
    entropy: Tensor

    def __add__(self, other: StepSums) -> StepSums:
        if self.names != other.names:
            raise ValueError(f"sums of different terms do not add: {self.names} and {other.names}")
        return StepSums(
            names=self.names,
            values_K=self.values_K + other.values_K,
            pulls_K=self.pulls_K + other.pulls_K,
            sources_S4=self.sources_S4 + other.sources_S4,
            entropy=self.entropy + other.entropy,
        )

    def flat(self) -> Tensor:
        """All of them in one row, as one transfer or one reduction takes them.    [2K + 13]"""
        return torch.cat([self.values_K, self.pulls_K, self.sources_S4.flatten(), self.entropy[None]])

    def refilled(self, flat: Tensor) -> StepSums:
        """The sums that such a row holds, for the same terms."""
        terms = len(self.names)
        sources_S4 = flat[2 * terms : -1].view_as(self.sources_S4)
        return StepSums(self.names, flat[:terms], flat[terms : 2 * terms], sources_S4, flat[-1])

    def record(self) -> dict[str, Any]:
        """The keys of a STEP event that come from the loss; finite numbers, and only sources that had tokens.

        effective_sample_size is the share (Σw)²/(n Σw²) of the source's tokens.
        """
        values, pulls, rows = (_numbers(t) for t in (self.values_K, self.pulls_K, self.sources_S4))
        sources = {source.name.lower(): row for source, row in zip(_SOURCES, rows, strict=True) if row[0]}
        sampled = float(self.sources_S4[0, 0])
        return {
            "loss": float(self.values_K.sum()),
            "terms": dict(zip(self.names, values, strict=True)),
            "gradient_weight": dict(zip(self.names, pulls, strict=True)),
            "entropy": float(self.entropy) / sampled if sampled else None,
            "ratio": {name: total / n for name, (n, total, _, _) in sources.items()},
            "effective_sample_size": {
                name: total**2 / (n * squares) for name, (n, total, squares, _) in sources.items()
            },
            "clip_fraction": {name: clipped / n for name, (n, _, _, clipped) in sources.items()},
        }


def empty_sums(algorithm: Algorithm) -> StepSums:
    """The sums of no micro-batch at all."""
    terms = len(algorithm.terms)
    zeros = torch.zeros
    return StepSums(
        names=tuple(term.name for term in algorithm.terms),
        values_K=zeros(terms, dtype=torch.float64),
        pulls_K=zeros(terms, dtype=torch.float64),
        sources_S4=zeros(len(_SOURCES), 4, dtype=torch.float64),
        entropy=zeros((), dtype=torch.float64),
    )


def loss(algorithm: Algorithm, plan: StepPlan, micro: MicroBatch, outputs: PolicyOutputs) -> tuple[Tensor, StepSums]:
    """One micro-batch's part of the step's loss, a scalar, and its sums."""
    return partial_loss(algorithm, plan.counts, micro.tokens, outputs)


def partial_loss(
    algorithm: Algorithm, counts: Mapping[str, float], batch: TokenBatch, outputs: PolicyOutputs
) -> tuple[Tensor, StepSums]:
    """A batch's part of a loss whose terms are divided by `counts`, a scalar, and its sums."""
    values = [_value(term, counts[term.name], batch, outputs) for term in algorithm.terms]
    total = torch.stack(values).sum()
    with torch.no_grad():
        sums = StepSums(
            names=tuple(term.name for term in algorithm.terms),
            values_K=torch.stack(values).double(),
            pulls_K=torch.stack([_pull(value, outputs) for value in values]),
            sources_S4=_source_sums(algorithm, batch, outputs),
            entropy=_sum_where(policy_tokens(batch) & taught_tokens(algorithm, batch), outputs.entropy_T.double()),
        )
    return total, sums


def _value(term: Term, count: float, batch: TokenBatch, outputs: PolicyOutputs) -> Tensor:
    # A count of zero means that no token is selected in the whole step: the sum is zero, whatever it is divided by.
    weight = term.weight / (count or 1.0)
    loss_T = term.loss(batch, outputs) * term.norm.shares(batch)
    return weight * torch.where(term.on(batch), loss_T, torch.zeros_like(loss_T)).sum()


def _pull(value: Tensor, outputs: PolicyOutputs) -> Tensor:
    """Σ|∂L/∂log p| + Σ|∂L/∂H| of one term; the gradient stops at the outputs, so this costs next to nothing."""
    zero = torch.zeros((), dtype=torch.float64, device=value.device)
    inputs = [t for t in (outputs.logprobs_T, outputs.entropy_T) if t.requires_grad]
    if not (inputs and value.requires_grad):
        return zero
    gradients = cast(
        tuple[Tensor | None, ...], torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True)
    )
    return sum((g.double().abs().sum() for g in gradients if g is not None), zero)


def _source_sums(algorithm: Algorithm, batch: TokenBatch, outputs: PolicyOutputs) -> Tensor:
    """[S, 4]: tokens, ratio, squared ratio and clipped tokens of each source."""
    ratio_T = importance_ratio(batch, outputs).double()
    clipped_T = torch.zeros_like(ratio_T, dtype=torch.bool)
    for term in algorithm.terms:
        if term.clipped is not None:
            clipped_T = clipped_T | (term.on(batch) & term.clipped(batch, outputs))
    columns_T4 = torch.stack([torch.ones_like(ratio_T), ratio_T, ratio_T.square(), clipped_T.double()], dim=1)
    taught_T = taught_tokens(algorithm, batch)
    return torch.stack([_sum_where(taught_T & (batch.sources_T == source), columns_T4) for source in _SOURCES])


def _sum_where(chosen_T: Tensor, values: Tensor) -> Tensor:
    """The sum over the chosen tokens. They are masked, not picked: how many are chosen, only the GPU knows."""
    mask = chosen_T if values.ndim == 1 else chosen_T[:, None]
    return torch.where(mask, values, torch.zeros_like(values)).sum(dim=0)


def _numbers(tensor: Tensor) -> list[Any]:
    return cast(list[Any], tensor.tolist())  # pyright: ignore[reportUnknownMemberType]
