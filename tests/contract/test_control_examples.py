"""The OpenAPI document's examples: every body and every answer has one, and it is one that the schema allows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from control_bench import Bench, opened
from jsonschema import Draft202012Validator
from redis_process import RedisProcess


@pytest_asyncio.fixture
async def document(redis_server: RedisProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    async with opened(tmp_path) as bench:
        yield await fetched(bench)


async def fetched(bench: Bench) -> Any:
    return (await bench.http.get("/openapi.json")).json()


def contents(document: Any) -> dict[str, Any]:
    """Body or good answer, by name → its media types."""
    found: dict[str, Any] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if "requestBody" in operation:
                found[f"{method} {path} body"] = operation["requestBody"]["content"]
            for status, answer in operation["responses"].items():
                if status.startswith("2"):
                    found[f"{method} {path} {status}"] = answer["content"]
    return found


async def test_every_body_and_every_good_answer_has_an_example_that_its_schema_allows(document: Any) -> None:
    found = contents(document)
    assert len(found) > 35
    problems: list[str] = []
    for name, content in found.items():
        for media_type, entry in content.items():
            if "example" not in entry:
                problems.append(f"{name}: no example of {media_type}")
            elif media_type.endswith("json"):
                schema = {**entry["schema"], "components": document["components"]}
                errors = Draft202012Validator(schema).iter_errors(entry["example"])
                problems += [f"{name}: {error.json_path}: {error.message[:200]}" for error in errors]
    assert problems == []


async def test_every_operation_has_a_curl_example_and_a_name_of_its_own(document: Any) -> None:
    operations = [o for operations in document["paths"].values() for o in operations.values()]
    assert [o["summary"] for o in operations if "curl" not in o["description"]] == []
    names = [o["operationId"] for o in operations]
    assert sorted(set(names)) == sorted(names)
