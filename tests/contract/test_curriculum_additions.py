"""Demonstrations added by operators, on a real Redis: refused with a sentence, or graded and then used."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_engine import FakeEngine, decode
from generator_bench import GeneratorBench, serving
from redis.asyncio import Redis
from redis_process import RedisProcess
from tiny_tokenizer import EOS

from common.additions import Additions, AdditionState, AdditionVerdict
from common.events import EventKind
from common.expert_scores import ExpertScores, Score
from common.streams import Entry
from common.trajectory import GroupPlan, Purpose, Request
from common.wire import decode_score_task
from tests.contract.curriculum_rig import LIVE, LUFFY, ROWS, RUN, Bench, running, until, write_run

pytestmark = pytest.mark.asyncio
SHORT = {**LUFFY, "sampling": {"max_response_tokens": 8}}
GENERATOR = """
[grader]
name = "bad_graders:last_digit"
[generator]
reclaim_after_s = {reclaim_after_s}
"""
IN_USE, REFUSED, WAITING = AdditionState.IN_USE, AdditionState.REFUSED, AdditionState.WAITING


class AdditionBench(Bench):
    """A run to whose prompts an operator adds demonstrations."""

    def __init__(self, redis: Redis, run_file: Path) -> None:
        super().__init__(redis, run_file)
        self.additions = Additions(redis, self.keys)
        self.trained: list[Request] = []
        self.grades: list[tuple[Entry, Request]] = []

    async def add(self, prompt_id: str, text: str) -> str:
        """Add one as the control plane does."""
        return await self.additions.add(prompt_id, text, "alice", at_s=1.0)

    async def verdict(self, addition_id: str) -> AdditionVerdict:
        return (await self.additions.verdicts([addition_id]))[addition_id]

    async def turn(self) -> None:
        """Take what is asked for: training is settled at once, evaluations are answered, grades wait for the test."""
        for entry, request in await self.take():
            match request.purpose:
                case Purpose.TRAIN:
                    self.trained.append(request)
                    await self.delivery.settle([request.request_id])
                case Purpose.GRADE:
                    self.grades.append((entry, request))
                    continue
                case Purpose.EVALUATE:
                    pass
            await self.answer(entry, request, 0.0)

    async def grade_asked(self, count: int = 1) -> list[tuple[Entry, Request]]:
        """The first `count` requests for a grade."""
        async with asyncio.timeout(10):
            while len(self.grades) < count:
                await self.turn()
        return list(self.grades)

    async def until_judged(self, addition_id: str, state: AdditionState) -> AdditionVerdict:
        async with asyncio.timeout(10):
            while (await self.verdict(addition_id)).state is not state:
                await self.turn()
        return await self.verdict(addition_id)

    async def next_of(self, prompt_id: str) -> Request:
        """The next training request of a prompt among those that are made from now on."""
        await self.turn()
        self.trained.clear()
        async with asyncio.timeout(10):
            while True:
                await self.turn()
                for request in self.trained[4:]:  # what is outstanding may have been made before
                    if request.prompt_id == prompt_id:
                        return request

    async def told(self) -> list[dict[str, Any]]:
        """The addition events."""
        return [e.data for e in await self.events.read() if e.kind is EventKind.ADDITION]


Benches = Callable[..., AdditionBench]


@pytest.fixture
def benches(
    tmp_path: Path, redis_server: RedisProcess, client: Callable[[], Redis], monkeypatch: pytest.MonkeyPatch
) -> Benches:
    monkeypatch.setenv("REDIS_URL", redis_server.url)

    def make(rows: Sequence[dict[str, Any]] = ROWS, more: str = "") -> AdditionBench:
        return AdditionBench(client(), write_run(tmp_path, rows, more))

    return make


async def test_an_addition_is_graded_first_and_then_comes_before_the_prompts_own(benches: Benches) -> None:
    bench = benches()
    await bench.ask(LUFFY, 0)
    async with running(bench) as process:
        assert decode((await bench.next_of("train:3")).demonstrations[0].tokens) == "a;#4"
        added = await bench.add("train:3", "b;c;#4")
        [(entry, request)] = await bench.grade_asked()
        assert (request.request_id, request.prompt_id, request.answer) == (f"grade:{added}", "train:3", "4")
        assert (request.plan, request.search) == (GroupPlan(plain=0, demonstrations=1), None)
        assert [decode(d.tokens) for d in request.demonstrations] == ["b;c;#4"]
        assert decode(request.prompt_tokens) == "3+1="
        assert await bench.delivery.outstanding() <= 4, "a grade uses no credit"
        assert (await bench.verdict(added)).state is WAITING
        before = await bench.next_of("train:3")
        assert decode(before.demonstrations[0].tokens) == "a;#4", "nothing is used before it is graded"
        await bench.answer(entry, request, 0.0, rewards=(1.0,))
        assert await bench.until_judged(added, IN_USE) == AdditionVerdict(IN_USE, "", 1.0)
        shown = (await bench.next_of("train:3")).demonstrations[0]
        assert (decode(shown.tokens), shown.tokens[-1], shown.boundaries) == ("b;c;#4", EOS, (2, 4))
        later = await bench.add("train:3", "d;#4")
        [_, (entry, request)] = await bench.grade_asked(2)
        await bench.answer(entry, request, 0.0, rewards=(0.5,))
        await bench.until_judged(later, IN_USE)
        shown = (await bench.next_of("train:3")).demonstrations[0]
        assert decode(shown.tokens) == "d;#4", "of several, the one that was added last"
        assert process.registry.get_sample_value("tributary_requests_total", {"purpose": "grade"}) == 2
        assert process.registry.get_sample_value("tributary_additions_total", {"state": "in use"}) == 2
    assert await bench.told() == [
        {"id": i, "prompt_id": "train:3", "by": "alice", "state": "in use", "reason": ""} for i in (added, later)
    ]
    assert await bench.delivery.outcomes.length() == 0


async def test_what_cannot_be_used_is_refused_with_the_reason_and_never_graded(benches: Benches) -> None:
    bench = benches()
    await bench.ask(SHORT, 0)
    cases = [
        ("train:9", "a;#1", "there is no prompt 'train:9': they are train:0 to train:8"),
        ("heldout:1", "a;#1", "there is no prompt 'heldout:1': they are train:0 to train:8"),
        ("train:1", " \n", "the demonstration is empty"),
        ("train:1", "a<eos>b", "special tokens stand inside it: '<eos>'"),
        ("train:1", "abcdefgh", "it has 9 tokens with its end token, and sampling.max_response_tokens is 8"),
    ]
    async with running(bench):
        ids = [await bench.add(prompt_id, text) for prompt_id, text, _ in cases]
        for addition_id, (_, _, said) in zip(ids, cases, strict=True):
            verdict = await bench.until_judged(addition_id, REFUSED)
            assert (verdict.reason, verdict.reward) == (said, None)
        assert bench.grades == []
    assert [(t["id"], t["state"], t["reason"]) for t in await bench.told()] == [
        (addition_id, "refused", said) for addition_id, (_, _, said) in zip(ids, cases, strict=True)
    ]


async def test_what_is_graded_zero_or_cannot_be_graded_is_refused(benches: Benches) -> None:
    bench = benches()
    await bench.ask(LUFFY, 0)
    async with running(bench):
        wrong, broken = await bench.add("train:1", "#7"), await bench.add("train:1", "#8")
        (first, second) = await bench.grade_asked(2)
        await bench.answer(*first, 0.0, rewards=(0.0,))
        await bench.answer(*second, 0.0, failure="the grader hung for 1 s and was killed")
        found = await bench.until_judged(wrong, REFUSED)
        assert found == AdditionVerdict(REFUSED, "graded 0: a demonstration has to earn a positive reward", 0.0)
        found = await bench.until_judged(broken, REFUSED)
        assert found.reason == "it could not be graded: the grader hung for 1 s and was killed"
        assert decode((await bench.next_of("train:1")).demonstrations[0].tokens) == "a;#2"


async def test_a_restart_neither_forgets_one_nor_grades_it_twice(benches: Benches) -> None:
    bench = benches()
    await bench.ask(LUFFY, 0)
    async with running(bench):
        used, refused, asked = [await bench.add("train:3", text) for text in ("b;#4", "c;#4", "d;#4")]
        grades = await bench.grade_asked(3)
        await bench.answer(*grades[0], 0.0, rewards=(1.0,))
        await bench.answer(*grades[1], 0.0, rewards=(0.0,))
        await bench.until_judged(used, IN_USE)
        await bench.until_judged(refused, REFUSED)
    added_meanwhile = await bench.add("train:4", "e;#5")
    await bench.answer(*grades[2], 0.0, rewards=(1.0,))  # while it is away
    async with running(bench):
        await bench.until_judged(asked, IN_USE)
        assert decode((await bench.next_of("train:3")).demonstrations[0].tokens) == "d;#4"
        [*_, (entry, request)] = await bench.grade_asked(4)
        assert request.request_id == f"grade:{added_meanwhile}"
    async with running(bench):
        assert decode((await bench.next_of("train:3")).demonstrations[0].tokens) == "d;#4"
        await bench.answer(entry, request, 0.0, rewards=(1.0,))
        await bench.until_judged(added_meanwhile, IN_USE)
    assert len(bench.grades) == 4
    assert [t["id"] for t in await bench.told()] == [used, refused, asked, added_meanwhile]


async def test_a_prompt_without_demonstrations_that_gets_one_counts(benches: Benches) -> None:
    rows = [{"prompt": f"{i}+1=", "answer": str(i + 1), "demonstration": None if i else "a;#1"} for i in range(3)]
    bench = benches(rows)
    await bench.ask(LUFFY, 0)

    async def known() -> int:
        return int(await bench.redis.hget(bench.keys.facts, "train_demonstrations") or -1)

    async def two_are_known() -> bool:
        await bench.turn()
        return await known() == 2

    async with running(bench):
        assert (await bench.next_of("train:2")).demonstrations == ()
        assert await known() == 1
        await bench.add("train:2", "b;#3")
        [grade] = await bench.grade_asked()
        await bench.answer(*grade, 0.0, rewards=(1.0,))
        await until(two_are_known)
        assert len((await bench.next_of("train:2")).demonstrations) == 1
    async with running(bench):
        await until(two_are_known)


async def test_a_limit_that_is_lowered_later_sets_an_addition_aside_for_that_value(benches: Benches) -> None:
    bench = benches()
    await bench.ask(LUFFY, 0)
    async with running(bench):
        added = await bench.add("train:3", "abcdefg;#4")
        [grade] = await bench.grade_asked()
        await bench.answer(*grade, 0.0, rewards=(1.0,))
        await bench.until_judged(added, IN_USE)
        await bench.ask(SHORT, 1)
        assert decode((await bench.next_of("train:3")).demonstrations[0].tokens) == "a;#4"
    [(_, record)] = [e for e in await bench.redis.xrange(bench.keys.quarantine) if b"train:3" in e[1][b"id"]]
    assert b"demonstration 2 of train:3: it has 11 tokens" in record[b"reason"]
    assert json.loads(record[b"payload"])["demonstration"] == "abcdefg;#4"


async def test_a_grade_that_is_lost_is_asked_for_again_and_then_done_without(benches: Benches) -> None:
    bench = benches()
    await bench.ask(LUFFY, 0)
    asked: Counter[str] = Counter()
    async with running(bench):
        once, never = await bench.add("train:1", "b;#2"), await bench.add("train:2", "b;#3")
        async with asyncio.timeout(10):
            while (await bench.verdict(never)).state is WAITING:
                await bench.turn()
                for entry, request in bench.grades:
                    asked[request.request_id] += 1
                    if (request.request_id, asked[request.request_id]) == (f"grade:{once}", 2):
                        await bench.answer(entry, request, 0.0, rewards=(1.0,))
                    else:
                        await bench.delivery.requests.acknowledge([entry.entry_id])
                bench.grades.clear()
        assert (await bench.verdict(once)).state is IN_USE
    assert asked == {f"grade:{once}": 2, f"grade:{never}": 3}
    found = await bench.verdict(never)
    assert (found.state, found.reason.partition(":")[0]) == (REFUSED, "no grade came, asked 3 times")


async def test_of_many_additions_only_some_are_asked_for_at_once(
    benches: Benches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.curriculum.added.GRADED_AT_ONCE", 5)
    bench = benches()
    await bench.ask(LUFFY, 0)
    ids = [await bench.add(f"train:{i % 9}", f"b;#{i % 9 + 1}") for i in range(40)]
    async with running(bench):
        await bench.grade_asked(5)
        await bench.next_of("train:3")  # some turns later
        assert len(bench.grades) == 5
        for asked in range(40):
            await bench.answer(*(await bench.grade_asked(asked + 1))[asked], 0.0, rewards=(1.0,))
        for addition_id in ids:
            await bench.until_judged(addition_id, IN_USE)
    assert [request.request_id for _, request in bench.grades] == [f"grade:{i}" for i in ids]
    assert len(json.loads(await bench.redis.get(bench.keys.curriculum))["grading"]) <= 5


async def test_recorded_log_probs_are_missing_for_every_addition(benches: Benches) -> None:
    rows = [{**row, "logp": [-1.0] * 5} for row in ROWS]
    recorded = '[data.columns]\nexpert_logprobs = "logp"\n[expert]\npolicy = "recorded"\n'
    bench = benches(rows, recorded)
    await bench.ask(LUFFY, 0)
    async with running(bench):
        verdict = await bench.until_judged(await bench.add("train:1", "b;#2"), REFUSED)
        assert verdict.reason.startswith('it was added without log-probs, and [expert] policy is "recorded"')


async def test_a_served_expert_scores_an_addition_before_it_is_used(benches: Benches) -> None:
    bench = benches(more='[expert]\npolicy = "scored"\nmodel = "./model"\n')
    scores = ExpertScores(bench.redis, bench.keys)
    await scores.prepare()
    await scores.identify("expert-1")
    await bench.ask(LIVE, 0)  # uses no demonstrations: only what was added is scored
    async with running(bench):
        fine, unfit = await bench.add("train:1", "b;#2"), await bench.add("train:1", "c;#2")
        for grade in await bench.grade_asked(2):
            await bench.answer(*grade, 0.0, rewards=(1.0,))
        tasks = await _score_tasks(scores, 2)
        verdict = await bench.verdict(fine)
        assert (verdict.state, verdict.reward) == (WAITING, 1.0)
        assert verdict.reason.startswith("graded; it waits until the expert has scored it")
    async with running(bench):  # another life remembers the grades
        await _answer(scores, tasks, {"b;#2": Score(np.full(5, -0.5, np.float32)), "c;#2": Score(None, "no room")})
        await bench.until_judged(fine, IN_USE)
        assert await bench.until_judged(unfit, REFUSED) == AdditionVerdict(
            REFUSED, "the expert did not score it: no room", 1.0
        )
        await bench.ask(LUFFY, 1)
        scorer = asyncio.create_task(_score_for_ever(scores))  # the other prompts' own
        shown = (await bench.next_of("train:1")).demonstrations[0]
        scorer.cancel()
        assert shown.expert_logprobs is not None
        assert (decode(shown.tokens), shown.expert_logprobs.tolist()) == ("b;#2", [-0.5] * 5)
    assert len(bench.grades) == 2


async def test_an_addition_that_no_one_wrote_well_does_not_end_the_curriculum(benches: Benches) -> None:
    bench = benches()
    await bench.ask(LUFFY, 0)
    await bench.redis.xadd(bench.keys.additions, {"at": "soon"})
    async with running(bench):
        added = await bench.add("train:1", "b;#2")
        [(_, request)] = await bench.grade_asked()
        assert request.request_id == f"grade:{added}"


async def test_a_generator_grades_additions_and_one_that_is_killed_is_stood_in_for(
    tmp_path: Path, redis_server: RedisProcess, client: Callable[[], Redis], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    write_run(tmp_path)
    generators = GeneratorBench(tmp_path, client(), reclaim_after_s=0.3, run=RUN + GENERATOR)
    bench = AdditionBench(client(), tmp_path / "run.toml")
    await bench.ask(LUFFY, 0)

    async def judged(addition_id: str) -> bool:
        return (await bench.verdict(addition_id)).state is not WAITING

    async with running(bench):
        right, wrong = await bench.add("train:3", "b;c;#4"), await bench.add("train:3", "b;c;#5")
        lost = await bench.grade_asked(2)  # by a generator that dies before it answers
        async with serving(generators, FakeEngine()) as process:
            await until(lambda: judged(right))
            await until(lambda: judged(wrong))
            assert (process.registry.get_sample_value("tributary_requests_reclaimed_total") or 0) >= len(lost)
    assert await bench.verdict(right) == AdditionVerdict(IN_USE, "", 1.0)
    assert await bench.verdict(wrong) == AdditionVerdict(
        REFUSED, "graded 0: a demonstration has to earn a positive reward", 0.0
    )
    assert all(g.group_id.startswith("train:") for g in await generators.groups()), "a grade makes no group"


async def test_the_texts_of_prompts_are_written_with_their_first_request(benches: Benches) -> None:
    bench = benches()
    await bench.ask(LUFFY, 0)

    async def texts() -> dict[bytes, bytes]:
        return await bench.redis.hgetall(bench.keys.prompt_texts)

    async with running(bench):
        await until(lambda: bench.redis.exists(bench.keys.prompt_texts))
        assert set(await texts()) <= {f"train:{i}".encode() for i in range(9)}
        assert len(await texts()) == 4, "only those that were asked for"
        await bench.next_of("train:8")
        assert (await texts())[b"train:8"] == b"8+1="


async def _score_tasks(scores: ExpertScores, count: int) -> list[Entry]:
    tasks: list[Entry] = []

    async def there() -> bool:
        tasks.extend(await scores.tasks.take("s", 100, 20))
        return len(tasks) >= count

    await until(there)
    return tasks


async def _score_for_ever(scores: ExpertScores) -> None:
    while True:
        await _answer(scores, await scores.tasks.take("s", 100, 20), {})


async def _answer(scores: ExpertScores, tasks: Sequence[Entry], known: dict[str, Score]) -> None:
    """Answer score tasks; those whose demonstration is not among the known ones with -1 for every token."""
    for entry in tasks:
        task = decode_score_task(entry.payload)
        any_score = Score(np.full(len(task.tokens), -1.0, np.float32))
        await scores.answer(entry, task.key, known.get(decode(task.tokens), any_score))
