"""The learner's rehearsals (ReLIFT) and its frozen reference as a service: seen, saved, and the same after a kill."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from common.events import EventKind
from common.trajectory import Group
from common.wire import decode_group
from tests.contract.learner_rig import (
    LearnerProcess,
    Rig,
    checkpoint_of,
    make_group,
    make_unsolved_group,
    saved_tensors,
    write_run,
)

STEPS = 12
EVERY = 4
RELIFT: dict[str, Any] = {
    "algorithm": {"kind": "relift", "rollouts": 4, "buffer_size": 3, "sft_learning_rate": 1e-3},
    "hints": {"kind": "if_unsolved"},
}


def groups(numbers: Iterable[int]) -> Iterator[Group]:
    """Of every two groups, one that no rollout solved."""
    return (make_unsolved_group(n) if n % 2 else make_group(n) for n in numbers)


@pytest_asyncio.fixture
async def rig(tmp_path: Path, redis_server: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    rig = Rig(write_run(tmp_path, learner=f"max_steps = {STEPS}", every_steps=EVERY))
    await rig.prepare(**RELIFT)
    yield rig
    await rig.close()


def waiting(rig: Rig) -> float | None:
    return rig.process.registry.get_sample_value("tributary_rehearsal_buffer")


async def undisturbed(tmp_path: Path) -> dict[str, bytes]:
    """The tensors after all steps without any disturbance."""
    rig = Rig(write_run(tmp_path / "undisturbed", learner=f"max_steps = {STEPS}", every_steps=EVERY))
    await rig.prepare(**RELIFT)
    await rig.emit(groups(range(2 * STEPS)))
    rig.start()
    assert await rig.ended() == 0
    await rig.close()
    return saved_tensors(checkpoint_of(tmp_path / "undisturbed" / "run", STEPS))


async def test_every_third_step_is_followed_by_a_rehearsal(rig: Rig, tmp_path: Path) -> None:
    await rig.emit(groups(range(8)))
    rig.start()
    steps = await rig.steps(4)
    told = [step["rehearsal"] for step in steps]
    assert [(r["waiting"], r["entries"], r["updated"]) for r in told] == [
        (1, 0, False),
        (2, 0, False),
        (0, 3, True),
        (1, 0, False),
    ]
    assert told[0]["loss"] is None
    assert told[2]["loss"] > 0
    assert told[2]["grad_norm"] > 0

    async def saved() -> bool:
        return checkpoint_of(tmp_path / "run", EVERY).exists()

    await rig.until(saved)
    assert waiting(rig) == 1
    assert set(saved_tensors(checkpoint_of(tmp_path / "run", EVERY))) == {
        *("model.safetensors", "optimizer.safetensors", "generators.safetensors"),
        *("rehearsal.safetensors", "rehearsal_optimizer.safetensors"),
    }


async def test_a_flat_step_with_a_rehearsal_is_an_update_and_is_published(rig: Rig) -> None:
    await rig.switch(groups_per_step=3)
    await rig.emit(make_unsolved_group(n) for n in range(3))
    rig.start()
    (step,) = await rig.steps(1)
    assert (step["flat_groups"], step["grad_norm"], step["updated"], step["version"]) == (3, 0, True, 1)
    assert rig.process.registry.get_sample_value("tributary_steps_without_signal_total") == 0


async def test_the_buffer_survives_a_switch_and_a_restart(rig: Rig) -> None:
    await rig.emit(groups(range(4)))
    rig.start()
    await rig.steps(2)
    await rig.switch(algorithm={"kind": "grpo", "rollouts": 4}, hints={"kind": "none"})
    await rig.emit(make_group(n) for n in (4, 5))
    assert (await rig.steps(3))[2]["rehearsal"] is None
    assert await rig.stop() == 0
    rig.start()

    async def restored() -> bool:
        return rig.process.details.get("step") == 3

    await rig.until(restored)
    assert waiting(rig) == 2
    await rig.switch(**RELIFT)
    await rig.emit(groups((6, 7)))
    assert (await rig.steps(4))[3]["rehearsal"]["entries"] == 3


@pytest.mark.parametrize("killed_after", [5, 7, 10])
async def test_a_learner_that_was_broken_off_rehearses_to_the_same_bits(
    rig: Rig, tmp_path: Path, killed_after: int, client: Any
) -> None:
    await rig.emit(groups(range(2 * killed_after)))
    rig.start()
    await rig.steps(killed_after)
    await rig.emit(groups(range(2 * killed_after, 2 * STEPS)))
    await rig.crash()
    rig.start()
    assert await rig.ended() == 0
    resumed = saved_tensors(checkpoint_of(tmp_path / "run", STEPS))
    assert "rehearsal_optimizer.safetensors" in resumed
    await client().flushall()
    assert resumed == await undisturbed(tmp_path)


@pytest.mark.slow
async def test_kill_9_in_the_middle_of_rehearsals_ends_with_the_same_bits(
    rig: Rig, tmp_path: Path, redis_server: Any, client: Any
) -> None:
    await rig.emit(groups(range(12)))
    learner = LearnerProcess(rig.run_file, redis_server.url)
    try:
        await rig.steps(6, by=learner)
    finally:
        learner.kill()
    await rig.emit(groups(range(12, 2 * STEPS)))
    learner = LearnerProcess(rig.run_file, redis_server.url)
    try:
        assert await asyncio.to_thread(learner.popen.wait, 120) == 0
    finally:
        learner.kill()
    resumed = saved_tensors(checkpoint_of(tmp_path / "run", STEPS))
    await client().flushall()
    assert resumed == await undisturbed(tmp_path)


async def test_a_rehearsal_that_is_not_finite_is_kept_in_quarantine_and_counted_and_training_goes_on(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def infinite(batch: Any, policy: Any) -> Any:
        return policy.logprobs_T * float("inf")

    monkeypatch.setattr(sys.modules["learner.algorithms.relift"], "negative_logprob", infinite)
    await rig.emit(groups(range(8)))
    rig.start()
    steps = await rig.steps(4)
    assert [step["rehearsal"]["waiting"] for step in steps] == [1, 2, 0, 1]
    assert steps[2]["rehearsal"]["loss"] is None
    notices = [n["text"] for n in await rig.events(EventKind.NOTICE)]
    assert len(notices) == 1
    assert "the rehearsal of step 3 was not finite" in notices[0]
    assert "its 3 demonstrations were dropped" in notices[0]
    assert rig.process.registry.get_sample_value("tributary_steps_nonfinite_total") == 1
    kept = await rig.process.redis.xrange(rig.process.keys.quarantine)
    assert [fields[b"stream"] for _, fields in kept] == [b"demonstrations"] * 3
    assert all(b"the rehearsal of step 3 was not finite" in fields[b"reason"] for _, fields in kept)
    assert all(decode_group(fields[b"payload"]).trajectories[0].reward == 1.0 for _, fields in kept)
    await rig.emit(groups(range(8, 18)))
    with pytest.raises(Exception, match="3 rehearsals in a row had a loss or gradient that is not finite"):
        await rig.ended()


async def test_the_reference_is_the_model_the_run_began_with_also_after_a_restart(rig: Rig) -> None:
    await rig.switch(algorithm={"kind": "grpo", "rollouts": 4, "kl_coefficient": 0.1}, hints={"kind": "none"})
    await rig.emit(make_group(n) for n in range(4))
    rig.start()
    first, second = (step["terms"]["kl"] for step in await rig.steps(2))
    assert (first, second > 0) == (0, True)
    assert await rig.stop() == 0
    await rig.emit(make_group(n) for n in range(4, 6))
    rig.start()
    assert (await rig.steps(3))[2]["terms"]["kl"] > second / 10


async def test_a_reference_that_is_gone_pauses_the_learner_until_none_is_asked_for(rig: Rig, tmp_path: Path) -> None:
    await rig.emit(make_group(n) for n in range(2))
    rig.start()
    await rig.steps(1)
    (tmp_path / "model" / "config.json").unlink()
    await rig.switch(algorithm={"kind": "grpo", "rollouts": 4, "kl_coefficient": 0.1}, hints={"kind": "none"})
    await rig.emit(make_group(n) for n in range(2, 4))

    async def paused() -> bool:
        return rig.process.details.get("paused", False)

    await rig.until(paused)
    (notice,) = await rig.events(EventKind.NOTICE)
    assert "kl_coefficient asks for cannot be loaded: model.path: " in notice["text"]
    assert notice["text"].endswith(
        "correct it. Otherwise set algorithm.kl_coefficient to 0. The learner is paused until it is resumed"
    )
    assert len(await rig.events(EventKind.STEP)) == 1
    await rig.switch(algorithm={"kl_coefficient": 0.0})
    await rig.process.orders.resume()
    assert (await rig.steps(2))[1]["groups"] == 2  # the same groups
    assert await rig.process.redis.xlen(rig.process.keys.quarantine) == 0
