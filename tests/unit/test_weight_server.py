"""The weight server gives files of versions by ranges to whoever has the token, and nothing else to anybody."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import traceback
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from test_weight_stores import CONTENT, put

from common.durable import NotWritten
from common.errors import SettingsError, WeightsError
from common.stores.directory import DirectoryStorage
from common.stores.fetching import fetch
from common.stores.http import HttpStorage
from common.stores.storage import manifest_at
from common.weights import location_of
from learner.publication.weight_server import WeightServer


@pytest.fixture
def directory(tmp_path: Path) -> DirectoryStorage:
    return DirectoryStorage(tmp_path / "weights")


@pytest.fixture
def server(directory: DirectoryStorage) -> Iterator[WeightServer]:
    server = WeightServer(directory, "127.0.0.1", 0, "secret")
    server.start()
    yield server
    server.close()


def test_a_publication_is_fetched_over_http(directory: DirectoryStorage, server: WeightServer, tmp_path: Path) -> None:
    manifest = put(directory, 7)
    put(directory, 8)
    storage = HttpStorage(server.url + "/", "secret")
    assert storage.versions() == [7, 8]
    assert manifest_at(storage, 7) == manifest
    assert storage.size(location_of(7), "model.safetensors") == len(CONTENT)
    assert storage.read(location_of(7), "model.safetensors", 250, 10) == CONTENT[250:260]
    paths = fetch(storage, manifest, tmp_path / "here")
    assert {name: path.read_bytes() for name, path in paths.items()} == {"model.safetensors": CONTENT, "empty": b""}
    with pytest.raises(WeightsError, match="1 bytes came, 2 were asked for"):
        storage.read(location_of(7), "model.safetensors", len(CONTENT) - 1, 2)
    with pytest.raises(WeightsError, match="cannot read"):
        storage.size(location_of(9), "model.safetensors")


@pytest.mark.parametrize("token", [None, "", "wrong", "secret2"])
def test_without_the_token_nothing_is_told(
    directory: DirectoryStorage, server: WeightServer, token: str | None
) -> None:
    put(directory, 7)
    storage = HttpStorage(server.url, token)
    for call in (storage.versions, lambda: storage.size(location_of(7), "empty")):
        with pytest.raises(WeightsError, match="401 Unauthorized: set TRIBUTARY_WEIGHTS_TOKEN "):
            call()


def answer(server: WeightServer, method: str, path: str, **headers: str) -> tuple[int, bytes]:
    host, port = server.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=5)
    connection.request(method, path, headers={"Authorization": "Bearer secret", **headers})
    answered = connection.getresponse()
    body = answered.read()
    connection.close()
    return answered.status, body


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/v000007/../../secret.txt",
        "/v000007/..%2f..%2fsecret.txt",
        "/v000007/.hidden",
        "/v000007/",
        "/v000007",
        "/.v000007.unfinished/model.safetensors",
        "//etc/passwd",
        "/v000007/nothing",
    ],
)
def test_only_files_of_versions_can_be_read(directory: DirectoryStorage, server: WeightServer, path: str) -> None:
    put(directory, 7)
    (directory.root / "v000007" / ".hidden").write_text("secret")
    (directory.root.parent / "secret.txt").write_text("secret")
    status, body = answer(server, "GET", path)
    assert status == 404
    assert b"secret" not in body


@pytest.mark.parametrize(
    ("asked", "content"),
    [
        ("bytes=0-0", CONTENT[:1]),
        ("bytes=3-10", CONTENT[3:11]),
        ("bytes=10000-99999", CONTENT[10000:]),
        ("bytes=10000-", CONTENT[10000:]),
        ("bytes=-5", CONTENT[-5:]),
        ("bytes=-99999", CONTENT),
    ],
)
def test_a_range_is_answered_as_far_as_it_is_there(
    directory: DirectoryStorage, server: WeightServer, asked: str, content: bytes
) -> None:
    put(directory, 7)
    assert answer(server, "GET", "/v000007/model.safetensors", Range=asked) == (206, content)


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        *(("bytes=10240-", 416), ("bytes=10240-10250", 416), ("bytes=-0", 416)),
        *(("bytes=5-4", 200), ("bytes=-", 200), ("bytes=0-1,3-4", 200), ("lines=1-2", 200), ("", 200)),
    ],
)
def test_a_range_that_is_not_there_is_refused_and_what_is_none_is_passed_over(
    directory: DirectoryStorage, server: WeightServer, asked: str, status: int
) -> None:
    put(directory, 7)
    content = CONTENT if status == 200 else b""
    assert answer(server, "GET", "/v000007/model.safetensors", Range=asked) == (status, content)
    assert answer(server, "GET", "/v000007/empty", Range="bytes=0-")[0] == 416
    assert answer(server, "GET", "/v000007/model.safetensors") == (200, CONTENT)
    assert answer(server, "HEAD", "/v000007/model.safetensors") == (200, b"")


def test_a_port_that_is_taken_is_a_setting_to_correct(directory: DirectoryStorage) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(SettingsError, match=r"correct weights\.serve_host"):
            WeightServer(directory, "127.0.0.1", taken.getsockname()[1], None)


@pytest.mark.parametrize("token", [None, ""])
def test_without_a_token_it_listens_on_loopback_only(directory: DirectoryStorage, token: str | None) -> None:
    with pytest.raises(SettingsError, match=r'0\.0\.0\.0, which other .* set TRIBUTARY_WEIGHTS_TOKEN .*"127\.0\.0\.1"'):
        WeightServer(directory, "0.0.0.0", 0, token)
    with pytest.raises(SettingsError, match=r"serve_host 'no\.such\.host\.invalid' is not an address"):
        WeightServer(directory, "no.such.host.invalid", 0, token)
    put(directory, 7)
    for host, given in (("127.0.0.1", token), ("localhost", token), ("0.0.0.0", "secret")):
        server = WeightServer(directory, host, 0, given)
        server.start()
        try:
            port = server.url.rpartition(":")[2]
            assert HttpStorage(f"http://127.0.0.1:{port}", given).versions() == [7]
        finally:
            server.close()


@pytest.mark.parametrize("user", ["ada:hush@", "ada:hu/hush@", "hush@"])
def test_a_password_in_the_address_is_not_told(user: str) -> None:
    storage = HttpStorage(f"http://{user}127.0.0.1", timeout_s=0.05)
    calls: list[Callable[[], object]] = [
        storage.versions,
        lambda: storage.read(location_of(1), "model.delta", 0, 1),
        lambda: storage.publishing(location_of(1)),
    ]
    for call in calls:
        with pytest.raises((WeightsError, NotWritten)) as told:
            call()
        assert "hush" not in "".join(traceback.format_exception(told.value))
        assert "http://:***@127.0.0.1/" in str(told.value)


def test_a_query_in_the_address_is_not_told(directory: DirectoryStorage, server: WeightServer) -> None:
    with pytest.raises(WeightsError) as told:
        HttpStorage(f"{server.url}/x?signature=hush", "secret").versions()
    assert str(told.value) == f"cannot read {server.url}/x?***/: HTTPError"


def test_a_server_that_hangs_is_given_up() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        storage = HttpStorage(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.05)
        with pytest.raises(WeightsError, match="cannot read"):
            storage.versions()


def test_the_token_goes_to_no_other_address(directory: DirectoryStorage, server: WeightServer) -> None:
    put(directory, 7)
    asked: list[str | None] = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers.get("Authorization"))
            self.send_response(302)
            self.send_header("Location", f"{server.url}{self.path}")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Elsewhere) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        storage = HttpStorage(f"http://127.0.0.1:{other.server_port}", "secret")
        with pytest.raises(WeightsError, match="302"):
            storage.versions()
        other.shutdown()
    assert asked == ["Bearer secret"]


def test_a_reader_that_goes_away_is_a_line_in_the_log_and_nothing_else(
    directory: DirectoryStorage,
    server: WeightServer,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    put(directory, 7, bytes(32 << 20))
    host, port = server.url.removeprefix("http://").split(":")
    told = threading.Event()
    caplog.handler.addFilter(lambda record: told.set() or True)
    with socket.create_connection((host, int(port))) as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        reader.sendall(b"GET /v000007/model.safetensors HTTP/1.0\r\nAuthorization: Bearer secret\r\n\r\n")
        reader.recv(100)
    assert told.wait(20)
    assert "secret" not in caplog.text
    assert "a fetch of weights broke off" in caplog.text
    assert capfd.readouterr().err == ""
