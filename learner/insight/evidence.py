"""Evidence: what the policy said in the forward passes of one step, kept so that more can be asked of the same batch.

It costs no forward and two or three numbers a token, on the device that computed them; it lives as long as its step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor

from learner.batch import Place, PolicyOutputs, TokenBatch
from learner.packing.plan import StepPlan
from learner.ranks.alone import Ranks


@dataclass(frozen=True, slots=True, eq=False)
class Exhibit:
    """The response tokens of one micro-batch, where its trajectories come from, and what the policy said of them."""

    places: tuple[Place, ...]
    tokens: TokenBatch
    outputs: PolicyOutputs


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """The micro-batches of a step and, for each of them, what the policy said about it, without a gradient."""

    plan: StepPlan
    outputs: tuple[PolicyOutputs, ...]

    def exhibits(self) -> Iterator[Exhibit]:
        """Each micro-batch with its outputs, where the outputs are and in their precision."""
        for micro, outputs in zip(self.plan.micro_batches, self.outputs, strict=True):
            tokens = micro.tokens.to(outputs.logprobs_T.device, outputs.logprobs_T.dtype)
            yield Exhibit(micro.places, tokens, outputs)


def collected(own: Evidence, others: Iterable[StepPlan], ranks: Ranks) -> Evidence | None:
    """At rank 0 the evidence of all ranks. others: the plans of their shares; read at rank 0 only."""
    if ranks.size == 1:
        return own
    columns = [_columns(outputs) for outputs in own.outputs]
    row = torch.cat([*chain.from_iterable(columns)]) if columns else torch.zeros(0)
    if ranks.rank != 0:
        ranks.collected(row, ())
        return None
    kinds = len(columns[0]) if columns else 0
    plans = [own.plan, *others]
    rows = ranks.collected(row, [kinds * _tokens(plan) for plan in plans])
    outputs = [*own.outputs]
    for plan, theirs in zip(plans[1:], rows[1:], strict=True):
        outputs += _outputs(plan, theirs.to(row.device), kinds)
    micro_batches = tuple(chain.from_iterable(plan.micro_batches for plan in plans))
    return Evidence(replace(own.plan, micro_batches=micro_batches), tuple(outputs))


def _columns(outputs: PolicyOutputs) -> list[Tensor]:
    """Log-probs, entropy and, if they were asked for, those of the reference."""
    columns = (outputs.logprobs_T, outputs.entropy_T, outputs.reference_logprobs_T)
    return [column_T for column_T in columns if column_T is not None]


def _outputs(plan: StepPlan, row: Tensor, kinds: int) -> Iterator[PolicyOutputs]:
    """What a rank's row says about the micro-batches of its plan."""
    for micro in plan.micro_batches:
        tokens = len(micro.tokens.labels_T)
        here, row = row[: kinds * tokens], row[kinds * tokens :]
        yield PolicyOutputs(*here.view(kinds, tokens).unbind())


def _tokens(plan: StepPlan) -> int:
    return sum(len(micro.tokens.labels_T) for micro in plan.micro_batches)
