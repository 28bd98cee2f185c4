"""What a grader says about a response."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from common.wire import LARGEST_REWARD


@dataclass(frozen=True, slots=True)
class Grade:
    """The reward of a response, and the parts it is made of for those who want to plot them. All finite."""

    reward: float
    parts: dict[str, float] = field(default_factory=dict[str, float])


Grader = Callable[[str, str], Grade]
"""(response text, answer) → grade. Pure: no files, no network, no memory of earlier responses."""


def as_grade(value: object) -> Grade:
    """A grade from what a grader returned: a Grade, or a bare number. TypeError or ValueError if it is neither."""
    grade = Grade(float(value)) if isinstance(value, bool | int | float) else value
    if not isinstance(grade, Grade):
        raise TypeError(f"a grader returns a Grade or a number, not {type(value).__name__}")
    grade = Grade(float(grade.reward), {str(name): float(part) for name, part in grade.parts.items()})
    unusable = [value for value in (grade.reward, *grade.parts.values()) if not abs(value) <= LARGEST_REWARD]
    if unusable:
        raise ValueError(f"a reward is a finite number up to {LARGEST_REWARD:g}, not {unusable[0]}")
    return grade
