"""Trackers on a real Redis: event files read back by TensorBoard's own reader, restarts, full disks, W&B's port."""

from __future__ import annotations

import asyncio
import resource
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from control_bench import Bench, opened
from control_process import ControlProcess
from pretended_run import PretendedRun
from redis_process import RedisProcess
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util.tensor_util import make_ndarray

from common.events import EventKind
from services.control.trackers.event_files import EventFiles
from services.control.trackers.port import Place, Row, Tracker
from services.control.trackers.recording import Recording, chosen_trackers
from services.control.trackers.weights_and_biases import WeightsAndBiases

ROW = Row(step=1, at_s=5.0, scalars={"train/loss": 0.5})


@pytest_asyncio.fixture
async def bench(redis_server: RedisProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    # No test waits for the pace of a real run.
    monkeypatch.setattr("services.control.trackers.recording.PACE_S", 0.01)
    monkeypatch.setattr("services.control.trackers.recording.AGAIN_S", 0.01)
    async with opened(tmp_path) as bench:
        yield bench


@pytest.fixture
def small_files() -> Iterator[Callable[[int | None], None]]:
    """Has the system refuse files beyond a size, after it took the part that fits: as a disk does that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size_bytes: int | None) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft if size_bytes is None else size_bytes, hard))

    yield limit
    limit(None)


def shown(directory: Path) -> list[tuple[str, int, Any]]:
    """(name, step, value) of everything that TensorBoard would show, in the order of the files."""
    rows: list[tuple[str, int, Any]] = []
    for path in sorted(directory.glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                told = make_ndarray(value.tensor)
                rows.append((value.tag, event.step, told.item() if told.dtype != object else told[0].decode()))
    return rows


async def until(condition: Callable[[], bool], limit_s: float = 20) -> None:
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not come about"
        await asyncio.sleep(0.01)


async def record(bench: Bench, tracker: Tracker, until_: Callable[[], bool] | None = None) -> None:
    """Follow the log until a condition holds; then stop, which writes what is left."""
    recording = asyncio.create_task(Recording(bench.process, bench.control, tracker).follow())
    if until_ is not None:
        await until(until_)
    bench.process.stop.set()
    bench.control.chronicle.wake()
    await asyncio.wait_for(recording, 20)
    bench.process.stop.clear()


async def test_tensorboard_shows_steps_evaluations_generators_and_revisions(bench: Bench, tmp_path: Path) -> None:
    run = PretendedRun(bench.process.redis, "test")
    for _ in range(10):
        await run.advance(time.time())
    await bench.http.patch("/v1/config", params={"reason": "γ"}, json={"publish_every": 2})
    publication = {"version": 4, "step": 7, "kind": "delta", "base": 3, "bytes": 1000, "seconds": 0.25, "changed": None}
    await bench.process.events.append(EventKind.PUBLICATION, publication, at_s=1.0)
    await bench.http.post("/v1/learner/pause")
    (tracker,) = chosen_trackers(bench.process.settings)
    await record(bench, tracker)
    rows = shown(tmp_path / "run" / "tensorboard")
    names = {name for name, _, _ in rows}
    assert [step for name, step, _ in rows if name == "train/reward"] == list(range(1, 11))
    assert {"train/tokens_per_s", "time/step_s", "ratio/policy", "generators/generator-1/tokens_per_s"} <= names
    assert [step for name, step, _ in rows if name == "heldout/hard/accuracy"] == [10]
    assert ("publication/bytes", 7, 1000.0) in rows
    assert "train/step" not in names
    notes = [value for name, _, value in rows if name == "revision"]
    assert notes == ["revision 1 by run file", "revision 2 by operator: γ\n- publish_every: 1 → 2"]
    assert ("order", 10, "pause learner, by operator") in rows


async def test_after_a_restart_it_goes_on_without_a_gap_and_without_a_point_twice(bench: Bench, tmp_path: Path) -> None:
    run, directory = PretendedRun(bench.process.redis, "test"), tmp_path / "tensorboard"
    for _ in range(3):
        for _ in range(5):
            await run.advance(time.time())
        await record(bench, EventFiles(directory))
    assert [step for name, step, _ in shown(directory) if name == "train/loss"] == list(range(1, 16))
    assert len(list(directory.glob("events.out*"))) == 1


def test_what_a_crash_left_behind_the_place_is_cut_off(tmp_path: Path) -> None:
    first = EventFiles(tmp_path)
    first.resume()
    first.write([ROW], Place("1-1", 1))
    (path,) = tmp_path.glob("events.out*")
    remembered, place = path.read_bytes(), (tmp_path / "place.json").read_bytes()
    first.write([ROW, ROW], Place("2-2", 2))
    first.close()
    # Killed in the middle of the second write, before its place was saved.
    (tmp_path / "place.json").write_bytes(place)
    path.write_bytes(path.read_bytes()[:-5])
    second = EventFiles(tmp_path)
    assert second.resume().after == "1-1"
    assert path.read_bytes() == remembered
    second.write([Row(2, 6.0, {"train/loss": 0.25})], Place("2-2", 2))
    second.close()
    assert shown(tmp_path) == [("train/loss", 1, 0.5), ("train/loss", 2, 0.25)]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"after": "5-5"}'])
def test_a_damaged_place_begins_at_the_start_in_a_new_file(tmp_path: Path, damage: str) -> None:
    (tmp_path / "place.json").write_text(damage)
    tracker = EventFiles(tmp_path)
    assert tracker.resume() == Place()
    tracker.write([ROW], Place("1-1", 1))
    tracker.close()
    assert shown(tmp_path) == [("train/loss", 1, 0.5)]


async def test_a_disk_that_takes_no_more_is_said_once_and_nothing_is_lost(
    bench: Bench, tmp_path: Path, small_files: Callable[[int | None], None]
) -> None:
    run, directory = PretendedRun(bench.process.redis, "test"), tmp_path / "tensorboard"
    for _ in range(5):
        await run.advance(time.time())
    small_files(2000)
    recording = asyncio.create_task(record(bench, EventFiles(directory), lambda: len(shown(directory)) > 9))
    failures = bench.control.metrics.tracker_failures.labels("tensorboard")
    await until(lambda: failures._value.get() > 3)
    assert shown(directory) == []
    assert (await bench.http.get("/v1/status")).status_code == 200
    assert "File too large" in bench.process.heartbeat()["trackers"]["tensorboard"]
    small_files(None)
    await recording
    assert [step for name, step, _ in shown(directory) if name == "train/loss"] == list(range(1, 6))
    notices = [e.data["text"] for e in await bench.process.events.read() if e.kind is EventKind.NOTICE]
    assert ["does not take" in text for text in notices] == [True, False]
    assert bench.process.heartbeat()["trackers"]["tensorboard"] == ""


async def test_a_directory_that_cannot_be_made_does_not_disturb_the_control_plane(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    await record(
        bench,
        EventFiles(tmp_path / "file" / "tensorboard"),
        lambda: "trackers" in bench.process.details,
    )
    assert "Not a directory" in bench.process.details["trackers"]["tensorboard"]


async def test_an_event_of_another_form_is_passed_over(bench: Bench, tmp_path: Path) -> None:
    for data in ({"revision": 2, "changes": [1]}, {"revision": 3, "changes": 5}, {"step": "x"}):
        for kind in (EventKind.REVISION, EventKind.STEP, EventKind.EVALUATION):
            await bench.process.events.append(kind, data, at_s=1.0)
    await bench.process.events.append(EventKind.STEP, {"step": 1, "loss": 0.5}, at_s=1.0)
    await record(bench, EventFiles(tmp_path / "tensorboard"))
    assert ("train/loss", 1, 0.5) in shown(tmp_path / "tensorboard")


@pytest.mark.system
def test_a_control_plane_that_is_stopped_has_written_everything(redis_server: RedisProcess, tmp_path: Path) -> None:
    control = ControlProcess(tmp_path, redis_server.url).wait_until_up()
    try:
        httpx.patch(f"{control.url}/v1/config", json={"publish_every": 2}, timeout=10)
    finally:
        took_s = control.stop()
    notes = [value for name, _, value in shown(tmp_path / "run" / "tensorboard") if name == "revision"]
    assert notes[1] == "revision 2 by operator\n- publish_every: 1 → 2"
    assert took_s < 5


class PretendedWandbRun:
    """What an open run of the wandb package takes."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.axes: list[tuple[str, str | None]] = []
        self.finished = False

    def define_metric(self, name: str, step_metric: str | None = None, hidden: bool = False) -> None:
        self.axes.append((name, step_metric))

    def log(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def finish(self) -> None:
        self.finished = True


async def test_weights_and_biases_gets_the_same_rows_and_the_same_run_after_a_restart(bench: Bench) -> None:
    opened_runs: list[tuple[str, PretendedWandbRun]] = []

    def open_run(settings: Any, run_id: str) -> PretendedWandbRun:
        opened_runs.append((run_id, PretendedWandbRun()))
        return opened_runs[-1][1]

    run = PretendedRun(bench.process.redis, "test")
    for _ in range(2):
        await run.advance(time.time())
        await run.advance(time.time())
        await record(bench, WeightsAndBiases(bench.process.settings, open_run))
    (first_id, first), (second_id, second) = opened_runs
    assert first_id == second_id
    assert first.axes == [("step", None), ("*", "step")]
    assert (first.finished, second.finished) == (True, True)
    steps = [[row["step"] for row in r.rows if "train/loss" in row] for r in (first, second)]
    assert steps == [[1, 2], [3, 4]]
    assert first.rows[0]["notes/revision"] == "revision 1 by run file"


async def test_without_the_wandb_package_one_line_says_what_to_do_and_the_rest_goes_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    settings = bench.process.settings
    trackers = settings.trackers.model_copy(update={"wandb_project": "reasoning"})
    asked = settings.model_copy(update={"trackers": trackers})
    names = [tracker.name for tracker in chosen_trackers(asked)]
    assert names == ["tensorboard", "wandb"]
    await record(bench, WeightsAndBiases(asked), lambda: "trackers" in bench.process.details)
    said = [r.message for r in caplog.records if r.levelname == "ERROR"]
    assert len(said) == 1
    assert 'pip install "tributary[wandb]"' in said[0]
    assert (await bench.http.get("/healthz")).status_code == 200


class Hung:
    """A tracker whose network never answers."""

    name = "hung"

    def resume(self) -> Place:
        time.sleep(3600)
        return Place()

    def write(self, rows: Any, place: Place) -> None: ...

    def close(self) -> None: ...


async def test_a_tracker_that_never_answers_is_said_and_can_be_left(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.control.trackers.recording.LATE_S", 0.05)
    recording = asyncio.create_task(Recording(bench.process, bench.control, Hung()).follow())
    await until(lambda: "trackers" in bench.process.details)
    assert "has not answered" in bench.process.details["trackers"]["hung"]
    assert (await bench.http.get("/v1/status")).status_code == 200
    recording.cancel()
    with pytest.raises(asyncio.CancelledError):
        await recording
