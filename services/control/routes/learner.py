"""GET /v1/learner, POST /v1/learner/{pause,resume,checkpoint}: the learner, and orders to it.

curl -sX POST $DASHBOARD/v1/learner/pause
curl -sX POST "$DASHBOARD/v1/learner/checkpoint?wait_s=60"
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field

from common.orders import Standing
from services.control.commands import LEARNER
from services.control.deps import Called, Control, Controlled
from services.control.examples import answered
from services.control.overview import LearnerState, ProcessView, learner_state, read_orders
from services.control.problems import documented
from services.control.waiting import awaited

router = APIRouter(prefix="/v1/learner", tags=["orders"])
READ_PROBLEMS = documented(503)
ORDER_PROBLEMS = documented(422, 503)


class LearnerView(LearnerState):
    """The learner as its last heartbeat tells, and the orders to it. state: "absent" if there never was one.

    paused is what was ordered; resting is whether the learner says that it waits for it to be taken back.
    """

    state: str
    alive: bool
    revision: int = Field(description="the revision in force there")
    version: int = Field(description="the weight version held there")
    resting: bool
    checkpoints_ordered: int
    checkpoints_done: int = Field(description="how many of the ordered ones it has carried out")


class PauseView(LearnerView):
    """The learner after an order. changed: false if the order stood already, or had been taken back already."""

    changed: bool


class CheckpointView(BaseModel):
    """A checkpoint that was ordered. step: of the newest checkpoint there is. notice: why it may take long."""

    order: int
    done: bool
    step: int | None
    notice: str = ""


_LEARNER: dict[str, Any] = {
    "step": 118,
    "max_steps": 400,
    "updates": 112,
    "waiting": False,
    "checkpoint_step": 110,
    "staleness": 1.4,
    "paused": None,
    "state": "running",
    "alive": True,
    "revision": 4,
    "version": 118,
    "resting": False,
    "checkpoints_ordered": 2,
    "checkpoints_done": 2,
}
_PAUSED = {**_LEARNER, "paused": {"by": "ada", "at_s": 1767225600.0}, "changed": True}
_DONE = {"order": 3, "done": True, "step": 118, "notice": ""}
_LATE = {"order": 3, "done": False, "step": 110, "notice": "the learner has not done it within 20 s"}


@router.get("", summary="The learner", responses=answered(_LEARNER) | READ_PROBLEMS)
async def read(control: Controlled) -> LearnerView:
    """How far it is, and which orders to it stand. `curl -s $DASHBOARD/v1/learner`."""
    return await _learner(control)


@router.post("/pause", summary="Pause the learner", responses=answered(_PAUSED) | ORDER_PROBLEMS)
async def pause(control: Controlled, caller: Called) -> PauseView:
    """Have the learner wait at its next step boundary, until it is told to resume.

    It stays alive, carries out checkpoints, and the generators go on until the credit is used up.

    `curl -sX POST $DASHBOARD/v1/learner/pause`
    """
    changed = await control.commands.pause(caller.name)
    return PauseView(**(await _learner(control)).model_dump(), changed=changed)


@router.post(
    "/resume", summary="Have a paused learner go on", responses=answered({**_LEARNER, "changed": True}) | ORDER_PROBLEMS
)
async def resume(control: Controlled, caller: Called) -> PauseView:
    """Take the order to pause back. `curl -sX POST $DASHBOARD/v1/learner/resume`."""
    changed = await control.commands.resume(caller.name)
    return PauseView(**(await _learner(control)).model_dump(), changed=changed)


@router.post(
    "/checkpoint",
    summary="Make a checkpoint now",
    responses=answered(_DONE) | answered(_LATE, 202, CheckpointView, located=True) | ORDER_PROBLEMS,
)
async def checkpoint(
    control: Controlled,
    caller: Called,
    response: Response,
    wait_s: Annotated[float, Query(ge=0, le=120, description="how long to wait until it is done")] = 20.0,
) -> CheckpointView:
    """Have the learner commit a checkpoint at its next step boundary, also while it is paused.

    202: it is not done yet; checkpoints_done of GET /v1/learner reaches the order's number when it is.

    `curl -sX POST $DASHBOARD/v1/learner/checkpoint`
    """
    order = await control.commands.checkpoint(caller.name)

    async def carried_out() -> LearnerView | None:
        learner = await _learner(control)
        return learner if learner.alive and learner.checkpoints_done >= order else None

    alive = (await _learner(control)).alive
    done = await awaited(carried_out, wait_s if alive else 0, control)
    if done is not None:
        return CheckpointView(order=order, done=True, step=done.checkpoint_step)
    response.status_code = 202
    response.headers["Location"] = "/v1/learner"
    notice = f"the learner has not done it within {wait_s:g} s" if alive else "no learner is alive to make it now"
    return CheckpointView(order=order, done=False, step=(await _learner(control)).checkpoint_step, notice=notice)


async def _learner(control: Control) -> LearnerView:
    processes, standing = await read_orders(control)
    process = next((p for p in processes if p.role == LEARNER), None)
    state = learner_state(processes, control.chronicle.step, standing)
    return LearnerView(**state.model_dump(), **_told(process, standing))


def _told(process: ProcessView | None, standing: Standing) -> dict[str, Any]:
    """What the learner's heartbeat tells beside how far it is."""
    told = (process.model_extra or {}) if process else {}
    done = told.get("checkpoint_order", 0)
    return {
        "state": process.state if process else "absent",
        "alive": process is not None and process.alive,
        "revision": process.revision if process else 0,
        "version": process.version if process else 0,
        "resting": told.get("paused") is True,
        "checkpoints_ordered": standing.checkpoints,
        "checkpoints_done": done if isinstance(done, int) else 0,
    }
