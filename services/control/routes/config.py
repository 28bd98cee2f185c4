"""GET, PUT, PATCH /v1/config: the live configuration that is asked for.

curl -s  $DASHBOARD/v1/config
curl -sX PATCH "$DASHBOARD/v1/config?reason=more+expert" --json '{"algorithm": {"gamma": 0.3}}'
curl -sX PATCH $DASHBOARD/v1/config --json '{"algorithm": {"kind": "luffy"}, "hints": {"kind": "demonstration"}}'
curl -sX PATCH $DASHBOARD/v1/config -H 'If-Match: "7"' --json '{"optimizer": {"learning_rate": 2e-6}}'
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Response
from pydantic import BaseModel, Field

from common.config.live import Json, LiveConfig
from common.config.store import Revision
from services.control.deps import Called, Controlled
from services.control.documents import read_document
from services.control.etags import etag_of, expected_revisions
from services.control.examples import answered
from services.control.problems import Problem, documented
from services.control.steering import Decision, Proposal

router = APIRouter(prefix="/v1/config", tags=["configuration"])
WRITE_PROBLEMS = documented(400, 412, 415, 422, 503)
READ_PROBLEMS = documented(503)


class ChangeView(BaseModel):
    """One value that a revision changed; null where the key was absent."""

    path: str
    before: Any
    after: Any


class RevisionView(BaseModel):
    """One accepted live configuration: what, who, when, from where, and what changed."""

    revision: int
    config: Json = Field(description="the whole configuration, every value written out")
    author: str
    origin: str = Field(description="the address that it was asked for from")
    at_s: float = Field(description="Unix time in seconds")
    reason: str
    changes: list[ChangeView]


class DecisionView(RevisionView):
    """The revision that is current now. changed: false if the proposal was the current configuration already."""

    changed: bool


def revision_view(revision: Revision) -> RevisionView:
    """A revision as the API shows it."""
    return RevisionView.model_validate(revision.record())


async def read_proposal(
    caller: Called,
    reason: Annotated[str, Query(max_length=500, description="why; kept in the history")] = "",
    if_match: Annotated[
        str | None, Header(alias="If-Match", description='change only this revision: its ETag, such as "7"')
    ] = None,
) -> Proposal:
    """Who proposes a change, why, and of which revision."""
    if not reason.isprintable():
        raise Problem(422, "invalid-request", "query.reason: control characters are not possible in a reason")
    return Proposal(caller.author, reason, expected_revisions(if_match))


_CONFIG = {
    "algorithm": {"kind": "luffy", "gamma": 0.3},
    "hints": {"kind": "demonstration"},
    "optimizer": {"learning_rate": 1e-6},
    "groups_per_step": 16,
    "guards": [],
}
REVISION: Json = {
    "revision": 7,
    "config": _CONFIG,
    "author": "ada",
    "origin": "127.0.0.1",
    "at_s": 1767225600.0,
    "reason": "more of the expert",
    "changes": [{"path": "algorithm.gamma", "before": 0.1, "after": 0.3}],
}
DECISION: Json = {**REVISION, "changed": True}
_SCHEMA = {"title": "LiveConfig", "type": "object", "properties": {"publish_every": {"type": "integer", "minimum": 1}}}
Document = Annotated[Json, Depends(read_document)]
Proposed = Annotated[Proposal, Depends(read_proposal)]


def decided(decision: Decision, response: Response) -> DecisionView:
    """The answer to a proposal, with its ETag."""
    response.headers["ETag"] = etag_of(decision.revision.number)
    return DecisionView(**decision.revision.record(), changed=decision.changed)


def body_of(schema: str, example: Json, *media_types: str) -> dict[str, Any]:
    """The OpenAPI entry of a body that the route reads itself."""
    content = {"schema": {"$ref": f"#/components/schemas/{schema}"}, "example": example}
    return {"requestBody": {"required": True, "content": dict.fromkeys(media_types or ("application/json",), content)}}


@router.get("", summary="The live configuration that is asked for", responses=answered(REVISION) | READ_PROBLEMS)
async def read(control: Controlled, response: Response) -> RevisionView:
    """The current revision. Its number is in the ETag; `GET /v1/status` says where it is in force already.

    `curl -s $DASHBOARD/v1/config`
    """
    revision = await control.config.current()
    if revision is None:
        raise Problem(503, "no-revision", "there is no live configuration yet: try again in a moment")
    response.headers["ETag"] = etag_of(revision.number)
    return revision_view(revision)


@router.get("/schema", summary="JSON schema of a live configuration", responses=answered(_SCHEMA))
async def schema() -> Json:
    """The JSON schema that forms can be built from. `curl -s $DASHBOARD/v1/config/schema`."""
    return _schema()


@cache
def _schema() -> Json:
    # Made once: it takes long enough to hold up everyone else's call.
    return LiveConfig.model_json_schema()


@router.put(
    "",
    summary="Replace the live configuration",
    responses=answered(DECISION) | WRITE_PROBLEMS,
    openapi_extra=body_of("LiveConfig", {"algorithm": {"kind": "luffy"}, "hints": {"kind": "demonstration"}}),
)
async def replace(document: Document, proposal: Proposed, control: Controlled, response: Response) -> DecisionView:
    """Make the document the next revision; keys that are left out take their defaults.

    `curl -sX PUT $DASHBOARD/v1/config --json '{"algorithm": {"kind": "dr_grpo"}}'`
    """
    return decided(await control.steering.replace(document, proposal), response)


@router.patch(
    "",
    summary="Change the live configuration",
    responses=answered(DECISION) | WRITE_PROBLEMS,
    openapi_extra=body_of(
        "ConfigPatch", {"algorithm": {"gamma": 0.3}}, "application/merge-patch+json", "application/json"
    ),
)
async def patch(document: Document, proposal: Proposed, control: Controlled, response: Response) -> DecisionView:
    """Merge the document into the current configuration (RFC 7396) and make the result the next revision.

    A new `kind` replaces its whole object, so `{"algorithm": {"kind": "luffy"}}` is LUFFY as published. Without
    If-Match the patch is merged into whatever is current, also after a lost race; with it, a stale revision is answered
    with 412.

    `curl -sX PATCH $DASHBOARD/v1/config --json '{"algorithm": {"gamma": 0.3}}'`
    """
    return decided(await control.steering.patch(document, proposal), response)
