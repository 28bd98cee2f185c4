"""Hint schedules, anchors and expert scores on a real Redis: they outlive edits and restarts, and nothing is silent."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis.asyncio import Redis
from redis_process import RedisProcess

from common.expert_scores import ExpertScores, Score
from common.trajectory import Purpose, Request
from common.wire import decode_score_task
from services.curriculum.__main__ import check
from tests.contract.curriculum_rig import LIVE, LUFFY, Bench, running, until, write_run

pytestmark = pytest.mark.asyncio

SENTENCES = "\n".join("abcdefg")  # seven lines of one letter: 13 characters and the end token
BREAD: dict[str, Any] = {**LIVE, "algorithm": {"kind": "bread"}, "hints": {"kind": "branch_on_failure"}}
Benches = Callable[..., Bench]


def uft(**hints: Any) -> dict[str, Any]:
    return {**LIVE, "algorithm": {"kind": "uft"}, "hints": {"kind": "cosine_binomial", **hints}}


@pytest.fixture
def benches(
    tmp_path: Path, redis_server: RedisProcess, client: Callable[[], Redis], monkeypatch: pytest.MonkeyPatch
) -> Benches:
    """Makes the bench of a run whose prompts have these demonstrations."""
    monkeypatch.setenv("REDIS_URL", redis_server.url)

    def make(demonstrations: list[Any], more: str = "", **columns: list[Any]) -> Bench:
        rows = [
            {"prompt": f"{i}+1=", "answer": str(i + 1), "demonstration": text, **{k: v[i] for k, v in columns.items()}}
            for i, text in enumerate(demonstrations)
        ]
        return Bench(client(), write_run(tmp_path, rows, more))

    return make


async def phase_of(bench: Bench, revision: int, at_least: float) -> float:
    """The phase in the heartbeat once a request of `revision` is out and the phase has come so far."""
    async with running(bench) as process:

        async def there() -> bool:
            await bench.next_request(revision)
            schedule = process.details.get("hint_schedule")
            return schedule is not None and schedule["phase"] >= at_least - 1e-9

        await until(there)
        return process.details["hint_schedule"]["phase"]


async def test_a_schedule_follows_the_learner_through_restart_edit_and_absence_without_a_jump(
    benches: Benches,
) -> None:
    bench = benches([SENTENCES] * 9)
    await bench.ask(uft(), 0)
    assert await phase_of(bench, 1, 0.0) == 0.0
    await bench.publish(1, step=60)
    assert await phase_of(bench, 1, 0.2) == pytest.approx(0.2)  # the learner went on while the curriculum was away
    await bench.ask(uft(steps=600), 1)
    assert await phase_of(bench, 2, 0.2) == pytest.approx(0.2)
    await bench.publish(2, step=120)
    assert await phase_of(bench, 2, 0.3) == pytest.approx(0.3)
    await bench.publish(3, step=100)  # a restored learner repeats twenty steps
    assert await phase_of(bench, 2, 0.3) == pytest.approx(0.3)
    await bench.ask(LIVE, 2)
    async with running(bench) as process:
        await bench.next_request(3)
        assert process.details["hint_schedule"] is None
        await bench.publish(4, step=180)
        await bench.next_request(3)
        await bench.next_request(3)
    await bench.ask(uft(steps=600), 3)
    assert await phase_of(bench, 4, 0.3) == pytest.approx(0.3)
    await bench.ask(uft(steps=600, restart=1), 4)
    assert await phase_of(bench, 5, 0.0) == 0.0


async def test_a_schedule_is_seen_in_heartbeat_metrics_and_requests(benches: Benches) -> None:
    bench = benches([SENTENCES] * 9)
    await bench.ask(uft(p_high=1.0, p_low=1.0, steps=10), 0)
    async with running(bench) as process:
        _, request = await bench.next_request(1)
        # p = 1: all five buckets, everything but the end token
        assert (request.plan.plain, request.plan.branched, request.plan.hint_length) == (0, 8, 13)
        assert request.demonstrations[0].boundaries == (2, 4, 6, 8, 10, 12)

        async def shown() -> bool:
            return process.details["hint_schedule"] == {
                "kind": "cosine_binomial",
                "phase": 0.0,
                "p": 1.0,
                "mean_hint_length": 13.0,
            }

        await until(shown)
        gauges = ["tributary_hint_phase", "tributary_hint_p", "tributary_hint_length_mean"]
        assert [process.registry.get_sample_value(name) for name in gauges] == [0.0, 1.0, 13.0]
        await bench.publish(1, step=10)

        async def over() -> bool:
            _, later = await bench.next_request(1)
            return later.plan.branched == 0

        await until(over)
        assert process.details["hint_schedule"]["p"] == 0.0


async def test_an_anchor_comes_back_with_the_next_request_of_its_prompt(benches: Benches) -> None:
    bench = benches([SENTENCES])
    await bench.ask(BREAD, 0)
    async with running(bench):
        entry, first = await bench.next_request(1)
        assert first.search is not None
        assert (first.search.cuts, first.search.members, first.search.anchor) == ((2, 4, 6, 8, 10, 12), 8, None)
        await bench.answer(entry, first, 0.0, hinted_rewards=(1.0, 0.0), probes=2, anchor=6, hint_length=6)

        async def remembered() -> bool:
            record = await bench.redis.hget(bench.keys.prompts, "train:0")
            return record is not None and json.loads(record).get("anchor") == 6

        await until(remembered)
    record = json.loads(await bench.redis.hget(bench.keys.prompts, "train:0"))
    assert (record["attempts"], record["solved"], record["hinted"]) == (8, 0, {"attempts": 2, "solved": 1})

    async def continued() -> bool:
        _, request = await bench.next_request(1)
        return request.search is not None and request.search.anchor == 6

    async with running(bench):
        await until(continued)


async def test_a_hint_policy_that_finds_no_place_to_cut_says_so_once(benches: Benches) -> None:
    bench = benches(["a;b;#1"] * 3)
    await bench.ask(BREAD, 0)
    async with running(bench):
        for _ in range(12):
            _, request = await bench.next_request(1)
            assert (request.plan.plain, request.search) == (8, None)

        async def said() -> bool:
            return bool(await bench.notices())

        await until(said)
        await bench.ask({**BREAD, "hints": {"kind": "branch_on_failure", "cut": "step"}}, 1)
        _, request = await bench.next_request(2)
        assert request.search is not None
        assert request.search.cuts == (2, 4)
    [notice] = await bench.notices()
    assert "can be cut after a sentence inside it (revision 1): set hints.cut to" in notice


BAD = ["a;#1", "", "a<eos>b", "a" * 40, "b;#2"]


async def test_unusable_demonstrations_are_counted_kept_in_quarantine_and_told_once(benches: Benches) -> None:
    bench = benches(BAD)
    await bench.ask({**LUFFY, "hints": {"kind": "demonstration"}}, 0)

    async def facts_and_notices() -> bool:
        await bench.next_request(1)
        return bool(await bench.notices())

    for _ in range(2):  # a restart finds the same ones again, and adds nothing to the quarantine
        async with running(bench) as process:
            await until(facts_and_notices)
            for _ in range(8):
                await bench.next_request(1)
            counts = {
                reason: process.registry.get_sample_value(
                    "tributary_demonstrations_set_aside_total", {"reason": reason}
                )
                for reason in ("empty", "special_tokens", "too_long")
            }
            assert counts == {"empty": 1.0, "special_tokens": 1.0, "too_long": 1.0}
    kept = [fields for _, fields in await bench.redis.xrange(bench.keys.quarantine)]
    assert [(f[b"stream"], f[b"id"]) for f in kept] == [
        (b"demonstrations", b"train:1#0: empty"),
        (b"demonstrations", b"train:2#0: special_tokens"),
        (b"demonstrations", b"train:3#0: too_long for 16"),
    ]
    assert json.loads(kept[1][b"payload"]) == {"demonstration": "a<eos>b", "characters": 7}
    assert (
        await bench.notices()
        == [
            "of the 5 demonstrations in 'train', 3 cannot be used and were set aside: 1 empty, 1 with special tokens "
            "inside, 1 too long. Each is in the quarantine with the reason"
        ]
        * 2
    )
    assert await bench.redis.hget(bench.keys.facts, "train_demonstrations") == b"3"


async def test_recorded_logprobs_travel_with_the_request(benches: Benches) -> None:
    more = '[data.columns]\nexpert_logprobs = "logp"\n[expert]\npolicy = "recorded"\n'
    bench = benches(["ab", "ab"], more, logp=[[-1.0, -2.0, -3.0], [-1.0, -2.0]])
    await bench.ask(LUFFY, 0)
    async with running(bench):
        requests = {}
        while len(requests) < 2:
            _, request = await bench.next_request(1)
            requests[request.prompt_id] = request
    [shown] = requests["train:0"].demonstrations
    assert shown.expert_logprobs is not None
    assert shown.expert_logprobs.tolist() == [-1.0, -2.0, -3.0]
    assert (requests["train:1"].plan.plain, requests["train:1"].demonstrations) == (7, ())
    [(_, kept)] = await bench.redis.xrange(bench.keys.quarantine)
    assert b"it has 2 log-probs for 3 tokens" in kept[b"reason"]


async def test_a_request_waits_until_its_demonstration_is_scored_and_none_is_scored_twice(benches: Benches) -> None:
    bench = benches(["a", "b", "c"], '[expert]\npolicy = "scored"\nmodel = "expert"\n')
    scores = ExpertScores(bench.redis, bench.keys)
    await scores.prepare()
    await bench.ask(LUFFY, 0)
    tasks: list[Any] = []

    async def all_are_asked_for() -> bool:
        tasks.extend(await scores.tasks.take("scorer", 10, 10))
        return len(tasks) == 3

    async def trained() -> list[Request]:
        return [request for _, request in await bench.take() if request.purpose is Purpose.TRAIN]

    async with running(bench) as process:
        await until(lambda: _held_back(process))
        await scores.identify("expert-1")
        await until(all_are_asked_for)
        assert await trained() == []
        for entry in tasks:
            task = decode_score_task(entry.payload)
            known = Score(np.full(len(task.tokens), -0.25, np.float32))
            refused = Score(None, "it is nothing for me")
            assert await scores.answer(entry, task.key, refused if task is tasks[-1] else known)
        got: list[Request] = []

        async def four() -> bool:
            got.extend(await trained())
            return len(got) == 4

        await until(four)
        assert not process.details["waiting_for_scores"]
        assert await bench.delivery.outstanding() == 4
    first = got[0].demonstrations[0].expert_logprobs
    assert first is not None
    assert first.tolist() == [-0.25, -0.25]
    async with running(bench):
        await bench.delivery.settle([r.request_id for r in got])
        got.clear()
        await until(four)
    assert await scores.tasks.length() == 0


async def _held_back(process: Any) -> bool:
    return bool(process.details.get("waiting_for_scores"))


async def test_the_check_says_what_would_be_set_aside(benches: Benches, capsys: pytest.CaptureFixture[str]) -> None:
    bench = benches(BAD, '[live]\n[live.algorithm]\nkind = "luffy"\n[live.hints]\nkind = "demonstration"\n')
    run_file = Path(bench.settings.data.path).with_name("run.toml")
    assert check(run_file) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["train_prompts"], report["train_demonstrations"], report["problems"]) == (5, 3, [])
    [note] = report["notes"]
    assert "2 cannot be used and were set aside: 1 empty, 1 with special tokens inside" in note
    assert "for example, demonstration 1 of train:1: the demonstration is empty" in note


async def test_data_whose_demonstrations_are_all_unusable_is_refused_with_the_reason(
    benches: Benches, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = benches(["", "a<eos>b"], '[live]\n[live.algorithm]\nkind = "luffy"\n[live.hints]\nkind = "demonstration"\n')
    assert check(Path(bench.settings.data.path).with_name("run.toml")) == 2
    [problem] = json.loads(capsys.readouterr().out)["problems"]
    assert problem == (
        "algorithm 'luffy' needs demonstrations, but of the 2 demonstrations in 'train', 2 cannot be used and were set "
        "aside: 1 empty, 1 with special tokens inside; correct the data, or choose another algorithm"
    )
