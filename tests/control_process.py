"""A real control plane for tests: its own run file, any free port, started and stopped like the real thing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import redis

ROOT = Path(__file__).resolve().parents[1]
RUN = """
[run]
name = "test"
directory = "run"
[model]
path = "m"
[data]
path = "d.jsonl"
[control]
host = "{host}"
port = {port}
{more}
"""


class ControlProcess:
    """`python -m services.control` on a run of the Redis at `redis_url`; `url` is where it listens once it is up.

    more: what else stands in the [control] table of its run file, and after it.
    """

    def __init__(
        self,
        directory: Path,
        redis_url: str,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str = "",
        more: str = "",
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.run_file = directory / "run.toml"
        self.run_file.write_text(RUN.format(host=host, port=port, more=more))
        self.log = directory / "log"
        self.url = ""
        environment = {k: v for k, v in os.environ.items() if k != "TRIBUTARY_TOKEN"} | {"REDIS_URL": redis_url}
        self._redis_url = redis_url
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.control", str(self.run_file)],
                stderr=log,
                cwd=ROOT,
                env=environment | ({"TRIBUTARY_TOKEN": token} if token else {}),
            )

    def wait_until_up(self, limit_s: float = 30) -> ControlProcess:
        """Wait until it says where it listens."""
        deadline_s = time.monotonic() + limit_s
        with redis.Redis.from_url(self._redis_url) as client:
            while time.monotonic() < deadline_s and self.process.poll() is None:
                beat = client.hget("tributary:{test}:processes", "control")
                url = client.hget("tributary:{test}:facts", "dashboard")
                if url and beat and f'"pid": {self.process.pid},'.encode() in beat and b'"running"' in beat:  # type: ignore
                    self.url = url.decode()  # type: ignore[union-attr]
                    return self
                time.sleep(0.05)
        raise AssertionError(f"the control plane is not up: {self.log.read_text()[-2000:]}")

    def stop(self) -> float:
        """SIGTERM; how long it took to end, in seconds."""
        start_s = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(15)
        return time.monotonic() - start_s
