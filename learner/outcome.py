"""The outcome of a step: what the trainer did, told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from common.trajectory import Group
from learner.insight.evidence import Evidence
from learner.objective import StepSums
from learner.timing import StageTimes


class Verdict(Enum):
    """What became of a step. FLAT: the gradient was exactly zero, so the optimiser was left alone."""

    UPDATED = "updated"
    FLAT = "flat"
    NOT_FINITE = "not finite"


class Abandoned(Exception):
    """The step was given up between two micro-batches; nothing has changed."""


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """What became of the rehearsals that belong to a step. waiting: demonstrations that still wait after it.

    steps: none; one; or two, if one that an earlier stop had cut off was made up for. dropped: the demonstrations of
    those that were not finite, each a group of its own; they are not in the buffer any more.
    """

    waiting: int
    steps: Sequence[StepOutcome] = ()
    dropped: Sequence[Group] = ()

    @property
    def updated(self) -> bool:
        """Whether the policy changed."""
        return any(step.verdict is Verdict.UPDATED for step in self.steps)


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """One optimiser step, told. grad_norm: before clipping. learning_rate: as scheduled.

    tokens: those that some term is about. times: of the attempt that succeeded. rehearsal: None unless the algorithm
    rehearses. evidence: None unless it was to be kept. All other fields are about the step itself.
    """

    verdict: Verdict
    sums: StepSums
    grad_norm: float
    learning_rate: float
    tokens: int
    trajectories: int
    flat_groups: int
    times: StageTimes
    rehearsal: Rehearsed | None = None
    evidence: Evidence | None = None

    @property
    def updated(self) -> bool:
        """Whether the policy changed, in the step itself or in its rehearsal."""
        return self.verdict is Verdict.UPDATED or (self.rehearsal is not None and self.rehearsal.updated)

    @property
    def seconds(self) -> float:
        """The time that the step itself took."""
        return self.times.total_s
