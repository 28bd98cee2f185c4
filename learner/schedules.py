"""The learning rate of an update, as warm-up and schedule have it. Pure."""

from __future__ import annotations

import math

from common.config.live import OptimizerConfig
from common.config.schedules import ConstantRate, LinearDecay


def rate(optimizer: OptimizerConfig, updates: int) -> float:
    """The learning rate of the update that follows `updates` others.

    With a warm-up of w updates, the w-th is the first at the full rate. A decay of s updates that begins after b has
    left the fraction d = 1 - (u - b)/s of a line, or (1 + cos π(1 - d))/2 of a cosine, above its final ratio.
    """
    if updates < optimizer.warmup_steps:
        return optimizer.learning_rate * (updates + 1) / optimizer.warmup_steps
    schedule = optimizer.schedule
    if isinstance(schedule, ConstantRate):
        return optimizer.learning_rate
    begun = max(optimizer.warmup_steps, schedule.after)
    done = min(1.0, max(0, updates - begun) / schedule.steps)
    left = 1 - done if isinstance(schedule, LinearDecay) else (1 + math.cos(math.pi * done)) / 2
    return optimizer.learning_rate * (schedule.final_ratio + (1 - schedule.final_ratio) * left)
