"""The whole OpenAPI document against a live server: no 5xx, no undocumented status, every answer as documented.

The event feed is left out there, because its answer has no end; it has a test of its own here. TRIBUTARY_TEST_EXAMPLES
sets how many calls are made up for each operation of an open server (6 unless it is set).
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from control_process import ControlProcess
from pretended_run import PretendedRun
from redis_process import RedisProcess
from tiny_tokenizer import write_tokenizer

from common import connection

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(900)]

EXAMPLES = os.environ.get("TRIBUTARY_TEST_EXAMPLES") or "6"

TOKEN = "of-the-operator-0123456789"
READER = "of-the-reader-0123456789"
RATES = "reads_per_s = 0\nwrites_per_s = 0\n"
# A configuration may be valid by its schema and still not fit together; and what a schema cannot say, sentences do.
UNDECIDABLE = "positive_data_acceptance,negative_data_rejection"

Start = Callable[..., ControlProcess]


@pytest.fixture
def start(redis_server: RedisProcess, tmp_path: Path) -> Iterator[Start]:
    """Starts control planes of a run that has made some steps; they are stopped afterwards."""
    started: list[ControlProcess] = []

    async def make_steps() -> None:
        redis = connection.connect(redis_server.url)
        pretended = PretendedRun(redis, "test")
        for _ in range(25):
            await pretended.advance(time.time() - 60)
        await redis.aclose()

    def make(**options: Any) -> ControlProcess:
        write_tokenizer(tmp_path / "control" / "m")
        started.append(ControlProcess(tmp_path / "control", redis_server.url, **options))
        started[-1].wait_until_up()
        asyncio.run(make_steps())
        return started[-1]

    yield make
    for control in started:
        control.stop()


def probed(url: str, directory: Path, *options: str) -> int:
    """How many calls were made of the API at `url`. Fails unless every answer was as documented."""
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--exclude-path", "/v1/events"]
    command += ["--exclude-checks", UNDECIDABLE, "--warnings", "off", "--no-color", "--generation-database", "none"]
    command += ["--seed", "1", "--request-timeout", "20", *options]
    report = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=800, check=False)
    assert report.returncode == 0, report.stdout[-6000:] + report.stderr[-2000:]
    calls = re.search(r"(\d+) generated", report.stdout)
    assert calls is not None, report.stdout[-2000:]
    return int(calls[1])


def statuses(control: ControlProcess) -> set[str]:
    """Every status that the server counted, those without a route included: whoever the doors turn away has none."""
    metrics = httpx.get(f"{control.url}/metrics").text
    return set(re.findall(r'tributary_http_requests_total\{[^}]*route="(?:/v1|none)[^}]*status="(\d+)"', metrics))


def test_an_open_server_answers_every_call_as_documented(start: Start, tmp_path: Path) -> None:
    control = start(more=RATES)
    calls = probed(control.url, tmp_path, "--max-examples", EXAMPLES)
    assert calls > 500
    print(f"{calls} calls as documented")
    assert {"200", "422"} <= statuses(control)
    assert not any(status.startswith("5") and status != "503" for status in statuses(control))


def test_a_guarded_server_answers_every_call_as_documented_with_and_without_a_token(
    start: Start, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"reader read {READER}\n")
    tokens.chmod(0o600)
    control = start(more=f'{RATES}tokens_file = "{tokens}"', token=TOKEN)
    few = ("--phases", "examples,fuzzing", "--max-examples", "3")
    probed(control.url, tmp_path, *few)
    assert {"401"} <= statuses(control) <= {"401", "404", "405"}
    probed(control.url, tmp_path, *few, "--header", f"Authorization: Bearer {READER}")
    assert {"200", "403"} <= statuses(control)
    probed(control.url, tmp_path, *few, "--header", f"Authorization: Bearer {TOKEN}")
    assert not any(status.startswith("5") for status in statuses(control))
    said = control.log.read_text()
    assert TOKEN not in said
    assert READER not in said


def test_the_event_feed_answers_as_documented(start: Start) -> None:
    control = start()
    asked = {"": 200, "?kind=step&after=0": 200, "?kind=nonsense": 422, "?after=x": 422}
    document = httpx.get(f"{control.url}/openapi.json").json()["paths"]["/v1/events"]["get"]["responses"]
    for query, status in asked.items():
        with httpx.stream("GET", f"{control.url}/v1/events{query}") as answer:
            assert answer.status_code == status
            (media_type,) = document[str(status)]["content"]
            assert answer.headers["content-type"].startswith(media_type)
