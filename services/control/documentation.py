"""The OpenAPI document: what FastAPI finds by itself, and the bodies that the routes read strictly on their own."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic.json_schema import models_json_schema

from common.config.live import LiveConfig
from services.control.problems import ProblemDetails, documented
from services.control.routes.demonstrations import DemonstrationBody
from services.control.routes.dry_run import DryRunBody
from services.control.routes.revisions import Rollback

DESCRIPTION = """
Steers a run of Tributary while it goes on.

A change of the live configuration is validated as a whole, becomes the next *revision*, and takes effect at the
learner's next step and at the generators' next request; `GET /v1/status` shows what is asked and what is in force.
Every error is a problem (RFC 9457) that says what to do. With tokens set, every call under /v1 needs
`Authorization: Bearer <token>`; one with the role *read* may only read, and the history names the token's holder.
Who calls too often is answered with 429 and Retry-After.
"""

_TAGS = [
    {"name": "configuration", "description": "What is asked for, its history, and the way back."},
    {"name": "catalogue", "description": "What can be asked for."},
    {"name": "orders", "description": "What single processes are asked to do, and what is added to the data."},
    {"name": "state", "description": "The run as it is now."},
    {"name": "events", "description": "What happened, as rows and as it happens."},
    {"name": "health", "description": "For whoever restarts, routes to, and measures the control plane."},
]


def describe(api: FastAPI) -> None:
    """Complete the OpenAPI document of `api`."""
    generate = api.openapi

    def openapi() -> dict[str, Any]:
        if api.openapi_schema is None:
            document = generate()
            document["tags"] = _TAGS
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            schemas |= _bodies()
            document["components"]["securitySchemes"] = {
                "token": {"type": "http", "scheme": "bearer", "description": "asked for when the run has tokens"}
            }
            document["security"] = [{}, {"token": []}]
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    _add_refusals(path, operation)
            for route in api.routes:
                if isinstance(route, APIRoute) and route.include_in_schema:
                    _restore_nulls(document, route)
        return api.openapi_schema or {}

    api.openapi = openapi


def _add_refusals(path: str, operation: dict[str, Any]) -> None:
    """Document what the doors answer before a route is reached."""
    statuses = [401, 403, 429] if path.startswith("/v1/") else [403]
    if "requestBody" in operation:
        statuses.append(413)
    for status, entry in documented(*statuses).items():
        operation["responses"].setdefault(str(status), entry)


def _restore_nulls(document: dict[str, Any], route: APIRoute) -> None:
    """Put the examples of a route's answers back whole: FastAPI leaves every null out, also where it is the point."""
    operations = document["paths"][route.path_format]
    for status, entry in route.responses.items():
        for media_type, content in entry.get("content", {}).items():
            if "example" in content:
                for method in route.methods:
                    shown = operations[method.lower()]["responses"][str(status)]["content"]
                    shown[media_type]["example"] = content["example"]


def _bodies() -> dict[str, Any]:
    models = [(model, "validation") for model in (LiveConfig, Rollback, DryRunBody, DemonstrationBody, ProblemDetails)]
    _, definitions = models_json_schema(models, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    patch = {
        "type": "object",
        "title": "ConfigPatch",
        "description": "A JSON merge patch of a LiveConfig (RFC 7396): any of its keys; null stands for the default.",
        "additionalProperties": True,
    }
    return {**definitions["$defs"], "ConfigPatch": patch}
