"""GET /v1/weights: the weight versions that were announced last. `curl -s $DASHBOARD/v1/weights`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel

from common.weights import PublicationKind
from services.control.deps import Controlled
from services.control.examples import answered
from services.control.problems import documented

router = APIRouter(prefix="/v1", tags=["state"])


class WeightVersion(BaseModel):
    """One announced weight version.

    base: the version that a delta applies to; 0 for an anchor. anchor: the version that its chain begins with. bytes:
    what a generator fetches that holds the base. full_bytes: its tensors in full; 0 if that was not told. changed:
    share of elements whose bits are others than in the version before; null where there was nothing to compare with.
    """

    version: int
    step: int
    revision: int
    kind: PublicationKind
    base: int
    anchor: int
    location: str
    bytes: int
    full_bytes: int
    changed: float | None
    at_s: float


class Weights(BaseModel):
    """Weight versions, newest first."""

    versions: list[WeightVersion]


_VERSION = {
    "version": 118,
    "step": 118,
    "revision": 7,
    "kind": "delta",
    "base": 117,
    "anchor": 101,
    "location": "v000118",
    "bytes": 173439,
    "full_bytes": 13631488,
    "changed": 0.0093,
    "at_s": 1767225600.0,
}


@router.get(
    "/weights",
    summary="Announced weight versions",
    responses=answered({"versions": [_VERSION]}) | documented(422, 503),
)
async def weights(control: Controlled, limit: Annotated[int, Query(ge=1, le=200)] = 20) -> Weights:
    """The versions that were announced last, newest first. `curl -s $DASHBOARD/v1/weights`."""
    manifests = await control.weights.recent(limit)
    return Weights(versions=[WeightVersion.model_validate(m, from_attributes=True) for m in manifests])
