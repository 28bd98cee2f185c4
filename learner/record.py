"""The record of a step: what operators see of it, and what the metrics show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.metrics import LearnerMetrics
from common.trajectory import Group, Trajectory
from learner.lineage import Lineage
from learner.trainer import StepOutcome, Verdict


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
    step_s: float


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step, told whole. algorithm, hints: their kinds. version: held after the step."""

    step: int
    revision: int
    version: int
    algorithm: str
    hints: str
    material: Material
    outcome: StepOutcome
    stale_dropped: int
    timeline: Timeline

    @property
    def tokens_per_s(self) -> float:
        """Response tokens trained per second of the whole step, waiting included."""
        return self.outcome.tokens / max(self.timeline.step_s, 1e-9)

    def event(self) -> dict[str, Any]:
        """The data of its STEP event; numbers that are not finite become null."""
        outcome, material, timeline = self.outcome, self.material, self.timeline
        return _finite(
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
                "tokens": outcome.tokens,
                "tokens_per_s": self.tokens_per_s,
                "grad_norm": outcome.grad_norm,
                "learning_rate": outcome.learning_rate,
                "updated": outcome.verdict is Verdict.UPDATED,
                "wait_s": timeline.wait_s,
                "pack_s": outcome.pack_s,
                "forward_backward_s": outcome.forward_backward_s,
                "optimizer_s": outcome.optimizer_s,
                "publish_s": timeline.publish_s,
                "step_s": timeline.step_s,
            }
        )

    def measure(self, metrics: LearnerMetrics) -> None:
        """Enter the step into the metrics."""
        metrics.steps.inc()
        match self.outcome.verdict:
            case Verdict.UPDATED:
                metrics.tokens.inc(self.outcome.tokens)
                metrics.groups.inc(self.material.groups)
            case Verdict.FLAT:
                metrics.idle_steps.inc()
                metrics.groups.inc(self.material.groups)
            case Verdict.NOT_FINITE:
                metrics.skipped_steps.inc()
        metrics.wait.inc(self.timeline.wait_s)
        metrics.step_seconds.observe(self.timeline.step_s)
        event = self.event()
        gauges = {"reward": metrics.reward, "entropy": metrics.entropy, "staleness": metrics.staleness}
        for name, gauge in {**gauges, "grad_norm": metrics.grad_norm}.items():
            if event[name] is not None:
                gauge.set(event[name])
        for name, gauge in (("clip_fraction", metrics.clip_fraction), ("effective_sample_size", metrics.sample_size)):
            for source, value in event[name].items():
                if value is not None:
                    gauge.labels(source).set(value)


def _finite(value: Any) -> Any:
    """`value` with every number that is not finite replaced by None."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}  # pyright: ignore[reportUnknownVariableType]
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
