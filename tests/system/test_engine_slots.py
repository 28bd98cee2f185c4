"""Slots of a decode step beside vLLM's own manager: the same blocks, the same prefix cache, fewer questions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]  # as engine_rig's, which would import torch
BLOCK = 4
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.system.quick_slots_rig"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_blocks_and_prefix_cache_are_those_of_the_manager_itself(found: dict[str, Any]) -> None:
    for quick, plain in found["decoded"].values():
        assert quick["told"] == plain["told"]
        assert quick["calls"] == [tokens for tokens in plain["calls"] if tokens % BLOCK in (0, BLOCK - 1)]
        assert len(quick["calls"]) < len(plain["calls"])


def test_a_sequence_that_finds_no_room_is_told_so(found: dict[str, Any]) -> None:
    assert found["no_room"] == [False] * 5 + [True]


def test_what_is_not_a_plain_step_of_decoding_goes_through_the_manager(found: dict[str, Any]) -> None:
    assert found["passed_on"] == [True, True, True]


def test_other_kinds_of_attention_are_left_to_the_manager(found: dict[str, Any]) -> None:
    assert found["left_alone"] == {"full": False, "windowed": True, "several": True, "none": True}


def test_the_scheduler_itself_takes_the_quick_way_and_gives_out_the_same_blocks(found: dict[str, Any]) -> None:
    quick, plain = found["scheduled"]["HoldingScheduler"], found["scheduled"]["Scheduler"]
    assert quick["blocks"] == plain["blocks"]
    assert quick["decoded"] == plain["decoded"] == plain["asked"] > 100
    assert 0 < quick["asked"] <= 0.6 * quick["decoded"]  # a block has four tokens, and two of them are asked for
