"""The weight server: the learner's weight directory by HTTP, for generators that share no disk with it.

    GET /  {"versions": [...]}     GET, HEAD /v000012/model.delta   (one range of bytes, or all)

Every call needs `Authorization: Bearer <token>` if the server was given a token, and without one it listens on loopback
only. Nothing but files of versions can be read.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import logging
import re
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import BinaryIO
from urllib.parse import unquote

from common.errors import SettingsError
from common.stores.access import TOKEN_VARIABLE, WEIGHTS_TOKEN_VARIABLE, exposure
from common.stores.directory import DirectoryStorage
from common.weights import is_file_name, version_at

_BLOCK = 1 << 20
_TIMEOUT_S = 30.0
_WAITING = 128
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")

log = logging.getLogger(__name__)


class _Server(ThreadingHTTPServer):
    """A thread for each call; a call that breaks off is one line in the log."""

    daemon_threads = True
    request_queue_size = _WAITING

    def handle_error(self, request: object, client_address: object) -> None:
        """The reader went away, or the disk did."""
        log.warning(
            "a fetch of weights broke off", extra={"reader": str(client_address), "error": repr(sys.exception())}
        )


class WeightServer:
    """Serves a directory store. SettingsError if host and port cannot be listened on, or may not without a token."""

    def __init__(self, storage: DirectoryStorage, host: str, port: int, token: str | None) -> None:
        if not token and (problem := exposure(host)):
            raise SettingsError(problem)
        try:
            handler = type("Handler", (_Handler,), {"storage": storage, "token": token})
            self._server = _Server((host, port), handler)
        except OSError as error:
            raise SettingsError(
                f"weights cannot be served on {host} port {port} ({error.strerror}): correct weights.serve_host and "
                "weights.serve_port (0 takes any free port)"
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="weight-server", daemon=True)

    @property
    def url(self) -> str:
        """Where others find it: the port that was really given, and this machine's name for every interface."""
        host, port = self._server.server_address[:2]
        is_wide = ipaddress.ip_address(str(host)).is_unspecified
        return f"http://{socket.gethostname() if is_wide else host!s}:{port}"

    def start(self) -> None:
        """Serve from a thread of its own."""
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    """Answers one call."""

    timeout = _TIMEOUT_S
    storage: DirectoryStorage
    token: str | None

    def do_GET(self) -> None:
        self._serve(with_body=True)

    def do_HEAD(self) -> None:
        self._serve(with_body=False)

    def _serve(self, *, with_body: bool) -> None:
        if self.token and not _is_allowed(self.headers.get("Authorization"), self.token):
            needed = f"a bearer token is needed: set {WEIGHTS_TOKEN_VARIABLE} or {TOKEN_VARIABLE}\n"
            self._answer(401, needed.encode(), {"WWW-Authenticate": "Bearer"})
        elif self.path == "/":
            self._answer(200, json.dumps({"versions": self.storage.versions()}).encode())
        else:
            self._file(with_body=with_body)

    def _file(self, *, with_body: bool) -> None:
        location, _, name = unquote(self.path).removeprefix("/").partition("/")
        if version_at(location) is None or not is_file_name(name):
            self._answer(404, b"only / and files of versions (/v000012/model.delta) are here\n")
            return
        try:
            file = self.storage.path(location, name).open("rb")
        except OSError:
            self._answer(404, b"this version, or this file of it, is not here\n")
            return
        with file:
            self._send(file, with_body=with_body)

    def _send(self, file: BinaryIO, *, with_body: bool) -> None:
        """Send a file, or the range of it that was asked for."""
        size = file.seek(0, 2)
        asked = _range(self.headers.get("Range", ""), size)
        first, end = asked or (0, size)
        if not first < end and asked:
            self._answer(416, b"", {"Content-Range": f"bytes */{size}"})
            return
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{size}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(end - first))
        self.end_headers()
        file.seek(first)
        while with_body and first < end and (block := file.read(min(_BLOCK, end - first))):
            self.wfile.write(block)
            first += len(block)

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name for it
        """Fetches are told by the generators that make them."""


def _range(header: str, size: int) -> tuple[int, int] | None:
    """First byte and end of the range that is asked for, as far as it is there; None if it is none of ours (RFC 9110:
    then all of the file is the answer).
    """
    found = _RANGE.fullmatch(header)
    if found is None or header == "bytes=-":
        return None
    first, last = found.groups()
    if not first:
        return max(0, size - int(last)), size
    if last and int(last) < int(first):
        return None
    return int(first), min(size, int(last) + 1) if last else size


def _is_allowed(header: str | None, token: str) -> bool:
    """Whether a header presents the token. Takes as long whatever it presents, also of another length."""
    presented, wanted = (hashlib.sha256(text.encode()).digest() for text in (header or "", f"Bearer {token}"))
    return hmac.compare_digest(presented, wanted)
