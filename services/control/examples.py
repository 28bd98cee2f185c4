"""Examples: what an answer looks like, for the OpenAPI document."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from pydantic import BaseModel

Answers = dict[int | str, dict[str, Any]]


def answered(example: Any, status: int = 200, model: type[BaseModel] | None = None, located: bool = False) -> Answers:
    """The OpenAPI entry of an answer. model: of one that the route does not declare. located: it says where to look."""
    entry: dict[str, Any] = {
        "description": HTTPStatus(status).phrase,
        "content": {"application/json": {"example": example}},
    }
    if model is not None:
        entry["model"] = model
    if located:
        where = {"description": "where to ask again", "schema": {"type": "string"}}
        entry["headers"] = {"Location": where}
    return {status: entry}
