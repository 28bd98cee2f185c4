"""Evidence: what the policy said in the forward passes of one step, kept so that more can be asked of the same batch.

It costs no forward and two or three numbers a token, on the device that computed them; it lives as long as its step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from learner.batch import Place, PolicyOutputs, TokenBatch
from learner.packing import StepPlan


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
