"""GET /v1/status, /v1/generators: the run as it is now.

curl -s $DASHBOARD/v1/status
"""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel

from services.control.deps import Controlled
from services.control.overview import ProcessView, Status, read_processes, read_status
from services.control.problems import documented

router = APIRouter(prefix="/v1", tags=["state"])
_PROBLEMS = documented(401, 403, 503)


class Generators(BaseModel):
    """Every generator that ever beat, each as it told last."""

    generators: list[ProcessView]


@router.get("/status", summary="The state of the run", responses=_PROBLEMS)
async def status(control: Controlled) -> Status:
    """Asked and in force, versions, staleness, rates, backlog, processes. `curl -s $DASHBOARD/v1/status`."""
    return await read_status(control)


@router.get("/generators", summary="The generators", responses=_PROBLEMS)
async def generators(control: Controlled) -> Generators:
    """The generators, alive or not. `curl -s $DASHBOARD/v1/generators`."""
    return Generators(generators=[p for p in await read_processes(control) if p.role == "generator"])
