"""/healthz, /readyz, /metrics: for whoever restarts, routes to, and measures the control plane."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel

from services.control.deps import Controlled
from services.control.examples import answered
from services.control.problems import Problem, documented

router = APIRouter(tags=["health"])


_OK = {"status": "ok"}
_METRICS = """# HELP tributary_revision Live configuration revision in force.
# TYPE tributary_revision gauge
tributary_revision 7.0
"""


class Health(BaseModel):
    """A good verdict; a bad one is a problem."""

    status: Literal["ok"] = "ok"


@router.get("/healthz", summary="Whether Redis answers", responses=answered(_OK) | documented(503))
async def healthz(control: Controlled) -> Health:
    """200 if Redis answers. `curl -sf $DASHBOARD/healthz`."""
    await control.redis.ping()  # pyright: ignore
    return Health()


@router.get("/readyz", summary="Whether the run can be steered", responses=answered(_OK) | documented(503))
async def readyz(control: Controlled) -> Health:
    """200 if there is a live configuration to steer. `curl -sf $DASHBOARD/readyz`."""
    if control.stop.is_set():
        raise Problem(503, "stopping", "the control plane is stopping")
    if await control.config.number() == 0:
        raise Problem(503, "no-revision", "there is no live configuration yet: try again in a moment")
    return Health()


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}, "example": _METRICS}}}},
)
async def metrics(control: Controlled) -> Response:
    """The metrics of this process in Prometheus' text format. `curl -s $DASHBOARD/metrics`."""
    return Response(generate_latest(control.registry), media_type=CONTENT_TYPE_LATEST)
