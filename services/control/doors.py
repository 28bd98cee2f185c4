"""Who is let in, and what every answer carries: tokens and roles, hosts and origins, limits, security headers."""

from __future__ import annotations

import ipaddress
import math
import re
from functools import partial

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.control.problems import Problem
from services.control.rates import Call, Rates
from services.control.tokens import OPERATOR, Caller, Holder, Role, Tokens

CALLER = "tributary.caller"
LARGEST_BODY_BYTES = 256 * 1024
_HOST = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([\w.-]+))(?::[0-9]+)?")
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# Whoever restarts and measures us must not be kept out because somebody else calls too often.
_UNCOUNTED = frozenset({"/healthz", "/readyz", "/metrics"})
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
    """Lets a request through to `app`, which finds its Caller in the scope, or answers it with a problem.

    tokens: one of them is asked of every call under /v1; None lets everyone in who reaches loopback by a loopback name.
    """

    def __init__(self, app: ASGIApp, tokens: Tokens | None, rates: Rates) -> None:
        self._app = app
        self._tokens = tokens
        self._rates = rates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _with_headers(scope, send)
        try:
            self._admit(scope)
        except Problem as problem:
            await problem.response()(scope, receive, answer)
        else:
            # Every answer is sent whole: a Range, well formed or not, may be ignored (RFC 9110, 14.2).
            scope["headers"] = [(name, value) for name, value in scope["headers"] if name != b"range"]
            await self._app(scope, _limited(receive), answer)

    def _admit(self, scope: Scope) -> None:
        """Note the caller of a request in its scope; a Problem if it is not let in."""
        headers = Headers(scope=scope)
        reads = scope["method"] in _SAFE_METHODS
        self._refuse_strangers(headers, reads)
        origin = scope["client"][0] if scope.get("client") else "unknown"
        holder = self._holder(headers)
        # A wrong token is counted by its address, so that guessing is limited too.
        client = f"token {holder.name}" if holder else f"address {origin}"
        self._count(scope["path"], client, Call.READ if reads else Call.WRITE)
        if self._tokens is None:
            scope[CALLER] = Caller(OPERATOR, Role.OPERATE, origin)
        elif holder is not None:
            if holder.role is Role.READ and not reads:
                detail = f'the token of "{holder.name}" may only read: use one with the role operate'
                raise Problem(403, "read-only", detail)
            scope[CALLER] = Caller(holder.name, holder.role, origin, True, partial(self._tokens.knows, holder))
        elif scope["path"].startswith("/v1/"):
            detail = "send a token of this run: Authorization: Bearer $TRIBUTARY_TOKEN"
            raise Problem(401, "token-needed", detail, headers={"WWW-Authenticate": 'Bearer realm="tributary"'})
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length[:12]) > LARGEST_BODY_BYTES:
            raise _too_large()

    def _refuse_strangers(self, headers: Headers, reads: bool) -> None:
        if self._tokens is None and not _is_loopback(headers.get("host", "")):
            # A page elsewhere may have pointed its own name at 127.0.0.1; only loopback names are ours.
            detail = (
                f"the host {headers.get('host', '')!r} is not this machine: use 127.0.0.1 or localhost, or set a token"
            )
            raise Problem(403, "foreign-host", detail)
        if not reads and _is_foreign(headers):
            raise Problem(
                403, "foreign-origin", f"changes from pages of {headers.get('origin', 'elsewhere')} are refused"
            )

    def _holder(self, headers: Headers) -> Holder | None:
        scheme, _, credentials = headers.get("authorization", "").partition(" ")
        if self._tokens is None or scheme.lower() != "bearer":
            return None
        return self._tokens.holder(credentials.strip().encode("latin-1", "replace"))

    def _count(self, path: str, client: str, call: Call) -> None:
        wait_s = 0.0 if path in _UNCOUNTED else self._rates.wait_s(client, call)
        if wait_s > 0:
            setting = "reads_per_s" if call is Call.READ else "writes_per_s"
            detail = (
                f"too many calls in a short time: wait {wait_s:.2g} s, or raise [control] {setting} in the run file"
            )
            raise Problem(429, "too-many-calls", detail, headers={"Retry-After": str(math.ceil(wait_s))})


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
    detail = f"the body is larger than {LARGEST_BODY_BYTES} bytes: send less at once"
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
