"""A cell of the end-to-end comparison: one workload at one size, and everything that both sides share of it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks._end_to_end_task import WORKLOADS, Workload

Json = dict[str, Any]
ROLLOUTS = 8
GROUPS = 16
TEMPERATURE = 1.0
WARMUP_STEPS = 2
BETAS = (0.9, 0.95)
MAX_GRAD_NORM = 1.0
CLIP = 0.2


@dataclass(frozen=True, slots=True)
class Cell:
    """What both sides train, on what, and how.

    base, data: directories. steps: optimiser steps that are measured. save_every: steps between two copies of the
    weights whose accuracy is looked at afterwards. rate: learning rate after WARMUP_STEPS.
    """

    workload: str
    size: str
    base: Path
    data: Path
    steps: int
    rate: float
    save_every: int
    seed: int

    @property
    def name(self) -> str:
        """Its name, unique in a comparison."""
        return f"{self.workload}-{self.size}"

    @property
    def task(self) -> Workload:
        """What is asked."""
        return WORKLOADS[self.workload]

    def write(self, path: Path) -> None:
        """Write it for a program of another interpreter."""
        path.write_text(json.dumps(asdict(self) | {"base": str(self.base), "data": str(self.data)}) + "\n")


def read_cell(path: Path) -> Cell:
    """A cell that was written."""
    known = json.loads(path.read_text(encoding="utf-8"))
    return Cell(**known | {"base": Path(known["base"]), "data": Path(known["data"])})


@dataclass(frozen=True, slots=True)
class Step:
    """One optimiser step of either side.

    at_s: when it had ended, from the start of training. tokens: response tokens of its groups. trained: those that
    reached a gradient: of groups whose rewards are not all equal, in a step that changed the weights. Groups that were
    dropped are in neither.
    """

    number: int
    at_s: float
    tokens: int
    trained: int
    groups: int
    flat_groups: int
    reward: float


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long the sampled responses were, in tokens."""

    median: float
    mean: float
    p90: float
    longest: int
    count: int

    @classmethod
    def of(cls, lengths: list[int]) -> Lengths:
        """Of these responses."""
        ordered = sorted(lengths)
        return cls(
            median=ordered[len(ordered) // 2],
            mean=round(sum(ordered) / len(ordered), 1),
            p90=ordered[len(ordered) * 9 // 10],
            longest=ordered[-1],
            count=len(ordered),
        )


@dataclass(frozen=True, slots=True)
class Training:
    """What a side's training left. start_up_s: from its start to the start of training, not counted in anything.

    saved: step → a safetensors file with the weights after it. cpu_s: seconds of processor time from the start of
    training to its last step, by program. notes: other figures, for the results file.
    """

    side: str
    start_up_s: float
    steps: list[Step]
    lengths: Lengths
    saved: dict[int, Path]
    cpu_s: dict[str, float]
    notes: Json

    @property
    def seconds(self) -> float:
        """From the start of training to the end of its last step."""
        return self.steps[-1].at_s

    @property
    def trained_per_s(self) -> float:
        """Trained tokens per second of the whole training, its beginning included."""
        return sum(step.trained for step in self.steps) / self.seconds

    @property
    def tokens_per_s(self) -> float:
        """Response tokens of the steps' groups per second, those without a gradient included."""
        return sum(step.tokens for step in self.steps) / self.seconds

    @property
    def steady_tokens_per_s(self) -> float:
        """The same from the end of the first quarter of the steps on."""
        first = len(self.steps) // 4
        seconds = self.steps[-1].at_s - self.steps[first].at_s
        return sum(step.tokens for step in self.steps[first + 1 :]) / seconds


def trained_tokens(rewards: list[float], lengths: list[int], rollouts: int = ROLLOUTS) -> tuple[int, int]:
    """Of whole groups one after the other: tokens of those whose rewards differ, and how many groups do not."""
    trained = flat = 0
    for start in range(0, len(rewards), rollouts):
        group = rewards[start : start + rollouts]
        if min(group) == max(group):
            flat += 1
        else:
            trained += sum(lengths[start : start + rollouts])
    return trained, flat
