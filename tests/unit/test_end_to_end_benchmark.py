"""What the end-to-end comparison counts, worked by hand."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from benchmarks import _end_to_end_report as report
from benchmarks import end_to_end
from benchmarks._end_to_end_alone import Alone
from benchmarks._end_to_end_box import Failed, Server, commit, redis_server
from benchmarks._end_to_end_cell import GROUPS, ROLLOUTS, Cell, Lengths, Step, Training, trained_tokens
from benchmarks._end_to_end_plan import PLANS
from benchmarks._end_to_end_run import SPARE_STEPS, Event, Tuning, Watched, account, is_over, thinned, watch
from benchmarks._end_to_end_task import WORKLOADS, exercises, grade, response
from common.keys import Keys
from common.trajectory import Finish, Group, Source, Trajectory, VersionSpan
from common.wire import encode_group

CELL = Cell("equal", "0.3M", Path("base"), Path("data"), steps=2, rate=1e-4, save_every=1, seed=0)


def _group(number: int, rewards: list[float], *, version: int = 0, response_tokens: int = 5) -> bytes:
    sources = np.array([Source.PROMPT] * 2 + [Source.POLICY] * response_tokens, np.uint8)
    length = len(sources)
    members = tuple(
        Trajectory(
            tokens=np.arange(length, dtype=np.int32),
            sources=sources,
            behaviour_logprobs=np.zeros(length, np.float32),
            reward=reward,
            finish=Finish.STOP,
            versions=(VersionSpan(version, 2, length),),
        )
        for reward in rewards
    )
    return encode_group(Group(f"g{number}", f"p{number}", 1, "generator-1", members))


def test_tokens_of_groups_whose_rewards_are_equal_reach_no_gradient() -> None:
    assert trained_tokens([1.0, 0.0, 1.0, 1.0, 0.0, 0.0], [3, 4, 5, 6, 7, 8], rollouts=2) == (7, 2)


def test_a_step_is_made_of_the_next_groups_of_the_stream_without_the_stale_ones() -> None:
    mixed, flat = [1.0] + [0.0] * (ROLLOUTS - 1), [0.0] * ROLLOUTS
    first = [_group(i, mixed if i else flat) for i in range(GROUPS)]
    stale = _group(100, mixed, version=0, response_tokens=50)
    second = [_group(200 + i, mixed, version=1) for i in range(GROUPS)]
    share = 1 / ROLLOUTS
    told = [{"step": 1, "reward": share * (GROUPS - 1) / GROUPS, "updated": True, "version": 1}]
    told += [{"step": 2, "reward": share, "updated": False, "version": 2}]
    events = [("step", 10.0 + number, data) for number, data in enumerate(told)]
    steps, lengths = account(CELL, Tuning(max_staleness=0), Watched(8.0, events, [*first, stale, *second], {}))
    assert [step.trained for step in steps] == [5 * ROLLOUTS * (GROUPS - 1), 0]  # nothing of a step without an update
    assert [step.tokens for step in steps] == [5 * ROLLOUTS * GROUPS] * 2
    assert [step.flat_groups for step in steps] == [1, 0]
    assert [step.at_s for step in steps] == [2.0, 3.0]
    assert lengths.longest == 5


def test_rates_count_from_the_start_of_training() -> None:
    steps = [Step(n, at_s=2.0 * n, tokens=100, trained=50, groups=16, flat_groups=0, reward=0.5) for n in range(1, 5)]
    training = Training("tributary", 9.0, steps, Lengths.of([1, 2, 3]), {}, {}, {})
    assert training.trained_per_s == pytest.approx(200 / 8)
    assert training.tokens_per_s == pytest.approx(400 / 8)
    assert training.steady_tokens_per_s == pytest.approx(200 / 4)


@pytest.mark.parametrize("passes", [1, 2, 5])
def test_the_right_procedure_is_right_and_forgetting_carries_is_not(passes: int) -> None:
    for exercise in exercises("test", 50):
        answer = exercise.row["answer"]
        assert answer is not None
        assert grade(response(exercise.problem, carries=True, passes=passes), answer) == 1.0
        assert grade(response(exercise.problem, carries=False, passes=passes), answer) == 0.0


def test_the_long_tail_has_a_median_of_a_quarter_of_its_longest_at_most() -> None:
    tail, rng, problem = WORKLOADS["tail"], random.Random(0), exercises("test", 1)[0].problem
    passes = [tail.draw_passes(rng) for _ in range(5000)]
    lengths = Lengths.of([len(response(problem, carries=True, passes=n)) + 1 for n in passes])
    assert lengths.median <= lengths.longest / 4
    assert lengths.longest <= tail.longest


def _cell(steps: int, save_every: int) -> Cell:
    return Cell("equal", "0.3M", Path("base"), Path("data"), steps, rate=1e-4, save_every=save_every, seed=0)


def test_weights_are_kept_after_other_steps_too_and_thinned_to_about_the_interval() -> None:
    def kept(*steps: int, save_every: int = 2) -> list[int]:
        return list(thinned({step: Path(str(step)) for step in steps}, _cell(8, save_every)))

    assert kept(*range(1, 12)) == [2, 4, 6, 8]  # those of the other side, and nothing after the last that counts
    assert kept(1, 2, 3, 5, 7, 9) == [2, 3, 5, 7]  # after a step without an update anchors fall on odd steps
    assert kept(*range(1, 9), save_every=3) == [3, 6, 8]
    assert thinned({5: Path("five")}, _cell(8, 2)) == {5: Path("five")}


def _told(*updated: bool, published: int) -> list[Event]:
    steps: list[Event] = [("step", 0.0, {"step": n, "updated": changed}) for n, changed in enumerate(updated, 1)]
    return [*steps, ("publication", 0.0, {"step": published, "version": 1})]


def test_a_run_is_over_when_the_weights_after_the_last_update_that_counts_are_published() -> None:
    assert is_over(_told(True, True, published=2), 2)
    assert not is_over(_told(True, True, published=1), 2)
    assert not is_over(_told(True, published=2), 2)  # told before its step
    assert is_over(_told(True, False, published=1), 2)
    assert not is_over(_told(False, True, False, published=1), 3)


def test_a_run_is_over_after_its_spare_steps_whatever_was_published() -> None:
    assert not is_over(_told(*[True] * (1 + SPARE_STEPS), published=1), 2)
    assert is_over(_told(*[True] * (2 + SPARE_STEPS), published=1), 2)


def test_a_run_whose_last_steps_change_nothing_is_watched_to_its_end_and_redis_is_counted(tmp_path: Path) -> None:
    keys = Keys("watched")
    with redis_server(tmp_path / "redis") as server:
        client = redis.Redis.from_url(server.url)
        client.xgroup_create(keys.requests, "generators", mkstream=True)
        client.xadd(keys.requests, {"payload": b"request"})
        client.xreadgroup("generators", "one", {keys.requests: ">"})
        for kind, at_s, data in _told(True, *[False] * (1 + SPARE_STEPS), published=1):
            client.xadd(keys.events, {"kind": kind, "at": str(at_s), "data": json.dumps(data)})
        client.xadd(keys.groups, {"payload": b"group"})
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as up:
            watched = watch(up, server, keys, 2, limit_s=5.0, told=tmp_path / "up.jsonl")
    assert [step["updated"] for step in watched.told("step")][:2] == [True, False]
    assert watched.groups == [b"group"]
    assert {"redis", "up"} <= watched.cpu_s.keys()


def _training(side: str, *, trained: int, tokens: int) -> Training:
    steps = [Step(n, float(n), tokens, trained, groups=16, flat_groups=0, reward=0.5) for n in (1, 2)]
    notes: dict[str, Any] = {"version": "1.0", "learner_step_means": {"step_s": 1.0}, "staleness_mean": 1.0}
    notes |= {"tuning": {"requests_in_flight": 7}, "stale_groups_dropped": 0, "versions_applied": 2}
    cpu_s = {"learner": 1.0, "redis": 0.5}
    return Training(side, 3.0, steps, Lengths.of([5]), {}, cpu_s, notes | {"engine_pause_ms_mean": 1.0})


def test_either_side_begins_in_turn_and_our_halves_are_measured_around_our_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def trl(*_: Any) -> Training:
        order.append("trl")
        return _training("trl", trained=50, tokens=100)

    def ours(*_: Any) -> tuple[Training, list[bytes]]:
        order.append("tributary")
        return _training("tributary", trained=60, tokens=90), [b"group"]

    def generator(*_: Any) -> Alone:
        order.append("generator")
        return Alone(180.0, 360, 2.0, {})

    def learner(*arguments: Any) -> Alone:
        assert arguments[4] == [b"group"]
        order.append("learner")
        return Alone(100.0, 200, 2.0, {})

    monkeypatch.setattr(end_to_end, "train_with_trl", trl)
    monkeypatch.setattr(end_to_end, "train", ours)
    monkeypatch.setattr(end_to_end, "generator_alone", generator)
    monkeypatch.setattr(end_to_end, "learner_alone", learner)
    server, asked = Server("redis://nowhere", 1), end_to_end.parse([])
    compared = end_to_end.Comparison(asked, server, "python")
    turns = [compared.turn(CELL, PLANS[0], tmp_path, number) for number in (1, 2, 3)]
    us = ["generator", "tributary", "learner"]
    assert order == ["trl", *us, *us, "trl", "trl", *us]
    assert [turn.first for turn in turns] == ["trl", "tributary", "trl"]
    assert all(list(turn.found) == ["trl", "tributary"] for turn in turns)
    assert turns[0].efficiency == pytest.approx({"whole": 0.9, "after_the_first_quarter": 0.9})
    assert (turns[1].ratio, turns[1].token_ratio) == pytest.approx((1.2, 0.9))
    alone = end_to_end.Comparison(asked, server, None).turn(CELL, PLANS[0], tmp_path, 2)
    assert (alone.first, list(alone.found)) == ("tributary", ["tributary"])
    uncalibrated = end_to_end.Comparison(end_to_end.parse(["--no-calibration"]), server, None)
    assert uncalibrated.turn(CELL, PLANS[0], tmp_path, 1).halves == {}


def _document(**more: Any) -> dict[str, Any]:
    sides = {
        side: report.document(
            _training(side, trained=trained, tokens=tokens), {0: 0.3, 1: best, 2: last}, {1: 1.0}, 0.5
        )
        for side, trained, tokens, best, last in (("trl", 50, 100, 0.82, 0.73), ("tributary", 60, 90, 0.75, 0.52))
    }
    about = {"workload": "equal", "size": "0.3M", "parameters": 330_000, "steps": 2, "accuracy": 0.5}
    return about | {"sides": sides} | more


def test_the_page_tells_both_ratios_with_their_spread_both_accuracies_and_the_commit(tmp_path: Path) -> None:
    results = report.Results(tmp_path / "it.json", "measure", quick=False)
    ratios = {"ratios": [1.3, 1.2, 1.1], "token_ratios": [0.95, 0.9, 0.85], "first": ["trl", "tributary", "trl"]}
    efficiencies = [{"whole": whole, "after_the_first_quarter": 0.95} for whole in (0.86, 0.8, 0.9)]
    halves = {f"{half}_alone": {"tokens_per_s": 100.0} for half in ("generator", "learner")}
    measured = ratios | halves | {"efficiencies": efficiencies}
    results.add("equal-0.3M", _document(commit="abc123+", **measured))
    page = (tmp_path / "it.md").read_text(encoding="utf-8")
    assert "| 50 → 60 | **1.20×** (1.10, 1.20, 1.30) | ≥ 1× | 100 → 90 | **0.90×** (0.85, 0.90, 0.95) |" in page
    assert "| 82, 73 % → 75, 52 % |" in page
    assert "at commit abc123+ by `measure`" in page
    assert "begun by TRL, Tributary, TRL" in page
    assert "→ 1.0 s (step 1) | 0.86 (0.95) |" in page
    assert "η of the turns: 0.86 (0.95), 0.80 (0.95), 0.90 (0.95)." in page
    assert "0.75 cores busy; processor seconds: learner 1, redis 0.5" in page


def test_a_cell_without_commit_and_of_one_side_stays(tmp_path: Path) -> None:
    path, old = tmp_path / "it.json", _document()
    del old["sides"]["trl"], old["sides"]["tributary"]["cpu_s"]["redis"]
    report.Results(path, "first", quick=False).add("equal-0.3M", old)
    report.Results(path, "second", quick=False).add("tail-0.3M", _document(workload="tail", commit="abc"))
    assert list(json.loads(path.read_text(encoding="utf-8"))["cells"]) == ["equal-0.3M", "tail-0.3M"]
    page = path.with_suffix(".md").read_text(encoding="utf-8")
    assert "| - → 60 | - | ≥ 1× | - → 90 | - | - → 75, 52 % |" in page
    assert "UTC by `first`" in page
    assert "cores busy (Redis not counted)" in page


@pytest.mark.parametrize("changed", [{"machine": "64 cores (another)"}, {"quick": True}])
def test_results_of_another_machine_or_kind_are_refused_and_left(
    changed: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "it.json"
    report.Results(path, "measure", quick=False).add("equal-0.3M", _document())
    known = json.dumps(json.loads(path.read_text(encoding="utf-8")) | changed)
    path.write_text(known, encoding="utf-8")
    with pytest.raises(Failed, match="--results"):
        report.Results(path, "again", quick=False)
    assert end_to_end.main(["--results", str(path), "--out", str(tmp_path), "--no-trl"]) == 2
    said = capsys.readouterr().err
    assert str(path) in said
    assert said.count("\n") == 1
    assert path.read_text(encoding="utf-8") == known


def test_a_quick_comparison_writes_beside_its_runs_and_not_over_the_published_figures(tmp_path: Path) -> None:
    quick, full = (end_to_end.parse([*words, "--out", str(tmp_path)]) for words in (["--quick"], []))
    assert quick.results == tmp_path / "quick.json"
    assert full.results.parts[-3:] == ("benchmarks", "results", "end_to_end.json")
    assert end_to_end.parse(["--quick", "--results", "mine.json"]).results == Path("mine.json")


def test_the_commit_says_whether_files_differ_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("GIT_")]:  # a hook's: they name another repository
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit(tmp_path) == "unknown"

    def git(*words: str) -> str:
        who = ["-c", "user.name=test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false"]
        run = subprocess.run(["git", "-C", str(tmp_path), *who, *words], capture_output=True, text=True, check=True)
        return run.stdout.strip()

    code, results = tmp_path / "code.py", tmp_path / "benchmarks/results/it.json"
    results.parent.mkdir(parents=True)
    for path in (code, results):
        path.write_text("1\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    results.write_text("2\n")  # what the comparison itself writes between two cells
    assert commit(tmp_path) == git("rev-parse", "--short", "HEAD")
    code.write_text("2\n")
    assert commit(tmp_path) == git("rev-parse", "--short", "HEAD") + "+"


def test_the_published_page_is_that_of_the_published_figures() -> None:
    path = end_to_end.parse([]).results
    known = json.loads(path.read_text(encoding="utf-8"))
    assert path.with_suffix(".md").read_text(encoding="utf-8") == report.page(known)
