"""The one way to run a process, on a real one: signals, health, metrics, logs, exit codes, death of the parent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis
from redis_process import RedisProcess

ROOT = Path(__file__).resolve().parents[2]
RUN = """
[run]
name = "test"
directory = "run"
[model]
path = "m"
[data]
path = "d.jsonl"
"""
PROGRAM = """
import sys
from common.process import run
from common.errors import SettingsError, TributaryError

async def main(process):
    process.state = "running"
    {body}
    return 0

raise SystemExit(run("worker", main, sys.argv[1:]))
"""
WAIT = "await process.stop.wait()"


class Worker:
    """A process made of PROGRAM."""

    def __init__(self, directory: Path, redis_url: str, body: str = WAIT, **environment: str) -> None:
        (directory / "run.toml").write_text(RUN)
        program = textwrap.dedent(PROGRAM).replace("{body}", body)
        self.log = directory / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", program, str(directory / "run.toml")],
                stderr=log,
                cwd=ROOT,
                env=os.environ | {"REDIS_URL": redis_url} | environment,
            )

    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def beat(self, redis: Redis) -> dict[str, object]:
        """Its heartbeat, once it says that it is running."""
        deadline_s = time.monotonic() + 20
        while time.monotonic() < deadline_s:
            raw = redis.hget("tributary:{test}:processes", "worker")
            if isinstance(raw, bytes) and json.loads(raw)["state"] == "running":
                return json.loads(raw)
            time.sleep(0.05)
        raise AssertionError(f"no heartbeat; log: {self.log.read_text()}")


def test_sigterm_ends_it_cleanly_and_its_log_is_json_with_the_run_in_every_line(
    tmp_path: Path, redis_server: RedisProcess
) -> None:
    worker = Worker(tmp_path, redis_server.url)
    with Redis(port=redis_server.port) as redis:
        beat = worker.beat(redis)
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(10) == 0
        last = json.loads(redis.hget("tributary:{test}:processes", "worker"))  # type: ignore[arg-type]
    assert (beat["role"], beat["pid"], last["state"]) == ("worker", worker.process.pid, "stopped")
    assert [line["message"] for line in worker.lines()] == ["started", "stopping", "ended"]
    assert all(line["run"] == "test" and "revision" in line and "version" in line for line in worker.lines())


def test_health_and_metrics_answer_and_trouble_makes_it_unhealthy(tmp_path: Path, redis_server: RedisProcess) -> None:
    worker = Worker(tmp_path, redis_server.url, 'process.trouble = "the engine is gone"; ' + WAIT)
    with Redis(port=redis_server.port) as redis:
        address = worker.beat(redis)["metrics"]
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
        assert b"tributary_revision_in_force" in answer.read()
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://{address}/healthz", timeout=5)
    with refused.value as answer:
        assert answer.status == 503
        assert b"the engine is gone" in answer.read()
    worker.process.terminate()
    assert worker.process.wait(10) == 0


def test_a_new_weight_version_is_in_the_heartbeat_at_once(tmp_path: Path, redis_server: RedisProcess) -> None:
    hours = '__import__("common.process").process.HEARTBEAT_S = 3600; await asyncio.sleep(0.3); '
    worker = Worker(tmp_path, redis_server.url, "import asyncio; " + hours + "process.hold_version(7); " + WAIT)
    with Redis(port=redis_server.port) as redis:
        deadline_s = time.monotonic() + 20
        while worker.beat(redis)["version"] != 7:
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
    worker.process.terminate()
    assert worker.process.wait(10) == 0


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ('raise SettingsError("no such data")', 2),
        ('raise TributaryError("it broke")', 1),
        ('raise KeyError("x")', 1),
    ],
)
def test_the_exit_code_says_what_kind_of_end_it_was(
    tmp_path: Path, redis_server: RedisProcess, body: str, code: int
) -> None:
    worker = Worker(tmp_path, redis_server.url, body)
    assert worker.process.wait(20) == code


def test_a_redis_without_room_for_an_event_goes_without_it(tmp_path: Path, redis_server: RedisProcess) -> None:
    full = 'await process.redis.config_set("maxmemory", 1); '
    tell = 'await process.tell(__import__("common.events").events.EventKind.NOTICE, {"text": "full"}); '
    worker = Worker(tmp_path, redis_server.url, full + tell + 'await process.redis.config_set("maxmemory", 0)')
    assert worker.process.wait(20) == 0
    assert "an event is lost" in [line["message"] for line in worker.lines()]


def test_an_unreachable_redis_ends_it_with_a_sentence(tmp_path: Path) -> None:
    worker = Worker(tmp_path, "redis://:secret@127.0.0.1:1")
    assert worker.process.wait(20) == 1
    assert "cannot be reached" in worker.log.read_text()
    assert "secret" not in worker.log.read_text()


def test_it_dies_with_its_parent(tmp_path: Path, redis_server: RedisProcess, client: Callable[[], object]) -> None:
    (tmp_path / "run.toml").write_text(RUN)
    program = textwrap.dedent(PROGRAM).replace("{body}", WAIT)
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, subprocess, sys, time\n"
            "child = subprocess.Popen([sys.executable, '-c', *sys.argv[1:]],"
            " env=os.environ | {'TRIBUTARY_PARENT': str(os.getpid())})\n"
            "print(child.pid, flush=True)\n"
            "child.wait()",
            program,
            str(tmp_path / "run.toml"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        env=os.environ | {"REDIS_URL": redis_server.url},
    )
    assert parent.stdout is not None
    with parent.stdout as pipe:
        child = int(pipe.readline())
    with Redis(port=redis_server.port) as redis:
        Worker.beat(_Log(tmp_path), redis)  # type: ignore[arg-type]
    parent.kill()
    parent.wait(10)
    deadline_s = time.monotonic() + 10
    while time.monotonic() < deadline_s and Path(f"/proc/{child}").exists() and not _is_zombie(child):
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists() or _is_zombie(child)


class _Log:
    """Where a worker without a log of its own would have one."""

    def __init__(self, directory: Path) -> None:
        self.log = directory / "run.toml"


def _is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
