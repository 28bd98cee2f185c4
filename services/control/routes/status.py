"""GET /v1/status: the run as it is now.

curl -s $DASHBOARD/v1/status
"""

from __future__ import annotations

from fastapi import APIRouter

from services.control.deps import Controlled
from services.control.examples import answered
from services.control.overview import Status, read_status
from services.control.problems import documented

router = APIRouter(prefix="/v1", tags=["state"])

_LEARNER = {
    "name": "learner",
    "role": "learner",
    "state": "running",
    "alive": True,
    "age_s": 0.4,
    "trouble": "",
    "revision": 4,
    "version": 118,
    "step": 118,
}
_STATUS = {
    "at_s": 1767225600.0,
    "run": {"name": "addition", "model": "/models/base", "dashboard": "http://127.0.0.1:8700", "facts": {}},
    "revision": {"asked": 5, "in_force": 4, "settled": False, "processes": {"learner": 4, "generator-1": 5}},
    "algorithm": "luffy",
    "hints": "demonstration",
    "hint_schedule": None,
    "rehearsal": None,
    "version": {"published": 118, "generators": {"generator-1": 117}},
    "learner": {
        "step": 118,
        "max_steps": 400,
        "updates": 112,
        "waiting": False,
        "checkpoint_step": 110,
        "staleness": 1.4,
        "paused": None,
    },
    "drained": {"generator-2": {"by": "ada", "at_s": 1767225590.0}},
    "rates": {"generated_tokens_per_s": 1786.8, "trained_tokens_per_s": 1420.5},
    "backlog": {"requests": 6, "groups": 3, "outcomes": 0, "quarantined": 0, "outstanding": 37, "credit": 40},
    "evaluations": {"hard": {"dataset": "hard", "version": 110, "step": 110, "accuracy": 0.46, "at_s": 1767225580.0}},
    "last_step": {"step": 118, "revision": 4, "loss": -0.02, "reward": 0.48},
    "processes": [_LEARNER],
}


@router.get("/status", summary="The state of the run", responses=answered(_STATUS) | documented(503))
async def status(control: Controlled) -> Status:
    """Asked and in force, versions, staleness, rates, backlog, processes. `curl -s $DASHBOARD/v1/status`."""
    return await read_status(control)
