"""The trainer: policy and optimisers, one step at a time, and their state as tensors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from common.config.live import LiveConfig, OptimizerConfig
from common.trajectory import Group
from learner.algorithms import build
from learner.batch import MicroBatch, PolicyOutputs, TokenBatch
from learner.evidence import Evidence
from learner.model import named_weights, take_weights
from learner.objective import StepSums, empty_sums, loss
from learner.optimizer import Optimizer
from learner.outcome import Abandoned, Rehearsed, StepOutcome, Verdict
from learner.packing import StepPlan, plan_step
from learner.policy import evaluate
from learner.reference import LoadModel, Reference
from learner.rehearsal import RehearsalBuffer
from learner.terms import Algorithm, Rehearsal, surveyed

TensorFiles = Mapping[str, Mapping[str, Tensor]]
Heed = Callable[[], None]


@dataclass(frozen=True, slots=True)
class _Course:
    """How one optimiser step is made: what it teaches, which optimiser does it, how far it goes, what is kept of it."""

    algorithm: Algorithm
    optimizer: Optimizer
    rate: float
    live: LiveConfig
    keeps_evidence: bool = False


class Trainer:
    """Policy and AdamW with float32 masters. On a GPU the forward computes in bfloat16.

    updates: optimiser updates so far, which the warm-up counts; rehearsals have an optimiser of their own and no
    warm-up. load_reference: how to get the model the run began with; needed by an algorithm with a KL term.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        micro_batch_tokens: int,
        *,
        load_reference: LoadModel | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.model = model
        self.updates = 0
        self._micro_batch_tokens = micro_batch_tokens
        self._clock = clock
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self._parameters = [p for _, p in named]
        self.device = self._parameters[0].device
        self._optimizer, self._rehearsal_optimizer = Optimizer(named), Optimizer(named)
        self._reference = Reference(load_reference, self.device)
        self._buffer = RehearsalBuffer()

    @property
    def waiting(self) -> int:
        """Demonstrations that wait for a rehearsal."""
        return len(self._buffer)

    def step(
        self, live: LiveConfig, groups: Sequence[Group], heed: Heed, *, keep_evidence: bool = False
    ) -> StepOutcome:
        """One step on `groups` with the algorithm of `live`, and the rehearsal that may follow.

        heed is called before every micro-batch; when it raises Abandoned before the step is made, nothing has changed
        but a rehearsal that the step before had left over. A rehearsal that is given up is made before the next step.
        """
        algorithm = build(live.algorithm, longest_response=live.sampling.max_response_tokens)
        self._reference.hold(algorithm.needs_reference)
        rehearsals = self._rehearse(algorithm.rehearsal, live, heed) if self._buffer.owed else []
        rate = scheduled_rate(live.optimizer, self.updates)
        outcome = self._take(_Course(algorithm, self._optimizer, rate, live, keep_evidence), groups, heed)
        self.updates += outcome.verdict is Verdict.UPDATED
        if algorithm.rehearsal is None:
            return outcome
        if outcome.verdict is not Verdict.NOT_FINITE:
            self._buffer.collect(groups, algorithm.rehearsal)
            self._buffer.owed = self.waiting >= algorithm.rehearsal.size
            try:
                rehearsals += self._rehearse(algorithm.rehearsal, live, heed)
            except Abandoned:  # the step itself stands
                self._zero_gradients()
        return replace(outcome, rehearsal=Rehearsed(self.waiting, rehearsals))

    def tensors(self) -> TensorFiles:
        """The whole state as named tensors, by file: weights, optimiser moments, random generators, rehearsals."""
        generators = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            generators["cuda"] = torch.cuda.get_rng_state(self.device)
        files = {"model": named_weights(self.model), "optimizer": self._optimizer.tensors(), "generators": generators}
        rehearsing = {"rehearsal": self._buffer.tensors(), "rehearsal_optimizer": self._rehearsal_optimizer.tensors()}
        return {**files, **{name: tensors for name, tensors in rehearsing.items() if tensors}}

    def restore(self, tensors: TensorFiles, updates: int) -> None:
        """Take a state that `tensors` returned. ValueError if it is another model's."""
        take_weights(self.model, tensors["model"])
        self._optimizer.restore(tensors["optimizer"])
        self._rehearsal_optimizer.restore(tensors.get("rehearsal_optimizer", {}))
        self._buffer.restore(tensors.get("rehearsal", {}))
        torch.set_rng_state(tensors["generators"]["cpu"])
        if self.device.type == "cuda" and "cuda" in tensors["generators"]:
            torch.cuda.set_rng_state(tensors["generators"]["cuda"], self.device)
        self.updates = updates

    def _rehearse(self, rehearsal: Rehearsal | None, live: LiveConfig, heed: Heed) -> list[StepOutcome]:
        """The rehearsal that is owed, if any. Its demonstrations are done with, whatever came of it."""
        rehearsed: list[StepOutcome] = []
        if rehearsal is not None and self._buffer.owed:
            demonstrations = self._buffer.oldest(rehearsal.size)
            course = _Course(rehearsal.algorithm, self._rehearsal_optimizer, rehearsal.learning_rate, live)
            rehearsed.append(self._take(course, demonstrations, heed))
            self._buffer.remove(demonstrations)
        self._buffer.owed = False
        return rehearsed

    def _take(self, course: _Course, groups: Sequence[Group], heed: Heed) -> StepOutcome:
        """One optimiser step. When heed raises Abandoned, nothing has changed."""
        start_s = self._clock()
        plan = plan_step(course.algorithm, groups, self._micro_batch_tokens)
        packed_s = self._clock()
        self._zero_gradients()
        sums, outputs = self._accumulate(course, plan, heed)
        grad_norm = float(torch.nn.utils.get_total_norm(self._gradients()))
        differentiated_s = self._clock()
        verdict = self._verdict(sums, grad_norm)
        if verdict is Verdict.UPDATED:
            course.optimizer.update(course.live.optimizer, course.rate, grad_norm)
        self._zero_gradients()
        return StepOutcome(
            verdict=verdict,
            sums=sums,
            grad_norm=grad_norm,
            learning_rate=course.rate,
            tokens=plan.tokens,
            trajectories=plan.trajectories,
            flat_groups=plan.flat_groups,
            pack_s=packed_s - start_s,
            forward_backward_s=differentiated_s - packed_s,
            optimizer_s=self._clock() - differentiated_s,
            evidence=Evidence(plan, tuple(outputs)) if course.keeps_evidence else None,
        )

    def _accumulate(self, course: _Course, plan: StepPlan, heed: Heed) -> tuple[StepSums, list[PolicyOutputs]]:
        """The gradient of the whole step, added up over its micro-batches; their outputs if they are to be kept."""
        kept: list[PolicyOutputs] = []
        temperature = course.live.sampling.temperature
        algorithm = surveyed(course.algorithm, self._looks(plan, temperature, heed))
        total: StepSums | None = None
        for micro in plan.micro_batches:
            heed()
            here = micro.to(self.device)
            with self._compute():
                reference_T = self._reference.logprobs(here, temperature) if algorithm.needs_reference else None
                outputs = replace(evaluate(self.model, here, temperature), reference_logprobs_T=reference_T)
            value, sums = loss(algorithm, plan, here, outputs)
            if value.requires_grad:
                value.backward()  # pyright: ignore[reportUnknownMemberType]
            total = sums if total is None else total + sums
            if course.keeps_evidence:
                kept.append(outputs.detached())
        return (empty_sums(algorithm) if total is None else total), kept

    def _looks(self, plan: StepPlan, temperature: float, heed: Heed) -> Iterator[tuple[TokenBatch, PolicyOutputs]]:
        """What the policy says of each micro-batch, one forward at a time."""
        for micro in plan.micro_batches:
            heed()
            here: MicroBatch = micro.to(self.device)
            with self._compute():
                outputs = evaluate(self.model, here, temperature)
            yield here.tokens, outputs

    def _compute(self) -> AbstractContextManager[Any]:
        return torch.autocast("cuda", dtype=torch.bfloat16) if self.device.type == "cuda" else nullcontext()

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self._parameters if p.grad is not None]

    def _zero_gradients(self) -> None:
        self.model.zero_grad()

    def _verdict(self, sums: StepSums, grad_norm: float) -> Verdict:
        value = sums.values_K.sum()
        if not (torch.isfinite(value) and torch.isfinite(torch.tensor(grad_norm))):
            return Verdict.NOT_FINITE
        # The norm of very small gradients underflows to zero, so zero is looked up where it matters.
        if grad_norm == 0 and not any(bool(gradient.any()) for gradient in self._gradients()):
            return Verdict.FLAT
        return Verdict.UPDATED


def scheduled_rate(optimizer: OptimizerConfig, updates: int) -> float:
    """The learning rate of the next update: it rises linearly to the asked rate over the warm-up."""
    if updates >= optimizer.warmup_steps:
        return optimizer.learning_rate
    return optimizer.learning_rate * (updates + 1) / optimizer.warmup_steps
