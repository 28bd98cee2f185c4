"""Guards on a real Redis: what they change and tell, once each, over races and restarts."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from control_bench import Bench, opened
from control_process import ControlProcess
from redis import Redis
from redis_process import RedisProcess

from common.config.store import ConfigStore
from common.events import EventKind
from common.orders import Orders
from services.control.guarding import Guarding

LOW: dict[str, Any] = {"name": "low", "watch": "entropy", "below": 0.05, "steps": 2, "action": {"kind": "rollback"}}


def setting(name: str, patch: Any, **fields: Any) -> dict[str, Any]:
    return {**LOW, "name": name, "action": {"kind": "set", "patch": patch}, **fields}


class Rig:
    """A bench whose steps are told by the test. Every look is that of a control plane that has just started, or not."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.guarding = Guarding(bench.control)
        self.step = 0

    async def tell(self, *entropies: float | None, revision: int | None = None, first: int | None = None) -> None:
        self.step = self.step if first is None else first - 1
        for entropy in entropies:
            self.step += 1
            current = await self.bench.process.config.number()
            record = {"step": self.step, "revision": current if revision is None else revision, "entropy": entropy}
            await self.bench.process.events.append(EventKind.STEP, record, at_s=float(self.step))

    async def look(self, *, restarted: bool = False) -> int:
        """Look until nothing is left to do; how often something was done."""
        guarding = Guarding(self.bench.control) if restarted else self.guarding
        done = 0
        while await guarding.look():
            done += 1
        return done

    async def current(self) -> dict[str, Any]:
        return (await self.bench.http.get("/v1/config")).json()

    async def notices(self) -> list[dict[str, Any]]:
        events = await self.bench.process.events.read(count=100_000)
        return [e.data for e in events if e.kind is EventKind.NOTICE]


@pytest_asyncio.fixture
async def rig(redis_server: RedisProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    async with opened(tmp_path) as bench:
        yield Rig(bench)


async def test_a_rollback_is_a_revision_in_the_guards_name_that_says_why(rig: Rig) -> None:
    await rig.bench.patch({"guards": [LOW]})
    await rig.bench.patch({"publish_every": 7})
    await rig.tell(0.4, 0.04, 0.03)
    assert await rig.look() == 1
    current = await rig.current()
    assert (current["revision"], current["author"], current["origin"]) == (4, "guard:low", "guards")
    assert current["reason"] == (
        'guard "low": entropy was below 0.05 in 2 successive steps (0.04, 0.03 at steps 2 to 3): '
        "back to the configuration of revision 2"
    )
    assert current["changes"] == [{"path": "publish_every", "before": 7, "after": 1}]
    kinds = [e.kind for e in await rig.bench.process.events.read()]
    assert kinds.count(EventKind.REVISION) == 4


async def test_the_guards_stay_when_they_were_set_after_what_a_rollback_takes_back(rig: Rig) -> None:
    await rig.bench.patch({"publish_every": 7})
    await rig.bench.patch({"guards": [LOW]})
    await rig.tell(0.04, 0.03)
    assert await rig.look() == 1
    config = (await rig.current())["config"]
    assert (config["publish_every"], [g["name"] for g in config["guards"]]) == (1, ["low"])


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_guard_fires_once_until_an_operator_makes_another_revision(rig: Rig, restarted: bool) -> None:
    await rig.bench.patch({"publish_every": 2, "guards": [setting("low", {"groups_per_step": 3})]})
    for expected in (1, 0, 0):
        await rig.tell(0.01, 0.01)
        assert await rig.look(restarted=restarted) == expected
    assert (await rig.current())["revision"] == 3
    await rig.bench.patch({"groups_per_step": 5})
    await rig.tell(0.01, 0.01)
    assert await rig.look(restarted=restarted) == 1
    assert (await rig.current())["config"]["groups_per_step"] == 3


async def test_only_steps_under_the_current_revision_count(rig: Rig) -> None:
    await rig.bench.patch({"publish_every": 2, "guards": [LOW]})
    await rig.tell(0.01, 0.01, revision=1)
    await rig.tell(0.01)
    assert await rig.look() == await rig.look(restarted=True) == 0
    await rig.tell(0.01)
    assert await rig.look() == 1


async def test_steps_that_a_restored_learner_makes_again_count_once(rig: Rig) -> None:
    await rig.bench.patch({"publish_every": 2, "guards": [LOW]})
    await rig.tell(0.5, 0.01)
    await rig.tell(0.01, first=2)
    assert await rig.look() == 0
    await rig.tell(0.01)
    assert await rig.look() == 1


async def test_two_control_planes_make_one_revision_of_one_firing(rig: Rig) -> None:
    await rig.bench.patch({"publish_every": 2, "guards": [LOW]})
    await rig.tell(0.01, 0.01)
    stewards = [Guarding(rig.bench.control) for _ in range(5)]
    await asyncio.gather(*(steward.look() for steward in stewards))
    assert (await rig.current())["revision"] == 3
    assert await rig.look() == 0


async def test_who_steers_while_a_guard_makes_up_its_mind_wins_and_the_guard_looks_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.bench.patch({"publish_every": 2, "guards": [LOW]})
    await rig.tell(0.01, 0.01)
    number_of = ConfigStore.records

    async def overtaken(store: ConfigStore, *span: int) -> Any:
        monkeypatch.setattr(ConfigStore, "records", number_of)
        await rig.bench.patch({"publish_every": 3})
        return await number_of(store, *span)

    monkeypatch.setattr(ConfigStore, "records", overtaken)
    assert await rig.look() == 1
    current = await rig.current()
    assert (current["revision"], current["config"]["publish_every"]) == (3, 3)


async def test_several_guards_act_one_after_the_other_and_each_is_spent_on_its_own(rig: Rig) -> None:
    slower = setting("slower", {"optimizer": {"learning_rate": 5e-7}})
    await rig.bench.patch({"publish_every": 2})
    await rig.bench.patch({"publish_every": 3, "guards": [slower, {**LOW, "steps": 3}]})
    await rig.tell(0.01, 0.01, 0.01)
    assert await rig.look() == 1
    assert (await rig.current())["author"] == "guard:slower"
    await rig.tell(0.01, 0.01, 0.01)
    assert await rig.look() == 1
    current = await rig.current()
    assert (current["author"], current["config"]["publish_every"]) == ("guard:low", 2)
    assert current["config"]["optimizer"]["learning_rate"] == 1e-6
    await rig.tell(0.01, 0.01, 0.01)
    assert await rig.look() == await rig.look(restarted=True) == 0


async def test_a_second_rollback_goes_further_back_and_ends_with_a_notice(rig: Rig) -> None:
    guards = [{**LOW, "name": name} for name in ("one", "two", "three")]
    await rig.bench.patch({"publish_every": 2, "guards": guards})
    await rig.bench.patch({"publish_every": 3})
    for publish_every in (2, 1, 1):
        await rig.tell(0.01, 0.01)
        assert await rig.look() == 1
        assert (await rig.current())["config"]["publish_every"] == publish_every
    (notice,) = await rig.notices()
    assert notice["text"].endswith("but there is no earlier configuration to return to")
    assert (notice["guard"], notice["revision"]) == ("three", 5)
    assert await rig.look(restarted=True) == 0


async def test_a_pause_stands_as_an_order_and_is_not_given_again_after_an_operator_resumes(rig: Rig) -> None:
    await rig.bench.patch({"guards": [{**LOW, "action": {"kind": "pause"}}]})
    await rig.tell(0.01, 0.01)
    assert await rig.look() == 1
    orders = Orders(rig.bench.process.redis, rig.bench.process.keys)
    pause = (await orders.standing()).pause
    assert pause is not None
    assert pause.by == "guard:low"
    told = [e.data for e in await rig.bench.process.events.read() if e.kind is EventKind.ORDER]
    assert told == [{"order": "pause", "target": "learner", "by": "guard:low"}]
    assert [n["text"].endswith("the learner is paused") for n in await rig.notices()] == [True]
    await orders.resume()
    await rig.tell(0.01, 0.01)
    assert await rig.look() == await rig.look(restarted=True) == 0
    assert (await orders.standing()).pause is None
    assert (await rig.current())["revision"] == 2


async def test_a_change_that_is_in_force_already_or_refused_is_told_and_spends_the_guard(rig: Rig) -> None:
    learns = {"algorithm": {"kind": "luffy"}, "hints": {"kind": "demonstration"}}
    await rig.bench.patch({"guards": [setting("same", {"publish_every": 1}), setting("refused", learns)]})
    await rig.bench.process.redis.hset(rig.bench.process.keys.facts, "train_demonstrations", "0")  # pyright: ignore
    await rig.tell(0.01, 0.01)
    assert await rig.look() == 2
    same, refused = (notice["text"] for notice in await rig.notices())
    assert same.endswith("and what it asks for is in force already")
    assert "is refused: algorithm.kind:" in refused
    assert (await rig.current())["revision"] == 2
    assert await rig.look() == await rig.look(restarted=True) == 0


async def test_nobody_can_pass_for_a_guard(rig: Rig) -> None:
    await rig.bench.patch({"publish_every": 2, "guards": [LOW]}, **{"X-Tributary-Author": "guard:low"})
    await rig.tell(0.01, 0.01)
    assert await rig.look() == 1


async def test_events_that_are_not_as_we_write_them_do_not_end_the_watch(rig: Rig) -> None:
    await rig.bench.patch({"publish_every": 2, "guards": [LOW]})
    for data in ({}, {"step": "x"}, {"guard": None, "revision": "x"}, {"guard": "low", "revision": None}):
        for kind in (EventKind.STEP, EventKind.NOTICE, EventKind.REVISION):
            await rig.bench.process.events.append(kind, data, at_s=1.0)
    await rig.tell(0.01, 0.01)
    assert await rig.look() == 1


async def test_a_long_log_is_read_back_no_further_than_the_operators_revision(rig: Rig) -> None:
    pipe = rig.bench.process.redis.pipeline()
    for number in range(3000):
        pipe.xadd(rig.bench.process.keys.events, {"kind": "step", "at": "1", "data": f'{{"step":{number}}}'})
    await pipe.execute()
    await rig.bench.patch({"publish_every": 2, "guards": [LOW]})
    await rig.tell(*([0.5] * 1500), 0.01, 0.01)
    assert await rig.look(restarted=True) == 1
    assert (await rig.current())["reason"].count("at steps 1501 to 1502") == 1


async def test_the_watch_acts_on_new_steps_by_itself_and_outlives_a_redis_that_goes_away(
    rig: Rig, redis_server: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.control.guarding._PAUSE_S", 0.05)
    monkeypatch.setattr("services.control.chronicle._PAUSE_S", 0.05)
    following = asyncio.create_task(rig.bench.control.chronicle.follow())
    watching = asyncio.create_task(rig.guarding.watch())
    await rig.bench.patch({"publish_every": 2, "guards": [LOW]})
    await rig.tell(0.01)
    redis_server.kill()
    await asyncio.sleep(0.2)
    redis_server.start()
    await rig.tell(0.01)
    async with asyncio.timeout(10):
        while (await rig.bench.process.config.number()) < 3:
            await asyncio.sleep(0.02)
    assert not watching.done()
    assert not following.done()
    for task in (watching, following):
        task.cancel()


@pytest.mark.system
def test_a_control_plane_that_is_killed_and_started_again_goes_on_with_the_watch_and_fires_once(
    redis_server: RedisProcess, tmp_path: Path
) -> None:
    changes = {"publish_every": 2, "guards": [LOW, setting("late", {"groups_per_step": 3}, steps=4)]}
    with Redis.from_url(redis_server.url) as redis:
        number = 0
        for expected in (["run file", "operator"], ["run file", "operator", "guard:low"], ["guard:low", "guard:late"]):
            control = ControlProcess(tmp_path / "control", redis_server.url).wait_until_up()
            try:
                if number == 0:
                    assert httpx.patch(f"{control.url}/v1/config", json=changes).status_code == 200
                # Each of them sees half of what makes a guard fire.
                for _ in range(1 if number < 2 else 4):
                    number += 1
                    revision = int(redis.hget("tributary:{test}:config", "revision"))  # type: ignore[arg-type]
                    record = {"step": number, "revision": revision, "entropy": 0.01}
                    fields = {"kind": "step", "at": "1.0", "data": json.dumps(record)}
                    redis.xadd("tributary:{test}:events", fields)  # type: ignore[arg-type]
                assert authors(control.url, expected) == expected
            finally:
                control.process.kill()
                control.process.wait(10)


def authors(url: str, expected: list[str]) -> list[str]:
    """The authors of the newest revisions, oldest first; waits a while until they are as expected."""
    told: list[str] = []
    deadline_s = time.monotonic() + 10
    while told != expected and time.monotonic() < deadline_s:
        revisions = httpx.get(f"{url}/v1/config/revisions").json()["revisions"]
        told = [revision["author"] for revision in revisions[: len(expected)]][::-1]
        time.sleep(0.05)
    return told
