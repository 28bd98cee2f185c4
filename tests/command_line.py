"""Command lines run inside the test's own process, and the beginning of a run for them to steer."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import pytest
from redis import Redis

from common.config.live import dump_live, parse_live
from common.keys import Keys
from services.cli import app

RUN = "test"
Run = Callable[..., tuple[int, str, str]]


def begin(redis_url: str) -> None:
    """Make a run that has only its first revision and has done nothing yet, whatever was there before."""
    revision = {"revision": 1, "config": dump_live(parse_live({})), "author": "run file", "origin": "run file"}
    record = json.dumps(revision | {"at_s": 0.0, "reason": "", "changes": []})
    keys = Keys(RUN)
    with Redis.from_url(redis_url) as client:
        kept = {keys.facts.encode()}
        client.delete(*(set(client.keys(keys.config.removesuffix("config") + "*")) - kept or {b"none"}))  # pyright: ignore
        client.hset(keys.config, mapping={"revision": 1, "record": record})
        client.rpush(keys.config_history, record)


def runner(url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line against the control plane at `url`; gives exit code, output and complaints."""
    monkeypatch.setenv("TRIBUTARY_URL", url)
    monkeypatch.setenv("COLUMNS", "200")

    def run_command(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tributary", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            app.main()
        code = caught.value.code
        told = capsys.readouterr()
        assert "Traceback" not in told.err
        return code if isinstance(code, int) else 0, told.out, told.err

    return run_command
