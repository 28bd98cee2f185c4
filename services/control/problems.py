"""Problem details (RFC 9457): every error of the API says what was wrong and what to do, in one format."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import Route

from common.connection import is_passing
from common.errors import ConfigRejected, LostRace, TributaryError

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 2
_LONGEST = 500
_MOST_ERRORS = 100
_AGAIN = {"Retry-After": {"description": "seconds to wait", "schema": {"type": "string", "pattern": "^[0-9]+$"}}}

log = logging.getLogger(__name__)


class FieldError(BaseModel):
    """One thing that is wrong with what was sent. path: dotted; "" when it concerns the whole."""

    path: str
    message: str


class ProblemDetails(BaseModel):
    """An error, as application/problem+json (RFC 9457)."""

    type: str = Field(description="names the kind of problem", examples=["urn:tributary:problem:config-rejected"])
    title: str = Field(examples=["Unprocessable Content"])
    status: int = Field(examples=[422])
    detail: str = Field(description="what was wrong, and what to do")
    errors: list[FieldError] | None = Field(default=None, description="each problem by its path, if there are several")
    current_revision: int | None = Field(default=None, description="the revision that is current (status 412)")


class Problem(Exception):
    """An error answer. name: the last part of its type."""

    def __init__(
        self,
        status: int,
        name: str,
        detail: str,
        *,
        errors: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        members: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.name = name
        self.detail = detail
        self.errors = errors
        self.headers = dict(headers or {})
        self.members = dict(members or {})

    def response(self) -> JSONResponse:
        """The problem as an HTTP response."""
        body: dict[str, Any] = {
            "type": f"urn:tributary:problem:{self.name}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": _shortened(self.detail),
            **self.members,
        }
        if self.errors:
            told = self.errors[:_MOST_ERRORS]
            body["errors"] = [{"path": _shortened(p), "message": _shortened(m)} for p, m in told]
        return JSONResponse(body, self.status, self.headers, MEDIA_TYPE)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entries of the problems that a route can answer with."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}}
    entries: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        entries[status] = {"description": HTTPStatus(status).phrase, "content": content}
        if status in (429, 503):
            entries[status]["headers"] = _AGAIN
    return entries


def rejected(error: ConfigRejected) -> Problem:
    """A live configuration that was refused, each problem at its path."""
    return Problem(422, "config-rejected", str(error), errors=error.problems)


def stale(error: LostRace) -> Problem:
    """A change of a revision that is not current any more."""
    detail = f"the change was made for another revision, but revision {error.current} is current: read it and try again"
    return Problem(412, "stale-revision", detail, members={"current_revision": error.current})


def redis_away(error: Exception) -> Problem:
    """Redis does not answer, so nothing can be read or changed."""
    detail = (
        f"Redis does not answer ({type(error).__name__}): try again in {RETRY_AFTER_S} s; a change that was under way "
        "may have been made, so read GET /v1/config first"
    )
    return Problem(503, "redis-away", detail, headers={"Retry-After": str(RETRY_AFTER_S)})


def install(app: FastAPI) -> None:
    """Make every error of `app` a problem."""
    app.add_exception_handler(Problem, _on_problem)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(ConfigRejected, _on_rejected)
    app.add_exception_handler(LostRace, _on_lost_race)
    app.add_exception_handler(RedisError, _on_redis_error)
    app.add_exception_handler(TributaryError, _on_tributary_error)
    app.add_exception_handler(Exception, _on_unexpected)


async def _on_problem(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Problem)
    return error.response()


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    name = HTTPStatus(error.status_code).phrase.lower().replace(" ", "-")
    detail, headers = str(error.detail), dict(error.headers or {})
    if error.status_code == 404:
        detail = f"there is nothing at {request.url.path}: GET /openapi.json lists what there is"
    elif error.status_code == 405:
        detail = f"{request.method} is not possible at {request.url.path}: GET /openapi.json lists what is"
        headers["Allow"] = ", ".join(sorted(_methods_at(request)))
    return Problem(error.status_code, name, detail, headers=headers).response()


def _methods_at(request: Request) -> set[str]:
    """Every method that this path takes: each has a route of its own, and the first one only knows its own."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    return {m for route in routes if route.path_regex.match(request.url.path) for m in route.methods or ()}


async def _on_invalid_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    errors = [(".".join(str(part) for part in e["loc"]), str(e["msg"])) for e in error.errors()]
    detail = "; ".join(f"{path}: {message}" for path, message in errors)
    return Problem(422, "invalid-request", detail, errors=errors).response()


async def _on_rejected(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ConfigRejected)
    return rejected(error).response()


async def _on_lost_race(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, LostRace)
    return stale(error).response()


async def _on_redis_error(request: Request, error: Exception) -> JSONResponse:
    log.warning("a call to redis failed", extra={"path": request.url.path, "error": str(error)})
    return redis_away(error).response() if is_passing(error) else await _on_unexpected(request, error)


async def _on_tributary_error(request: Request, error: Exception) -> JSONResponse:
    log.error(str(error), extra={"path": request.url.path})
    return Problem(500, "unexpected", str(error)).response()


async def _on_unexpected(request: Request, error: Exception) -> JSONResponse:
    log.error("unexpected error", exc_info=error, extra={"path": request.url.path})
    return Problem(500, "unexpected", "an unexpected error: the log of the control plane has its traceback").response()


def _shortened(text: str) -> str:
    printable = text.encode("utf-8", "replace").decode()
    return printable if len(printable) <= _LONGEST else printable[:_LONGEST] + " …"
