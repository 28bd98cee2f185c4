"""Demonstrations that an expert scores: asked for ahead and in order, held back until known, set aside if refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_tokenizer import write_tokenizer

from common.config.live import parse_live
from common.config.store import Author, Revision
from common.connection import Patience
from common.expert_scores import ExpertScores, Score
from common.settings import DataSettings, ModelSettings
from common.trajectory import ScoreTask
from services.curriculum.order import Order
from services.curriculum.outcomes import Ledger
from services.curriculum.prompts import PromptSet, load_prompts
from services.curriculum.scored import ASK_AGAIN_S, LATE_S, ScoredDemonstrations
from services.curriculum.set_aside import Reason
from services.curriculum.state import State
from services.curriculum.tokens import Tokeniser
from services.curriculum.training import TrainingRequests


class KnownScores(ExpertScores):
    """The scores of a run without Redis: what was asked for is listed, and a test answers."""

    def __init__(self, expert: str) -> None:
        self.expert = expert
        self.asked: list[ScoreTask] = []
        self.answers: dict[str, Score] = {}

    async def ask(self, tasks: Sequence[ScoreTask]) -> int:
        self.asked += tasks
        return len(tasks)

    async def known(self, keys: Sequence[str]) -> dict[str, Score]:
        return {key: self.answers[key] for key in keys if key in self.answers}

    async def identity(self) -> str:
        return self.expert

    def score(self, task: ScoreTask, logprob: float = -0.5) -> None:
        self.answers[task.key] = Score(np.full(len(task.tokens), logprob, np.float32))


class Clock:
    """A clock that a test sets."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


async def nothing() -> None:
    """What there is to restore without Redis."""


class Rig:
    """Training requests of a small data set whose demonstrations are scored."""

    def __init__(self, directory: Path, texts: Sequence[Any], expert: str = "expert-1") -> None:
        rows = [{"prompt": f"{i}+1=", "answer": str(i + 1), "demonstration": text} for i, text in enumerate(texts)]
        path = directory / "d.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = DataSettings(path=str(path), shuffle=False)
        tokeniser = Tokeniser(ModelSettings(path=str(write_tokenizer(directory / "model"))), source)
        self.prompts: PromptSet = load_prompts("train", source, tokeniser)
        self.scores = KnownScores(expert)
        self.clock = Clock()
        self.scored = ScoredDemonstrations(self.scores, Patience(asyncio.Event(), nothing), self.clock)
        order = Order(len(rows), 0, shuffle=False)
        self.requests = TrainingRequests(self.prompts, order, 0, Ledger({}), self.scored)
        self.state = State("life")
        self.hints("demonstration")

    def hints(self, kind: str, **parameters: Any) -> None:
        algorithm = {"kind": "luffy"} if kind == "demonstration" else {"kind": "grpo"}
        hints = {"kind": kind, **parameters}
        live = parse_live({"algorithm": algorithm, "hints": hints, "sampling": {"max_response_tokens": 16}})
        self.revision = Revision(1, live, Author("test", "test"), 0.0, "", ())

    async def turn(self, count: int = 10) -> list[Any]:
        """One turn of the curriculum's loop: the requests it makes."""
        await self.requests.look_ahead(self.revision, self.state.cursor)
        made, self.state = self.requests.next(self.revision, self.state, count)
        return made


async def test_requests_wait_for_their_scores_and_go_on_in_order(tmp_path: Path) -> None:
    rig = Rig(tmp_path, ["a", "b", "c", "d"])
    assert await rig.turn() == []
    assert rig.requests.held_back
    asked = rig.scores.asked
    assert [len(task.tokens) for task in asked] == [2] * 4
    rig.scores.score(asked[2])
    assert await rig.turn() == []
    rig.scores.score(asked[0])
    rig.scores.score(asked[1])
    made = await rig.turn(3)
    assert [r.prompt_id for r in made] == ["train:0", "train:1", "train:2"]
    assert [r.demonstrations[0].expert_logprobs.tolist() for r in made] == [[-0.5, -0.5]] * 3
    assert len(rig.scores.asked) == 4


async def test_what_is_known_already_is_not_asked_for(tmp_path: Path) -> None:
    rig = Rig(tmp_path, ["a", "b"])
    await rig.turn()
    for task in rig.scores.asked:
        rig.scores.score(task)
    again = Rig(tmp_path, ["a", "b"])
    again.scores.answers = rig.scores.answers
    assert len(await again.turn(2)) == 2
    assert again.scores.asked == []


async def test_what_a_scorer_gave_back_is_asked_for_anew(tmp_path: Path) -> None:
    rig = Rig(tmp_path, ["a"])
    await rig.turn()
    await rig.turn()
    assert len(rig.scores.asked) == 1
    rig.clock.now_s = ASK_AGAIN_S
    await rig.turn()
    assert len(rig.scores.asked) == 2


async def test_another_expert_is_asked_anew_at_once_and_the_scores_of_the_one_before_are_forgotten(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path, ["a", "b"])
    await rig.turn()
    rig.scores.score(rig.scores.asked[0])
    assert len(await rig.turn(1)) == 1
    rig.scores.expert = "expert-2"  # a scorer began again with other weights, and gives back what it is asked for
    assert await rig.turn(1) == []
    assert len({task.key for task in rig.scores.asked}) == 4
    for task in rig.scores.asked[2:]:
        rig.scores.score(task, -2.0)
    made = await rig.turn(2)
    assert [r.demonstrations[0].expert_logprobs.tolist() for r in made] == [[-2.0, -2.0]] * 2


async def test_an_expert_that_redis_forgot_is_still_the_same_one(tmp_path: Path) -> None:
    rig = Rig(tmp_path, ["a"])
    await rig.turn()
    rig.scores.score(rig.scores.asked[0])
    assert len(await rig.turn(1)) == 1
    for expert in ("", "expert-1"):
        rig.scores.expert = expert
        assert len(await rig.turn(1)) == 1
    assert len(rig.scores.asked) == 1


async def test_that_no_score_comes_for_long_is_known_once_until_requests_go_on(tmp_path: Path) -> None:
    rig = Rig(tmp_path, ["a", "b"])

    async def late(now_s: float) -> bool:
        rig.clock.now_s = now_s
        await rig.turn(1)
        return rig.requests.scores_are_late()

    assert [await late(now_s) for now_s in (0.0, LATE_S - 1, LATE_S, LATE_S + 1)] == [False, False, True, False]
    rig.scores.score(rig.scores.asked[0])
    rig.clock.now_s = 2 * LATE_S
    assert [len(await rig.turn(2)), rig.requests.held_back, rig.requests.scores_are_late()] == [1, True, False]
    assert [await late(now_s) for now_s in (2 * LATE_S, 3 * LATE_S)] == [False, True]


async def test_as_many_demonstrations_are_wanted_at_once_as_are_kept_however_many_a_prompt_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.curriculum.scored.KEPT_SCORES", 6)
    monkeypatch.setattr("services.curriculum.training.AHEAD", 6)
    rig = Rig(tmp_path, [["a", "b", "c", "d"]] * 4)
    rig.hints("demonstration", count=4)
    made: list[Any] = []
    for _ in range(10):
        made += await rig.turn(1)
        for task in rig.scores.asked:
            rig.scores.score(task)
    assert [r.plan.demonstrations for r in made[:4]] == [4] * 4


async def test_nothing_is_asked_before_the_expert_is_known_or_where_nothing_is_shown(tmp_path: Path) -> None:
    rig = Rig(tmp_path, ["a"], expert="")
    assert await rig.turn() == []
    assert rig.scores.asked == []
    rig.scores.expert = "expert-1"
    rig.hints("none")
    assert len(await rig.turn(1)) == 1
    assert rig.scores.asked == []
    rig.hints("demonstration")
    await rig.turn()
    assert len(rig.scores.asked) == 1


@pytest.mark.parametrize(
    ("score", "said"),
    [
        (Score(None, "the expert's context holds 8"), "the expert did not score it: the expert's context holds 8"),
        (Score(np.zeros(1, np.float32)), "it has 1 log-probs for 2 tokens"),
        (Score(np.array([-1.0, np.nan], np.float32)), "the log-prob of its token 2 is nan"),
    ],
)
async def test_what_cannot_be_scored_is_set_aside_and_the_run_goes_on(tmp_path: Path, score: Score, said: str) -> None:
    rig = Rig(tmp_path, ["a", "b"])
    await rig.turn()
    rig.scores.answers[rig.scores.asked[0].key] = score
    rig.scores.score(rig.scores.asked[1])
    made = await rig.turn(4)
    assert [r.plan.demonstrations for r in made] == [0, 1, 0, 1]
    [unusable] = rig.prompts.set_aside.news()
    assert (unusable.reason, rig.prompts.with_demonstrations) == (Reason.UNSCORABLE, 1)
    assert said in unusable.why


async def test_only_demonstrations_that_a_group_uses_are_scored(tmp_path: Path) -> None:
    rig = Rig(tmp_path, [["a", "bb", "ccc"]])
    await rig.turn()
    [first] = rig.scores.asked
    rig.scores.answers[first.key] = Score(None, "no")
    assert await rig.turn() == []  # the first is set aside, so the second is needed
    await rig.turn()
    assert [len(task.tokens) for task in rig.scores.asked] == [2, 3]
    rig.scores.score(rig.scores.asked[1])
    [request] = await rig.turn(1)
    assert [len(d.tokens) for d in request.demonstrations] == [3]


async def test_a_large_set_is_made_ready_and_asked_for_little_by_little(tmp_path: Path) -> None:
    rig = Rig(tmp_path, ["ab"] * 100)
    await rig.turn()
    assert len(rig.scores.asked) == 32
    await rig.turn()
    assert len(rig.scores.asked) == 64
    assert len({task.key for task in rig.scores.asked}) == 64  # the prompts differ


async def test_no_turn_makes_many_demonstrations_ready_where_nothing_is_scored_either(tmp_path: Path) -> None:
    rig = Rig(tmp_path, ["ab"] * 100)
    order = Order(100, 0, shuffle=False)
    rig.requests = TrainingRequests(rig.prompts, order, 0, Ledger({}), None)
    assert [len(await rig.turn(64)) for _ in range(4)] == [32, 32, 32, 64]  # then all is ready
