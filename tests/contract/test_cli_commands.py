"""The commands against a real control plane: what they show, what they change, and how they fail."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import Run, begin, runner
from control_process import ControlProcess
from pretended_run import PretendedRun
from redis_process import RedisProcess

from common import connection
from common.config.algorithm import ALGORITHMS, AlgorithmConfig
from services.cli.client import ControlClient
from services.cli.commands import observing


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
    process = ControlProcess(tmp_path_factory.mktemp("control"), redis.url).wait_until_up()
    yield process
    process.stop()


@pytest.fixture
def control(lasting_control: ControlProcess, redis: RedisProcess) -> ControlProcess:
    """The control plane, with a run that has only its first revision and has done nothing yet."""
    begin(redis.url)
    return lasting_control


@pytest.fixture
def run(control: ControlProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line in this process; gives exit code, output and complaints."""
    return runner(control.url, monkeypatch, capsys)


def pretend(redis_url: str, steps: int) -> None:
    """Let a pretended run make some steps."""

    async def advance() -> None:
        client = connection.connect(redis_url)
        run = PretendedRun(client, "test")
        for _ in range(steps):
            await run.advance(time.time())
        await client.aclose()

    asyncio.run(advance())


def test_a_switch_is_shown_read_compared_and_taken_back(run: Run) -> None:
    code, out, _ = run("switch", "luffy", "--gamma", "0.2", "--hints", "demonstration", "-m", "teach it")
    assert (code, out) == (
        0,
        "revision 2: algorithm dr_grpo → luffy, hints none → demonstration; in force from the learner's next step\n",
    )
    assert run("config", "get", "algorithm.gamma")[:2] == (0, "0.2\n")
    assert "algorithm.gamma = 0.2\n" in run("config", "get")[1]
    code, out, _ = run("config", "set", "algorithm.gamma=0.4", "optimizer.learning_rate=2e-6", "--if-revision", "2")
    assert (code, out.split(";")[0]) == (
        0,
        "revision 3: algorithm.gamma 0.2 → 0.4, optimizer.learning_rate 1e-06 → 2e-06",
    )
    changes = json.loads(run("config", "diff", "--json")[1])["changes"]
    assert [change["path"] for change in changes] == ["algorithm.gamma", "optimizer.learning_rate"]
    code, out, _ = run("config", "history")
    assert "teach it" in out
    assert "algorithm dr_grpo → luffy" in out
    document = json.loads(run("config", "rollback", "1", "--json")[1])
    assert (document["revision"], document["config"]["algorithm"]["kind"]) == (4, "dr_grpo")
    assert run("config", "diff", "1", "4")[1] == "revisions 1 and 4 are the same\n"


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda a: str(a.model_fields["kind"].default))
def test_a_switch_without_a_hint_policy_brings_the_published_one_along(
    run: Run, algorithm: type[AlgorithmConfig]
) -> None:
    kind, hints = algorithm.model_fields["kind"].default, algorithm.published_hints["kind"]
    code, out, _ = run("switch", str(kind))
    assert code == 0
    assert (f"hint policy none does not feed {kind}: {hints} comes with it, as published" in out) == (hints != "none")
    assert run("config", "get", "hints.kind")[1] == f'"{hints}"\n'


def test_a_switch_keeps_the_hint_policy_that_feeds_the_new_algorithm_too(run: Run) -> None:
    assert run("switch", "luffy")[0] == 0
    code, out, _ = run("switch", "relift")
    assert (code, "comes with it" in out) == (0, False)
    assert run("config", "get", "hints.kind")[1] == '"demonstration"\n'
    out = run("switch", "dapo")[1]
    assert "hint policy demonstration does not feed dapo: none comes with it" in out


def test_status_shows_the_hint_schedule_and_the_rehearsal_buffer(run: Run, redis: RedisProcess) -> None:
    assert run("switch", "uft")[0] == 0
    pretend(redis.url, 1)
    assert "p 0.62, 25.0 % done, hints of 12.5 tokens" in run("status")[1]
    assert run("switch", "relift", "--hints", "if_unsolved")[0] == 0
    pretend(redis.url, 1)
    deadline_s = time.monotonic() + 10
    while "7 demonstrations wait" not in (out := run("status")[1]):
        assert time.monotonic() < deadline_s, out


def test_what_changes_nothing_is_said_to_change_nothing(run: Run) -> None:
    code, out, _ = run("config", "set", "groups_per_step=16")
    assert (code, out) == (0, "nothing to change: revision 1 says the same already\n")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["switch", "luffy", "--hints", "none"], 'set {"hints": {"kind": "demonstration"}} in the same change'),
        (["switch", "lufy"], "kind 'lufy' is not known: choose one of"),
        (["switch", "luffy", "--gama", "1", "--hints", "demonstration"], "algorithm.gama: this key is not known here"),
        (["config", "set", "max_staleness=-1"], "max_staleness: "),
        (["config", "set", "algorithm"], "assigns nothing"),
        (["config", "set", "groups_per_step=8", "--if-revision", "7"], "revision 1 is current"),
        (["config", "rollback", "9"], "there is no revision 9"),
        (["config", "diff", "1", "5"], "there is no revision 5"),
        (["config", "get", "algorithm.nothing"], "the live configuration has no algorithm.nothing"),
        (["config", "get", "--nothing"], "No such option"),
        (["check", "nothing.toml"], ""),
        (["generators", "drain", "\udcff"], "not UTF-8 text"),
        (["config", "set", "publish_every=3", "--reason", "\udcff"], "not UTF-8 text"),
        (["demonstrate", "train:1", "\udcff"], "not UTF-8 text"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_sentence_and_exit_code_2(
    run: Run, words: list[str], complaint: str
) -> None:
    code, _, err = run(*words)
    assert code == 2
    assert complaint in err


def test_status_tells_asked_and_in_force_apart(run: Run, redis: RedisProcess) -> None:
    pretend(redis.url, 10)
    assert run("config", "set", "groups_per_step=8")[0] == 0
    code, out, _ = run("status")
    assert code == 0
    for words in (
        "2 (in force: 1)",
        "step",
        "10 / 400",
        "held-out hard",
        "generator-2",
        "127.0.0.1:9100",
        "1787 generated, 1420 trained",
    ):
        assert words in out
    document: dict[str, Any] = json.loads(run("status", "--json")[1])
    assert (document["revision"]["asked"], document["revision"]["in_force"]) == (2, 1)


def test_watch_tells_the_story_so_far_silently_and_every_event_from_now_on(
    run: Run, control: ControlProcess, redis: RedisProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(redis.url, 10)
    with ControlClient(control.url) as client:
        document = client.status()

    async def watch_a_moment() -> None:
        watching = asyncio.create_task(observing._watch(control.url, document, as_json=True, plain=False))
        client = connection.connect(redis.url)
        run = PretendedRun(client, "test")
        run.step = 10
        await run.advance(time.time())
        while '"step": 11' not in (text := capsys.readouterr().out):
            await asyncio.sleep(0.05)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await client.aclose()
        steps = [line for line in map(json.loads, text.splitlines()) if line["kind"] == "step"]
        assert [step["data"]["step"] for step in steps] == [11]

    asyncio.run(watch_a_moment())


def test_a_control_plane_that_is_away_is_a_sentence_and_exit_code_1(run: Run) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        code, _, err = run("status", "--url", url)
    assert code == 1
    assert err.startswith(f"tributary: the control plane at {url} cannot be reached")


def test_help_names_every_command_and_the_exit_codes(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    commands = "up check status watch down switch pause resume checkpoint groups prompts quarantine demonstrate"
    commands += " demonstrations methods export config generators"
    for words in (*commands.split(), "Exit codes", "--install-completion"):
        assert words in out
    for name in commands.split():
        assert run(name, "--help")[0] == 0


def complete(words: str, url: str, home: Path) -> list[str]:
    """What the shell is told may follow these words."""
    asked = {"_TRIBUTARY_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    return tributary(home, {**asked, "TRIBUTARY_URL": url}).split()


def tributary(home: Path, more: dict[str, str], *words: str) -> str:
    """The output of a command line in a process of its own, with a home directory of its own."""
    command = [sys.executable, "-c", "import sys; sys.argv[0] = 'tributary'; from services.cli.app import main; main()"]
    surroundings = os.environ | {"HOME": str(home)} | more
    return subprocess.check_output([*command, *words], env=surroundings, text=True, timeout=60)


def test_the_shell_completes_commands_kinds_and_generators(
    run: Run, control: ControlProcess, redis: RedisProcess, tmp_path: Path
) -> None:
    pretend(redis.url, 1)
    assert complete("tributary sw", control.url, tmp_path) == ["switch"]
    assert complete("tributary switch luf", control.url, tmp_path) == ["luffy", "luffy_paper"]
    assert complete("tributary generators drain gen", control.url, tmp_path) == ["generator-1", "generator-2"]
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        away = f"http://127.0.0.1:{closed.getsockname()[1]}"
        assert complete("tributary generators drain gen", away, tmp_path) == []


def test_completion_installs_itself_for_the_shell(tmp_path: Path) -> None:
    told = tributary(tmp_path, {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}, "--install-completion", "bash")
    assert "bash completion installed in" in told
    assert "_TRIBUTARY_COMPLETE=complete_bash" in (tmp_path / ".bash_completions" / "tributary.sh").read_text()
