"""The grader for answers that are numbers, however they are written; comparison by math-verify."""

from __future__ import annotations

import re

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
from pydantic import Field

from common.config.base import Frozen
from services.generator.graders.grade import Grade

_BOX = "\\boxed{"
_NUMBER = re.compile(r"(?:(?<![\w)])[-+\u2212])?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?<=\d)(?:\s*/\s*\d+)?\s*%?")
_READING = (LatexExtractionConfig(), ExprExtractionConfig())
_LONGEST = 200
"""No number needs more characters. Longer ones only cost the parser time."""


class Numeric(Frozen):
    """1 if the response states the answer's number, else 0.

    The number is what follows the last marker, else what the last \\boxed{} holds, else the last number in the text.
    Thousands separators, currency signs, units, LaTeX and trailing zeros make no difference.
    """

    marker: str = Field(default="####", min_length=1, description="what announces the answer")
    parse_limit_s: int = Field(default=2, ge=1, description="an answer that takes longer to parse is wrong")

    def __call__(self, response: str, answer: str) -> Grade:
        """Grade a response."""
        given = stated(response, self.marker)
        if given is None:
            return Grade(0.0, {"answered": 0.0})
        expected = stated(answer, self.marker) or answer
        return Grade(float(self._equal(expected, given)), {"answered": 1.0})

    def _equal(self, expected: str, given: str) -> bool:
        if expected.strip() == given.strip():
            return True
        gold, target = (parse(_plain(text), _READING, parsing_timeout=self.parse_limit_s) for text in (expected, given))
        return bool(gold and target) and verify(gold, target, timeout_seconds=self.parse_limit_s)


def stated(text: str, marker: str) -> str | None:
    """The part of a text that states its answer; None if there is none."""
    _, marked, after = text.rpartition(marker)
    if marked:
        lines = after.strip().splitlines()
        return lines[0][:_LONGEST] if lines else None
    boxed = _last_box(text)
    if boxed is not None:
        return boxed[:_LONGEST]
    numbers = [match[0] for match in _NUMBER.finditer(text) if match[0].strip()]
    return numbers[-1] if numbers else None


def _last_box(text: str) -> str | None:
    """What the last \\boxed{} holds, nested braces included; None if there is none or it is never closed."""
    start = text.rfind(_BOX)
    if start < 0:
        return None
    depth = 1
    for position in range(start + len(_BOX), len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[start + len(_BOX) : position]
    return None


def _plain(text: str) -> str:
    """An answer without what says nothing about its value and would only confuse the parser."""
    text = text.replace("\u2212", "-").strip().strip("$").rstrip(".").strip()
    return re.sub(r"^([-+]?)\s*[$€£¥]\s*", r"\1", text)
