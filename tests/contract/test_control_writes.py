"""Eight clients that write at the same time, over HTTP: no update is lost and no revision is skipped.

TRIBUTARY_TEST_WRITES sets how many writes there are (1000 unless it is set).
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from control_process import ControlProcess
from redis import Redis
from redis_process import RedisProcess

pytestmark = pytest.mark.system

WRITES = int(os.environ.get("TRIBUTARY_TEST_WRITES") or 1000)
# Each of these clients writes values of its own; two more count one number up together, by If-Match.
OWN_KEYS = (
    ("groups_per_step",),
    ("max_staleness",),
    ("publish_every",),
    ("sampling", "max_response_tokens"),
    ("algorithm", "rollouts"),
    ("optimizer", "max_grad_norm"),
)
COUNTERS = 2
EACH = WRITES // (len(OWN_KEYS) + COUNTERS)


def nested(keys: tuple[str, ...], value: Any) -> Any:
    return value if not keys else {keys[0]: nested(keys[1:], value)}


def valued(config: Any, keys: tuple[str, ...]) -> Any:
    return config if not keys else valued(config[keys[0]], keys[1:])


class Client(threading.Thread):
    """Makes EACH changes. made: revision → the value that it holds; refused: how often somebody else was first."""

    def __init__(self, url: str, keys: tuple[str, ...], *, counts: bool) -> None:
        super().__init__()
        self.keys = keys
        self.made: dict[int, Any] = {}
        self.refused = 0
        self.seconds: list[float] = []
        self.failure: Exception | None = None
        self._http = httpx.Client(base_url=url, timeout=30)
        self._counts = counts

    def run(self) -> None:
        try:
            for number in range(EACH):
                self._count_up() if self._counts else self._write(number)
        except Exception as error:  # noqa: BLE001 - told by the test
            self.failure = error
        finally:
            self._http.close()

    def _write(self, number: int) -> None:
        value = 5 + number % 900  # never what the key holds already
        assert self._patch(nested(self.keys, value)).status_code == 200

    def _count_up(self) -> None:
        while True:
            read = self._http.get("/v1/config")
            value = valued(read.json()["config"], self.keys) + 1
            answer = self._patch(nested(self.keys, value), {"If-Match": read.headers["ETag"]})
            if answer.status_code == 200:
                return
            assert answer.status_code == 412, answer.text
            self.refused += 1

    def _patch(self, patch: Any, headers: dict[str, str] | None = None) -> httpx.Response:
        start_s = time.perf_counter()
        answer = self._http.patch("/v1/config", json=patch, headers=headers)
        self.seconds.append(time.perf_counter() - start_s)
        if answer.status_code == 200:
            told = answer.json()
            assert told["changed"]
            self.made[told["revision"]] = valued(told["config"], self.keys)
        return answer


@pytest.mark.timeout(600)
def test_no_update_is_lost_and_no_revision_skipped(redis_server: RedisProcess, tmp_path: Path) -> None:
    limits = "reads_per_s = 0\nwrites_per_s = 0\n"
    control = ControlProcess(tmp_path / "control", redis_server.url, more=limits).wait_until_up()
    counter = ("optimizer", "warmup_steps")
    clients = [Client(control.url, keys, counts=False) for keys in OWN_KEYS]
    clients += [Client(control.url, counter, counts=True) for _ in range(COUNTERS)]
    start_s = time.monotonic()
    try:
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        seconds = time.monotonic() - start_s
        assert [client.failure for client in clients] == [None] * len(clients)
        revisions = history(control.url)
    finally:
        control.stop()
    check(clients, revisions, counter)
    with Redis.from_url(redis_server.url) as redis:
        kinds = Counter(fields[b"kind"] for _, fields in redis.xrange("tributary:{test}:events"))  # type: ignore[union-attr]
    assert kinds[b"revision"] == len(revisions)
    took = sorted(second for client in clients for second in client.seconds)
    print(
        f"{len(revisions) - 1} writes of {len(clients)} clients in {seconds:.1f} s; "
        f"{sum(client.refused for client in clients)} lost races; p50 {1000 * took[len(took) // 2]:.1f} ms, "
        f"p99 {1000 * took[len(took) * 99 // 100]:.1f} ms"
    )


def check(clients: list[Client], revisions: list[Any], counter: tuple[str, ...]) -> None:
    """Every write is one revision, in one unbroken row, and what a client wrote last is what holds in the end."""
    total = EACH * len(clients)
    assert [r["revision"] for r in revisions] == list(range(1, total + 2))
    made = sorted(number for client in clients for number in client.made)
    assert made == list(range(2, total + 2))
    assert all(len(r["changes"]) == 1 for r in revisions[1:])
    by_number = {r["revision"]: r for r in revisions}
    for client in clients:
        assert len(client.made) == EACH
        path = ".".join(client.keys)
        for number, value in client.made.items():
            (change,) = by_number[number]["changes"]
            assert (change["path"], change["after"]) == (path, value)
            assert valued(by_number[number]["config"], client.keys) == value
    newest = revisions[-1]["config"]
    assert valued(newest, counter) == EACH * COUNTERS
    for client in clients[:-COUNTERS]:
        assert valued(newest, client.keys) == client.made[max(client.made)]


def history(url: str) -> list[Any]:
    """Every revision over HTTP, oldest first."""
    revisions: list[Any] = []
    with httpx.Client(base_url=url, timeout=30) as http:
        before: dict[str, int] = {}
        while page := http.get("/v1/config/revisions", params={"limit": 1000, **before}).json()["revisions"]:
            revisions += page
            if page[-1]["revision"] == 1:
                break
            before = {"before": page[-1]["revision"]}
    return revisions[::-1]
