"""The control plane's parts that need no Redis: documents, entity tags, addresses, doors, census."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from common.errors import SettingsError
from services.control.census import Census
from services.control.documents import DEEPEST, parse_document, read_record
from services.control.doors import LARGEST_BODY_BYTES, Doors
from services.control.etags import etag_of, expected_revisions
from services.control.listening import listen
from services.control.overview import ProcessView, processes_of
from services.control.problems import Problem
from services.control.rates import Rates
from services.control.tokens import Tokens

NOW_S = 1000.0


def nested(levels: int) -> bytes:
    return b'{"a":' * levels + b"1" + b"}" * levels


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe{}", "not JSON"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"a": 1, "a": 2}', "'a' comes twice"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"null", "JSON null: send an object"),
        (b"[1]", "JSON array: send an object"),
        (b"3", "JSON number: send an object"),
        (nested(DEEPEST + 1), "nested deeper than 32"),
        (nested(5000), "nested deeper than 32"),
    ],
)
def test_a_body_that_is_no_plain_json_object_is_refused_with_the_reason(body: bytes, reason: str) -> None:
    with pytest.raises(Problem, match=reason) as caught:
        parse_document(body)
    assert caught.value.status == 400


def test_a_document_as_deep_as_allowed_is_read() -> None:
    assert parse_document(nested(DEEPEST)) == json.loads(nested(DEEPEST))


def test_a_record_of_ours_that_is_not_finite_or_not_json_is_read_without_it() -> None:
    assert read_record(b'{"a": NaN, "b": 1}') == {"a": None, "b": 1}
    assert read_record(b"garbage") == read_record(None) == read_record(b"[]") == {}


@pytest.mark.parametrize(
    ("header", "revisions"),
    [
        (None, None),
        ("*", None),
        (etag_of(7), {7}),
        ('W/"7"', {7}),
        ('"3", "7"', {3, 7}),
        ("7", set()),
        ('"seven"', set()),
        ('"' + "9" * 400 + '"', set()),
    ],
)
def test_if_match_allows_the_revisions_it_names_and_nothing_it_does_not(
    header: str | None, revisions: set[int] | None
) -> None:
    assert expected_revisions(header) == revisions


def test_an_address_wider_than_loopback_needs_a_token() -> None:
    with pytest.raises(SettingsError, match="set TRIBUTARY_TOKEN"):
        listen("0.0.0.0", 0, guarded=False)
    listener = listen("0.0.0.0", 0, guarded=True)
    listener.socket.close()
    assert listener.url.startswith("http://127.0.0.1:")


def test_a_taken_port_is_said_in_one_sentence_with_the_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=rf"cannot listen on 127.0.0.1 port {port} .*: stop what uses it"):
            listen("127.0.0.1", port, guarded=False)


def test_an_address_that_is_not_of_this_machine_is_refused() -> None:
    with pytest.raises(SettingsError, match="is not an address of this machine"):
        listen("no.such.host.invalid", 0, guarded=True)


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    try:
        body = await Request(scope, receive).body()
    except Problem as problem:
        await problem.response()(scope, receive, send)
    else:
        await JSONResponse({"bytes": len(body)})(scope, receive, send)


def caller(token: str | None = None, base: str = "http://127.0.0.1:8700") -> httpx.AsyncClient:
    doors = Doors(echo, Tokens.of(token, None), Rates(0, 0))
    return httpx.AsyncClient(transport=httpx.ASGITransport(doors), base_url=base)


@pytest.mark.parametrize("host", ["127.0.0.1:8700", "localhost", "[::1]:80", "a.localhost"])
async def test_without_a_token_loopback_names_are_let_in(host: str) -> None:
    async with caller() as http:
        assert (await http.get("/v1/status", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "10.0.0.1", "localhost@evil.example", "", "127.0.0.1.evil.example", "[::"]
)
async def test_without_a_token_foreign_names_are_kept_out(host: str) -> None:
    async with caller() as http:
        answer = await http.get("/v1/status", headers={"Host": host})
    assert answer.status_code == 403
    assert answer.json()["type"].endswith("foreign-host")


@pytest.mark.parametrize(
    "headers", [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}]
)
async def test_changes_from_pages_elsewhere_are_refused(headers: dict[str, str]) -> None:
    async with caller() as http:
        assert (await http.post("/v1/config", headers=headers)).status_code == 403
        assert (await http.post("/v1/config", headers={"Origin": "http://127.0.0.1:8700"})).status_code == 200


async def test_with_a_token_every_call_under_v1_needs_it_and_the_rest_does_not() -> None:
    async with caller("s3cret", "http://elsewhere.example") as http:
        assert (await http.get("/healthz")).status_code == 200
        for wrong in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Basic s3cret"},
            {"Authorization": "Bearer é"},
        ):
            answer = await http.get("/v1/status", headers=[(k.encode(), v.encode("latin-1")) for k, v in wrong.items()])
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith("Bearer")
        assert (await http.get("/v1/status", headers={"Authorization": "Bearer s3cret"})).status_code == 200


async def test_a_body_over_the_limit_is_refused_whether_its_length_is_told_or_not() -> None:
    async def in_pieces() -> AsyncIterator[bytes]:
        for _ in range(LARGEST_BODY_BYTES // 1024 + 1):
            yield b"x" * 1024

    async with caller() as http:
        assert (await http.put("/v1/config", content=b"x" * LARGEST_BODY_BYTES)).status_code == 200
        assert (await http.put("/v1/config", content=b"x" * (LARGEST_BODY_BYTES + 1))).status_code == 413
        assert (await http.put("/v1/config", content=in_pieces())).status_code == 413


async def test_every_answer_carries_the_security_headers_refusals_included() -> None:
    async with caller() as http:
        for answer in (await http.get("/"), await http.get("/", headers={"Host": "evil.example"})):
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert answer.headers["x-content-type-options"] == "nosniff"


def heartbeat(state: str = "running", at_s: float = NOW_S, **more: Any) -> bytes:
    return json.dumps({"role": "learner", "state": state, "at_s": at_s, "revision": 3, "version": 2, **more}).encode()


def test_a_process_is_alive_while_it_beats_and_has_not_ended() -> None:
    beats = {
        b"a": heartbeat(),
        b"b": heartbeat(at_s=NOW_S - 11),
        b"c": heartbeat("stopped"),
        b"d": b"garbage",
        b"e": heartbeat(at_s=NOW_S + 60),
    }
    alive = {p.name: p.alive for p in processes_of(beats, NOW_S)}
    assert alive == {"a": True, "b": False, "c": False, "d": False, "e": True}


def test_what_a_role_adds_to_its_heartbeat_is_passed_on() -> None:
    (process,) = processes_of({b"learner": heartbeat(step=7, staleness=float("nan"))}, NOW_S)
    assert process.model_dump()["step"] == 7
    assert process.model_dump()["staleness"] is None


def process(name: str, state: str, *, alive: bool = True) -> ProcessView:
    return ProcessView(name=name, role="generator", state=state, alive=alive, age_s=0)


def test_the_census_tells_changes_only_and_nothing_at_first() -> None:
    census = Census()
    assert census.changes([process("g1", "running")]) == []
    assert census.changes([process("g1", "running")]) == []
    assert census.changes([process("g1", "running", alive=False), process("g2", "starting")]) == [
        {"name": "g1", "role": "generator", "state": "lost"},
        {"name": "g2", "role": "generator", "state": "starting"},
    ]
    back = census.changes([process("g1", "running"), process("g2", "stopped", alive=False)])
    assert [(change["name"], change["state"]) for change in back] == [("g1", "running"), ("g2", "stopped")]
