"""The two workloads of the end-to-end comparison: additions answered at equal length, and at long-tailed lengths.

Both ask what the addition example asks (`4997+5167=`, written out column by column), and both have a base model that
knows two procedures: in most of its responses it forgets every carry, in the others it does it right. So sampling finds
right responses at once, and reinforcement learning alone raises their share, whatever their length.

equal: the example's own format, 42 characters.
tail: before it states the sum, the policy may go through all columns again to check itself, and again (after a `?`).
How often is the policy's own choice, made anew in every response, as reasoning models choose how long they think: most
responses hold one pass, few hold seven. The median has at most a quarter of the longest one's tokens.

No torch here: data makers and reward functions import this module.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from examples.addition.task import (
    ALPHABET,
    ANSWER_MARK,
    COLUMNS,
    DEMONSTRATION_LENGTH,
    PROMPT_LENGTH,
    STEP_END,
    CarryPattern,
    Problem,
    answer,
    digit,
    draw_distinct,
    prompt,
)

CHECK_MARK = "?"
CHARACTERS = ALPHABET + CHECK_MARK
_PASS_LENGTH = DEMONSTRATION_LENGTH - len("#10164")
_CARRYING: tuple[CarryPattern, ...] = ((0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2))
"""Columns that carry into one of the sum: where none does, forgetting the carry would be no mistake."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What is asked. again: the chance that the base goes through the columns once more. passes: at most so many."""

    name: str
    title: str
    again: float
    passes: int

    @property
    def longest(self) -> int:
        """Tokens that a response may have."""
        return _length(self.passes) + 4

    @property
    def context(self) -> int:
        """Tokens of prompt and response together at most."""
        return PROMPT_LENGTH + self.longest + 2

    def draw_passes(self, rng: random.Random) -> int:
        """How often a demonstration goes through the columns."""
        count = 1
        while count < self.passes and rng.random() < self.again:
            count += 1
        return count


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("equal", "equal lengths", again=0.0, passes=1),
        Workload("tail", "long-tailed lengths", again=0.45, passes=8),
    )
}


@dataclass(frozen=True, slots=True)
class Exercise:
    """A sum that is asked."""

    problem: Problem

    @property
    def row(self) -> dict[str, str | None]:
        """It as a line of a data file."""
        return {"prompt": prompt(self.problem), "answer": answer(self.problem), "demonstration": None}


def exercises(seed: str, count: int) -> list[Exercise]:
    """`count` different exercises, in the order drawn."""
    return [Exercise(problem) for problem in draw_distinct(random.Random(seed), _CARRYING, count)]


def response(problem: Problem, *, carries: bool, passes: int = 1) -> str:
    """The written-out solution that goes through the columns `passes` times, with or without its carries."""
    steps, digits, carry = list[str](), "", 0
    for column in range(COLUMNS):
        left, right = digit(problem.left, column), digit(problem.right, column)
        total = left + right + carry
        steps.append(f"{left}+{right}+{carry}={total:02d}{STEP_END}")
        digits, carry = f"{total % 10}{digits}", total // 10 if carries or column == COLUMNS - 1 else 0
    return CHECK_MARK.join(["".join(steps)] * passes) + f"{ANSWER_MARK}{carry}{digits}"


def grade(text: str, expected: str) -> float:
    """1 if what follows the last mark is the sum, else 0: what Tributary's `marker` grader does."""
    _, found, given = text.rpartition(ANSWER_MARK)
    return float(bool(found) and given.strip() == expected)


def grades(texts: Sequence[str], expected: Sequence[str]) -> list[float]:
    """The grade of each text."""
    return [grade(text, right) for text, right in zip(texts, expected, strict=True)]


def _length(passes: int) -> int:
    """Tokens of a response, its end token included."""
    return DEMONSTRATION_LENGTH + 1 + (passes - 1) * (_PASS_LENGTH + len(CHECK_MARK))
