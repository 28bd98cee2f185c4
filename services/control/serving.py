"""Serving: opens the address, makes the run file's configuration the first revision, and answers until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Iterator

import uvicorn
from redis.exceptions import RedisError

from common.connection import is_passing
from common.events import EventKind
from common.process import Process
from common.tasks import end
from services.control.app import create_app
from services.control.census import Census
from services.control.deps import Control
from services.control.guarding import Guarding
from services.control.listening import TOKEN_VARIABLE, Listener, listen
from services.control.tokens import Tokens
from services.control.trackers.recording import recordings
from services.control.vitals import Vitals

_GRACE_S = 1
_PACE_S = 1.0
_LAST_ROWS_S = 5.0

log = logging.getLogger(__name__)


async def main(process: Process) -> int:
    """Serve the control plane of a run until told to stop. SettingsError if its address or tokens cannot be used."""
    address = process.settings.control
    tokens = Tokens.of(os.environ.get(TOKEN_VARIABLE) or None, address.tokens_file)
    listener = listen(address.host, address.port, guarded=tokens is not None)
    control = Control.of(process)
    await process.patiently("make the first revision", lambda: control.steering.seed(process.settings.live))
    server = Server(
        uvicorn.Config(
            create_app(control, tokens),
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # whoever calls could write any origin into the history
            timeout_graceful_shutdown=_GRACE_S,
        )
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # it tells what we tell ourselves
    log.info("listening", extra={"url": listener.url, "guarded": tokens is not None})
    await _serve(process, control, server, listener)
    return 0


class Server(uvicorn.Server):
    """A server that leaves the signals to the process it runs in."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


async def _serve(process: Process, control: Control, server: Server, listener: Listener) -> None:
    serving = asyncio.create_task(server.serve(sockets=[listener.socket]))
    following = asyncio.create_task(control.chronicle.follow())
    guarding = asyncio.create_task(Guarding(control).watch())
    watching = asyncio.create_task(_watch(process, control, listener.url))
    recording = [asyncio.create_task(r.follow()) for r in recordings(process, control)]
    stopping = asyncio.create_task(process.stop.wait())
    tasks = (serving, following, guarding, watching, stopping)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        process.stop.set()
        control.chronicle.wake()  # feeds end by themselves once they see the stop
        server.should_exit = True
        await end({following, guarding, watching, stopping})
        if recording:
            await asyncio.wait(recording, timeout=_LAST_ROWS_S)
        await end(recording)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome


async def _watch(process: Process, control: Control, url: str) -> None:
    """Once a second: measure the run, say where we are, tell which processes came, changed or went; and beat."""
    census, vitals = Census(), Vitals(control)
    process.state = "running"
    while True:
        process.beat()
        try:
            processes = await vitals.take()
            await control.redis.hset(control.keys.facts, "dashboard", url)  # pyright: ignore
            for change in census.changes(processes):
                await control.events.append(EventKind.PROCESS, change, at_s=control.clock())
        except (RedisError, OSError) as error:
            if not is_passing(error):
                raise
            process.metrics.redis_failures.inc()
        await asyncio.sleep(_PACE_S)
