"""The client of the control plane: readable failures, and an event feed that outlives the server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from common.errors import SettingsError
from common.events import EventKind
from services.cli import client
from services.cli.client import ControlClient, ControlUnreachable, Refused, follow

Answer = Callable[[httpx.Request], httpx.Response]


def asking(answer: Answer) -> ControlClient:
    return ControlClient("http://control", httpx.MockTransport(answer))


def test_a_change_is_sent_as_a_merge_patch_with_reason_author_and_condition() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"revision": 2})

    assert asking(answer).patch({"a": 1}, reason="why not", author="me", expected=1) == {"revision": 2}
    (request,) = seen
    assert (request.method, request.url.path, request.url.params["reason"]) == ("PATCH", "/v1/config", "why not")
    assert request.headers["content-type"] == "application/merge-patch+json"
    assert request.headers["x-tributary-author"] == "me"
    assert request.headers["if-match"] == '"1"'
    assert json.loads(request.content) == {"a": 1}


def test_a_refusal_is_the_sentence_of_the_control_plane() -> None:
    problem = {"detail": "algorithm.gamma: too small", "status": 422}
    with pytest.raises(Refused, match=r"algorithm\.gamma: too small") as caught:
        asking(lambda request: httpx.Response(422, json=problem)).config()
    assert caught.value.is_our_fault
    with pytest.raises(Refused) as caught:
        asking(lambda request: httpx.Response(503, json={"detail": "redis is away"})).config()
    assert not caught.value.is_our_fault


@pytest.mark.parametrize(
    ("status", "is_ours"), [(401, True), (403, True), (404, True), (422, True), (429, False), (503, False)]
)
def test_asking_differently_helps_against_some_refusals_and_asking_later_against_others(
    status: int, is_ours: bool
) -> None:
    with pytest.raises(Refused) as caught:
        asking(lambda request: httpx.Response(status, json={"detail": "no"})).order_learner("pause")
    assert caught.value.is_our_fault is is_ours


def test_a_call_that_waits_for_something_is_given_that_much_longer() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(202, json={"state": "waiting"})

    assert asking(answer).dry_run([{"label": "", "patch": {}}], 30.0) == {"state": "waiting"}
    assert asking(answer).order_learner("checkpoint", 120.0) == {"state": "waiting"}
    assert [request.url.params["wait_s"] for request in seen] == ["30.0", "120.0"]
    assert [request.extensions["timeout"]["read"] for request in seen] == [40.0, 130.0]
    assert all(request.headers["x-tributary-author"] for request in seen)


def test_names_from_the_command_line_stay_one_part_of_a_path() -> None:
    seen: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.raw_path)
        return httpx.Response(200, json={})

    asking(answer).order_generator("../learner", "drain")
    asking(answer).group("1-0?x=1")
    assert seen == [b"/v1/generators/..%2Flearner/drain", b"/v1/groups/1-0%3Fx%3D1"]


def test_whatever_else_answers_there_is_not_mistaken_for_a_control_plane() -> None:
    for response in (httpx.Response(200, text="<html>"), httpx.Response(200, json=[1]), httpx.Response(404, text="")):
        with pytest.raises(ControlUnreachable, match="no Tributary control plane"):
            asking(lambda request, response=response: response).status()


def test_a_control_plane_that_does_not_answer_is_a_sentence() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused")

    def dawdle(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("")

    with pytest.raises(ControlUnreachable, match=r"cannot be reached \(connection refused\): is the run up"):
        asking(refuse).status()
    with pytest.raises(ControlUnreachable, match="did not answer within 10 s"):
        asking(dawdle).status()
    with pytest.raises(ControlUnreachable):
        ControlClient("nonsense://").status()


def test_the_token_of_the_environment_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIBUTARY_TOKEN", "hush")
    client = asking(lambda request: httpx.Response(200, json={"token": request.headers.get("authorization")}))
    assert client.status() == {"token": "Bearer hush"}


def message(number: int, kind: str = "notice", data: Any = None) -> str:
    document = {"id": f"{number}-0", "kind": kind, "at_s": float(number), "data": data or {"text": f"{number}"}}
    return f"id: {number}-0\nevent: {kind}\ndata: {json.dumps(document)}\n\n"


async def collect(answers: list[httpx.Response | Exception], count: int) -> tuple[list[str], list[str]]:
    """The first `count` events of a feed, and what each connection asked to begin after."""
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.params["after"])
        given = answers.pop(0)
        if isinstance(given, Exception):
            raise given
        return given

    heard: list[str] = []
    async for event in follow(lambda: "http://control", httpx.MockTransport(answer)):
        assert event.kind is EventKind.NOTICE
        heard.append(event.event_id)
        if len(heard) == count:
            break
    return heard, asked


async def test_the_feed_goes_on_after_its_last_event_when_the_server_returns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client, "_RECONNECT_S", 0.0)
    answers: list[httpx.Response | Exception] = [
        httpx.Response(200, text=": hello\n\n" + message(1) + message(2)),
        httpx.ConnectError("restarting"),
        httpx.Response(503, json={"detail": "not yet"}),
        httpx.Response(200, text=message(3)),
    ]
    heard, asked = await collect(answers, 3)
    assert heard == ["1-0", "2-0", "3-0"]
    assert asked == ["0", "2-0", "2-0", "2-0"]


async def test_an_event_of_a_kind_that_is_not_known_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_RECONNECT_S", 0.0)
    heard, asked = await collect(
        [httpx.Response(200, text=message(1, "novelty") + message(2)), httpx.Response(200, text=message(2))], 1
    )
    assert heard == ["2-0"]
    assert asked == ["0", "1-0"]


async def test_the_feed_waits_for_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_RECONNECT_S", 0.0)
    addresses = iter(["", "", "http://control"])
    transport = httpx.MockTransport(lambda request: httpx.Response(200, text=message(1)))
    async for event in follow(lambda: next(addresses), transport):
        assert event.event_id == "1-0"
        break
    await asyncio.sleep(0)


@pytest.mark.parametrize("url", ["http://[::1", "http://\udcff"])
def test_an_address_that_is_none_is_a_sentence(url: str) -> None:
    with pytest.raises(ControlUnreachable, match="is not an address"):
        ControlClient(url)


def test_a_token_may_be_of_any_letters_and_is_never_in_a_complaint(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.extend(value for name, value in request.headers.raw if name.lower() == b"authorization")
        return httpx.Response(200, json={})

    monkeypatch.setenv("TRIBUTARY_TOKEN", "schlüssel-0123456789")
    asking(answer).status()
    assert seen == ["Bearer schlüssel-0123456789".encode()]
    for token in ("secret\n", "secret\udcff"):
        monkeypatch.setenv("TRIBUTARY_TOKEN", token)
        with pytest.raises(SettingsError) as caught:
            asking(answer)
        assert "secret" not in str(caught.value)
