"""BREAD's search with a real engine: the ids that are trained on are the ids that the engine continued."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from common.trajectory import AnchorSearch, Demonstration, GroupPlan, Purpose, Request, Sampling, Source, Tokens
from services.generator.answering import Answerer
from services.generator.engine import Completion, Engine, EngineSettings
from services.generator.graders import Grade
from services.generator.rollouts import Rollouts
from services.generator.search import SearchResult
from tests.system.engine_rig import ENGINE_MARKS, EOS, LoopThread, PublishedLlama

pytestmark = ENGINE_MARKS
TOLERANCE = 1e-4
PROMPT = np.array([5, 6, 7, 8, 9], np.int32)
DEMONSTRATION = Demonstration(
    np.array([*range(20, 50), EOS], np.int32), expert_logprobs=np.linspace(-1, -2, 31, dtype=np.float32)
)
ANCHOR = 18


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PublishedLlama:
    return PublishedLlama(tmp_path_factory.mktemp("untied"), tied=False)


@pytest.fixture(scope="module")
def loop() -> Iterator[LoopThread]:
    thread = LoopThread()
    yield thread
    thread.close()


class Recorded:
    """A real engine, with what it was asked to continue."""

    def __init__(self, engine: Engine) -> None:
        self.prompts: list[list[int]] = []
        self._engine = engine

    async def sample(self, prompt_tokens: Tokens, **options: Any) -> list[Completion]:
        self.prompts.append(np.asarray(prompt_tokens).tolist())
        return await self._engine.sample(prompt_tokens, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


def _as_text(tokens: Tokens) -> str:
    return " ".join(str(token) for token in tokens.tolist())


async def _half_of_what_follows_the_anchor(response: str, answer: str) -> Grade:
    """Right if at least ANCHOR tokens were shown and the next token is even: a coin that only a hint lets one toss."""
    tokens = [int(token) for token in response.split()]
    shown = len(tokens) > ANCHOR and tokens[:ANCHOR] == DEMONSTRATION.tokens[:ANCHOR].tolist()
    return Grade(float(shown and tokens[-1] % 2 == 0))


def test_a_branched_group_is_prompt_hint_and_continuation_id_by_id(model: PublishedLlama, loop: LoopThread) -> None:
    request = Request(
        request_id="bread",
        prompt_id="p",
        purpose=Purpose.TRAIN,
        revision=1,
        prompt_tokens=PROMPT,
        answer="",
        plan=GroupPlan(plain=4),
        sampling=Sampling(0.9, 40),
        demonstrations=(DEMONSTRATION,),
        search=AnchorSearch(cuts=(6, 12, ANCHOR, 24), members=16, probes=4, above=0.0, below=1.0),
    )
    settings = EngineSettings(model=str(model.directory), dtype="float32", max_model_len=128, max_num_seqs=32)
    started = loop.run(Engine.start(settings))
    try:
        engine = Recorded(started)
        rollouts = Rollouts(engine, _half_of_what_follows_the_anchor, _as_text)  # type: ignore[arg-type]
        answer = loop.run(Answerer("g", engine, rollouts).answer(request))  # type: ignore[arg-type]
    finally:
        loop.run(started.close())
    start = [*PROMPT.tolist(), *DEMONSTRATION.tokens[:ANCHOR].tolist()]
    assert [len(prompt) - len(PROMPT) for prompt in engine.prompts] == [0, 12, ANCHOR]
    assert engine.prompts[-1] == start
    assert answer.search is SearchResult.TAKEN
    assert (answer.outcome.anchor, answer.outcome.probes, answer.outcome.rewards) == (ANCHOR, 2, (0.0,) * 4)
    assert 0 < sum(answer.outcome.hinted_rewards) < 16
    assert answer.group is not None
    assert len(answer.group.trajectories) == 16
    for trajectory in answer.group.trajectories:
        tokens, first = trajectory.tokens.tolist(), len(start)
        assert tokens[:first] == start
        assert trajectory.sources.tolist() == (
            [Source.PROMPT] * 5 + [Source.HINT] * ANCHOR + [Source.POLICY] * (len(tokens) - first)
        )
        assert len(tokens) - len(PROMPT) <= 40
        expected = model.logprobs(0, tokens, 0.9)[first - 1 :]
        np.testing.assert_allclose(trajectory.behaviour_logprobs[first:], expected, atol=TOLERANCE)
        assert trajectory.expert_logprobs is not None
        np.testing.assert_array_equal(
            trajectory.expert_logprobs[len(PROMPT) : first],
            DEMONSTRATION.expert_logprobs[:ANCHOR],  # type: ignore[index]
        )
