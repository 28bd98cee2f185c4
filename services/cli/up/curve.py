"""The curve of a run: what every step and every evaluation found, as rows for whoever plots or compares runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common.events import Event, EventKind
from services.cli.up.phases import steps_of

Json = dict[str, Any]
_OF_A_STEP = (
    "step",
    "revision",
    "version",
    "algorithm",
    "hints",
    "loss",
    "reward",
    "entropy",
    "staleness",
    "groups",
    "trajectories",
    "tokens",
    "hint_length",
    "grad_norm",
    "learning_rate",
    "rehearsal",
)
_OF_AN_EVALUATION = ("dataset", "version", "step", "accuracy", "pass_at_k", "k", "nll", "prompts")


def curve_of(events: Sequence[Event]) -> Json:
    """`steps` and `evaluations`, each a list of rows in order.

    seconds: time that training had taken up to that step, without the start of the engines and the nights between two
    sessions.
    """
    rows: list[Json] = []
    after_s: dict[int, float] = {}
    seconds = 0.0
    for step in steps_of(events):
        seconds += step.seconds
        after_s[step.number] = seconds
        rows.append({key: step.data.get(key) for key in _OF_A_STEP} | {"seconds": round(seconds, 3)})
    evaluations = [e.data for e in events if e.kind is EventKind.EVALUATION]
    return {"steps": rows, "evaluations": [_evaluation(data, after_s) for data in evaluations]}


def _evaluation(data: Json, after_s: dict[int, float]) -> Json:
    """An evaluation with the time at which its weights were made; 0 for the weights that the run began with."""
    seconds = after_s.get(int(data["step"]), 0.0)
    return {key: data.get(key) for key in _OF_AN_EVALUATION} | {"seconds": round(seconds, 3)}
