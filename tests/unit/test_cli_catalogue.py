"""`tributary methods`: everything that can be asked for, without a run."""

from __future__ import annotations

import json

import pytest
from command_line import runner

from common.config.algorithm import ALGORITHMS
from common.config.hints import HINT_POLICIES
from services.cli.commands.cataloguing import fed_by, kind_of
from services.cli.commands.steering import with_hints


def test_every_algorithm_and_hint_policy_is_listed_with_paper_and_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runner("http://127.0.0.1:1", monkeypatch, capsys)
    code, out, _ = run("methods")
    assert code == 0
    for config in (*ALGORITHMS, *HINT_POLICIES):
        assert f" {kind_of(config)} " in out
    assert "arXiv 2504.14945" in out
    document = json.loads(run("methods", "--json")[1])
    assert [a["kind"] for a in document["algorithms"]] == [kind_of(a) for a in ALGORITHMS]
    assert [h["kind"] for h in document["hint_policies"]] == [kind_of(h) for h in HINT_POLICIES]


@pytest.mark.parametrize("config", [*ALGORITHMS, *HINT_POLICIES], ids=kind_of)
def test_each_tells_its_parameters(
    config: type, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runner("http://127.0.0.1:1", monkeypatch, capsys)
    kind = kind_of(config)
    code, out, _ = run("methods", kind)
    assert code == 0
    assert all(f" {name} " in out for name in config.model_fields if name != "kind")  # pyright: ignore
    assert json.loads(run("methods", kind, "--json")[1])["kind"] == kind


def test_a_kind_that_there_is_not_is_refused_with_those_that_there_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = runner("http://127.0.0.1:1", monkeypatch, capsys)("methods", "lufy")
    assert code == 2
    assert "there is no 'lufy': the algorithms and hint policies are sft, reinforce" in err


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=kind_of)
def test_what_is_said_to_feed_an_algorithm_does(algorithm: type) -> None:
    policies = {kind_of(h): h.suggestion for h in HINT_POLICIES}
    for hints in fed_by(algorithm):
        current = {"hints": {"kind": hints, **policies[hints]}}
        assert with_hints({"algorithm": {"kind": kind_of(algorithm)}}, current)[1] == ""
