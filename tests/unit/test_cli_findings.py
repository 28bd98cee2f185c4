"""Findings of a dry run side by side, and what the table does not say."""

from __future__ import annotations

from typing import Any

import pytest
from dry_run_findings import ACTIVE
from rich.console import Console

from common.errors import SettingsError
from services.cli.commands.trying import candidates_of, label_of
from services.cli.findings import figures_of, findings_table, remarks

GAMMA = {**ACTIVE, "loss": -0.5, "cosine": 0.93456, "notes": ["another temperature"], "pull": {"demonstration": 0.4}}


def answer(*candidates: dict[str, Any]) -> dict[str, Any]:
    return {"id": "a", "state": "answered", "step": 7, "active": ACTIVE, "candidates": list(candidates), "notice": ""}


def candidate(finding: dict[str, Any] | None, problem: str = "") -> dict[str, Any]:
    changes = [{"path": "algorithm.gamma", "before": 0.1, "after": 0.3}]
    return {"label": "g=0.3", "changes": changes, "finding": finding, "problem": problem}


def shown(document: dict[str, Any]) -> list[str]:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(findings_table(document))
    return capture.get().splitlines()


def row(lines: list[str], name: str) -> list[str]:
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    (found,) = [row for row in cells if row[0] == name]
    return found


def test_every_figure_of_active_and_candidate_stands_side_by_side() -> None:
    lines = shown(answer(candidate(GAMMA)))
    assert row(lines, "loss") == ["loss", "-0.25", "-0.5"]
    assert row(lines, "pull of demonstration")[1:] == ["0.125", "0.4"]
    assert row(lines, "pull of policy")[1:] == ["0.5", "–"]
    assert row(lines, "cosine with the active gradient")[1:] == ["1", "0.9346"]
    assert row(lines, "gradient weight of term expert")[1:] == ["–", "–"]
    assert any("active" in line and "g=0.3" in line for line in lines)
    assert any("step 7" in line and "luffy" in line for line in lines)


def test_a_figure_that_is_not_known_here_is_shown_all_the_same() -> None:
    assert ("a new figure", 3) in list(figures_of({**ACTIVE, "a_new_figure": 3}))


def test_a_candidate_without_a_finding_has_no_column_but_its_reason() -> None:
    document = answer(candidate(None, "it needs the reference model"), candidate(GAMMA))
    assert len(row(shown(document), "loss")) == 3
    assert list(remarks(document)) == [
        "g=0.3 changes algorithm.gamma 0.1 → 0.3",
        "g=0.3 could not be tried: it needs the reference model",
        "g=0.3 changes algorithm.gamma 0.1 → 0.3",
        "g=0.3: another temperature",
    ]


def test_candidates_are_parted_by_the_word_or_and_labelled_with_their_own_words() -> None:
    assert candidates_of(["algorithm.gamma=0.2", "max_staleness=1", "or", "algorithm.gamma=0.4"]) == [
        {"label": "algorithm.gamma=0.2 max_staleness=1", "patch": {"algorithm": {"gamma": 0.2}, "max_staleness": 1}},
        {"label": "algorithm.gamma=0.4", "patch": {"algorithm": {"gamma": 0.4}}},
    ]
    assert len(label_of("x" * 200)) == 80
    for words in (["or", "a=1"], ["a=1", "or"], ["a=1", "or", "or", "b=1"]):
        with pytest.raises(SettingsError, match="stands between two candidates"):
            candidates_of(words)
