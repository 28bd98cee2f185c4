"""A real engine takes new weights while it samples, and every log-prob stays exact."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.torch import save_file

from common.trajectory import Finish
from services.generator import engine as engine_module
from services.generator.engine import Completion, Engine, EngineError, EngineSettings, WeightUpdateFailed
from services.generator.weight_update import WeightUpdate
from tests.system.engine_rig import ENGINE_MARKS, EOS, LoopThread, PublishedLlama

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams

pytestmark = ENGINE_MARKS
TOLERANCE = 1e-4
PROMPT = [5, 6, 7, 8, 9, 10, 11]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PublishedLlama:
    return PublishedLlama(tmp_path_factory.mktemp("untied"), tied=False)


@pytest.fixture(scope="module")
def loop() -> Iterator[LoopThread]:
    thread = LoopThread()
    yield thread
    thread.close()


@pytest.fixture(scope="module")
def engine(model: PublishedLlama, loop: LoopThread) -> Iterator[Engine]:
    settings = EngineSettings(model=str(model.directory), dtype="float32", max_model_len=1024, max_num_seqs=48)
    engine = loop.run(Engine.start(settings))
    yield engine
    loop.run(engine.close())


async def _sample(engine: Engine, count: int) -> list[tuple[list[int], list[Completion]]]:
    prompts = [[*PROMPT, 2 + index % 60] * (1 + index % 9) for index in range(count)]
    calls = [
        engine.sample(prompt, n=3, temperature=0.8, max_tokens=400, request_id=f"request-{index}")
        for index, prompt in enumerate(prompts)
    ]
    return list(zip(prompts, await asyncio.gather(*calls), strict=True))


async def _sample_until(over: asyncio.Event, engine: Engine, number: int) -> list[tuple[list[int], list[Completion]]]:
    """One request after the other, so that however quick the engine is, updates always meet some on their way."""
    prompt, answered = [*PROMPT, 2 + number % 60] * (1 + number % 9), list[tuple[list[int], list[Completion]]]()
    while not over.is_set():
        name = f"request-{number}-{len(answered)}"
        answered.append((prompt, await engine.sample(prompt, n=3, temperature=0.8, max_tokens=400, request_id=name)))
    return answered


def _largest_error(model: PublishedLlama, sampled: list[tuple[list[int], list[Completion]]]) -> float:
    return max(model.largest_error(prompt, c, 0.8) for prompt, completions in sampled for c in completions)


def _mislabelled(completion: Completion) -> Completion:
    """The same completion, every span moved on by one version: what the comparison has to tell from the truth."""
    return replace(completion, versions=tuple(replace(s, version=s.version + 1) for s in completion.versions))


def test_sampled_logprobs_equal_a_forward_at_the_temperature(
    engine: Engine, model: PublishedLlama, loop: LoopThread
) -> None:
    sampled = loop.run(_sample(engine, 16))
    assert all(len(completions) == 3 for _, completions in sampled)
    assert _largest_error(model, sampled) < TOLERANCE


def test_a_stopped_response_ends_with_its_eos_token_and_a_cut_one_has_none(engine: Engine, loop: LoopThread) -> None:
    completions = [c for _, group in loop.run(_sample(engine, 16)) for c in group]
    stopped = [c for c in completions if c.finish is Finish.STOP]
    assert stopped
    for completion in completions:
        assert completion.tokens.dtype == np.int32
        assert completion.logprobs.dtype == np.float32
        assert EOS not in completion.tokens[:-1]
        assert (completion.tokens[-1] == EOS) == (completion.finish is Finish.STOP)


@pytest.mark.parametrize("workers", [1, 2])
def test_every_span_matches_its_own_version_over_six_updates_in_flight(
    engine: Engine, model: PublishedLlama, loop: LoopThread, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    if workers == 2:  # as far as the exchange goes
        monkeypatch.setattr(engine, "_settings", replace(engine._settings, tensor_parallel_size=2))  # pyright: ignore[reportPrivateUsage]
    first = engine.version

    async def scenario() -> list[tuple[list[int], list[Completion]]]:
        over = asyncio.Event()
        async with asyncio.TaskGroup() as group:  # whoever fails, nothing is left running on the engine of all tests
            running = [group.create_task(_sample_until(over, engine, number)) for number in range(24)]
            try:
                for version in range(first + 1, first + 7):
                    generated = engine.statistics.tokens_generated
                    while engine.statistics.tokens_generated < generated + 300:
                        await asyncio.sleep(0.005)
                    pause_s = await engine.apply(model.update(version, complete=version - first in (1, 4)))
                    assert 0.0 < pause_s < 10.0
                    assert engine.version == version
            finally:
                over.set()
        return [one for task in running for one in task.result()]

    sampled = loop.run(scenario())
    spans = [c.versions for _, completions in sampled for c in completions]
    assert max(len(versions) for versions in spans) >= 3
    assert {span.version for versions in spans for span in versions} == set(range(first, first + 7))
    assert _largest_error(model, sampled) < TOLERANCE
    assert _largest_error(model, [(prompt, [_mislabelled(c) for c in group]) for prompt, group in sampled]) > 0.1
    assert _largest_error(model, loop.run(_sample(engine, 8))) < TOLERANCE


def test_a_score_equals_a_forward_from_where_it_starts(engine: Engine, model: PublishedLlama, loop: LoopThread) -> None:
    tokens = np.random.default_rng(0).integers(2, 64, 300).tolist()
    expected_T = model.logprobs(engine.version, tokens)
    for start in (1, 2, 150, 299):
        score_T = loop.run(engine.score(tokens, start))
        assert score_T.dtype == np.float32
        np.testing.assert_allclose(score_T, expected_T[start - 1 :], atol=TOLERANCE)
    assert len(loop.run(engine.score(tokens, 300))) == 0


def test_a_score_that_meets_an_update_on_its_way_is_taken_under_the_new_weights(
    engine: Engine, model: PublishedLlama, loop: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = np.random.default_rng(4).integers(2, 64, 200).tolist()
    control, scores = engine._control, list[asyncio.Task[np.ndarray]]()  # pyright: ignore[reportPrivateUsage]

    async def slow_control(what: str, call: Awaitable[object], more_s: float = 0.0) -> object:
        if "preparing" not in what and not scores:
            scores.append(asyncio.create_task(engine.score(tokens, 1)))
            await asyncio.wait(scores, timeout=0.5)  # the engine scores it, the pause has not come yet
        return await control(what, call, more_s)

    async def scenario() -> np.ndarray:
        await engine.apply(model.update(95))
        return await scores[0]

    monkeypatch.setattr(engine, "_control", slow_control)
    np.testing.assert_allclose(loop.run(scenario()), model.logprobs(95, tokens), atol=TOLERANCE)


def test_weights_that_were_loaded_wrongly_leave_nothing_in_the_prefix_cache(
    engine: Engine, model: PublishedLlama, loop: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_settings", replace(engine._settings, clear_cache_on_update=False))  # pyright: ignore[reportPrivateUsage]
    prompt = np.random.default_rng(5).integers(2, 64, 200).tolist()

    async def sample() -> Completion:
        return (await engine.sample(prompt, n=1, temperature=1.0, max_tokens=20, request_id="cached"))[0]

    loop.run(engine.apply(WeightUpdate(96, model.publish(94))))  # the weights of another version
    assert model.largest_error(prompt, loop.run(sample()), 1.0) > 0.01
    loop.run(engine.apply(model.update(96, complete=True)))  # made anew
    assert model.largest_error(prompt, loop.run(sample()), 1.0) < TOLERANCE


def test_temperature_zero_takes_the_most_probable_token(
    engine: Engine, model: PublishedLlama, loop: LoopThread
) -> None:
    async def greedy() -> Completion:
        return (await engine.sample(PROMPT, n=1, temperature=0.0, max_tokens=12, request_id="greedy"))[0]

    first, second = loop.run(greedy()), loop.run(greedy())
    assert first.tokens.tolist() == second.tokens.tolist()
    assert model.largest_error(PROMPT, first, 1.0) < TOLERANCE


def test_a_cancelled_sample_leaves_nothing_running(
    engine: Engine, loop: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = engine_module._sampling  # pyright: ignore[reportPrivateUsage]

    def endless(n: int, temperature: float, max_tokens: int) -> SamplingParams:
        params = sampling(n, temperature, max_tokens)
        params.ignore_eos = True  # nothing that is cancelled would have ended soon anyway
        return params

    async def ask_for_ever(n: int) -> None:  # however late the cancellation comes, it meets one on its way
        for turn in itertools.count():
            name = f"cancelled-{n}-{turn}"
            responses = await engine.sample(PROMPT, n=n, temperature=1.0, max_tokens=900, request_id=name)
            assert all(len(response.tokens) == 900 for response in responses)

    async def scenario() -> None:
        with monkeypatch.context() as changed:
            changed.setattr(engine_module, "_sampling", endless)
            calls = [asyncio.create_task(ask_for_ever(n)) for n in (1, 4)]
            while engine.statistics.running == 0 and not any(call.done() for call in calls):
                await asyncio.sleep(0.005)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        assert all(call.cancelled() for call in calls)
        # The core takes requests in their order: when it tells of this one, it knows of the cancellation.
        await engine.sample(PROMPT, n=1, temperature=1.0, max_tokens=1, request_id="after-cancellation")
        assert engine.statistics.running == 0

    loop.run(scenario())


@pytest.mark.parametrize(
    ("tokens", "n", "temperature", "sentence"),
    [
        ([5, 64], 1, 1.0, "vocabulary of 64"),
        ([-1], 1, 1.0, "vocabulary of 64"),
        ([], 1, 1.0, "1..1023 tokens"),
        ([5] * 1024, 1, 1.0, "1..1023 tokens"),
        ([5], 0, 1.0, "n=0"),
        ([5], 1, 0.001, "temperature=0.001"),
        ([5], 1, float("nan"), "temperature=nan"),
    ],
)
def test_an_impossible_request_is_refused_and_the_engine_goes_on(
    engine: Engine, loop: LoopThread, tokens: list[int], n: int, temperature: float, sentence: str
) -> None:
    with pytest.raises(EngineError, match=sentence):
        loop.run(engine.sample(tokens, n=n, temperature=temperature, max_tokens=4, request_id="impossible"))
    assert len(loop.run(engine.sample(PROMPT, n=1, temperature=1.0, max_tokens=4, request_id="possible"))) == 1


def _truncated(model: PublishedLlama) -> Path:
    path = model.publish(98)
    path.write_bytes(path.read_bytes()[:-1000])
    return path


def _incomplete(model: PublishedLlama) -> Path:
    weights = model.weights(98)
    del weights["model.layers.1.self_attn.v_proj.weight"]
    save_file(weights, path := model.versions / "incomplete.safetensors")
    return path


def _reshaped(model: PublishedLlama) -> Path:
    weights = model.weights(98)
    weights["model.layers.1.mlp.down_proj.weight"] = weights["model.layers.1.mlp.down_proj.weight"][:, :-1].contiguous()
    save_file(weights, path := model.versions / "reshaped.safetensors")
    return path


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (_truncated, "not a complete safetensors file"),
        (_incomplete, "1 missing .model.layers.1.self_attn.v_proj.weight."),
        (_reshaped, "this model has"),
        (lambda model: model.directory / "absent.safetensors", "No such file"),
    ],
)
def test_a_damaged_file_is_refused_before_anything_changes(
    engine: Engine, model: PublishedLlama, loop: LoopThread, spoil: object, sentence: str
) -> None:
    version = engine.version
    with pytest.raises(WeightUpdateFailed, match=sentence):
        loop.run(engine.apply(WeightUpdate(98, spoil(model))))  # type: ignore[operator]
    assert engine.healthy
    assert engine.version == version
    assert _largest_error(model, loop.run(_sample(engine, 2))) < TOLERANCE


def test_what_cannot_be_prepared_is_refused_while_sampling_goes_on(
    engine: Engine, model: PublishedLlama, loop: LoopThread
) -> None:
    version = engine.version
    layout, engine._layout = engine._layout, None  # pyright: ignore[reportPrivateUsage]
    try:
        with pytest.raises(WeightUpdateFailed, match="preparing version 99 failed"):
            loop.run(engine.apply(WeightUpdate(99, _incomplete(model), set(model.weights(99)))))
    finally:
        engine._layout = layout  # pyright: ignore[reportPrivateUsage]
    assert engine.healthy
    assert engine.version == version
    assert _largest_error(model, loop.run(_sample(engine, 2))) < TOLERANCE


def test_layers_of_which_nothing_changed_stay_as_they_are(
    engine: Engine, model: PublishedLlama, loop: LoopThread
) -> None:
    mixed = dict(model.weights(engine.version))
    changed = {name for name in mixed if "layers.1." in name or name == "lm_head.weight"}
    mixed |= {name: model.weights(97)[name] for name in changed}
    save_file(mixed, path := model.versions / "mixed.safetensors")
    served = engine.version
    loop.run(engine.apply(WeightUpdate(97, path, changed)))
    tokens = np.random.default_rng(1).integers(2, 64, 100).tolist()
    np.testing.assert_allclose(loop.run(engine.score(tokens, 1)), model.logprobs_with(mixed, tokens), atol=TOLERANCE)
    loop.run(engine.apply(model.update(served)))
    np.testing.assert_allclose(loop.run(engine.score(tokens, 1)), model.logprobs(served, tokens), atol=TOLERANCE)


def test_an_update_that_breaks_half_way_keeps_the_engine_paused_until_a_good_one(
    engine: Engine, model: PublishedLlama, loop: LoopThread
) -> None:
    async def scenario() -> list[tuple[list[int], list[Completion]]]:
        layout, engine._layout = engine._layout, None  # pyright: ignore[reportPrivateUsage]
        try:  # without the check of its layout, the worker finds out half-way
            with pytest.raises(WeightUpdateFailed, match="loading version 99 failed"):
                await engine.apply(WeightUpdate(99, _reshaped(model)))
        finally:
            engine._layout = layout  # pyright: ignore[reportPrivateUsage]
        assert not engine.healthy
        waiting = asyncio.create_task(_sample(engine, 4))
        await asyncio.wait({waiting}, timeout=0.3)
        assert not waiting.done()
        with pytest.raises(WeightUpdateFailed, match="load all of them"):
            await engine.apply(model.update(100))
        await engine.apply(model.update(100, complete=True))
        assert engine.healthy
        return await waiting

    sampled = loop.run(scenario())
    assert {span.version for _, group in sampled for c in group for span in c.versions} == {100}
    assert _largest_error(model, sampled) < TOLERANCE
