"""The one way to run a process: arguments, settings, logs, signals, Redis, heartbeat, metrics, exit code.

    if __name__ == "__main__":
        raise SystemExit(run("curriculum", main))

`main(process)` works until `process.stop` is set and returns an exit code. SIGTERM and SIGINT set it; a second signal
ends the process at once. Variables: LOG_LEVEL, and TRIBUTARY_METRICS_HOST and TRIBUTARY_METRICS_PORT, which are the
defaults of the options of these names.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from redis.exceptions import OutOfMemoryError, RedisError

from common import connection, logs
from common.config.store import ConfigStore
from common.errors import SettingsError, TributaryError
from common.events import EventKind, EventLog
from common.exposition import Exposition
from common.keys import Keys
from common.metrics import ProcessMetrics
from common.orders import Orders
from common.settings import RunFile, load_run
from common.streams import Delivery, Entry, Stream
from common.tasks import end

HEARTBEAT_S = 1.0
BEAT_LIMIT_S = 120.0
HOST_VARIABLE, PORT_VARIABLE = "TRIBUTARY_METRICS_HOST", "TRIBUTARY_METRICS_PORT"
LAUNCHED_VARIABLE = "TORCHELASTIC_RUN_ID"
"""Set by torchrun for the processes that it starts."""
_PR_SET_PDEATHSIG = 1

log = logging.getLogger(__name__)


class Process:
    """What a program of this project has at hand while it runs."""

    def __init__(self, role: str, name: str, settings: RunFile) -> None:
        self.role = role
        self.name = name
        self.settings = settings
        self.stop = asyncio.Event()
        self.registry = CollectorRegistry()
        self.metrics = ProcessMetrics(self.registry)
        self.metrics.info.labels(name, role, settings.run.name).set(1)
        self.keys = Keys(settings.run.name)
        self.redis: Any = connection.connect(settings.redis_url)  # Any: redis-py's annotations mix its two clients
        self.delivery = Delivery(self.redis, self.keys)
        self.config = ConfigStore(self.redis, self.keys)
        self.events = EventLog(self.redis, self.keys)
        self.orders = Orders(self.redis, self.keys)
        self.patiently = connection.Patience(self.stop, self.delivery.prepare, self.beat)
        self.state = "starting"
        self.trouble = ""
        self.details: dict[str, Any] = {}
        self._revision = 0
        self._version = 0
        self._news = asyncio.Event()
        self._beat_s = time.monotonic()
        self._started_s = time.time()
        self._address = ""

    @property
    def revision(self) -> int:
        """The live configuration revision in force here."""
        return self._revision

    @property
    def version(self) -> int:
        """The weight version held here."""
        return self._version

    def hold_version(self, version: int) -> None:
        """Say which weight version this process holds now: at once, for others pace themselves by it."""
        self._version = version
        self._news.set()
        self.metrics.version.set(version)

    async def enforce(self, revision: int, *, step: int) -> None:
        """Say that a revision is in force here from now on. Does nothing when it already was."""
        if revision == self._revision:
            return
        self._revision = revision
        self.metrics.revision.set(revision)
        at_s = time.time()
        data = {"process": self.name, "role": self.role, "revision": revision, "step": step}
        await self.patiently(
            "mark in force", lambda: self.config.mark_in_force(self.name, revision, step=step, at_s=at_s)
        )
        await self.tell(EventKind.IN_FORCE, data)

    async def tell(self, kind: EventKind, data: dict[str, Any]) -> None:
        """Add an event to the log that operators see. A Redis that has no room for one goes without it, counted."""
        at_s = time.time()
        await self.patiently("append an event", lambda: self._append(kind, data, at_s))

    async def _append(self, kind: EventKind, data: dict[str, Any], at_s: float) -> None:
        try:
            await self.events.append(kind, data, at_s=at_s)
        except OutOfMemoryError as error:  # what frees the memory must not wait for what only tells of it
            self.metrics.lost_events.inc()
            log.warning("an event is lost", extra={"kind": kind.value, "error": str(error)})

    async def quarantine(
        self, stream: Stream, entry: Entry, reason: str, *, group_id: str = "", outcome: bytes = b""
    ) -> None:
        """Put an unusable message out of the way: counted, logged and shown. See Delivery.quarantine."""
        name = stream.key.rpartition(":")[2]
        await self.patiently(
            "quarantine a message",
            lambda: self.delivery.quarantine(stream, entry, reason, by=self.name, group_id=group_id, outcome=outcome),
        )
        self.metrics.quarantined.labels(name).inc()
        log.warning("quarantined", extra={"stream": name, "entry": entry.entry_id, "reason": reason})
        await self.tell(EventKind.QUARANTINE, {"stream": name, "reason": reason, "id": group_id or entry.entry_id})

    async def pause(self, seconds: float) -> None:
        """Wait for `seconds`, or until the process is told to stop."""
        try:
            await asyncio.wait_for(self.stop.wait(), seconds)
        except TimeoutError:
            return

    def beat(self) -> None:
        """Say that the main loop makes progress (or waits for good reason). Health depends on it."""
        self._beat_s = time.monotonic()

    def why_unhealthy(self) -> str:
        """Why this process is unhealthy; "" when it is well."""
        idle_s = time.monotonic() - self._beat_s
        if not self.trouble and self.state == "running" and idle_s > BEAT_LIMIT_S:
            return f"the main loop has not moved for {idle_s:.0f} s"
        return self.trouble

    def why_not_ready(self) -> str:
        """Why this process does not do its work now; "" when it does: it has started, is well and is not stopping."""
        return self.why_unhealthy() or ("" if self.state == "running" else f"it is {self.state}")

    def heartbeat(self) -> dict[str, Any]:
        """What this process tells everyone about itself, once a second."""
        return {
            "name": self.name,
            "role": self.role,
            "pid": os.getpid(),
            "state": self.state,
            "trouble": self.why_unhealthy(),
            "revision": self._revision,
            "version": self._version,
            "started_s": self._started_s,
            "at_s": time.time(),
            "metrics": self._address,
            **self.details,
        }

    async def open(self, host: str, port: int) -> Exposition:
        """Start /metrics, /healthz and /readyz, check Redis and create what is missing there."""
        verdicts = {"/healthz": self.why_unhealthy, "/readyz": self.why_not_ready}
        exposition = Exposition(self.registry, verdicts, host, port)
        exposition.start()
        self._address = exposition.address
        await connection.check(self.redis, self.settings.redis_url)
        for problem in await connection.policy_problems(self.redis):
            log.warning(problem)
        await self.patiently("prepare the streams", self.delivery.prepare)
        return exposition

    async def send_heartbeats(self) -> None:
        """Write a heartbeat every second, and at news, until cancelled; a lost one is only counted."""
        while True:
            self._news.clear()
            try:
                await self.redis.hset(self.keys.processes, self.name, json.dumps(self.heartbeat()))
            except (RedisError, OSError) as error:
                self.metrics.redis_failures.inc()
                log.warning("heartbeat not written", extra={"error": str(error)})
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), HEARTBEAT_S)

    async def farewell(self) -> None:
        """Write the last heartbeat and close the connection."""
        try:
            await self.redis.hset(self.keys.processes, self.name, json.dumps(self.heartbeat()))
        except (RedisError, OSError) as error:
            log.warning("last heartbeat not written", extra={"error": str(error)})
        await self.redis.aclose()


Main = Callable[[Process], Awaitable[int]]


def run(role: str, main: Main, argv: list[str] | None = None) -> int:
    """Run `main` as a process of this role and return its exit code: 0 done, 2 unusable settings, 1 anything else."""
    arguments = parser(role).parse_args(argv)
    die_with_parent()
    try:
        name = (arguments.name or role).replace("{host}", socket.gethostname())
        process = Process(role, name, load_run(arguments.run_file))
    except TributaryError as error:
        print(f"{role}: {error}", file=sys.stderr)
        return 2
    logs.configure(lambda: _log_context(process), arguments.log_level)
    return asyncio.run(_supervise(process, main, arguments.metrics_host, arguments.metrics_port))


async def _supervise(process: Process, main: Main, host: str, port: int) -> int:
    """Open the process, run its main function with signals and heartbeats in place, and say how it ended."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _on_signal, process, number)
    heartbeats: asyncio.Task[None] | None = None
    exposition: Exposition | None = None
    try:
        exposition = await process.open(host, port)
        heartbeats = asyncio.create_task(process.send_heartbeats())
        log.info("started", extra={"pid": os.getpid(), "metrics": exposition.address})
        code = await main(process)
        process.state = "stopped"
    except SettingsError as error:
        process.state, process.trouble, code = "failed", str(error), 2
        log.error(str(error))
        print(f"{process.name}: {error}", file=sys.stderr)
    except TributaryError as error:
        process.state, process.trouble, code = "failed", str(error), (0 if process.stop.is_set() else 1)
        log.error(str(error))
    except Exception:  # the edge of the process: said with its traceback, and shown in the exit code
        process.state, process.trouble, code = "failed", "an unexpected error: see the log", 1
        log.exception("unexpected error")
    finally:
        if heartbeats is not None:
            await end([heartbeats])
        await process.farewell()
        if exposition is not None:
            exposition.close()
    log.info("ended", extra={"code": code})
    return code


def _on_signal(process: Process, number: int) -> None:
    if process.stop.is_set():
        os._exit(128 + number)
    log.info("stopping", extra={"signal": signal.Signals(number).name})
    process.state = "stopping"
    process.stop.set()


def die_with_parent() -> None:
    """Ask the kernel to end this process when its parent dies, if the parent said that it wants that.

    torchrun says nothing, and nothing keeps together what it started once it is gone: then at once.
    """
    if LAUNCHED_VARIABLE in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    elif os.environ.get("TRIBUTARY_PARENT") and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(os.environ["TRIBUTARY_PARENT"]):
            raise SystemExit("the parent process is gone")


def _log_context(process: Process) -> dict[str, Any]:
    return {
        "run": process.settings.run.name,
        "process": process.name,
        "revision": process.revision,
        "version": process.version,
    }


def parser(role: str) -> argparse.ArgumentParser:
    """The command line of a process of this role."""
    arguments = argparse.ArgumentParser(prog=role, description=f"The {role} of a Tributary run.")
    arguments.add_argument("run_file", type=Path, help="the run file (TOML)")
    arguments.add_argument(
        "--name", help=f"name of this process, unique in the run; {{host}} is the machine's (default: {role})"
    )
    arguments.add_argument(
        "--metrics-host",
        default=os.environ.get(HOST_VARIABLE) or "127.0.0.1",
        help=f"where /metrics, /healthz and /readyz listen (${HOST_VARIABLE})",
    )
    arguments.add_argument(
        "--metrics-port",
        type=_port,
        default=os.environ.get(PORT_VARIABLE) or "0",
        help=f"their port; 0: any free one (${PORT_VARIABLE})",
    )
    arguments.add_argument(
        "--log-level", default=os.environ.get("LOG_LEVEL", "INFO"), help="DEBUG, INFO, WARNING, ERROR"
    )
    return arguments


def _port(text: str) -> int:
    if not (text.isdecimal() and text.isascii() and int(text[:6]) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is no port: give a number from 0 to 65535")
    return int(text)
