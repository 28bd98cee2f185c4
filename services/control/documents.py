"""JSON documents that callers send and that processes write: read strictly from outside, leniently from inside."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from common.config.live import Json
from services.control.problems import Problem

DEEPEST = 32
_MOST_DIGITS = 18
_Model = TypeVar("_Model", bound=BaseModel)
JSON_TYPES = ("application/json", "application/merge-patch+json")


async def read_document(request: Request) -> Json:
    """The JSON object in a request's body; a Problem (400, 413, 415) says why there is none."""
    # Browsers send other types across origins without asking; insisting on JSON keeps foreign pages out.
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in JSON_TYPES:
        detail = (
            f"the body's type is {media_type or 'not given'}: send Content-Type: application/json (curl --json does)"
        )
        raise Problem(415, "not-json", detail, headers={"Accept-Patch": ", ".join(JSON_TYPES)})
    return parse_document(await request.body())


def parse_document(body: bytes) -> Json:
    """The JSON object in `body`. Duplicate keys, NaN and infinities are refused, and so is nesting beyond DEEPEST."""
    try:
        document = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except RecursionError as error:
        raise _too_deep() from error
    except ValueError as error:  # not UTF-8, not JSON, a number of thousands of digits, a key that comes twice
        raise Problem(400, "malformed-json", f"the body is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise Problem(400, "malformed-json", f"the body is a JSON {_type_name(document)}: send an object")
    if _is_deep(document):
        raise _too_deep()
    return document


def conforming(model: type[_Model], document: Json) -> _Model:
    """The document as a value of `model`; a Problem (422) names everything that does not conform, by its path."""
    try:
        return model.model_validate(document, strict=True)
    except ValidationError as error:
        errors = [(".".join(map(str, e["loc"])), str(e["msg"])) for e in error.errors(include_url=False)]
        detail = "; ".join(f"{path}: {message}" if path else message for path, message in errors)
        raise Problem(422, "invalid-body", detail, errors=errors) from error


def read_record(text: bytes | None) -> Json:
    """A JSON object that one of our processes wrote; empty if there is none. What is not finite is read as null.

    Numbers beyond those of the machine are not finite, and what cannot be written as JSON again is no object.
    """
    if not text:
        return {}
    try:
        record = json.loads(text, parse_constant=lambda _: None, parse_int=_whole, parse_float=_finite)
        if b"\\u" in text:  # half of a surrogate pair can be read, but not written
            json.dumps(record, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _whole(digits: str) -> int | None:
    return int(digits) if len(digits) <= _MOST_DIGITS else None


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def _is_deep(document: Json) -> bool:
    level: list[Any] = [document]
    for _ in range(DEEPEST):
        level = [inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer)]
        level = [value for value in level if isinstance(value, dict | list)]
        if not level:
            return False
    return True


def _too_deep() -> Problem:
    return Problem(400, "malformed-json", f"the body is nested deeper than {DEEPEST} levels: no configuration is")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> Json:
    document = dict(pairs)
    if len(document) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise ValueError(f"the key {next(k for k, n in counts.items() if n > 1)!r} comes twice in one object")
    return document


def _type_name(document: Any) -> str:
    match document:
        case None:
            return "null"
        case bool():
            return "boolean"
        case list():
            return "array"
        case str():
            return "string"
        case _:
            return "number"
