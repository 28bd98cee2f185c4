"""The control plane's API on a real Redis, called in process: configuration, history, catalogue, state, errors."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from control_bench import Bench, opened
from pretended_run import PretendedRun
from redis_process import RedisProcess

from common.config.live import LiveConfig, dump_live, parse_live
from common.config.store import Author
from common.streams import Entry
from common.weights import Manifest, PublicationKind
from services.control.steering import Decision, Proposal, Steering

LUFFY = {"algorithm": {"kind": "luffy"}, "hints": {"kind": "demonstration"}}


@pytest_asyncio.fixture
async def bench(redis_server: RedisProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    async with opened(tmp_path) as bench:
        yield bench


async def test_the_run_files_configuration_is_the_first_revision_and_seeding_again_changes_nothing(
    bench: Bench,
) -> None:
    assert await bench.control.steering.seed(parse_live(LUFFY)) is None
    answer = await bench.http.get("/v1/config")
    assert answer.headers["etag"] == '"1"'
    assert answer.json()["author"] == "run file"
    assert answer.json()["config"] == dump_live(LiveConfig())


async def test_a_patch_with_another_kind_starts_from_that_kinds_published_settings(bench: Bench) -> None:
    answer = await bench.patch(LUFFY)
    told = answer.json()
    assert (answer.status_code, told["revision"], told["changed"]) == (200, 2, True)
    assert told["config"]["algorithm"]["gamma"] == 0.1
    gamma = await bench.patch({"algorithm": {"gamma": 0.3}})
    assert gamma.json()["changes"] == [{"path": "algorithm.gamma", "before": 0.1, "after": 0.3}]
    assert gamma.json()["config"]["algorithm"]["kind"] == "luffy"


async def test_a_put_replaces_everything_and_what_it_leaves_out_takes_its_default(bench: Bench) -> None:
    await bench.patch({"groups_per_step": 3})
    answer = await bench.http.put("/v1/config", json={"max_staleness": 2})
    assert answer.json()["config"] == dump_live(parse_live({"max_staleness": 2}))


async def test_a_change_that_changes_nothing_makes_no_revision(bench: Bench) -> None:
    answer = await bench.patch({"groups_per_step": 16})
    assert (answer.status_code, answer.json()["revision"], answer.json()["changed"]) == (200, 1, False)


async def test_author_reason_and_origin_are_kept_in_the_history(bench: Bench) -> None:
    await bench.http.patch(
        "/v1/config",
        params={"reason": "γ is too small"},
        json={"publish_every": 2},
        headers={"X-Tributary-Author": "ada"},
    )
    newest, first = (await bench.http.get("/v1/config/revisions")).json()["revisions"]
    assert (newest["author"], newest["reason"], newest["origin"]) == ("ada", "γ is too small", "127.0.0.1")
    assert first["revision"] == 1


async def test_a_stale_if_match_is_412_and_says_what_is_current(bench: Bench) -> None:
    assert (await bench.patch({"publish_every": 2}, **{"If-Match": '"1"'})).status_code == 200
    answer = await bench.patch({"publish_every": 3}, **{"If-Match": '"1"'})
    assert answer.status_code == 412
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["current_revision"] == 2


async def test_patches_that_race_over_two_control_planes_are_merged_and_none_is_lost(bench: Bench) -> None:
    stewards = [Steering(bench.process.redis, bench.process.keys, time.time) for _ in range(2)]
    proposal = Proposal(Author("racer", "test"))
    keys = ("publish_every", "max_staleness", "groups_per_step")

    async def write(number: int) -> Decision:
        return await stewards[number % 2].patch({keys[number % 3]: 100 + number}, proposal)

    decisions = await asyncio.gather(*(write(number) for number in range(60)))
    assert sorted(d.revision.number for d in decisions) == list(range(2, 62))
    records = await bench.process.config.records()
    assert [r["revision"] for r in records] == list(range(1, 62))
    assert all(len(r["changes"]) == 1 for r in records[1:])


@pytest.mark.parametrize(
    ("document", "path", "sentence"),
    [
        ({"algorithm": {"kind": "luffy"}}, "", 'set {"hints": {"kind": "demonstration"}} in the same change'),
        ({"algorithm": {"gamma": 0.3}}, "algorithm.gamma", "not known here"),
        ({**LUFFY, "algorithm": {"kind": "luffy", "gamma": -1}}, "algorithm.gamma", "greater than 0"),
        ({"algorithm": {"kind": "ppo"}}, "algorithm", "choose one of"),
        ({"groups_per_step": "many"}, "groups_per_step", "valid integer"),
        ({"optimizer": {"learning_rate": 10**400}}, "optimizer.learning_rate", "number"),
        ({"optimizer": None, "sampling": 3}, "sampling", "object"),
    ],
)
async def test_an_invalid_change_is_422_with_path_and_remedy_and_changes_nothing(
    bench: Bench, document: Any, path: str, sentence: str
) -> None:
    answer = await bench.patch(document)
    assert answer.status_code == 422
    problem = answer.json()
    assert problem["errors"][0]["path"] == path
    assert sentence in problem["errors"][0]["message"]
    assert await bench.process.config.number() == 1


async def test_a_rollback_is_a_new_revision_with_the_old_configuration(bench: Bench) -> None:
    await bench.patch(LUFFY)
    answer = await bench.http.post("/v1/config/rollback", json={"revision": 1})
    assert answer.json()["revision"] == 3
    assert answer.json()["config"] == dump_live(LiveConfig())
    assert answer.json()["reason"] == "roll back to revision 1"


@pytest.mark.parametrize(
    "body", [{}, {"revision": 0}, {"revision": 2}, {"revision": True}, {"revision": "1"}, {"revision": 10**300}]
)
async def test_a_rollback_to_no_revision_of_the_history_is_422(bench: Bench, body: Any) -> None:
    answer = await bench.http.post("/v1/config/rollback", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["path"] == "revision"


async def test_each_accepted_change_is_an_event(bench: Bench) -> None:
    await bench.patch(LUFFY)
    rows = (await bench.http.get("/v1/series", params={"kind": "revision"})).json()["events"]
    assert [row["data"]["revision"] for row in rows] == [1, 2]
    assert rows[1]["data"]["config"]["algorithm"]["kind"] == "luffy"


async def test_the_history_says_where_each_revision_took_force_and_can_be_read_in_pages(bench: Bench) -> None:
    for number in range(2, 6):
        await bench.patch({"publish_every": number})
    await bench.process.config.mark_in_force("learner", 4, step=17, at_s=5.0)
    page = (await bench.http.get("/v1/config/revisions", params={"limit": 2})).json()
    assert (page["current"], [r["revision"] for r in page["revisions"]]) == (5, [5, 4])
    assert page["revisions"][1]["in_force"] == {"learner": {"step": 17, "at_s": 5.0}}
    older = (await bench.http.get("/v1/config/revisions", params={"before": 4})).json()
    assert [r["revision"] for r in older["revisions"]] == [3, 2, 1]


async def test_every_algorithm_and_hint_policy_tells_its_needs_and_its_suggestion_is_valid(bench: Bench) -> None:
    algorithms = {a["kind"]: a for a in (await bench.http.get("/v1/algorithms")).json()["algorithms"]}
    assert algorithms["luffy"]["requires"] == ["demonstrations"]
    assert algorithms["luffy"]["paper"].startswith("https://")
    assert algorithms["luffy"]["defaults"]["gamma"] == 0.1
    assert "gamma" in algorithms["luffy"]["schema"]["properties"]
    policies = {p["kind"]: p for p in (await bench.http.get("/v1/hint-policies")).json()["hint_policies"]}
    assert set(policies) >= {"none", "demonstration", "fixed"}
    for policy in policies.values():
        fitting = next(
            a for a in algorithms.values() if set(a["requires"]) <= set(policy["provides"]) <= set(a["accepts"])
        )
        answer = await bench.patch({"algorithm": fitting["defaults"], "hints": policy["suggestion"]})
        assert answer.status_code == 200, answer.text


async def test_status_tells_asked_and_in_force_apart(bench: Bench) -> None:
    pretended = PretendedRun(bench.process.redis, "test")
    await pretended.advance(time.time())
    await bench.patch(LUFFY)
    revision = (await bench.status())["revision"]
    assert (revision["asked"], revision["in_force"], revision["settled"]) == (2, 1, False)
    assert revision["processes"] == {"curriculum": 1, "generator-1": 1, "generator-2": 1, "learner": 1}
    await pretended.advance(time.time())
    revision = (await bench.status())["revision"]
    assert (revision["asked"], revision["in_force"], revision["settled"]) == (2, 2, True)


async def test_status_tells_rates_versions_backlog_and_the_newest_evaluations(bench: Bench) -> None:
    pretended = PretendedRun(bench.process.redis, "test")
    for _ in range(11):
        await pretended.advance(time.time())
    await bench.process.delivery.issue([("g1", b"x"), ("", b"y")], b"")
    following = asyncio.create_task(bench.control.chronicle.follow())
    while (await bench.status())["last_step"] is None:
        await asyncio.sleep(0)
    status = await bench.status()
    following.cancel()
    assert status["rates"]["generated_tokens_per_s"] == pytest.approx(2 * 893.4)
    assert status["version"] == {"published": 11, "generators": {"generator-1": 10, "generator-2": 10}}
    assert (status["learner"]["step"], status["last_step"]["step"]) == (11, 11)
    assert set(status["evaluations"]) == {"easy", "hard"}
    backlog = status["backlog"]
    assert (backlog["requests"], backlog["outstanding"], backlog["credit"]) == (2, 1, 40)


async def test_a_silent_process_is_not_alive_and_does_not_hold_back_what_is_in_force(bench: Bench) -> None:
    pretended = PretendedRun(bench.process.redis, "test")
    await pretended.advance(time.time())
    stale = json.dumps({"role": "generator", "state": "running", "at_s": time.time() - 60, "revision": 0})
    await bench.process.redis.hset(bench.process.keys.processes, "generator-2", stale)  # pyright: ignore
    status = await bench.status()
    assert {p["name"]: p["alive"] for p in status["processes"]}["generator-2"] is False
    assert status["revision"]["settled"] is True
    assert len((await bench.http.get("/v1/generators")).json()["generators"]) == 2


async def test_series_gives_rows_of_the_asked_kinds_in_pages_and_the_newest_on_request(bench: Bench) -> None:
    pretended = PretendedRun(bench.process.redis, "test")
    for _ in range(30):
        await pretended.advance(time.time())
    ask: dict[str, Any] = {"kind": ["step", "evaluation"], "limit": 20}
    first = (await bench.http.get("/v1/series", params=ask)).json()
    assert (len(first["events"]), first["more"]) == (20, True)
    rest = (await bench.http.get("/v1/series", params={**ask, "limit": 1000, "after": first["next"]})).json()
    rows = first["events"] + rest["events"]
    assert rest["more"] is False
    assert [r["data"]["step"] for r in rows if r["kind"] == "step"] == list(range(1, 31))
    assert sum(r["kind"] == "evaluation" for r in rows) == 6
    newest = (await bench.http.get("/v1/series", params={"kind": "step", "newest": True, "limit": 3})).json()
    assert [r["data"]["step"] for r in newest["events"]] == [28, 29, 30]
    assert newest["next"] == await bench.process.events.last_id()
    page, steps = newest, [28, 29, 30]
    while page["previous"] is not None:
        ask = {"kind": "step", "newest": True, "limit": 10, "before": page["previous"]}
        page = (await bench.http.get("/v1/series", params=ask)).json()
        steps = [r["data"]["step"] for r in page["events"]] + steps
    assert steps == list(range(1, 31))


async def test_quarantined_messages_are_listed_with_their_reasons(bench: Bench) -> None:
    delivery = bench.process.delivery
    await bench.process.redis.xadd(bench.process.keys.groups, {"payload": b"\xffbad"})
    (entry,) = await delivery.groups.take("learner", 1, 10)
    await delivery.quarantine(delivery.groups, Entry(entry.entry_id, entry.payload), "not a group", by="learner")
    told = (await bench.http.get("/v1/quarantine")).json()
    assert told["total"] == 1
    message = told["messages"][0]
    assert (message["stream"], message["reason"], message["by"], message["bytes"]) == (
        "groups",
        "not a group",
        "learner",
        4,
    )
    older = await bench.http.get("/v1/quarantine", params={"before": message["id"]})
    assert older.json()["messages"] == []


async def test_weight_versions_are_listed_newest_first(bench: Bench) -> None:
    for version in (1, 2):
        kind, location = PublicationKind.ANCHOR, f"v00000{version}"
        manifest = Manifest(version, version * 5, 1, kind, 0, location, {}, {"t": "d"}, 100, 1.0)
        await bench.control.weights.announce(manifest)
    versions = (await bench.http.get("/v1/weights")).json()["versions"]
    assert [(v["version"], v["step"]) for v in versions] == [(2, 10), (1, 5)]


@pytest.mark.parametrize(
    ("method", "path", "options", "status"),
    [
        ("GET", "/nowhere", {}, 404),
        ("GET", "/v1/nowhere", {}, 404),
        ("GET", "/static/../app.py", {}, 404),
        ("GET", "/static/%2e%2e/app.py", {}, 404),
        ("DELETE", "/v1/config", {}, 405),
        ("PATCH", "/v1/config", {"content": b"{}"}, 415),
        ("PATCH", "/v1/config", {"content": b"{}", "headers": {"Content-Type": "text/plain"}}, 415),
        ("PATCH", "/v1/config", {"content": b"{", "headers": {"Content-Type": "application/json"}}, 400),
        ("PATCH", "/v1/config", {"content": b" " * 270_000, "headers": {"Content-Type": "application/json"}}, 413),
        ("PATCH", "/v1/config?reason=%1b[31m", {"json": {}}, 422),
        ("PATCH", "/v1/config", {"json": {}, "headers": {"X-Tributary-Author": "x" * 65}}, 422),
        ("GET", "/v1/series?after=yesterday", {}, 422),
        ("GET", "/v1/series?after=99999999999999999999-1", {}, 422),
        ("GET", "/v1/series?after=%D9%A3", {}, 422),
        ("GET", "/v1/series?newest=true&before=18446744073709551616", {}, 422),
        ("GET", "/v1/events?after=%D9%A3", {}, 422),
        ("GET", "/v1/quarantine?before=%D9%A3-%D9%A3", {}, 422),
        ("GET", "/v1/quarantine?before=1-18446744073709551616", {}, 422),
        ("GET", "/v1/series?kind=nonsense", {}, 422),
        ("GET", "/v1/events", {"headers": {"Last-Event-ID": "x"}}, 422),
        ("GET", "/v1/config/revisions?before=" + "9" * 30, {}, 422),
    ],
)
async def test_every_refusal_is_a_problem(bench: Bench, method: str, path: str, options: Any, status: int) -> None:
    answer = await bench.http.request(method, path, **options)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status
    assert answer.json()["detail"]


async def test_while_redis_is_away_answers_are_503_with_retry_after_and_health_says_so(
    bench: Bench, redis_server: RedisProcess
) -> None:
    redis_server.kill()
    for method, path in (("GET", "/v1/status"), ("GET", "/v1/config"), ("GET", "/healthz"), ("GET", "/readyz")):
        answer = await bench.http.request(method, path)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2"), path
    assert (await bench.patch(LUFFY)).status_code == 503
    assert (await bench.http.get("/v1/algorithms")).status_code == 200
    redis_server.start()
    assert (await bench.http.get("/healthz")).status_code == 200
    assert (await bench.patch(LUFFY)).json()["revision"] == 2


async def test_an_unexpected_error_is_a_problem_that_tells_nothing_of_the_inside(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> Any:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr("services.control.routes.status.read_status", broken)
    answer = await bench.http.get("/v1/status")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_health_metrics_and_openapi_are_served(bench: Bench) -> None:
    assert (await bench.http.get("/healthz")).json() == {"status": "ok"}
    assert (await bench.http.get("/readyz")).json() == {"status": "ok"}
    metrics = (await bench.http.get("/metrics")).text
    assert 'tributary_http_requests_total{method="GET",route="/healthz",status="200"} 1.0' in metrics
    document = (await bench.http.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    assert {"LiveConfig", "Rollback", "ProblemDetails", "Status"} <= set(document["components"]["schemas"])
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert {"summary", "description", "responses"} <= set(operation), (method, path)
    references = set(re.findall(r"#/components/schemas/([\w.]+)", json.dumps(document)))
    assert references <= set(document["components"]["schemas"])


async def test_the_dashboard_and_its_chart_library_come_from_here(bench: Bench) -> None:
    page = await bench.http.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert not re.findall(r"(?:src|href)=.https?:", page.text)
    for path in re.findall(r"(?:src|href)=.(/static/[\w.]+)", page.text):
        answer = await bench.http.get(path)
        assert answer.status_code == 200, path
        assert len(answer.content) > 100
