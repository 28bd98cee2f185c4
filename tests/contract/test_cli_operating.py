"""The commands that order, try, look into and teach, against a real control plane and a learner that answers."""

from __future__ import annotations

import asyncio
import io
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import RUN, Run, begin, runner
from control_process import ControlProcess
from pretended_run import PretendedRun
from redis import Redis
from redis_process import RedisProcess
from tiny_tokenizer import write_tokenizer

from common import connection
from common.additions import Additions, AdditionState, AdditionVerdict
from common.examined import Examined, ExaminedGroup, ExaminedTrajectory
from common.keys import Keys
from common.orders import Orders
from common.trials import Trials

KEYS = Keys(RUN)
FINDING: dict[str, Any] = {
    "algorithm": "luffy",
    "loss": -0.25,
    "terms": {"policy": -0.25},
    "gradient_weight": {"policy": 0.5},
    "pull": {"policy": 0.5},
    "entropy": 0.8,
    "ratio": {"policy": 1.0},
    "effective_sample_size": {"policy": 0.97},
    "clip_fraction": {"policy": 0.0},
    "cosine": 1.0,
    "tokens": 100,
    "trajectories": 8,
    "missing_trajectories": 0,
    "notes": [],
}


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    """One Redis for all of them."""
    server = RedisProcess(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def lasting_control(redis: RedisProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlProcess]:
    """One control plane for all of them, since starting it takes seconds."""
    directory = tmp_path_factory.mktemp("control")
    write_tokenizer(directory / "m")
    process = ControlProcess(directory, redis.url).wait_until_up()
    yield process
    process.stop()


@pytest.fixture
def run(
    lasting_control: ControlProcess,
    redis: RedisProcess,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Runs a command line against a run that has only its first revision."""
    begin(redis.url)
    return runner(lasting_control.url, monkeypatch, capsys)


class Workers:
    """Learner and curriculum in a thread: they beat, answer trials, write checkpoints and judge additions."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._work()))

    def __enter__(self) -> Workers:
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._stop.set()
        self._thread.join()

    async def _work(self) -> None:
        client: Any = connection.connect(self._url)
        pretended, trials, additions = PretendedRun(client, RUN), Trials(client, KEYS), Additions(client, KEYS)
        await pretended.advance(time.time())
        while not self._stop.is_set():
            standing = await Orders(client, KEYS).standing()
            beat = json.loads(await client.hget(KEYS.processes, "learner"))
            beat |= {"at_s": time.time(), "checkpoint_order": standing.checkpoints, "checkpoint_step": 1}
            await client.hset(KEYS.processes, "learner", json.dumps(beat))
            for waiting in await trials.waiting():
                assert waiting.trial is not None
                found = [{"label": c.label, "finding": FINDING, "problem": ""} for c in waiting.trial.candidates]
                told = {"step": 2, "revision": 1, "seconds": 0.1, "active": FINDING, "candidates": found}
                await trials.answer(waiting, told)
            for addition in await additions.newest():
                is_right = "42" in addition.text
                verdict = AdditionVerdict(AdditionState.IN_USE, reward=1.0)
                wrong = AdditionVerdict(AdditionState.REFUSED, "graded 0: it is wrong", 0.0)
                await additions.judge(addition.addition_id, verdict if is_right else wrong)
            await asyncio.sleep(0.02)
        await client.aclose()


@pytest.fixture
def workers(run: Run, redis: RedisProcess) -> Iterator[Workers]:
    """A learner and a curriculum that do as they are told, from after the run has begun."""
    with Workers(redis.url) as workers:
        yield workers


def test_a_switch_can_be_tried_without_being_made(run: Run, workers: Workers) -> None:
    code, out, _ = run("switch", "luffy", "--gamma", "0.3", "--dry-run")
    assert code == 0
    assert "luffy --gamma 0.3" in out
    assert "luffy --gamma 0.3 changes algorithm dr_grpo → luffy, hints none → demonstration" in out
    assert "cosine with the active gradient" in out
    assert json.loads(run("config", "get", "--json")[1])["revision"] == 1


def test_several_changes_can_be_tried_at_once_and_the_answer_read_again(run: Run, workers: Workers) -> None:
    code, out, _ = run("config", "dry-run", "algorithm.clip_high=0.3", "or", "optimizer.learning_rate=1e-5", "--json")
    document = json.loads(out)
    labels = [candidate["label"] for candidate in document["candidates"]]
    assert (code, labels) == (0, ["algorithm.clip_high=0.3", "optimizer.learning_rate=1e-5"])
    code, out, _ = run("config", "dry-run", "--id", document["id"])
    assert (code, "optimizer.learning_rate=1e-5" in out) == (0, True)


def test_a_dry_run_that_is_not_answered_in_time_says_how_to_see_it_later_and_exits_with_3(run: Run) -> None:
    code, out, _ = run("config", "dry-run", "groups_per_step=8", "--wait", "0")
    assert code == 3
    assert out.startswith("no learner is alive; see its answer later with: tributary config dry-run --id ")
    assert run("config", "dry-run", "--id", out.split()[-1])[0] == 3


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["config", "dry-run"], "name either changes to try"),
        (["config", "dry-run", "groups_per_step=0"], "candidates.0.patch.groups_per_step: "),
        (["config", "dry-run", "--id", "0123456789abcdef"], "there is no dry run 0123456789abcdef"),
        (["config", "history", "7"], "there is no revision 7"),
        (["generators", "drain", "generator-9"], "there is no generator 'generator-9'"),
        (["generators", "--run", "elsewhere", "drain", "generator-1"], "--run and --url stand at the end"),
        (["generators", "--url", "http://127.0.0.1:1", "drain", "generator-1"], "--run and --url stand at the end"),
        (["groups", "1-0"], "no group 1-0 is kept"),
        (["groups", "newest"], "no group is kept"),
        (["demonstrate", "train:1"], "give the answer either as TEXT or with --file"),
        (["demonstrate", "train:1", "--file", "nowhere"], "cannot read nowhere: No such file"),
        (["demonstrate", "prompt", "42"], "there is no training prompt 'prompt'"),
        (["demonstrations", "1-0"], "no demonstration 1-0 was added"),
    ],
)
def test_what_cannot_be_done_is_a_sentence_or_a_problem_document_and_exit_code_2(
    run: Run, words: list[str], complaint: str
) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err.startswith("tributary: ")
    assert complaint in err
    code, out, err = run(*words, "--json")
    problem = json.loads(err)
    assert (code, out, problem["exit_code"]) == (2, "", 2)
    assert complaint in problem["detail"]


def test_a_command_line_that_cannot_be_read_is_a_problem_document_too(run: Run) -> None:
    code, _, err = run("config", "history", "--limit", "many", "--json")
    assert code == 2
    assert "valid integer" in json.loads(err)["detail"]


def test_the_learner_pauses_resumes_and_writes_checkpoints(run: Run, workers: Workers) -> None:
    assert run("pause")[:2] == (0, "the learner pauses at its next step boundary; it goes on with: tributary resume\n")
    assert run("pause")[1].startswith("nothing to change: ")
    assert "paused by " in run("status")[1]
    assert run("checkpoint")[:2] == (0, "the checkpoint of step 1 is written\n")
    assert json.loads(run("resume", "--json")[1])["paused"] is None
    assert "paused" not in run("status")[1]


def test_a_pause_of_a_learner_that_is_away_says_so(run: Run) -> None:
    assert run("pause")[1].endswith("tributary resume (no learner is alive now)\n")


def test_a_checkpoint_that_nobody_writes_stays_ordered_and_exits_with_3(run: Run) -> None:
    code, out, _ = run("checkpoint", "--wait", "0")
    assert (code, out) == (3, "it is ordered, but no learner is alive to make it now\n")


def test_generators_are_listed_drained_and_admitted(run: Run, workers: Workers) -> None:
    code, out, _ = run("generators", "drain", "generator-2")
    assert (code, out.split(";")[0]) == (0, "generator-2 takes no more requests")
    (line,) = [line for line in run("generators")[1].splitlines() if "generator-2" in line]
    assert "running, draining by " in line
    assert "running, drained" in run("status")[1]
    assert run("generators", "admit", "generator-2")[:2] == (0, "generator-2 takes requests again\n")
    document = json.loads(run("generators", "--json")[1])
    assert [g["drain"] for g in document["generators"]] == ["admitted", "admitted"]


def keep_group(redis_url: str) -> None:
    """Have the learner look at one group: a rollout of the prompt, and a demonstration that was not used."""

    def numbers(*values: float) -> Any:
        return np.array(values, "<f4")

    nan = float("nan")

    def trajectory(source: int, advantage: float | None, version: int) -> ExaminedTrajectory:
        known = version >= 0
        return ExaminedTrajectory(
            tokens=np.array([5, 6, 7], "<i4"),
            sources=np.array([0, source, source], "<u1"),
            versions=np.array([-1, version, version], "<i4"),
            behaviour_logprobs=numbers(nan, *(2 * [-0.5 if known else nan])),
            expert_logprobs=numbers(nan, nan, nan),
            policy_logprobs=numbers(nan, -0.5, -0.25),
            ratios=numbers(nan, 1.0, 1.25),
            advantage=advantage,
            reward=1.0,
            reward_parts={},
        )

    group = ExaminedGroup(
        "train:17:1",
        "train:17",
        "generator-1",
        3,
        1,
        2,
        "dr_grpo",
        0.0,
        (trajectory(1, 0.5, 2), trajectory(3, None, -1)),
    )

    async def keep() -> None:
        client = connection.connect(redis_url)
        await Examined(client, KEYS).keep(group)
        await client.aclose()

    asyncio.run(keep())


def test_groups_are_listed_and_shown_token_by_token(run: Run, redis: RedisProcess) -> None:
    assert run("groups")[1].startswith("no group is kept: ")
    keep_group(redis.url)
    out = run("groups")[1]
    assert "train:17" in out
    assert "1 rollout, 1 demonstration" in out
    code, out, _ = run("groups", "newest", "--prompt", "train:17")
    assert code == 0
    for words in ("group train:17:1", "1  rollout · reward 1 · advantage +0.500 · 2 tokens · version 2", "[policy] "):
        assert words in out
    assert "2  demonstration · reward 1 · not used by the algorithm" in out
    assert "[version 2]" in run("groups", "newest", "--by", "version")[1]
    assert "1.2500" in run("groups", "newest", "--member", "1")[1]
    assert run("groups", "newest", "--member", "3")[0] == 2
    assert json.loads(run("groups", "newest", "--json")[1])["trajectories"][0]["tokens"]["version"] == [None, 2, 2]
    assert json.loads(run("groups", "--prompt", "train:1", "--json")[1])["groups"] == []


def test_prompts_are_listed_hardest_first(run: Run, redis: RedisProcess) -> None:
    with Redis.from_url(redis.url) as client:
        client.hset(KEYS.prompts, "train:0", json.dumps({"attempts": 16, "solved": 4, "last": 0.5}))
        client.hset(KEYS.prompts, "train:1", json.dumps({"attempts": 8, "solved": 0, "last": 0.0}))
        client.hset(KEYS.prompt_texts, "train:1", "2+2=\x1b[31m")
    out = run("prompts")[1]
    assert out.index("train:1") < out.index("train:0")
    assert "2+2=\\x1b[31m" in out
    assert "2 of 2; help one with" in out
    for words in (["--solve-rate", "0"], ["--at-most", "0.1"]):
        assert [p["prompt_id"] for p in json.loads(run("prompts", *words, "--json")[1])["prompts"]] == ["train:1"]
    assert json.loads(run("prompts", "--min-attempts", "9", "--json")[1])["total"] == 1


def test_a_demonstration_is_added_and_what_became_of_it_is_told(
    run: Run, workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("demonstrate", "train:1", "it is 42")[:2] == (
        0,
        "in use (graded 1): the next request of train:1 has it\n",
    )
    (tmp_path / "answer").write_text("it is 41")
    code, out, _ = run("demonstrate", "train:1", "--file", str(tmp_path / "answer"))
    assert (code, out) == (1, "refused: graded 0: it is wrong\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO("6 * 7 = 42"))
    assert run("demonstrate", "train:2", "--file", "-")[0] == 0
    out = run("demonstrations")[1]
    assert out.index("train:2") < out.index("graded 0: it is wrong")
    newest = json.loads(run("demonstrations", "--json")[1])["demonstrations"][0]
    assert run("demonstrations", newest["id"])[1].endswith("\n\n6 * 7 = 42\n")


def test_a_demonstration_that_nobody_has_graded_yet_exits_with_3(run: Run) -> None:
    code, out, _ = run("demonstrate", "train:1", "42", "--wait", "0")
    assert code == 3
    assert out.startswith("it waits for its grade; see what becomes of it with: tributary demonstrations ")
    assert run("demonstrations", out.split()[-1])[0] == 0


def test_quarantine_tells_what_was_put_aside_and_why(run: Run, redis: RedisProcess) -> None:
    assert run("quarantine")[:2] == (0, "nothing is in quarantine\n")
    with Redis.from_url(redis.url) as client:
        told: Any = {"stream": "groups", "reason": "not\x1b[31m a group", "by": "learner", "id": "g", "payload": "xx"}
        client.xadd(KEYS.quarantine, told)
    out = run("quarantine")[1]
    assert "not\\x1b[31m a group" in out
    assert "1 of 1" in out
    assert json.loads(run("quarantine", "--json")[1])["messages"][0]["by"] == "learner"


def test_one_revision_is_shown_with_who_what_where_and_the_figures_around_it(run: Run, redis: RedisProcess) -> None:
    asyncio.run(_advance(redis.url, 3))
    assert run("config", "set", "groups_per_step=8", "-m", "smaller steps")[0] == 0
    out = run("config", "history", "2")[1]
    for words in ("smaller steps", "from 127.0.0.1", "groups_per_step", "nowhere yet", "no figures around it"):
        assert words in out
    asyncio.run(_advance(redis.url, 4, 3))
    deadline_s = time.monotonic() + 10
    while "3 steps before" not in (out := run("config", "history", "2")[1]) or "4 steps from then on" not in out:
        assert time.monotonic() < deadline_s, out
    for words in ("learner (step 3)", "reward", "effective sample size", "grad norm"):
        assert words in out
    assert json.loads(run("config", "history", "2", "--json")[1])["steps_before"] == 3


async def _advance(redis_url: str, steps: int, done: int = 0) -> None:
    client = connection.connect(redis_url)
    pretended = PretendedRun(client, RUN)
    pretended.step = done
    for _ in range(steps):
        await pretended.advance(time.time())
    await client.aclose()
