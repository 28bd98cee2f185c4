"""The HTTP store: versions that the learner serves, read by ranges, with a bearer token."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from common.connection import quotable, without_password
from common.durable import NotWritten
from common.errors import WeightsError
from common.stores.access import TOKEN_VARIABLE, WEIGHTS_TOKEN_VARIABLE
from common.stores.storage import TIMEOUT_S

_LONGEST_LIST = 1 << 20


class _Steadfast(urllib.request.HTTPRedirectHandler):
    """Follows nobody elsewhere: the token is for one address."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """No other request: the answer counts as the error that it is."""


class HttpStorage:
    """Versions under an http:// or https:// address: GET {url}/ lists them, GET and HEAD {url}/{location}/{name}."""

    def __init__(self, url: str, token: str | None = None, timeout_s: float = TIMEOUT_S) -> None:
        self._url = url.rstrip("/")
        self._shown = without_password(self._url)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._timeout_s = timeout_s
        self._opener = urllib.request.build_opener(_Steadfast)

    def publishing(self, location: str) -> AbstractContextManager[Path]:
        """Nobody writes through HTTP."""
        raise NotWritten(f"{self._shown}/{location} can only be read: the learner writes to its directory")

    def size(self, location: str, name: str) -> int:
        """Bytes of a file."""
        return self._call("HEAD", f"{quote(location)}/{quote(name)}", {}, None)[0]

    def read(self, location: str, name: str, start: int, length: int) -> bytes:
        """Exactly `length` bytes of a file from `start`."""
        if length == 0:
            return b""
        wanted = {"Range": f"bytes={start}-{start + length - 1}"}
        return self._call("GET", f"{quote(location)}/{quote(name)}", wanted, length)[1]

    def versions(self) -> list[int]:
        """The versions that the learner lists, ascending."""
        body = self._call("GET", "", {}, None)[1]
        try:
            return sorted(int(version) for version in json.loads(body)["versions"])
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"{self._shown}/ answers with something else than a list of versions") from error

    def delete(self, version: int) -> None:
        """Nothing: versions are the learner's to remove."""

    def sweep(self) -> None:
        """Nothing: see `delete`."""

    def _call(self, method: str, path: str, headers: dict[str, str], length: int | None) -> tuple[int, bytes]:
        """(Content-Length, body) of an answer; a body of `length` bytes if one is asked for by range."""
        shown = f"{self._shown}/{path}"
        request = urllib.request.Request(f"{self._url}/{path}", headers={**self._headers, **headers}, method=method)
        try:
            with self._opener.open(request, timeout=self._timeout_s) as answer:
                if length is not None and answer.status != 206:
                    raise WeightsError(f"{shown} answers a ranged request with status {answer.status}, not 206")
                body = bytes(answer.read(_LONGEST_LIST if length is None else length))
                size = int(answer.headers.get("Content-Length") or 0)
        except (OSError, http.client.HTTPException, ValueError) as error:  # URLError and HTTPError are OSErrors
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # the answer that it holds, and with it the socket
            raise WeightsError(f"cannot read {shown}: {self._reason(error)}") from quotable(error, self._url)
        if length is not None and len(body) != length:
            raise WeightsError(f"{shown}: {len(body)} bytes came, {length} were asked for")
        return size, body

    def _reason(self, error: Exception) -> str:
        if isinstance(error, urllib.error.HTTPError) and error.code in (401, 403):
            token = f"{WEIGHTS_TOKEN_VARIABLE} (without it {TOKEN_VARIABLE} counts)"
            return f"{error.code} {error.reason}: set {token} to what the learner was started with"
        return str(quotable(error, self._url) or "") or type(error).__name__
