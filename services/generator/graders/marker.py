"""The grader for answers that stand after a marker and must match to the character."""

from __future__ import annotations

from pydantic import Field

from common.config.base import Frozen
from services.generator.graders.grade import Grade


class Marker(Frozen):
    """1 if the text after the last marker is the answer, both stripped of surrounding white space; else 0."""

    marker: str = Field(default="#", min_length=1, description="what announces the answer")

    def __call__(self, response: str, answer: str) -> Grade:
        """Grade a response."""
        _, found, given = response.rpartition(self.marker)
        return Grade(float(bool(found) and given.strip() == answer.strip()), {"answered": float(bool(found))})
