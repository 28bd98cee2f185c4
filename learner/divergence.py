"""Divergence: how many steps in a row had a loss or gradient that is not finite, and when that is enough."""

from __future__ import annotations

from common.errors import TributaryError
from learner.outcome import StepOutcome, Verdict

LIMIT = 3


class Diverged(TributaryError):
    """Several steps, or several rehearsals, in a row had a loss or gradient that is not finite."""


class Divergence:
    """Counts what was not finite. Steps and rehearsals count apart: either may go on well while the other fails."""

    def __init__(self) -> None:
        self._in_a_row = {"steps": 0, "rehearsals": 0}

    def enter(self, outcome: StepOutcome) -> None:
        """Note a step and the rehearsals that belong to it."""
        self._count("steps", outcome.verdict)
        for rehearsal in outcome.rehearsal.steps if outcome.rehearsal else ():
            self._count("rehearsals", rehearsal.verdict)

    def _count(self, what: str, verdict: Verdict) -> None:
        self._in_a_row[what] = self._in_a_row[what] + 1 if verdict is Verdict.NOT_FINITE else 0

    @property
    def complaint(self) -> str:
        """What there is to be said when LIMIT of a kind have come in a row; "" before that."""
        for what, count in self._in_a_row.items():
            if count >= LIMIT:
                return f"{count} {what} in a row had a loss or gradient that is not finite"
        return ""
