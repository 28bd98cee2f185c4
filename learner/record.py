"""The record of a step: what operators see of it, and what the metrics show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.metrics import LearnerMetrics
from common.trajectory import Group, Source, Trajectory
from learner.lineage import Lineage
from learner.outcome import Rehearsed, StepOutcome, Verdict
from learner.timing import StageTimes

_SOURCES = tuple(source.name.lower() for source in (Source.POLICY, Source.HINT, Source.DEMONSTRATION))


@dataclass(frozen=True, slots=True)
class Material:
    """What the groups of a step were like. Means are None where there is nothing to average.

    reward, reward_parts: over sampled trajectories. staleness: over groups. hint_length: over hinted trajectories.
    """

    groups: int
    reward: float | None
    reward_parts: dict[str, float]
    staleness: float | None
    staleness_max: int | None
    hint_length: float | None

    @classmethod
    def of(cls, groups: Sequence[Group], lineage: Lineage) -> Material:
        """Describe `groups` as they are when their step begins."""
        sampled = [t for group in groups for t in group.trajectories if not t.is_demonstration]
        oldest = (group.oldest_version for group in groups)
        ages = [lineage.staleness(version) for version in oldest if version is not None]
        hints = [t.hint_length for t in sampled if t.hint_length]
        return cls(
            groups=len(groups),
            reward=_mean([t.reward for t in sampled]),
            reward_parts=_mean_parts(sampled),
            staleness=_mean(ages),
            staleness_max=max(ages, default=None),
            hint_length=_mean(hints),
        )


@dataclass(frozen=True, slots=True)
class Timeline:
    """Where the time of a step outside the trainer went."""

    wait_s: float
    publish_s: float
    checkpoint_s: float
    step_s: float


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step, told whole. algorithm, hints: their kinds. version: held after the step. updates: optimiser updates
    of the run so far, which learning-rate schedules count.
    """

    step: int
    revision: int
    version: int
    algorithm: str
    hints: str
    updates: int
    material: Material
    outcome: StepOutcome
    stale_dropped: int
    timeline: Timeline

    @property
    def tokens(self) -> int:
        """Tokens that a term of the step, or of its rehearsal, is about."""
        return self.outcome.tokens + sum(step.tokens for step in self._rehearsals)

    @property
    def tokens_per_s(self) -> float:
        """Those tokens per second of the whole step, waiting included."""
        return self.tokens / max(self.timeline.step_s, 1e-9)

    @property
    def _rehearsals(self) -> Sequence[StepOutcome]:
        return self.outcome.rehearsal.steps if self.outcome.rehearsal else ()

    def event(self) -> dict[str, Any]:
        """The data of its STEP event; numbers that are not finite become null."""
        outcome, material, timeline = self.outcome, self.material, self.timeline
        return finite(
            {
                "step": self.step,
                "revision": self.revision,
                "version": self.version,
                "algorithm": self.algorithm,
                "hints": self.hints,
                **outcome.sums.record(),
                "reward": material.reward,
                "reward_parts": material.reward_parts,
                "staleness": material.staleness,
                "staleness_max": material.staleness_max,
                "hint_length": material.hint_length,
                "groups": material.groups,
                "flat_groups": outcome.flat_groups,
                "stale_dropped": self.stale_dropped,
                "trajectories": outcome.trajectories,
                "tokens": self.tokens,
                "tokens_per_s": self.tokens_per_s,
                "grad_norm": outcome.grad_norm,
                "learning_rate": outcome.learning_rate,
                "updated": outcome.updated,
                "updates": self.updates,
                "rehearsal": _told(outcome.rehearsal) if outcome.rehearsal else None,
                "wait_s": timeline.wait_s,
                **{f"{stage}_s": seconds for stage, seconds in outcome.times.by_stage().items()},
                "publish_s": timeline.publish_s,
                "checkpoint_s": timeline.checkpoint_s,
                "step_s": timeline.step_s,
            }
        )

    def measure(self, metrics: LearnerMetrics) -> None:
        """Enter the step into the metrics."""
        metrics.steps.inc()
        steps = [self.outcome, *self._rehearsals]
        metrics.tokens.inc(sum(step.tokens for step in steps if step.verdict is Verdict.UPDATED))
        metrics.skipped_steps.inc(sum(step.verdict is Verdict.NOT_FINITE for step in steps))
        if self.outcome.verdict is not Verdict.NOT_FINITE:
            metrics.groups.inc(self.material.groups)
            metrics.idle_steps.inc(not self.outcome.updated)
        metrics.wait.inc(self.timeline.wait_s)
        metrics.step_seconds.observe(self.timeline.step_s)
        for stage, seconds in sum((step.times for step in steps), StageTimes()).by_stage().items():
            metrics.stage_seconds.labels(stage).inc(seconds)
        metrics.stage_seconds.labels("publish").inc(self.timeline.publish_s)
        metrics.stage_seconds.labels("checkpoint").inc(self.timeline.checkpoint_s)
        event = self.event()
        means = {"reward": metrics.reward, "entropy": metrics.entropy, "staleness": metrics.staleness}
        for name, gauge in {**means, "grad_norm": metrics.grad_norm}.items():
            gauge.set(_or_nan(event[name]))
        by_source = {"clip_fraction": metrics.clip_fraction, "effective_sample_size": metrics.sample_size}
        for name, gauge in {**by_source, "ratio": metrics.ratio}.items():
            for source in _SOURCES:
                gauge.labels(source).set(_or_nan(event[name].get(source)))


def _or_nan(value: float | None) -> float:
    """NaN where a step has no such number: what an earlier step had must not pass for this one's."""
    return math.nan if value is None else value


def _told(rehearsed: Rehearsed) -> dict[str, Any]:
    """What an event says of the rehearsals of a step; loss and gradient norm are those of the last one."""
    last = rehearsed.steps[-1] if rehearsed.steps else None
    return {
        "waiting": rehearsed.waiting,
        "entries": sum(step.trajectories for step in rehearsed.steps),
        "loss": last.sums.record()["loss"] if last else None,
        "grad_norm": last.grad_norm if last else None,
        "updated": rehearsed.updated,
        "seconds": sum(step.seconds for step in rehearsed.steps),
    }


def finite(value: Any) -> Any:
    """`value` with every number that is not finite replaced by None."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}  # pyright: ignore[reportUnknownVariableType]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _mean_parts(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """The mean of each part of the reward over the trajectories that have it."""
    values: dict[str, list[float]] = {}
    for trajectory in trajectories:
        for name, value in trajectory.reward_parts.items():
            values.setdefault(name, []).append(value)
    return {name: sum(parts) / len(parts) for name, parts in values.items()}
