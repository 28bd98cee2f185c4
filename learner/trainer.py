"""The trainer: policy and optimisers, one step at a time, and their state as tensors."""

from __future__ import annotations

import gc
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from common.config.live import LiveConfig
from common.trajectory import Group
from learner import schedules
from learner.algorithms import build
from learner.batch import MicroBatch, PolicyOutputs, TokenBatch
from learner.forward.model import named_weights, published_as, take_weights
from learner.forward.policy import Policy
from learner.forward.reference import LoadPolicy, Reference
from learner.insight.evidence import Evidence, collected
from learner.memory import Budget, Extent, OutOfMemory, is_shortage
from learner.objective import StepSums, empty_sums, loss
from learner.optimizer import Optimizer
from learner.outcome import Abandoned, Rehearsed, StepOutcome, Verdict
from learner.packing.foresight import Foresight
from learner.packing.layout import Layout, Share
from learner.packing.plan import StepPlan, plan_step
from learner.packing.transfer import Transfer
from learner.ranks.alone import Heed, plain
from learner.rehearsal import RehearsalBuffer
from learner.terms import Algorithm, Rehearsal, surveyed
from learner.timing import Stage, stopwatch

TensorFiles = Mapping[str, Mapping[str, Tensor]]

log = logging.getLogger(__name__)


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

    updates: optimiser updates so far, which warm-up and schedule count; rehearsals have an optimiser of their own and a
    rate that stays. layout: of its forwards. load_reference: how to get the model the run began with; needed by an
    algorithm with a KL term. budget: how large a micro-batch may be; halved where memory runs out. foresight: whether
    `foresee` does anything.
    """

    def __init__(
        self,
        policy: PreTrainedModel | Policy,
        layout: Layout,
        *,
        load_reference: LoadPolicy | None = None,
        budget: Budget | None = None,
        foresight: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._policy = Policy.of(policy)
        self.ranks = self._policy.ranks
        self.model = self._policy.model
        self.updates = 0
        self.budget = budget or Budget({"micro_batch_tokens": layout.tokens})
        self._layout = layout
        named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        self._parameters = [p for _, p in named]
        self.device = self._parameters[0].device
        self._watch, self._transfer = stopwatch(self.device, clock), Transfer(self.device)
        self._at_work = Extent(0, 0)
        self._foresight = Foresight(self.device) if foresight else None
        self._optimizer, self._rehearsal_optimizer = Optimizer(named), Optimizer(named)
        self._reference = Reference(load_reference, self.device)
        self._buffer = RehearsalBuffer()

    @property
    def layout(self) -> Layout:
        """How trajectories are laid out for a forward, within the budget in force."""
        return replace(self._layout, tokens=self.budget.tokens)

    @property
    def shell(self) -> PreTrainedModel:
        """A model of the same build, whose weights may be missing."""
        return self._policy.shell

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
        with self.ranks.working():
            return self._step(live, groups, self.ranks.heeding(heed), keep_evidence=keep_evidence)

    def foresee(self, live: LiveConfig, groups: Sequence[Group]) -> None:
        """Plan the step on `groups` ahead, beside what is computed now; any other step can still come next."""
        if self._foresight is not None:
            self._foresight.begin(live, groups, self.layout)

    def tensors(self) -> TensorFiles:
        """The whole state as named tensors, by file: weights, optimiser moments, random generators, rehearsals.

        With several ranks each tensor is gathered when it is read: all of them, by every rank, in order and once.
        """
        self._policy.settle()
        generators = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            generators["cuda"] = torch.cuda.get_rng_state(self.device)
        files = {"model": named_weights(self.model), "optimizer": self._optimizer.tensors(), "generators": generators}
        rehearsing = {"rehearsal": self._buffer.tensors(), "rehearsal_optimizer": self._rehearsal_optimizer.tensors()}
        files |= {name: tensors for name, tensors in rehearsing.items() if tensors}
        return {name: self.ranks.gathering(tensors) for name, tensors in files.items()}

    def weights(self, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """The weights one by one, on the device; as `dtype` where they had to be gathered."""
        self._policy.settle()
        for name, weight in named_weights(self.model).items():
            yield name, self.ranks.whole(weight, published_as(weight, dtype))

    def restore(self, tensors: TensorFiles, updates: int) -> None:
        """Take a state that `tensors` returned. ValueError if it is another model's."""
        take_weights(self.model, tensors["model"], self.ranks.fill)
        self._optimizer.restore(tensors["optimizer"], self.ranks.placed)
        self._rehearsal_optimizer.restore(tensors.get("rehearsal_optimizer", {}), self.ranks.placed)
        self._buffer.restore(tensors.get("rehearsal", {}))
        torch.set_rng_state(tensors["generators"]["cpu"])
        if self.device.type == "cuda" and "cuda" in tensors["generators"]:
            torch.cuda.set_rng_state(tensors["generators"]["cuda"], self.device)
        self.updates = updates

    def close(self) -> None:
        """Part from the other ranks, if there are any."""
        self.ranks.close()

    def _step(self, live: LiveConfig, groups: Sequence[Group], heed: Heed, *, keep_evidence: bool) -> StepOutcome:
        algorithm = build(live.algorithm, longest_response=live.sampling.max_response_tokens)
        self._reference.hold(algorithm.needs_reference)
        rehearsals = self._rehearse(algorithm.rehearsal, live, heed) if self._buffer.owed else []
        rate = schedules.rate(live.optimizer, self.updates)
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
        steps = [rehearsed for rehearsed, _ in rehearsals]
        dropped = [group for rehearsed, used in rehearsals for group in used if rehearsed.verdict is Verdict.NOT_FINITE]
        return replace(outcome, rehearsal=Rehearsed(self.waiting, steps, dropped))

    def _rehearse(
        self, rehearsal: Rehearsal | None, live: LiveConfig, heed: Heed
    ) -> list[tuple[StepOutcome, list[Group]]]:
        """The rehearsal that is owed, if any. Its demonstrations are done with, whatever came of it."""
        rehearsed: list[tuple[StepOutcome, list[Group]]] = []
        if rehearsal is not None and self._buffer.owed:
            demonstrations = self._buffer.oldest(rehearsal.size)
            course = _Course(rehearsal.algorithm, self._rehearsal_optimizer, rehearsal.learning_rate, live)
            rehearsed.append((self._take(course, demonstrations, heed), demonstrations))
            self._buffer.remove(demonstrations)
        self._buffer.owed = False
        return rehearsed

    def _take(self, course: _Course, groups: Sequence[Group], heed: Heed) -> StepOutcome:
        """One optimiser step. When heed raises Abandoned, nothing has changed.

        Where memory runs out the gradients are dropped and the step is made again from smaller micro-batches.
        OutOfMemory if that is no way out; nothing has changed then either.
        """
        while True:
            try:
                return self._attempt(course, groups, heed)
            except (RuntimeError, MemoryError) as error:
                if not is_shortage(error):
                    raise
                log.warning("memory ran out in a step", extra={"error": str(error).partition("\n")[0]})
            self._make_room()
            self.budget.lower(self._at_work)

    def _attempt(self, course: _Course, groups: Sequence[Group], heed: Heed) -> StepOutcome:
        self._watch.start()
        self._at_work = Extent(len(groups), self.budget.tokens)
        plan = self._counted(self._plan(course, groups))
        self._watch.lap(Stage.PACK)
        self._zero_gradients()
        sums, outputs = self._accumulate(course, plan, heed)
        norm = self.ranks.whole(torch.nn.utils.get_total_norm(self._gradients()))
        figures = torch.cat(
            [norm.to(sums.entropy)[None], self.ranks.sum(sums.flat())]
        ).cpu()  # the host waits here for the device
        grad_norm, sums = float(figures[0]), sums.refilled(figures[1:])
        self._watch.lap(Stage.BACKWARD)
        verdict = self._verdict(sums, grad_norm)
        if verdict is Verdict.UPDATED:
            self._update(course, norm)
        self._zero_gradients()
        self._watch.lap(Stage.OPTIMIZER)
        return StepOutcome(
            verdict=verdict,
            sums=sums,
            grad_norm=grad_norm,
            learning_rate=course.rate,
            tokens=plan.tokens,
            trajectories=plan.trajectories,
            flat_groups=plan.flat_groups,
            times=self._watch.read(),
            evidence=self._evidence(course, groups, Evidence(plan, tuple(outputs))),
        )

    def _plan(self, course: _Course, groups: Sequence[Group]) -> StepPlan:
        foreseen = None
        if self._foresight is not None and course.optimizer is self._optimizer:  # rehearsals are not foreseen
            foreseen = self._foresight.recall(course.live, groups, self.layout)
        return foreseen or plan_step(course.algorithm, groups, self.layout, self._share)

    def _accumulate(self, course: _Course, plan: StepPlan, heed: Heed) -> tuple[StepSums, list[PolicyOutputs]]:
        """The gradient of the whole step, added up over its micro-batches; their outputs if they are to be kept.

        Nothing in here waits for the device: it is given one micro-batch after the other.
        """
        kept: list[PolicyOutputs] = []
        temperature = course.live.sampling.temperature
        algorithm = surveyed(course.algorithm, self._looks(plan, temperature, heed), self.ranks.concatenated)
        self._watch.lap(Stage.FORWARD)
        total: StepSums | None = None
        for here in self._at_hand(plan, heed):
            with self._compute():
                reference_T = self._reference.logprobs(here, temperature) if algorithm.needs_reference else None
                outputs = replace(self._policy.evaluate(here, temperature), reference_logprobs_T=reference_T)
            value, sums = loss(algorithm, plan, here, outputs)
            self._watch.lap(Stage.FORWARD)
            if value.requires_grad:
                value.backward()  # pyright: ignore[reportUnknownMemberType]
            self._watch.lap(Stage.BACKWARD)
            total = sums if total is None else total + sums
            if course.keeps_evidence:
                kept.append(outputs.detached())
        return (empty_sums(algorithm) if total is None else total), kept

    def _looks(self, plan: StepPlan, temperature: float, heed: Heed) -> Iterator[tuple[TokenBatch, PolicyOutputs]]:
        """What the policy says of each micro-batch, one forward at a time."""
        for here in self._at_hand(plan, heed):
            with self._compute():
                outputs = self._policy.evaluate(here, temperature)
            yield here.tokens, outputs
            self._watch.lap(Stage.FORWARD)

    def _at_hand(self, plan: StepPlan, heed: Heed) -> Iterator[MicroBatch]:
        """The micro-batches on the device, in order; heed is called before each."""
        for here in self._transfer.arriving(plan.micro_batches):
            heed()
            self._at_work = Extent(len(here.places), here.input_ids.numel())
            self._watch.lap(Stage.TRANSFER)
            yield here

    def _update(self, course: _Course, norm: Tensor) -> None:
        """The optimiser's update. OutOfMemory if its moments do not fit; the weights are as they were then."""
        try:
            course.optimizer.update(course.live.optimizer, course.rate, norm)
        except (RuntimeError, MemoryError) as error:
            if not is_shortage(error):
                raise
            raise OutOfMemory(
                "memory does not suffice for the optimiser's two moments beside weights and gradients (16 bytes a "
                "parameter): share the model among more GPUs (learner.processes), or choose a smaller one"
            ) from error

    def _make_room(self) -> None:
        """Drop the gradients and all that a broken forward left behind."""
        self._zero_gradients()
        gc.collect()  # frames of the failed attempt may refer to each other, and hold activations
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _compute(self) -> AbstractContextManager[Any]:
        return torch.autocast("cuda", dtype=torch.bfloat16) if self.device.type == "cuda" else nullcontext()

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self._parameters if p.grad is not None]

    def _zero_gradients(self) -> None:
        self._policy.settle()
        self.model.zero_grad()

    @property
    def _share(self) -> Share:
        return Share(self.ranks.rank, self.ranks.size)

    def _counted(self, plan: StepPlan) -> StepPlan:
        """The plan with the figures of the whole step, all ranks' shares together."""
        own = plain([*plan.counts.values(), plan.groups, plan.flat_groups, plan.trajectories, plan.tokens])
        *counts, groups, flat_groups, trajectories, tokens = (float(number) for number in self.ranks.sum(own))
        return replace(
            plan.with_counts(dict(zip(plan.counts, counts, strict=True))),
            groups=int(groups),
            flat_groups=int(flat_groups),
            trajectories=int(trajectories),
            tokens=int(tokens),
        )

    def _evidence(self, course: _Course, groups: Sequence[Group], own: Evidence) -> Evidence | None:
        """The evidence of all ranks, at the first; None if it is not to be kept."""
        if not course.keeps_evidence:
            return None
        size, layout = self.ranks.size, self.layout
        plans = (plan_step(course.algorithm, groups, layout, Share(rank, size)) for rank in range(1, size))
        return collected(own, plans, self.ranks)

    def _verdict(self, sums: StepSums, grad_norm: float) -> Verdict:
        if not (math.isfinite(float(sums.values_K.sum())) and math.isfinite(grad_norm)):
            return Verdict.NOT_FINITE
        # The norm of very small gradients underflows to zero, so zero is looked up where it matters.
        if grad_norm == 0 and not self.ranks.sum(plain([self._has_slope()])):
            return Verdict.FLAT
        return Verdict.UPDATED

    def _has_slope(self) -> bool:
        """Whether any gradient is anything but zero here."""
        return any(bool(self.ranks.own(gradient).any()) for gradient in self._gradients())
