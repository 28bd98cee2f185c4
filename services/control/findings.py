"""Findings: what dry runs found, as the API shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.config.live import Json
from services.control.dry_runs import DryRun
from services.control.routes.config import ChangeView

Figures = dict[str, float | None]
_UNREADABLE = "the learner's answer cannot be read: it is of another version than the control plane"


class FindingView(BaseModel):
    """What a configuration makes of a step's batch, on the forward pass of that step.

    Sources of tokens are policy, hint and demonstration.
    """

    model_config = ConfigDict(extra="allow")

    algorithm: str
    loss: float | None
    terms: Figures = Field(description="term → its part of the loss")
    gradient_weight: Figures = Field(description="term → Σ|∂L/∂log p| over the tokens that it teaches")
    pull: Figures = Field(description="source → Σ|∂L/∂log p| over its tokens")
    entropy: float | None
    ratio: Figures = Field(description="source → mean importance ratio")
    effective_sample_size: Figures = Field(description="source → share of its tokens")
    clip_fraction: Figures = Field(description="source → share of its tokens whose gradient is clipped away")
    cosine: float | None = Field(description="of ∂L/∂log p with the active objective's; null: one of them is zero")
    tokens: int
    trajectories: int
    missing_trajectories: int = Field(
        default=0, description="trajectories that it would train on and that this batch's forward pass did not hold"
    )
    notes: list[str] = Field(default=[], description="what to keep in mind when comparing")


class CandidateView(BaseModel):
    """A candidate and what became of it. finding: null while it waits, and where problem says why there is none."""

    label: str
    config: Json = Field(description="the whole configuration that was tried")
    changes: list[ChangeView] = Field(description="in the revision that was current when it was asked")
    finding: FindingView | None = None
    problem: str = ""


class DryRunView(BaseModel):
    """A dry run. step, revision: of the step that it was tried on. active: the same figures of what is in force there.

    notice: why the answer may take long.
    """

    id: str
    state: Literal["waiting", "answered"]
    asked_s: float = Field(description="Unix time in seconds")
    step: int | None = None
    revision: int | None = None
    seconds: float | None = Field(default=None, description="what the evaluation cost the learner")
    active: FindingView | None = None
    candidates: list[CandidateView]
    notice: str = ""


def _example(gamma: float, loss: float, cosine: float) -> Json:
    return {
        "algorithm": "luffy",
        "loss": loss,
        "terms": {"policy": -0.011, "expert": loss + 0.011},
        "gradient_weight": {"policy": 0.42, "expert": 2.1 * gamma},
        "pull": {"policy": 0.42, "demonstration": 2.1 * gamma},
        "entropy": 0.83,
        "ratio": {"policy": 1.002, "demonstration": 0.31},
        "effective_sample_size": {"policy": 0.98, "demonstration": 0.44},
        "clip_fraction": {"policy": 0.0, "demonstration": 0.0},
        "cosine": cosine,
        "tokens": 2914,
        "trajectories": 72,
        "missing_trajectories": 0,
        "notes": [],
    }


_ASKED = {
    "label": "γ = 0.3",
    "config": {"algorithm": {"kind": "luffy", "gamma": 0.3}, "hints": {"kind": "demonstration"}},
    "changes": [{"path": "algorithm.gamma", "before": 0.1, "after": 0.3}],
}
_HEAD = {"id": "5f0c2d9e7a1b4c68", "asked_s": 1767225600.0}
ANSWERED = {
    **_HEAD,
    "state": "answered",
    "step": 118,
    "revision": 4,
    "seconds": 0.03,
    "active": _example(0.1, -0.2, 1.0),
    "candidates": [{**_ASKED, "finding": _example(0.3, -0.4, 0.93), "problem": ""}],
    "notice": "",
}
WAITING = {
    **_HEAD,
    "state": "waiting",
    "step": None,
    "revision": None,
    "seconds": None,
    "active": None,
    "candidates": [{**_ASKED, "finding": None, "problem": ""}],
    "notice": "the learner is paused: this will be answered at its next step, after POST /v1/learner/resume",
}


def view_of(asked: DryRun, answer: Mapping[str, Any] | None, notice: str = "") -> DryRunView:
    """A dry run with the learner's answer, if there is one."""
    told = _Answer() if answer is None else _read(answer)
    found = told.candidates
    candidates = [
        CandidateView(
            label=tried.label,
            config=tried.config,
            changes=[ChangeView.model_validate(change, from_attributes=True) for change in tried.changes],
            **(_outcome(found[i] if i < len(found) else {}) if answer is not None else {}),
        )
        for i, tried in enumerate(asked.candidates)
    ]
    return DryRunView(
        id=asked.trial_id,
        state="waiting" if answer is None else "answered",
        asked_s=asked.asked_s,
        step=told.step,
        revision=told.revision,
        seconds=told.seconds,
        active=_finding(told.active),
        candidates=candidates,
        notice=notice,
    )


class _Answer(BaseModel):
    """What the learner answers to a trial (common/trials.py)."""

    step: int | None = None
    revision: int | None = None
    seconds: float | None = None
    active: Any = None
    candidates: list[Json] = []


def _read(answer: Mapping[str, Any]) -> _Answer:
    """The learner's answer; an empty one if it has not this form."""
    try:
        return _Answer.model_validate(answer)
    except ValidationError:
        return _Answer()


def _outcome(told: Mapping[str, Any]) -> Json:
    """Finding and problem of a candidate that was answered."""
    finding = _finding(told.get("finding"))
    return {"finding": finding, "problem": str(told.get("problem") or "") or ("" if finding else _UNREADABLE)}


def _finding(told: Any) -> FindingView | None:
    """A finding; None if there is none, or none of this form."""
    try:
        return None if told is None else FindingView.model_validate(told)
    except ValidationError:
        return None
