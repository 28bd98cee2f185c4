"""A guarded control plane as a process: roles, names in the history, revoked tokens, rates, secrets that stay so."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from control_process import ControlProcess
from redis import Redis
from redis_process import RedisProcess

pytestmark = pytest.mark.system

OPERATOR, ADA, EVE = "of-the-operator-0123456789", "of-ada-0123456789", "of-eve-0123456789"
Start = Callable[..., ControlProcess]


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    file = tmp_path / "tokens"
    file.write_text(f"# who may steer this run\nada operate {ADA}\neve read {EVE}\n")
    file.chmod(0o600)
    return file


def client(control: ControlProcess, token: str | None) -> httpx.Client:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return httpx.Client(base_url=control.url, headers=headers, timeout=10)


def refusal(control: ControlProcess) -> str:
    """What a control plane that ended with exit code 2 said beside its JSON log."""
    assert control.process.wait(30) == 2
    return "\n".join(line for line in control.log.read_text().splitlines() if not line.startswith("{"))


def test_a_tokens_file_that_others_can_read_is_one_sentence_and_exit_2(start: Start, tokens: Path) -> None:
    tokens.chmod(0o644)
    said = refusal(start(more=f'tokens_file = "{tokens}"'))
    assert said == f"control: the tokens file {tokens} is open to others than its owner: run chmod 600 {tokens}"


def test_a_wrong_line_is_said_without_its_token(start: Start, tokens: Path) -> None:
    tokens.write_text(f"ada boss {ADA}\n")
    said = refusal(start(more='tokens_file = "../tokens"'))
    assert said == f'control: {tokens}, line 1: the role of "ada" is unknown: write read or operate'


def test_a_tokens_file_lets_the_control_plane_listen_wider(start: Start, tokens: Path) -> None:
    control = start(host="0.0.0.0", more=f'tokens_file = "{tokens}"').wait_until_up()
    with client(control, ADA) as http:
        assert http.get("/v1/status", headers={"Host": "elsewhere.example"}).status_code == 200
    with client(control, None) as http:
        assert http.get("/v1/status").status_code == 401
        assert http.get("/healthz").status_code == 200


def test_the_history_names_whose_token_it_was_whatever_the_caller_says(start: Start, tokens: Path) -> None:
    control = start(more=f'tokens_file = "{tokens}"', token=OPERATOR).wait_until_up()
    claimed = {"X-Tributary-Author": "somebody else"}
    for number, token in enumerate((ADA, OPERATOR), start=2):
        with client(control, token) as http:
            assert http.patch("/v1/config", json={"publish_every": number}, headers=claimed).status_code == 200
            assert http.post("/v1/learner/pause", headers=claimed).status_code == 200
    with client(control, EVE) as http:
        revisions = http.get("/v1/config/revisions").json()["revisions"]
        orders = http.get("/v1/series", params={"kind": "order"}).json()["events"]
    assert [r["author"] for r in revisions] == ["operator", "ada", "run file"]
    assert {r["origin"] for r in revisions[:2]} == {"127.0.0.1"}
    assert [o["data"]["by"] for o in orders] == ["ada"]


def test_who_may_only_read_changes_nothing_by_any_door(start: Start, tokens: Path) -> None:
    control = start(more=f'tokens_file = "{tokens}"').wait_until_up()
    with client(control, EVE) as http:
        document = http.get("/openapi.json").json()
        for path, operations in document["paths"].items():
            for method in operations.keys() - {"get"}:
                answer = http.request(method, path.replace("{name}", "generator-1"), json={})
                assert (answer.status_code, answer.json()["type"]) == (403, "urn:tributary:problem:read-only"), path
        assert http.get("/v1/config").json()["revision"] == 1


def test_a_token_is_revoked_by_taking_its_line_out_while_the_run_goes_on(start: Start, tokens: Path) -> None:
    control = start(more=f'tokens_file = "{tokens}"').wait_until_up()
    with client(control, ADA) as ada, client(control, EVE) as eve:
        assert ada.get("/v1/config").status_code == eve.get("/v1/config").status_code == 200
        tokens.write_text(f"eve operate {EVE}\n")
        deadline_s = time.monotonic() + 10
        while ada.get("/v1/config").status_code == 200 and time.monotonic() < deadline_s:
            time.sleep(0.05)
        assert ada.get("/v1/config").status_code == 401
        assert eve.patch("/v1/config", json={"publish_every": 2}).json()["author"] == "eve"
        tokens.write_text("not a tokens file at all\n")
        while eve.get("/v1/config").status_code == 200 and time.monotonic() < deadline_s:
            time.sleep(0.05)
        assert eve.get("/v1/config").status_code == 401


def test_who_is_shut_out_hears_no_more_of_the_events(start: Start, tokens: Path) -> None:
    control = start(more=f'tokens_file = "{tokens}"').wait_until_up()
    with client(control, ADA) as ada, client(control, EVE) as eve, eve.stream("GET", "/v1/events") as feed:
        heard = feed.iter_lines()
        assert next(heard)
        tokens.write_text(f"ada operate {ADA}\n")
        time.sleep(1.2)
        ada.patch("/v1/config", json={"publish_every": 2})  # news: the feed looks whom it tells
        later = list(heard)  # it ends
        assert not any("publish_every" in line for line in later)
        assert eve.get("/v1/status").status_code == 401


def test_who_calls_too_often_is_429_and_others_are_not(start: Start, tokens: Path) -> None:
    limits = "reads_per_s = 3\nwrites_per_s = 0.5\n"
    control = start(more=f'{limits}tokens_file = "{tokens}"').wait_until_up()
    with client(control, ADA) as ada, client(control, EVE) as eve:
        answers = [ada.get("/v1/config") for _ in range(12)]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert len(refused) >= 5
        assert int(refused[-1].headers["retry-after"]) == 1
        assert refused[-1].headers["content-type"] == "application/problem+json"
        assert eve.get("/v1/config").status_code == 200
        assert [ada.patch("/v1/config", json={}).status_code for _ in range(3)] == [200, 429, 429]
        assert all(ada.get("/healthz").status_code == 200 for _ in range(20))


def test_no_secret_is_in_a_log_an_answer_the_metrics_or_redis(
    start: Start, tokens: Path, redis_server: RedisProcess
) -> None:
    secrets = (OPERATOR, ADA, EVE)
    control = start(more=f'tokens_file = "{tokens}"', token=OPERATOR).wait_until_up()
    seen = []
    for token in (*secrets, OPERATOR + "x", "guess"):
        with client(control, token) as http:
            answers = [http.get(path) for path in ("/v1/status", "/v1/config", "/metrics", "/openapi.json", "/v1/none")]
            answers.append(http.patch("/v1/config", json={"publish_every": len(seen) + 2}))
            answers.append(http.patch("/v1/config", content=b"{"))
            seen += [answer.text + str(answer.headers) for answer in answers]
    seen.append(control.log.read_text())
    with Redis.from_url(redis_server.url) as redis:
        for key in redis.scan_iter():
            seen.append(repr(redis.dump(key)))
    assert len(seen) > 35
    assert not [secret for secret in secrets if any(secret in text for text in seen)]


def test_an_answer_is_for_no_other_origin(start: Start, tokens: Path) -> None:
    control = start(more=f'tokens_file = "{tokens}"').wait_until_up()
    foreign = {"Origin": "https://evil.example", "Access-Control-Request-Method": "PATCH"}
    with client(control, ADA) as http:
        for answer in (http.options("/v1/config", headers=foreign), http.get("/v1/config", headers=foreign)):
            assert not [name for name in answer.headers if name.startswith("access-control")]
        refused = http.patch("/v1/config", json={"publish_every": 2}, headers=foreign)
        assert json.loads(refused.text)["type"] == "urn:tributary:problem:foreign-origin"
