"""Connecting to Redis, and staying connected: every call has a timeout, every failure is said and retried."""

from __future__ import annotations

import asyncio
import builtins
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
    TryAgainError,
)

from common.errors import RedisUnavailable

Result = TypeVar("Result")
OLDEST = (6, 2)
SOCKET_TIMEOUT_S = 5.0
_PASSING = (
    ConnectionError,
    TimeoutError,
    BusyLoadingError,
    OutOfMemoryError,
    ReadOnlyError,
    MasterDownError,
    TryAgainError,
    ClusterDownError,
    OSError,
)
# redis-py strips the code of some errors and wraps those of scripts and transactions in words of its own.
_PASSING_CODE = re.compile(
    r"(?:^|[-\s('\"])(LOADING|MISCONF|OOM|READONLY|MASTERDOWN|TRYAGAIN|CLUSTERDOWN|NOGROUP|UNBLOCKED|NOREPLICAS)\b"
)

log = logging.getLogger(__name__)


def connect(url: str) -> Redis:
    """A client whose calls fail after SOCKET_TIMEOUT_S instead of waiting on a frozen server for ever."""
    # redis-py retries by itself by default, which stretches a 5 s timeout to more than 15 s: retrying is ours to do.
    client: Any = Redis  # Any: redis-py's from_url is not annotated
    return client.from_url(
        url,
        socket_timeout=SOCKET_TIMEOUT_S,
        socket_connect_timeout=SOCKET_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
        protocol=2,
    )


async def check(redis: Any, url: str) -> str:
    """The version of a Redis that we can use; RedisUnavailable says why it is not one."""
    where = without_password(url)
    try:
        info: dict[str, Any] = await redis.info("server")
    except AuthenticationError as error:
        raise RedisUnavailable(f"Redis at {where} refuses the password: set it in REDIS_URL") from error
    except (RedisError, OSError) as error:
        raise RedisUnavailable(
            f"Redis at {where} cannot be reached ({error}): start it, or correct REDIS_URL"
        ) from error
    version = str(info["redis_version"])
    numbers = re.findall(r"\d+", version)
    if tuple(int(n) for n in numbers[:2]) < OLDEST:
        raise RedisUnavailable(f"Redis at {where} is version {version}; {OLDEST[0]}.{OLDEST[1]} or newer is needed")
    return version


async def policy_problems(redis: Any) -> list[str]:
    """Sentences about settings of this Redis under which data could be lost; empty if there are none."""
    problems: list[str] = []
    try:
        settings: dict[str, str] = {}
        for name in ("maxmemory-policy", "appendonly"):
            settings |= await redis.config_get(name)
    except (RedisError, OSError):  # managed services forbid CONFIG; an absent Redis is said by the next call
        return problems
    if settings.get("maxmemory-policy", "noeviction") != "noeviction":
        problems.append(f"Redis evicts keys ({settings['maxmemory-policy']}): set maxmemory-policy noeviction")
    if settings.get("appendonly", "yes") != "yes":
        problems.append("Redis keeps no append-only file: a restart would lose the run; set appendonly yes")
    return problems


def without_password(url: str) -> str:
    """The URL as it may be shown and logged: nothing of what stands before the host, and no query."""
    scheme, colon, rest = url.partition("://")
    # Everything up to the last @ counts as the password: an unescaped one may hold any character.
    secret, at, place = rest.rpartition("@")
    if "?" in secret:  # of the password, or the beginning of a query that holds the @: the host cannot be told
        return f"{scheme}{colon}***"
    place, question, _ = place.partition("?")
    return f"{scheme}{colon}{':***' if secret else ''}{at}{place}{'?***' if question else ''}"


def quotable(error: Exception, url: str) -> Exception | None:
    """The error of a client that was given `url`, if its text may be shown and logged; None if the URL holds a secret.

    Clients quote what they were given, whole or in pieces: then only the kind of error can be told.
    """
    return error if without_password(url) == url else None


def is_passing(error: Exception) -> bool:
    """Whether a Redis error is one that goes away: a lost connection, a restart, a full disk."""
    if isinstance(error, AuthenticationError):
        return False
    if isinstance(error, _PASSING):
        return True
    return isinstance(error, ResponseError) and _PASSING_CODE.search(str(error)) is not None


class Patience:
    """Repeats a Redis call until it succeeds or the process is told to stop.

    Calls must bear repetition: a reply may be lost after the effect. `restored` runs before the first repetition that
    finds Redis again (re-creating consumer groups that a restart without an append-only file lost). `waiting` is called
    before every wait.
    """

    def __init__(
        self,
        stop: asyncio.Event,
        restored: Callable[[], Awaitable[None]],
        waiting: Callable[[], None] = lambda: None,
    ) -> None:
        self._stop = stop
        self._restored = restored
        self._waiting = waiting

    async def __call__(self, what: str, call: Callable[[], Awaitable[Result]]) -> Result:
        """The result of `call`. RedisUnavailable if the process is told to stop while Redis is away."""
        wait_s, failures = 0.1, 0
        while True:
            try:
                if failures:
                    await self._restored()
                result = await call()
            except (RedisError, OSError) as error:
                if not is_passing(error):
                    raise
                failures += 1
                log.warning("redis is away: %s", what, extra={"error": str(error), "failures": failures})
                self._waiting()
                await _wait(self._stop, wait_s)
                if self._stop.is_set():
                    raise RedisUnavailable(f"stopping while Redis was away: {what} was not done") from error
                wait_s = min(wait_s * 2, 2.0)
            else:
                if failures:
                    log.info("redis is back: %s", what, extra={"failures": failures})
                return result


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except builtins.TimeoutError:
        return
