"""Tokens, roles and rates: who is let in, what each may do, and how often; without a server and without a clock."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from common.errors import SettingsError
from services.control.doors import CALLER, Doors
from services.control.rates import MOST_BUCKETS, Call, Rates
from services.control.tokens import OPERATOR, REREAD_S, Role, Tokens, parse_tokens, read_tokens_file

ADA, EVE = "a" * 16, "e" * 40
FILE = Path("tokens")


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def write(file: Path, text: str, mode: int = 0o600) -> Path:
    file.write_text(text)
    file.chmod(mode)
    return file


def name_of(tokens: Tokens, token: str) -> str | None:
    holder = tokens.holder(token.encode())
    return None if holder is None else holder.name


def test_a_tokens_file_names_callers_and_their_roles() -> None:
    text = f"# who may call\n\nada  operate {ADA}\n  monitor\tread {EVE}  \n".encode()
    ada, monitor = parse_tokens(text, FILE)
    assert (ada.name, ada.role, monitor.name, monitor.role) == ("ada", Role.OPERATE, "monitor", Role.READ)
    assert ADA.encode() not in ada.digest


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "names nobody"),
        ("# nothing\n", "names nobody"),
        ("ada operate", "line 1: it has 2 words"),
        (f"ada operate {ADA} # mine", "it has 5 words"),
        (f"\nada admin {ADA}", 'line 2: the role of "ada" is unknown: write read or operate'),
        ("ada read short", "not of 16 to 256 printable"),
        ("ada read " + "é" * 20, "not of 16 to 256 printable"),
        (f"guard:x read {ADA}", "the name is made of other things"),
        (f"{'x' * 65} read {ADA}", "the name is made of other things"),
        (f"ada read {ADA}\nada read {EVE}", 'line 2: the name "ada" comes twice'),
        (f"ada read {ADA}\neve read {ADA}", '"eve" has the token of another name'),
    ],
)
def test_a_wrong_line_is_refused_with_its_number_and_never_with_its_token(text: str, sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_tokens(text.encode(), FILE)
    assert sentence in str(caught.value)
    assert "short" not in str(caught.value)
    assert ADA not in str(caught.value)


def test_a_secret_that_root_mounted_for_our_group_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "tokens", f"ada operate {ADA}\n", 0o440)
    if file.stat().st_uid != 0:
        pytest.skip("only root makes files of root")
    monkeypatch.setattr("os.geteuid", lambda: 10001)
    assert read_tokens_file(file)
    file.chmod(0o460)
    with pytest.raises(SettingsError, match="chmod 600"):
        read_tokens_file(file)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o755])
def test_a_tokens_file_that_others_may_open_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    file = write(tmp_path / "tokens", f"ada read {ADA}\n", mode)
    with pytest.raises(SettingsError, match=f"run chmod 600 {file}"):
        Tokens(None, file)


def test_a_tokens_file_that_is_not_there_or_no_file_or_huge_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(SettingsError, match="cannot read the tokens file"):
            Tokens(None, path)
    with pytest.raises(SettingsError, match="is larger than"):
        Tokens(None, write(tmp_path / "huge", "#" * 300_000))


def test_the_operators_name_is_taken_while_tributary_token_is_set(tmp_path: Path) -> None:
    file = write(tmp_path / "tokens", f"{OPERATOR} read {ADA}\n")
    assert name_of(Tokens(None, file), ADA) == OPERATOR
    with pytest.raises(SettingsError, match="choose another"):
        Tokens("secret", file)


def test_a_run_without_token_and_file_has_no_tokens() -> None:
    assert Tokens.of(None, None) is None


def test_every_token_tells_its_holder_and_a_wrong_one_tells_nobody(tmp_path: Path) -> None:
    tokens = Tokens("the operator's", write(tmp_path / "tokens", f"ada operate {ADA}\neve read {EVE}\n"))
    told = [name_of(tokens, token) for token in ("the operator's", ADA, EVE, ADA + "a", ADA[:-1], "", "é")]
    assert told == [OPERATOR, "ada", "eve", None, None, None, None]


async def test_a_token_of_the_environment_may_be_of_any_bytes() -> None:
    async with client(Tokens(os.fsdecode(b"caf\xe9 \xff"), None)) as http:
        assert (await http.get("/v1/x", headers={b"Authorization": b"Bearer caf\xe9 \xff"})).status_code == 200


def test_a_token_that_is_taken_out_of_the_file_is_shut_out_and_a_new_one_let_in(tmp_path: Path) -> None:
    clock, file = Clock(), write(tmp_path / "tokens", f"ada operate {ADA}\n")
    tokens = Tokens(None, file, clock)
    write(file, f"eve read {EVE}\n")
    assert name_of(tokens, ADA) == "ada"
    clock.now_s += REREAD_S
    assert (name_of(tokens, ADA), name_of(tokens, EVE)) == (None, "eve")


def test_a_file_that_cannot_be_used_any_more_shuts_out_whom_it_named_until_it_is_put_right(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock, file = Clock(), write(tmp_path / "tokens", f"ada operate {ADA}\n")
    tokens = Tokens("the operator's", file, clock)
    caplog.set_level(logging.INFO)
    for spoil in (lambda: file.write_text(f"ada operat {ADA}\n"), lambda: file.chmod(0o644), file.unlink):
        write(file, f"ada operate {ADA}\n")
        clock.now_s += REREAD_S
        assert name_of(tokens, ADA) == "ada"
        spoil()
        for _ in range(3):
            clock.now_s += REREAD_S
            assert (name_of(tokens, ADA), name_of(tokens, "the operator's")) == (None, OPERATOR)
    assert [r.levelname for r in caplog.records].count("ERROR") == 3
    assert ADA not in caplog.text + str([vars(r) for r in caplog.records])


async def who(scope: Scope, receive: Receive, send: Send) -> None:
    await Request(scope, receive).body()
    caller = scope.get(CALLER)
    told = None if caller is None else [caller.name, caller.role, caller.origin, caller.known]
    await JSONResponse(told)(scope, receive, send)


def client(tokens: Tokens | None, rates: Rates | None = None) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(Doors(who, tokens, rates or Rates(0, 0)), client=("10.0.0.7", 1))
    return httpx.AsyncClient(transport=transport, base_url="http://localhost")


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def test_the_application_is_told_who_calls(tmp_path: Path) -> None:
    async with client(None) as http:
        assert (await http.get("/v1/x")).json() == [OPERATOR, "operate", "10.0.0.7", False]
    tokens = Tokens("the operator's", write(tmp_path / "tokens", f"ada operate {ADA}\n"))
    async with client(tokens) as http:
        assert (await http.get("/v1/x", headers=bearer(ADA))).json() == ["ada", "operate", "10.0.0.7", True]
        assert (await http.get("/healthz")).json() is None


async def test_who_may_only_read_can_read_everything_and_change_nothing(tmp_path: Path) -> None:
    async with client(Tokens(None, write(tmp_path / "tokens", f"eve read {EVE}\n"))) as http:
        for method in ("GET", "HEAD", "OPTIONS"):
            assert (await http.request(method, "/v1/config", headers=bearer(EVE))).status_code == 200
        for method in ("PUT", "PATCH", "POST", "DELETE", "TRACE", "BREW"):
            answer = await http.request(method, "/v1/config", headers=bearer(EVE))
            assert (answer.status_code, answer.json()["type"]) == (403, "urn:tributary:problem:read-only")
            assert '"eve" may only read' in answer.json()["detail"]


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        f"Basic {ADA}",
        f"{ADA}",
        "Bearer x",
        f"Bearer {ADA} {ADA}",
        f"Bearer {ADA}\t.",
        "Bearer é",
    ],
)
async def test_anything_but_a_token_of_the_run_is_401(header: str, tmp_path: Path) -> None:
    async with client(Tokens(None, write(tmp_path / "tokens", f"ada operate {ADA}\n"))) as http:
        answer = await http.get("/v1/x", headers=[(b"Authorization", header.encode("latin-1"))])
        assert answer.status_code == 401
        assert (await http.get("/v1/x", headers={"Authorization": f"bearer  {ADA} "})).status_code == 200


def waits(rates: Rates, *calls: tuple[str, Call]) -> list[float]:
    return [round(rates.wait_s(*call), 3) for call in calls]


def test_a_client_may_make_two_seconds_worth_of_calls_at_once_and_then_as_many_as_come_back() -> None:
    clock = Clock()
    rates = Rates(0, 5, clock)
    assert waits(rates, *[("ada", Call.WRITE)] * 12) == [0] * 10 + [0.2, 0.2]
    clock.now_s += 0.2
    assert waits(rates, *[("ada", Call.WRITE)] * 2) == [0, 0.2]
    clock.now_s += 1000
    assert waits(rates, *[("ada", Call.WRITE)] * 11) == [0] * 10 + [0.2]


def test_reads_and_writes_and_clients_are_counted_apart_and_zero_is_no_limit() -> None:
    rates = Rates(1, 0.1, Clock())
    ada, eve = ("ada", Call.WRITE), ("eve", Call.WRITE)
    assert waits(rates, ada, ada, eve, eve) == [0, 10, 0, 10]
    assert waits(rates, *[("ada", Call.READ)] * 3) == [0, 0, 1]
    assert waits(Rates(0, 0, Clock()), *[ada] * 1000) == [0] * 1000


def test_a_refused_call_does_not_make_the_wait_longer() -> None:
    clock = Clock()
    rates = Rates(0, 0.5, clock)
    assert waits(rates, *[("ada", Call.WRITE)] * 100)[-1] == 2
    clock.now_s += 2
    assert waits(rates, ("ada", Call.WRITE)) == [0]


def test_no_more_clients_are_remembered_than_there_is_room_for() -> None:
    rates = Rates(0, 0.1, Clock())
    rates.wait_s("first", Call.WRITE)
    for number in range(3 * MOST_BUCKETS):
        rates.wait_s("busy", Call.WRITE)
        rates.wait_s(str(number), Call.WRITE)
    held: Any = rates
    assert len(held._buckets) == MOST_BUCKETS
    assert waits(rates, ("busy", Call.WRITE), ("first", Call.WRITE)) == [10, 0]


async def test_too_many_calls_are_429_with_retry_after_and_health_is_never_refused(tmp_path: Path) -> None:
    tokens = Tokens("secret", write(tmp_path / "tokens", f"ada operate {ADA}\n"))
    async with client(tokens, Rates(1, 0.25, Clock())) as http:
        statuses = [(await http.get("/v1/x", headers=bearer("secret"))).status_code for _ in range(4)]
        assert statuses == [200, 200, 429, 429]
        answer = await http.get("/v1/x", headers=bearer("secret"))
        assert (answer.headers["retry-after"], answer.json()["status"]) == ("1", 429)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert (await http.get("/v1/x", headers=bearer(ADA))).status_code == 200
        assert (await http.post("/v1/x", headers=bearer(ADA))).status_code == 200
        refused = await http.post("/v1/x", headers=bearer(ADA))
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "4")
        assert "[control] writes_per_s" in refused.json()["detail"]
        for path in ("/healthz", "/readyz", "/metrics"):
            assert [(await http.get(path)).status_code for _ in range(9)] == [200] * 9


async def test_guessing_tokens_is_limited_by_the_address_that_guesses(tmp_path: Path) -> None:
    tokens = Tokens(None, write(tmp_path / "tokens", f"ada operate {ADA}\n"))
    async with client(tokens, Rates(1, 1, Clock())) as http:
        guesses = [(await http.get("/v1/x", headers=bearer(f"{n:016}"))).status_code for n in range(4)]
        assert guesses == [401, 401, 429, 429]
        assert (await http.get("/v1/x", headers=bearer(ADA))).status_code == 200


def test_a_pipe_in_place_of_the_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "tokens", 0o600)
    with pytest.raises(SettingsError, match="is no file"):
        read_tokens_file(tmp_path / "tokens")


def test_the_operators_token_cannot_be_anybody_elses_too(tmp_path: Path) -> None:
    file = write(tmp_path / "tokens", f"monitor read {ADA}\n")
    with pytest.raises(SettingsError, match=r'the token of "monitor" is \$TRIBUTARY_TOKEN itself'):
        Tokens(ADA, file)


def test_a_holder_is_known_until_its_line_is_taken_out(tmp_path: Path) -> None:
    now_s = 0.0
    file = write(tmp_path / "tokens", f"ada operate {ADA}\n")
    tokens = Tokens(None, file, lambda: now_s)
    holder = tokens.holder(ADA.encode())
    assert holder is not None
    assert tokens.knows(holder)
    write(file, f"ada read {ADA}\n")
    now_s = 2 * REREAD_S
    assert not tokens.knows(holder)
