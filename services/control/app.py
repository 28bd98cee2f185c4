"""The application: routes, problems, doors and documentation put together."""

from __future__ import annotations

import time
from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.control import problems
from services.control.deps import Control
from services.control.documentation import DESCRIPTION, describe
from services.control.doors import Doors
from services.control.rates import Rates
from services.control.routes import (
    catalogue,
    config,
    demonstrations,
    dry_run,
    events,
    generators,
    groups,
    health,
    learner,
    pages,
    prompts,
    quarantine,
    revisions,
    status,
    weights,
)
from services.control.tokens import Tokens

ROOMS = (
    config,
    revisions,
    dry_run,
    catalogue,
    learner,
    generators,
    demonstrations,
    status,
    groups,
    prompts,
    quarantine,
    weights,
    events,
    health,
    pages,
)


def create_app(control: Control, tokens: Tokens | None) -> ASGIApp:
    """The control plane of a run. tokens: callers of /v1 must present one; None: loopback callers need none."""
    api = FastAPI(
        title="Tributary",
        version=_version(),
        description=DESCRIPTION,
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    api.state.control = control
    problems.install(api)
    for room in ROOMS:
        api.include_router(room.router)
    api.mount("/static", pages.DashboardFiles(directory=pages.DIRECTORY), name="static")
    describe(api)
    limits = control.settings.control
    return Measured(Doors(api, tokens, Rates(limits.reads_per_s, limits.writes_per_s)), control)


class Measured:
    """Counts and times what `app` answers. The event feed is counted but not timed: it lasts as long as its client."""

    def __init__(self, app: ASGIApp, control: Control) -> None:
        self._app = app
        self._metrics = control.metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start_s = time.perf_counter()
        status = 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            # The route's template, not the path: callers must not be able to make up labels.
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in ("GET", "PUT", "PATCH", "POST", "HEAD") else "other"
            self._metrics.requests.labels(method, route, str(status)).inc()
            if route != "/v1/events":
                self._metrics.seconds.labels(route).observe(time.perf_counter() - start_s)


def _version() -> str:
    try:
        return version("tributary")
    except PackageNotFoundError:  # run from a source tree that was not installed
        return "0"
