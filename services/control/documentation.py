"""The OpenAPI document: what FastAPI finds by itself, and the bodies that the routes read strictly on their own."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from common.config.live import LiveConfig
from services.control.problems import ProblemDetails
from services.control.routes.revisions import Rollback

DESCRIPTION = """
Steers a run of Tributary while it goes on.

A change of the live configuration is validated as a whole, becomes the next *revision*, and takes effect at the
learner's next step and at the generators' next request; `GET /v1/status` shows what is asked and what is in force.
Every error is a problem (RFC 9457) that says what to do. With a token set, every call under /v1 needs
`Authorization: Bearer <token>`.
"""

_TAGS = [
    {"name": "configuration", "description": "What is asked for, its history, and the way back."},
    {"name": "catalogue", "description": "What can be asked for."},
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
                "token": {"type": "http", "scheme": "bearer", "description": "asked for when the run has a token"}
            }
            document["security"] = [{}, {"token": []}]
        return api.openapi_schema or {}

    api.openapi = openapi


def _bodies() -> dict[str, Any]:
    models = [(model, "validation") for model in (LiveConfig, Rollback, ProblemDetails)]
    _, definitions = models_json_schema(models, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    patch = {
        "type": "object",
        "title": "ConfigPatch",
        "description": "A JSON merge patch of a LiveConfig (RFC 7396): any of its keys; null stands for the default.",
        "additionalProperties": True,
    }
    return {**definitions["$defs"], "ConfigPatch": patch}
