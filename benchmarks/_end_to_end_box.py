"""What the comparison needs of the machine: a Redis of its own, programs that are ended for certain, processor time."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import redis

from services.cli.up import process_table
from services.cli.up.redis_server import find_executable

ROOT = Path(__file__).resolve().parents[1]
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_START_S = 20.0
_FAREWELL_S = 30.0
_GIT_S = 30.0
_PROGRAM = re.compile(r"-m (?:services\.)?(\w+)[ .]")


class Failed(Exception):
    """A part of the comparison that did not come to its end."""


@dataclass(frozen=True, slots=True)
class Server:
    """The comparison's own Redis. pid: its process, whose processor time is a part of what Tributary uses."""

    url: str
    pid: int


def environment(**more: str) -> dict[str, str]:
    """Our own environment for a program, without a run that it may name."""
    ours = {name: value for name, value in os.environ.items() if name not in ("REDIS_URL", "TRIBUTARY_URL")}
    python_path = os.pathsep.join([str(ROOT), *filter(None, [ours.get("PYTHONPATH")])])
    return ours | {"PYTHONPATH": python_path, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"} | more


@contextmanager
def program(command: Sequence[str], log: Path, env: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A program that runs meanwhile, its output in a file. Afterwards it is ended: politely, then for certain."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=dict(env), stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_FAREWELL_S)
        process_table.kill(process_table.members([process.pid]))
        process.wait()


@contextmanager
def redis_server(directory: Path) -> Iterator[Server]:
    """A Redis with the settings of a run's own, for as long as the comparison lasts."""
    directory.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory), "--appendonly", "yes"]
    options += ["--appendfsync", "everysec", "--save", "", "--maxmemory-policy", "noeviction"]
    with program([str(find_executable()), *options], directory / "redis.log", os.environ) as process:
        url, deadline_s = f"redis://127.0.0.1:{port}/0", time.monotonic() + _START_S
        while not _answers(url):
            if time.monotonic() > deadline_s:
                raise Failed(f"Redis did not start: see {directory / 'redis.log'}")
            time.sleep(0.1)
        yield Server(url, process.pid)


def _answers(url: str) -> bool:
    try:
        return bool(redis.Redis.from_url(url, socket_timeout=2.0).ping())
    except redis.RedisError:
        return False


def commit(root: Path = ROOT) -> str:
    """The commit that is checked out, short, with "+" behind it if files differ from it; "unknown" outside git.

    Results do not count: they are written while the comparison runs, and nothing depends on them.
    """
    git = ["git", "--no-optional-locks", "-C", str(root)]
    changes = ["status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)benchmarks/results"]
    try:
        name, changed = (
            subprocess.run([*git, *words], capture_output=True, text=True, check=True, timeout=_GIT_S).stdout.strip()
            for words in (["rev-parse", "--short", "HEAD"], changes)
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{name}+" if changed else name


def module(name: str, *arguments: str) -> list[str]:
    """The command of a program of this project."""
    return [sys.executable, "-m", name, *arguments]


def cpu_seconds(*ancestors: int) -> dict[str, float]:
    """Processor time so far of these processes and all that they started, by program."""
    children: dict[int, list[int]] = {}
    for entry in process_table.entries():
        children.setdefault(entry.parent, []).append(entry.pid)
    found: dict[str, float] = {}
    waiting = [(pid, "") for pid in ancestors]
    while waiting:
        pid, above = waiting.pop()
        with suppress(OSError, IndexError):
            name = _name(pid, above)
            used = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            found[name] = found.get(name, 0.0) + (int(used[11]) + int(used[12])) / _TICKS_PER_S
            waiting += [(child, name) for child in children.get(pid, [])]
    return found


def _name(pid: int, above: str) -> str:
    """What a process is called in the results. above: its parent's name."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    if "EngineCore" in words:
        return "engine core"
    if "redis-server" in words:
        return "redis"
    if found := _PROGRAM.search(words):
        return "up" if found[1] == "cli" else found[1]
    return "graders" if above == "generator" else above or "up"


def used_between(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Processor time between two readings, by program, the greatest first."""
    used = {name: round(after[name] - before.get(name, 0.0), 2) for name in after}
    return dict(sorted(used.items(), key=lambda item: -item[1]))
