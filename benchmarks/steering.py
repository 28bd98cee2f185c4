"""How fast a run can be steered and looked at while it trains on the same cores.

    python -m benchmarks.steering                          # starts the addition example, and ends it afterwards
    python -m benchmarks.steering --url http://127.0.0.1:8700 [--patches 40] [--seconds 30]

Two figures: from PATCH /v1/config to in force at the learner, in milliseconds and in steps that still ended under the
old revision (the step under way when the change comes may: 1 at most is the promise); and the time that GET /v1/status
takes, one call after another over one connection (p99 of 20 ms at most is the promise). They are printed and written to
benchmarks/results/steering.json. With $TRIBUTARY_TOKEN set it is presented.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import queue
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks._methods_trial import as_toml

ROOT = Path(__file__).resolve().parents[1]
RUN_FILE = ROOT / "examples" / "addition" / "run.toml"
RESULTS = ROOT / "benchmarks" / "results" / "steering.json"
_START_S = 180.0
_STEP_S = 120.0
_CALL_S = 10.0
_PACE_S = 0.02

Json = dict[str, Any]


class Caller:
    """One kept-alive connection to a control plane."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=_CALL_S)
        token = os.environ.get("TRIBUTARY_TOKEN")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def call(self, method: str, path: str, body: Json | None = None) -> Json:
        """The answer of a call. RuntimeError unless it is a good one."""
        headers = self._headers | ({"Content-Type": "application/json"} if body is not None else {})
        self._connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{method} {path} was answered with {answer.status}: {text.decode()[:500]}")
        return json.loads(text)

    def lines(self, path: str) -> Iterator[str]:
        """The lines of a feed, as they come."""
        self._connection.request("GET", path, headers=self._headers)
        answer = self._connection.getresponse()
        while line := answer.readline():
            yield line.decode().rstrip("\n")


class Feed(threading.Thread):
    """Follows steps and what comes into force. news: (when it came, the event)."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.news: queue.Queue[tuple[float, Json]] = queue.Queue()
        self._caller = Caller(url)

    def run(self) -> None:
        """Follow until the control plane ends."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            for line in self._caller.lines("/v1/events?kind=step&kind=in_force"):
                if line.startswith("data: "):
                    self.news.put((time.perf_counter(), json.loads(line[6:])))

    def next(self) -> tuple[float, Json]:
        """The next event. RuntimeError if none comes."""
        try:
            return self.news.get(timeout=_STEP_S)
        except queue.Empty:
            raise RuntimeError(f"the run made no step within {_STEP_S:g} s: is it paused, or has it ended?") from None

    def wait_for_steps(self, count: int) -> None:
        """Wait for so many steps from now on."""
        with contextlib.suppress(queue.Empty):
            while True:
                self.news.get_nowait()
        while count:
            count -= self.next()[1]["kind"] == "step"


def steer(caller: Caller, feed: Feed, patches: int) -> Json:
    """Make changes one after the other, each once the one before is in force. Figures of how long that took.

    What is changed is the bound of the gradient's norm, by less than a hundredth each time; in the end it is as it was.
    """
    before = caller.call("GET", "/v1/config")["config"]["optimizer"]["max_grad_norm"]
    waits_ms, steps_under_old, answers_ms = list[float](), list[int](), list[float]()
    for number in range(patches):
        feed.wait_for_steps(1)
        time.sleep(0.37 * (number % 7) / 7)  # so that changes come at different moments of a step
        began_s = time.perf_counter()
        decision = bound(caller, before * (1 + 0.01 * (number + 1) / patches))
        answers_ms.append(1e3 * (time.perf_counter() - began_s))
        steps, in_force_s = 0, None
        while in_force_s is None:
            at_s, event = feed.next()
            told = event["data"]
            if event["kind"] == "step":
                steps += at_s > began_s and told["revision"] < decision["revision"]
            elif told["role"] == "learner" and told["revision"] >= decision["revision"]:
                in_force_s = at_s
        waits_ms.append(1e3 * (in_force_s - began_s))
        steps_under_old.append(steps)
    bound(caller, before)
    return {
        "patches": patches,
        "answered_ms": spread(answers_ms),
        "in_force_ms": spread(waits_ms),
        "steps_that_ended_under_the_old_revision": {
            "mean": sum(steps_under_old) / patches,
            "max": max(steps_under_old),
        },
    }


def bound(caller: Caller, max_grad_norm: float) -> Json:
    """Have the gradient's norm bounded so; the decision."""
    return caller.call("PATCH", "/v1/config?reason=benchmark", {"optimizer": {"max_grad_norm": max_grad_norm}})


def look(caller: Caller, feed: Feed, seconds: float) -> Json:
    """Ask for the status for a while, 50 times a second. Figures of how long each answer took."""
    feed.wait_for_steps(1)
    taken_ms = list[float]()
    first = caller.call("GET", "/v1/status")["learner"]["step"]
    end_s = time.perf_counter() + seconds
    while (began_s := time.perf_counter()) < end_s:
        last = caller.call("GET", "/v1/status")["learner"]["step"]
        taken_ms.append(1e3 * (time.perf_counter() - began_s))
        time.sleep(_PACE_S)
    return {"calls": len(taken_ms), "ms": spread(taken_ms), "steps_meanwhile": last - first, "seconds": seconds}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, 99th percentile and greatest of some values."""
    ordered = sorted(values)
    at = {"p50": len(ordered) // 2, "p99": min(len(ordered) - 1, 99 * len(ordered) // 100), "max": len(ordered) - 1}
    return {name: round(ordered[place], 2) for name, place in at.items()}


@contextlib.contextmanager
def running(run_file: Path) -> Iterator[str]:
    """A run of its own, without an end, in a directory that is removed; the address of its control plane."""
    with tempfile.TemporaryDirectory(prefix="steering-") as place:
        directory = Path(place) / "run"
        copy = run_file.with_name(f".steering-{os.getpid()}.toml")  # beside it, for paths are relative to a run file
        document = tomllib.loads(run_file.read_text(encoding="utf-8"))
        document["run"]["directory"] = str(directory)
        document["control"] = document.get("control", {}) | {"host": "127.0.0.1", "port": 0}
        copy.write_text(as_toml(document), encoding="utf-8")
        environment = {k: v for k, v in os.environ.items() if k not in ("REDIS_URL", "TRIBUTARY_URL")}
        log_file = Path(place) / "log"
        with log_file.open("wb") as log:
            command = [sys.executable, "-m", "services.cli", "up", str(copy), "--plain"]
            environment["TRIBUTARY_MAX_STEPS"] = "none"
            up = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            yield address(directory / "up.json", up, log_file)
        finally:
            up.send_signal(signal.SIGINT)
            try:
                up.wait(60)
            except subprocess.TimeoutExpired:
                up.kill()
                up.wait(10)
            copy.unlink()


def address(state_file: Path, up: subprocess.Popen[bytes], log: Path) -> str:
    """Where the control plane of a run that starts listens. RuntimeError if the run ends before it does."""
    deadline_s = time.monotonic() + _START_S
    while time.monotonic() < deadline_s and up.poll() is None:
        with contextlib.suppress(OSError, ValueError):
            if url := json.loads(state_file.read_text(encoding="utf-8"))["url"]:
                return url
        time.sleep(0.2)
    raise RuntimeError(f"the run did not start:\n{log.read_text(errors='replace')[-3000:]}")


def measure(url: str, patches: int, seconds: float) -> Json:
    """All figures of a run that trains."""
    caller, feed = Caller(url), Feed(url)
    feed.start()
    feed.wait_for_steps(3)
    cores = os.cpu_count() or 1
    return {
        "command": shlex.join(["python", "-m", "benchmarks.steering", *sys.argv[1:]]),
        "measured_at": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "machine": {"cores": cores, "load_1min": round(os.getloadavg()[0], 2)},
        "status": look(caller, feed, seconds),
        "steering": steer(caller, feed, patches),
        "step_s": round(caller.call("GET", "/v1/status")["last_step"]["step_s"], 3),
    }


def main() -> None:
    """Measure, print, and write the figures down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="of the control plane of a run that trains; without it one is started")
    parser.add_argument("--run-file", type=Path, default=RUN_FILE, help="the run that is started")
    parser.add_argument("--patches", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=30.0, help="how long the status is asked for")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    with contextlib.nullcontext(asked.url) if asked.url else running(asked.run_file) as url:
        figures = measure(url, asked.patches, asked.seconds)
    asked.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    status, steering = figures["status"], figures["steering"]
    under_old = steering["steps_that_ended_under_the_old_revision"]
    print(f"GET /v1/status: {status['ms']} ms over {status['calls']} calls and {status['steps_meanwhile']} steps")
    print(f"PATCH answered in {steering['answered_ms']} ms, in force after {steering['in_force_ms']} ms;")
    print(
        f"steps that still ended under the old revision: {under_old['mean']:.2f} on average, {under_old['max']} at most"
    )


if __name__ == "__main__":
    main()
