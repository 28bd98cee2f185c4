"""The control plane as a process: refusals at start, the event feed, tokens, and an end within a second."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
from control_process import ControlProcess
from redis import Redis
from redis_process import RedisProcess

pytestmark = pytest.mark.system

Start = Callable[..., ControlProcess]


def refusal(control: ControlProcess) -> tuple[int, str]:
    """Exit code, and what was said beside the JSON log."""
    code = control.process.wait(30)
    return code, "\n".join(line for line in control.log.read_text().splitlines() if not line.startswith("{"))


def test_a_busy_port_is_one_sentence_and_exit_2(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, said = refusal(start(port=taken.getsockname()[1]))
    assert code == 2
    assert said.startswith("control: the control plane cannot listen on 127.0.0.1 port")
    assert "Traceback" not in said


def test_a_wider_address_without_a_token_is_one_sentence_and_exit_2(start: Start) -> None:
    code, said = refusal(start(host="0.0.0.0"))
    assert code == 2
    assert "set TRIBUTARY_TOKEN" in said


def test_a_token_opens_the_api_to_who_knows_it_and_is_never_logged(start: Start) -> None:
    control = start(host="0.0.0.0", token="s3cret-token").wait_until_up()
    assert httpx.get(f"{control.url}/v1/status").status_code == 401
    assert httpx.patch(f"{control.url}/v1/config", json={}).status_code == 401
    known = {"Authorization": "Bearer s3cret-token", "Host": "elsewhere.example"}
    assert httpx.get(f"{control.url}/v1/status", headers=known).status_code == 200
    assert "s3cret" not in control.log.read_text()


def test_a_caller_cannot_write_another_origin_into_the_history(start: Start) -> None:
    control = start().wait_until_up()
    forged = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https"}
    httpx.patch(f"{control.url}/v1/config", json={"publish_every": 2}, headers=forged)
    assert httpx.get(f"{control.url}/v1/config/revisions").json()["revisions"][0]["origin"] == "127.0.0.1"


def messages(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    """The messages of an event stream that carry data."""
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if line:
            fields[name] = value
        elif "data" in fields:
            yield fields
            fields = {}
        else:
            fields = {}


def test_the_event_feed_tells_at_once_and_goes_on_after_the_last_event_seen(start: Start) -> None:
    control = start().wait_until_up()
    with httpx.stream("GET", f"{control.url}/v1/events?kind=revision&after=0", timeout=10) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        feed = messages(answer.iter_lines())
        first = next(feed)
        assert json.loads(first["data"])["data"]["revision"] == 1
        start_s = time.monotonic()
        httpx.patch(f"{control.url}/v1/config", json={"publish_every": 2})
        second = next(feed)
        assert json.loads(second["data"])["data"]["revision"] == 2
        assert time.monotonic() - start_s < 1
    httpx.patch(f"{control.url}/v1/config", json={"publish_every": 3})
    seen = {"Last-Event-ID": second["id"]}
    with httpx.stream("GET", f"{control.url}/v1/events?kind=revision&after=0", headers=seen, timeout=10) as answer:
        assert json.loads(next(messages(answer.iter_lines()))["data"])["data"]["revision"] == 3


def test_it_ends_within_two_seconds_with_a_feed_open_and_the_feed_ends_cleanly(start: Start) -> None:
    control = start().wait_until_up()
    with httpx.stream("GET", f"{control.url}/v1/events?after=0", timeout=10) as answer:
        lines = answer.iter_lines()
        next(lines)
        took_s = control.stop()
        rest = list(lines)  # httpx raises if the stream is cut in the middle
    assert control.process.returncode == 0
    assert took_s < 2
    assert "Traceback" not in control.log.read_text()
    assert rest


def test_after_a_restart_the_revision_that_was_current_still_is(start: Start) -> None:
    first = start().wait_until_up()
    assert httpx.patch(f"{first.url}/v1/config", json={"publish_every": 5}).json()["revision"] == 2
    first.stop()
    second = start().wait_until_up()
    answer = httpx.get(f"{second.url}/v1/config")
    assert answer.headers["etag"] == '"2"'
    assert answer.json()["config"]["publish_every"] == 5


def test_it_outlives_a_restart_of_redis(start: Start, redis_server: RedisProcess) -> None:
    control = start().wait_until_up()
    with httpx.stream("GET", f"{control.url}/v1/events?kind=revision", timeout=20) as answer:
        feed = messages(answer.iter_lines())
        redis_server.kill()
        assert httpx.get(f"{control.url}/healthz").status_code == 503
        redis_server.start()
        deadline_s = time.monotonic() + 10
        while httpx.get(f"{control.url}/healthz").status_code != 200 and time.monotonic() < deadline_s:
            time.sleep(0.05)
        assert httpx.patch(f"{control.url}/v1/config", json={"publish_every": 9}).json()["revision"] == 2
        assert json.loads(next(feed)["data"])["data"]["revision"] == 2
    assert control.process.poll() is None


def test_the_death_of_a_process_is_told_as_an_event(start: Start, redis_server: RedisProcess) -> None:
    control = start().wait_until_up()
    key = "tributary:{test}:processes"
    beat = {"role": "generator", "state": "running", "revision": 1, "version": 0}
    asked = httpx.stream("GET", f"{control.url}/v1/events?kind=process", timeout=10)
    with Redis(port=redis_server.port) as redis, asked as answer:
        feed = messages(answer.iter_lines())
        redis.hset(key, "generator-1", json.dumps(beat | {"at_s": time.time()}))
        told = [json.loads(next(feed)["data"])["data"]]
        redis.hset(key, "generator-1", json.dumps(beat | {"at_s": time.time() - 60}))
        while told[-1]["state"] != "lost":
            told.append(json.loads(next(feed)["data"])["data"])
    assert told[-1] == {"name": "generator-1", "role": "generator", "state": "lost"}
