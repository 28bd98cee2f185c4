"""The client of the control plane: its HTTP API as a handful of calls, each with a timeout and a readable failure."""

from __future__ import annotations

import asyncio
import getpass
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import httpx

from common.errors import SettingsError, TributaryError
from common.events import Event, EventKind

Json = dict[str, Any]
TOKEN_VARIABLE = "TRIBUTARY_TOKEN"
TIMEOUT_S = 10.0
_RECONNECT_S = 1.0
_SILENCE_S = 20.0
"""The event feed says something every 5 s; when it has said nothing for this long, the line is dead."""
_REFUSALS = (400, 401, 403, 404, 412, 413, 415, 422)


class ControlUnreachable(TributaryError):
    """The control plane does not answer, or not as one."""


class Refused(TributaryError):
    """The control plane says no to what was asked, and why."""

    def __init__(self, status: int, sentence: str, problem: Json) -> None:
        self.status = status
        self.problem = problem
        super().__init__(sentence)

    @property
    def is_our_fault(self) -> bool:
        """Whether asking differently would help."""
        return self.status in _REFUSALS


class ControlClient:
    """Calls of one control plane. limit_s: how long each may take. `transport` is for tests."""

    def __init__(self, url: str, transport: httpx.BaseTransport | None = None, *, limit_s: float = TIMEOUT_S) -> None:
        self.url = url
        self._limit_s = limit_s
        try:
            self._http = httpx.Client(base_url=url, headers=_headers(), transport=transport)
        except httpx.InvalidURL as error:
            raise _no_address(url, error) from error

    def status(self) -> Json:
        """Asked and in force, processes, rates, backlog."""
        return self._call("GET", "/v1/status")

    def config(self) -> Json:
        """The current revision, its configuration under "config"."""
        return self._call("GET", "/v1/config")

    def revisions(self, limit: int = 1000) -> list[Json]:
        """The newest revisions, newest first."""
        return self._call("GET", "/v1/config/revisions", params={"limit": limit})["revisions"]

    def revision(self, number: int) -> Json:
        """One revision, where it is in force, and the figures of the steps around its coming into force."""
        return self._call("GET", f"/v1/config/revisions/{number}")

    def patch(self, patch: Json, *, reason: str = "", author: str | None = None, expected: int | None = None) -> Json:
        """Change the live configuration by a JSON merge patch. expected: only if this revision is current."""
        headers = {"Content-Type": "application/merge-patch+json", "X-Tributary-Author": author or whoami()}
        if expected is not None:
            headers["If-Match"] = f'"{expected}"'
        params = {"reason": reason} if reason else {}
        return self._call("PATCH", "/v1/config", params=params, headers=headers, content=json.dumps(patch).encode())

    def roll_back(self, revision: int, *, reason: str = "") -> Json:
        """Make the configuration of an earlier revision current again."""
        params = {"reason": reason} if reason else {}
        return self._call("POST", "/v1/config/rollback", params=params, headers=_by(), json={"revision": revision})

    def dry_run(self, candidates: list[Json], wait_s: float) -> Json:
        """What each candidate ({"label", "patch"}) would do with the learner's next step; it may be waiting still."""
        body = {"candidates": candidates}
        return self._call("POST", "/v1/config/dry-run", wait_s=wait_s, headers=_by(), json=body)

    def trial(self, trial_id: str) -> Json:
        """A dry run that was asked for earlier."""
        return self._call("GET", f"/v1/config/dry-run/{_quoted(trial_id)}")

    def order_learner(self, order: str, wait_s: float | None = None) -> Json:
        """Have the learner pause, resume, or write a checkpoint, for which the call waits up to wait_s."""
        return self._call("POST", f"/v1/learner/{order}", wait_s=wait_s, headers=_by())

    def generators(self) -> Json:
        """Every generator, under "generators"."""
        return self._call("GET", "/v1/generators")

    def order_generator(self, name: str, order: str) -> Json:
        """Drain a generator, or admit it again."""
        return self._call("POST", f"/v1/generators/{_quoted(name)}/{order}", headers=_by())

    def groups(self, **query: str | int) -> Json:
        """Groups that the learner trained on, newest first; limit, before, prompt_id."""
        return self._call("GET", "/v1/groups", params=query)

    def group(self, entry_id: str) -> Json:
        """One of them, token by token."""
        return self._call("GET", f"/v1/groups/{_quoted(entry_id)}")

    def prompts(self, **query: str | int | float) -> Json:
        """Prompts and how often they were solved; solve_rate, solve_rate_max, min_attempts, limit, after."""
        return self._call("GET", "/v1/prompts", params=query)

    def demonstrate(self, prompt_id: str, text: str) -> Json:
        """Add a demonstration to a prompt."""
        body = {"prompt_id": prompt_id, "text": text}
        return self._call("POST", "/v1/demonstrations", headers=_by(), json=body)

    def demonstrations(self, limit: int) -> Json:
        """The demonstrations that were added, newest first."""
        return self._call("GET", "/v1/demonstrations", params={"limit": limit})

    def demonstration(self, addition_id: str) -> Json:
        """One of them, and what became of it."""
        return self._call("GET", f"/v1/demonstrations/{_quoted(addition_id)}")

    def quarantine(self, limit: int) -> Json:
        """The messages that could not be used, newest first."""
        return self._call("GET", "/v1/quarantine", params={"limit": limit})

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(self, *raised: object) -> None:
        self._http.close()

    def _call(self, method: str, path: str, *, wait_s: float | None = None, **arguments: Any) -> Json:
        """The answer to a call. wait_s: how long the control plane may wait for what is asked before it answers."""
        limit_s = self._limit_s + (wait_s or 0.0)
        if wait_s is not None:
            arguments["params"] = {**arguments.get("params", {}), "wait_s": wait_s}
        try:
            response = self._http.request(method, path, timeout=limit_s, **arguments)
        except httpx.TimeoutException as error:
            raise ControlUnreachable(
                f"the control plane at {self.url} did not answer within {limit_s:.0f} s: its log may say why"
            ) from error
        except httpx.HTTPError as error:
            raise ControlUnreachable(
                f"the control plane at {self.url} cannot be reached ({error}): is the run up, and the address right?"
            ) from error
        except httpx.InvalidURL as error:
            raise _no_address(self.url, error) from error
        return _document(response, self.url)


def _no_address(url: str, error: httpx.InvalidURL) -> ControlUnreachable:
    return ControlUnreachable(f"{url!r} is not an address ({error}): it looks like http://host:port")


def _document(response: httpx.Response, url: str) -> Json:
    """The JSON object of an answer; Refused if it is a problem."""
    try:
        document = response.json()
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise ControlUnreachable(f"what answers at {url} is no Tributary control plane: correct the address")
    if response.is_error:
        raise Refused(response.status_code, str(document.get("detail", response.reason_phrase)), document)
    return document


def whoami() -> str:
    """Who asks for a change, as the history shows it."""
    with suppress(KeyError, OSError):
        name = getpass.getuser()
        if name.isascii() and name.isprintable():
            return name[:64]
    return "operator"


def _by() -> dict[str, str]:
    """Who asks; where the token says it, its name counts."""
    return {"X-Tributary-Author": whoami()}


def _quoted(name: str) -> str:
    """A name as one part of a path."""
    return quote(name, safe="")


def _headers() -> httpx.Headers:
    token = os.environ.get(TOKEN_VARIABLE)
    if not token:
        return httpx.Headers()
    if not token.isprintable():  # no header can hold it, and the error that says so would show it
        raise SettingsError(f"${TOKEN_VARIABLE} holds a line end or another character that no token has: set it anew")
    return httpx.Headers({"Authorization": f"Bearer {token}"}, encoding="utf-8")


async def follow(where: Callable[[], str], transport: httpx.AsyncBaseTransport | None = None) -> AsyncIterator[Event]:
    """Every event of a run from its beginning, then as they happen. Survives restarts of the control plane.

    where: the control plane's address, asked anew for every connection; "" while it has none.
    """
    last = "0"
    limits = httpx.Timeout(TIMEOUT_S, read=_SILENCE_S)
    async with httpx.AsyncClient(timeout=limits, headers=_headers(), transport=transport) as http:
        while True:
            with suppress(httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError):
                if url := where():
                    async with http.stream("GET", f"{url}/v1/events", params={"after": last}) as response:
                        response.raise_for_status()
                        async for line in response.aiter_lines():
                            if line.startswith("data:"):
                                document = json.loads(line[5:])
                                last = document["id"]
                                yield _event(document)
            await asyncio.sleep(_RECONNECT_S)


def _event(document: Json) -> Event:
    return Event(document["id"], EventKind(document["kind"]), float(document["at_s"]), document["data"])
