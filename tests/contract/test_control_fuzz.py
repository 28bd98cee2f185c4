"""Hostile bodies against the real application on a real Redis: no answer is a 5xx, and what is in force stays valid."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from control_bench import RUN
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from redis_process import RedisProcess

from common.config.algorithm import ALGORITHMS
from common.config.hints import HINT_POLICIES
from common.config.live import LiveConfig, parse_live
from common.events import EventKind
from common.process import Process
from common.settings import load_run
from services.control.app import create_app
from services.control.deps import Control

NAMES = sorted(
    {key for config in (*ALGORITHMS, *HINT_POLICIES) for key in config.model_fields}
    | set(LiveConfig.model_fields)
    | {"temperature", "max_response_tokens", "learning_rate", "warmup_steps", "revision"}
)
WORDS = sorted(
    {config.model_fields["kind"].default for config in (*ALGORITHMS, *HINT_POLICIES)}
    | {"gamma", "clipped", "token_mean"}
)
numbers = (
    st.integers()
    | st.integers(-3, 3)
    | st.sampled_from([10**30, -(10**400), 2**63, 1e308, 5e-324, 0.1])
    | st.floats(allow_nan=False, allow_infinity=False)
)
scalars = st.none() | st.booleans() | numbers | st.text(max_size=8) | st.sampled_from(WORDS)
keys = st.sampled_from(NAMES) | st.text(max_size=5)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)
# Near misses reach deeper than noise: right names with any values.
tagged = st.dictionaries(keys, scalars, max_size=4).flatmap(
    lambda more: st.sampled_from(WORDS).map(lambda kind: {"kind": kind, **more})
)
documents = st.dictionaries(keys, values | tagged, max_size=4) | st.fixed_dictionaries(
    {},
    optional={
        "algorithm": tagged,
        "hints": tagged,
        "optimizer": values,
        "groups_per_step": scalars,
        "revision": numbers,
    },
)
bodies = (
    documents.map(lambda d: json.dumps(d).encode())
    | values.map(lambda v: json.dumps(v).encode())
    | st.binary(max_size=60)
    | st.text(max_size=60).map(lambda t: t.encode("utf-8", "surrogatepass"))
    | st.sampled_from([b'{"algorithm": {"kind": "\\ud800"}}', b'{"\\ud800": 1}', b'{"hints": {"ratio": -0.0}}'])
    | st.sampled_from(
        [b'{"algorithm": NaN}', b'{"groups_per_step": 1e999}', b'{"a":' * 3000 + b"1" + b"}" * 3000, b"[" * 60000]
    )
)
calls = st.sampled_from([("PATCH", "/v1/config"), ("PUT", "/v1/config"), ("POST", "/v1/config/rollback")])
headers = st.fixed_dictionaries(
    {"Content-Type": st.sampled_from(["application/json", "application/merge-patch+json; charset=utf-8"])},
    optional={
        "If-Match": st.sampled_from(['"1"', "*", '"x"', "", 'W/"3"', ",,,"]),
        "X-Tributary-Author": st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=70),
    },
)


# Ids, and what is almost one: digits of other scripts, numbers at and beyond the largest, the place before the first.
parts = (
    st.integers(0, 2**65).map(str)
    | st.sampled_from(["0", "00", "1", str(2**64 - 1), str(2**64), "9" * 19, "9" * 40])
    | st.text(st.characters(categories=["Nd"]), min_size=1, max_size=3)
    | st.text("0", min_size=1, max_size=3)
)
places = parts | st.tuples(parts, parts).map("-".join) | st.text(max_size=25) | numbers.map(str)


class Target:
    """The application in process, called from outside an event loop."""

    def __init__(self, directory: Path) -> None:
        (directory / "run.toml").write_text(RUN)
        self.loop = asyncio.new_event_loop()
        self.process = Process("control", "control", load_run(directory / "run.toml"))
        control = Control.of(self.process)
        self.run(control.steering.seed(self.process.settings.live))
        transport = httpx.ASGITransport(create_app(control, None), raise_app_exceptions=False)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")

    def run(self, what: Any) -> Any:
        return self.loop.run_until_complete(what)

    def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self.run(self.http.request(method, path, **options))

    def close(self) -> None:
        self.run(self.http.aclose())
        self.run(self.process.redis.aclose())
        self.loop.close()


@pytest.fixture
def target(redis_server: RedisProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Target]:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    target = Target(tmp_path)
    yield target
    target.close()


@settings(
    max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
@given(call=calls, body=bodies, header=headers)
def test_no_body_makes_a_5xx_and_every_accepted_revision_is_valid(
    target: Target, call: tuple[str, str], body: bytes, header: dict[str, str]
) -> None:
    answer = target.call(*call, content=body, headers=header)
    assert answer.status_code in (200, 400, 412, 422), (call, body, answer.text)
    told = json.loads(answer.text, parse_constant=lambda name: pytest.fail(f"{name} in an answer"))
    if answer.status_code == 200:
        parse_live(told["config"])
    else:
        assert answer.headers["content-type"] == "application/problem+json"
        assert told["detail"]
    assert target.call("GET", "/v1/config").status_code == 200
    assert target.call("GET", "/v1/status").status_code == 200


@settings(
    max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
@given(
    path=st.sampled_from(["series", "events", "config/revisions", "quarantine", "weights"]),
    query=st.fixed_dictionaries(
        {},
        optional={
            "kind": st.sampled_from(EventKind) | st.text(max_size=25),
            "after": places,
            "before": places,
            "limit": st.sampled_from(["1", "5", "200"]) | numbers.map(str) | st.text(max_size=5),
            "newest": st.sampled_from(["true", "false"]) | st.text(max_size=5),
        },
    ),
    header=st.fixed_dictionaries({}, optional={"Last-Event-ID": places.filter(str.isprintable)}),
)
@example("series", {"after": "٣"}, {})
@example("series", {"newest": "true", "before": "0-0"}, {})
@example("series", {"newest": "true", "before": f"{2**64 - 1}-{2**64 - 1}", "after": str(2**64)}, {})
@example("events", {"after": "٣-٣"}, {})
@example("quarantine", {"before": "٣-٣"}, {})
@example("quarantine", {"before": "00-0"}, {})
def test_no_query_makes_a_5xx(target: Target, path: str, query: dict[str, str], header: dict[str, str]) -> None:
    target.process.stop.set()  # a feed ends after its greeting
    printable = {key: value.encode("utf-8", "replace").decode() for key, value in query.items()}
    encoded = {key: value.encode("utf-8", "replace") for key, value in header.items()}
    answer = target.call("GET", f"/v1/{path}", params=printable, headers=encoded)
    assert answer.status_code in (200, 422), (path, query, header, answer.text)
