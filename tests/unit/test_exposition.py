"""What a process shows over HTTP: where it listens, and what its verdicts say. Real sockets on loopback, no Redis."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from prometheus_client import CollectorRegistry

from common import process
from common.errors import SettingsError
from common.exposition import Exposition


@contextmanager
def exposed(host: str = "127.0.0.1", **verdicts: str) -> Iterator[Exposition]:
    """An exposition whose verdicts are these; it is closed afterwards."""
    asked = {f"/{name}": (lambda reason=reason: reason) for name, reason in verdicts.items()}
    exposition = Exposition(CollectorRegistry(), asked, host, 0)
    exposition.start()
    try:
        yield exposition
    finally:
        exposition.close()


def ask(exposition: Exposition, path: str) -> tuple[int | None, bytes]:
    """Status and body of one request."""
    port = exposition.address.rpartition(":")[2]
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as refused:
        with refused as answer:
            return answer.status, answer.read()


def defaults(role: str = "worker") -> tuple[str, int]:
    """Host and port that a process takes if no option names any."""
    arguments = process.parser(role).parse_args(["run.toml"])
    return arguments.metrics_host, arguments.metrics_port


def test_a_verdict_is_200_when_all_is_well_and_503_with_the_reason_when_not() -> None:
    with exposed(healthz="", readyz="it is starting") as exposition:
        assert ask(exposition, "/healthz") == (200, b'{"status": "ok", "reason": ""}')
        status, body = ask(exposition, "/readyz")
        assert (status, json.loads(body)["reason"]) == (503, "it is starting")


def test_another_path_is_answered_with_those_that_there_are() -> None:
    with exposed(healthz="", readyz="") as exposition:
        assert ask(exposition, "/") == (404, b"only /metrics, /healthz, /readyz are here\n")


def test_an_exposition_on_every_interface_is_known_by_the_name_of_its_machine() -> None:
    with exposed("0.0.0.0", healthz="") as exposition:
        assert exposition.address.partition(":")[0] == socket.gethostname()
        assert ask(exposition, "/metrics")[0] == 200


def test_a_port_that_is_taken_is_a_sentence_with_the_variable_to_correct() -> None:
    with exposed() as exposition:
        port = int(exposition.address.rpartition(":")[2])
        with pytest.raises(SettingsError, match=rf"port {port} \(.+\): correct .*TRIBUTARY_METRICS_PORT"):
            Exposition(CollectorRegistry(), {}, "127.0.0.1", port)


def test_without_variables_a_process_listens_on_loopback_on_any_free_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(process.HOST_VARIABLE, raising=False)
    monkeypatch.delenv(process.PORT_VARIABLE, raising=False)
    assert defaults() == ("127.0.0.1", 0)


def test_the_environment_says_where_a_process_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(process.HOST_VARIABLE, "0.0.0.0")
    monkeypatch.setenv(process.PORT_VARIABLE, "9464")
    assert defaults() == ("0.0.0.0", 9464)


@pytest.mark.parametrize("port", ["65536", "-1", "http", "٣", "9464.0"])
def test_what_is_no_port_is_refused(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], port: str
) -> None:
    monkeypatch.setenv(process.PORT_VARIABLE, port)
    with pytest.raises(SystemExit, match="2"):
        defaults()
    assert "is no port: give a number from 0 to 65535" in capfd.readouterr().err
