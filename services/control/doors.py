"""Who is let in, and what every answer carries: token, hosts and origins, body limit, security headers."""

from __future__ import annotations

import ipaddress
import re
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.control.problems import Problem

LARGEST_BODY_BYTES = 64 * 1024
_HOST = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([\w.-]+))(?::[0-9]+)?")
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# Styles may be inline because plotly.js writes its own; scripts, connections and images only come from here.
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Accept-Ranges": "none",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}


class Doors:
    """Lets a request through to `app`, or answers it with a problem.

    token: asked of every call under /v1; None lets everyone in who reaches loopback by a loopback name.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._token = None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _with_headers(scope, send)
        problem = self._refusal(scope)
        if problem is not None:
            await problem.response()(scope, receive, answer)
        else:
            # Every answer is sent whole: a Range, well formed or not, may be ignored (RFC 9110, 14.2).
            scope["headers"] = [(name, value) for name, value in scope["headers"] if name != b"range"]
            await self._app(scope, _limited(receive), answer)

    def _refusal(self, scope: Scope) -> Problem | None:
        headers = Headers(scope=scope)
        if self._token is None and not _is_loopback(headers.get("host", "")):
            # A page elsewhere may have pointed its own name at 127.0.0.1; only loopback names are ours.
            detail = (
                f"the host {headers.get('host', '')!r} is not this machine: use 127.0.0.1 or localhost, or set a token"
            )
            return Problem(403, "foreign-host", detail)
        if scope["method"] not in _SAFE_METHODS and _is_foreign(headers):
            return Problem(
                403, "foreign-origin", f"changes from pages of {headers.get('origin', 'elsewhere')} are refused"
            )
        if self._token is not None and scope["path"].startswith("/v1/") and not self._knows_token(headers):
            detail = "send the token of this run: Authorization: Bearer $TRIBUTARY_TOKEN"
            return Problem(401, "token-needed", detail, headers={"WWW-Authenticate": 'Bearer realm="tributary"'})
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length[:12]) > LARGEST_BODY_BYTES:
            return _too_large()
        return None

    def _knows_token(self, headers: Headers) -> bool:
        scheme, _, credentials = headers.get("authorization", "").partition(" ")
        # Compared even when the scheme is wrong, so that the time taken tells nothing.
        matches = secrets.compare_digest(credentials.strip().encode("latin-1", "replace"), self._token or b"")
        return matches and scheme.lower() == "bearer"


def _is_loopback(host: str) -> bool:
    match = _HOST.fullmatch(host)
    if match is None:
        return False
    name = (match[1] or match[2]).lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _is_foreign(headers: Headers) -> bool:
    origin = headers.get("origin")
    if origin is not None:
        return origin.partition("://")[2] != headers.get("host")
    return headers.get("sec-fetch-site") in ("cross-site", "same-site")


def _limited(receive: Receive) -> Receive:
    received = 0

    async def limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > LARGEST_BODY_BYTES:
            raise _too_large()
        return message

    return limited


def _too_large() -> Problem:
    detail = f"the body is larger than {LARGEST_BODY_BYTES} bytes: no live configuration is"
    return Problem(413, "body-too-large", detail, headers={"Connection": "close"})


def _with_headers(scope: Scope, send: Send) -> Send:
    async def answer(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers[name] = value
            if scope["path"].startswith("/v1/"):
                headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return answer
