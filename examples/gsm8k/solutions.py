"""GSM8K problems as prompts, demonstrations and answers.

A source line holds `question` and `answer`; the answer is a human solution, one step on each line, with calculator
annotations such as `<<48/2=24>>`, and a last line `#### 72`. The demonstration is that solution without the
annotations, still one step on each line: a hint is cut at a line's end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

ANSWER_MARK = "#### "
STEP_END = "\n"
COLUMNS = ("question", "answer")
_ANNOTATION = re.compile(r"<<[^<>]*>>")
_NUMBER = re.compile(r"-?\d+(\.\d+)?")


class UnusableSource(ValueError):
    """A source file that is not GSM8K: says where and what was found."""


def prompt(question: str) -> str:
    """The question as the model reads it: its text on one line, and the line's end."""
    return " ".join(question.split()) + STEP_END


def split_solution(solution: str) -> tuple[list[str], str]:
    """The steps of a human solution, cleaned, and its final number without thousands separators.

    Raises ValueError when the solution does not end with a line `#### <number>`.
    """
    *steps, last = solution.strip().split("\n")
    number = last.removeprefix(ANSWER_MARK).replace(",", "").strip()
    if not last.startswith(ANSWER_MARK) or not _NUMBER.fullmatch(number):
        raise ValueError(f"a solution must end with a line `{ANSWER_MARK}<number>`, this one ends with {last[:60]!r}")
    cleaned = (" ".join(_ANNOTATION.sub("", step).split()) for step in steps)
    return [step for step in cleaned if step], number


def demonstration(steps: list[str], number: str) -> str:
    """The solution as the model is to write it: a step on each line, then the answer's line."""
    return STEP_END.join([*steps, ANSWER_MARK + number])


def to_row(question: str, solution: str) -> dict[str, str]:
    """A prepared row: `prompt`, `answer` and `demonstration`."""
    steps, number = split_solution(solution)
    return {"prompt": prompt(question), "answer": number, "demonstration": demonstration(steps, number)}


def read_rows(path: Path) -> Iterator[dict[str, str]]:
    """The prepared rows of a source file, in its order.

    Raises UnusableSource, with file and line, when a line is not a GSM8K problem.
    """
    with path.open("rb") as lines:  # bytes are cut at newlines only; text could be at U+2028, which occurs in solutions
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield _row_of_line(line)
            except ValueError as problem:
                raise UnusableSource(f"{path}, line {number}: {problem}") from problem


def _row_of_line(line: bytes) -> dict[str, str]:
    source = json.loads(line)
    if not isinstance(source, dict):
        raise ValueError(f"expected a JSON object, found {type(source).__name__}")
    missing = [column for column in COLUMNS if not isinstance(source.get(column), str)]
    if missing:
        raise ValueError(
            f"expected the text columns {', '.join(COLUMNS)}; missing {', '.join(missing)} in {list(source)}"
        )
    return to_row(source["question"], source["answer"])
