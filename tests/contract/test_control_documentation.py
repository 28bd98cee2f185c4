"""The OpenAPI document: complete, and true of what the doors and the router answer before a route is reached."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from control_bench import Bench, opened
from jsonschema import Draft202012Validator
from redis_process import RedisProcess

BODIES = ("put", "patch", "post")


@pytest_asyncio.fixture
async def bench(redis_server: RedisProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    async with opened(tmp_path) as bench:
        yield bench


@pytest_asyncio.fixture
async def document(bench: Bench) -> Any:
    return (await bench.http.get("/openapi.json")).json()


def operations(document: Any) -> Iterator[tuple[str, str, Any]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def test_every_call_has_a_summary_a_description_with_a_command_and_a_known_tag(document: Any) -> None:
    assert document["openapi"].startswith("3.1")
    tags = {tag["name"] for tag in document["tags"]}
    for path, method, operation in operations(document):
        assert operation["summary"], path
        assert "curl" in operation["description"], path
        assert set(operation["tags"]) <= tags, (path, method)


def test_every_example_of_a_parameter_holds_by_its_schema(document: Any) -> None:
    for path, _, operation in operations(document):
        for parameter in operation.get("parameters", []):
            if parameter["in"] == "path":
                assert parameter["schema"].get("examples"), f"{path}: {parameter['name']} has no example"
            for example in parameter["schema"].get("examples", []):
                Draft202012Validator(parameter["schema"]).validate(example)


def test_what_the_doors_refuse_is_documented_for_every_call(document: Any) -> None:
    for path, method, operation in operations(document):
        documented = operation["responses"].keys()
        if path.startswith("/v1/"):
            assert {"401", "403", "429"} <= documented, (method, path)
            assert operation["responses"]["429"]["headers"].keys() == {"Retry-After"}
        if "requestBody" in operation:
            assert {"400", "413", "415", "422"} <= documented, (method, path)
            assert method in BODIES


def test_every_error_is_documented_as_a_problem(document: Any) -> None:
    for path, method, operation in operations(document):
        for status, answer in operation["responses"].items():
            if status.startswith(("4", "5")):
                assert answer["content"].keys() == {"application/problem+json"}, (method, path, status)


async def test_a_method_that_a_path_does_not_take_is_405_with_every_one_that_it_does(
    bench: Bench, document: Any
) -> None:
    for path, methods in document["paths"].items():
        answer = await bench.http.request("TRACE", re.sub(r"\{\w+\}", "1", path))
        assert answer.status_code == 405
        assert answer.headers["allow"] == ", ".join(sorted(method.upper() for method in methods)), path
