"""The learner against a real Redis and a tiny real model: steps, switches, what it drops, and how it ends."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from common.events import EventKind
from common.stores.directory import DirectoryStorage
from common.stores.fetching import prove
from common.weights import WeightAnnouncements
from common.wire import encode_group
from tests.contract.learner_rig import Rig, checkpoint_of, make_group, progress_of, write_run


@pytest_asyncio.fixture
async def rig(tmp_path: Path, redis_server: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    rig = Rig(write_run(tmp_path))
    yield rig
    await rig.close()


async def test_steps_are_taken_published_and_told(rig: Rig, tmp_path: Path) -> None:
    await rig.prepare()
    await rig.emit(make_group(n) for n in range(6))
    rig.start()
    steps = await rig.steps(3)
    assert [(s["step"], s["version"], s["revision"], s["updated"]) for s in steps] == [
        (i, i, 1, True) for i in (1, 2, 3)
    ]
    assert [s["learning_rate"] for s in steps] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3])
    first = steps[0]
    assert first["algorithm"] == "grpo"
    assert first["groups"] == 2
    assert first["trajectories"] == 8
    assert first["staleness"] == 0
    assert steps[2]["staleness"] == 2
    assert first["grad_norm"] > 0
    assert math.isclose(first["entropy"], math.log(32), rel_tol=0.05)
    timeline = ("wait_s", "pack_s", "transfer_s", "forward_s", "backward_s", "optimizer_s", "publish_s", "checkpoint_s")
    assert sum(first[part] for part in timeline) <= first["step_s"]
    assert await rig.process.delivery.outstanding() == 0
    published = await rig.published(3)  # a version may be passed over while the one before it is written
    assert [(p["version"], p["step"]) for p in published] in ([(1, 1), (2, 2), (3, 3)], [(1, 1), (3, 3)])
    newest = await WeightAnnouncements(rig.process.redis, rig.process.keys).newest()
    assert newest is not None
    assert (newest.version, newest.step) == (3, 3)
    prove(DirectoryStorage(tmp_path / "run" / "weights"), newest)


async def test_a_publication_holds_the_weights_by_the_names_of_the_model_directory(rig: Rig, tmp_path: Path) -> None:
    await rig.prepare()
    await rig.emit(make_group(n) for n in range(2))
    rig.start()
    await rig.steps(1)
    assert await rig.stop() == 0
    base = load_file(tmp_path / "model" / "model.safetensors")
    published = load_file(tmp_path / "run" / "weights" / "v000001" / "model.safetensors")
    saved = load_file(checkpoint_of(tmp_path / "run", 1) / "model.safetensors")
    assert published.keys() == base.keys()
    assert all(tensor.equal(saved[name]) for name, tensor in published.items())
    assert not all(tensor.equal(base[name]) for name, tensor in published.items())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", state_dict=None)
    missing, unexpected = loaded.load_state_dict(published, strict=False)
    assert (missing, unexpected) == ([], [])


async def test_a_switch_changes_the_very_next_step_and_nothing_before_it(rig: Rig) -> None:
    await rig.prepare()
    await rig.emit(make_group(n) for n in range(9))
    rig.start()
    await rig.steps(4)  # the ninth group waits for a partner
    number = await rig.switch(algorithm={"kind": "dr_grpo", "rollouts": 4}, optimizer={"learning_rate": 5e-4})
    await rig.emit([make_group(9), make_group(10), make_group(11)])
    steps = await rig.steps(6)
    assert [(s["algorithm"], s["revision"]) for s in steps] == [("grpo", 1)] * 4 + [("dr_grpo", number)] * 2
    assert [s["learning_rate"] for s in steps[3:]] == pytest.approx([1e-3, 5e-4, 5e-4])
    in_force = await rig.events(EventKind.IN_FORCE)
    assert [(e["revision"], e["step"]) for e in in_force] == [(1, 1), (number, 5)]


async def test_a_revision_comes_into_force_within_a_second_while_no_groups_arrive(rig: Rig) -> None:
    await rig.prepare()
    rig.start()

    async def in_force() -> bool:
        return rig.process.revision == await rig.process.config.number()

    await rig.until(in_force)
    number = await rig.switch(groups_per_step=3)
    await rig.until(in_force, limit_s=1.5)
    marks = await rig.process.config.in_force()
    assert marks[number]["learner"]["step"] == 1


async def test_the_size_of_a_step_can_change_while_its_groups_are_gathered(rig: Rig) -> None:
    await rig.prepare(groups_per_step=4)
    await rig.emit(make_group(n) for n in range(3))
    rig.start()

    async def waits() -> bool:
        return bool(rig.process.details.get("waiting")) and rig.process.revision == 1

    await rig.until(waits)
    await rig.switch(groups_per_step=1)
    steps = await rig.steps(3)
    assert [s["groups"] for s in steps] == [1, 1, 1]


async def test_what_cannot_be_trained_goes_to_quarantine_and_the_learner_goes_on(rig: Rig) -> None:
    await rig.prepare()
    await rig.emit_bytes("broken", b"not a group")
    alien = make_group(7)
    alien.trajectories[0].tokens[-1] = 1000
    await rig.emit_bytes("alien", encode_group(alien))
    await rig.emit([make_group(0), make_group(1)])
    rig.start()
    await rig.steps(1)
    told = await rig.events(EventKind.QUARANTINE)
    assert [t["stream"] for t in told] == ["groups", "groups"]
    assert "not a msgpack message" in told[0]["reason"]
    assert "the vocabulary has 32 entries" in told[1]["reason"]
    kept: Any = await rig.process.redis.xrange(rig.process.keys.quarantine)
    assert [fields[b"id"] for _, fields in kept] == [b"", b"group-0007"]
    assert rig.process.registry.get_sample_value("tributary_quarantined_total", {"stream": "groups"}) == 2


async def test_credit_returns_with_the_version_that_the_step_became(rig: Rig) -> None:
    await rig.prepare(publish_every=2)
    rig.start()
    for step, made in ((1, 0), (2, 1), (3, 1), (4, 2)):
        await rig.emit(make_group(n) for n in (2 * step, 2 * step + 1))
        await rig.until(lambda: _nothing_is_outstanding(rig))
        assert await rig.process.delivery.made() == made, step


async def _nothing_is_outstanding(rig: Rig) -> bool:
    return await rig.process.delivery.outstanding() == 0


async def test_a_stale_group_is_dropped_counted_and_its_credit_returned(rig: Rig) -> None:
    await rig.prepare(max_staleness=1)
    await rig.emit(make_group(n) for n in range(4))
    rig.start()
    await rig.steps(2)  # version 2 is held now, so version 0 is two behind
    await rig.emit([make_group(4, version=0), make_group(5, version=1), make_group(6, version=2)])
    steps = await rig.steps(3)
    assert (steps[2]["stale_dropped"], steps[2]["staleness_max"]) == (1, 1)
    assert rig.process.registry.get_sample_value("tributary_groups_stale_total") == 1
    assert await rig.process.delivery.outstanding() == 0
    assert await rig.stop() == 0
    assert await rig.process.delivery.groups.length() == 0


async def test_a_group_that_comes_twice_is_trained_once(rig: Rig) -> None:
    await rig.prepare()
    await rig.emit([make_group(0)])
    await rig.emit_bytes("again", encode_group(make_group(0)))
    await rig.emit([make_group(1)])
    rig.start()
    steps = await rig.steps(1)
    assert steps[0]["groups"] == 2
    assert rig.process.registry.get_sample_value("tributary_groups_repeated_total") == 1


async def test_a_step_without_a_gradient_updates_and_publishes_nothing(rig: Rig, tmp_path: Path) -> None:
    await rig.prepare()
    await rig.emit(make_group(n, rewards=(1.0,) * 4) for n in range(2))
    rig.start()
    steps = await rig.steps(1)
    assert (steps[0]["updated"], steps[0]["version"], steps[0]["flat_groups"], steps[0]["grad_norm"]) == (
        False,
        0,
        2,
        0,
    )
    assert rig.process.registry.get_sample_value("tributary_steps_without_signal_total") == 1
    assert await rig.stop() == 0
    base = load_file(tmp_path / "model" / "model.safetensors")
    saved = load_file(checkpoint_of(tmp_path / "run", 1) / "model.safetensors")
    assert all(saved[name].equal(tensor) for name, tensor in base.items())
    assert not (tmp_path / "run" / "weights").exists()


async def test_steps_that_are_not_finite_change_nothing_and_three_in_a_row_end_it_until_it_is_resumed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.wire.LARGEST_REWARD", 1e39)
    await rig.prepare(groups_per_step=1, algorithm={"kind": "grpo", "rollouts": 4, "divide_by_std": False})
    await rig.emit([make_group(0)])
    rig.start()
    await rig.steps(1)
    await rig.emit(make_group(n, rewards=(1e38, -3e38, 1e38, 1e38)) for n in (1, 2, 3))
    with pytest.raises(Exception, match="3 steps in a row had a loss or gradient that is not finite"):
        await rig.ended()
    steps = await rig.events(EventKind.STEP)
    assert [(s["updated"], s["version"]) for s in steps] == [(True, 1), (False, 1), (False, 1), (False, 1)]
    assert await rig.process.redis.xlen(rig.process.keys.quarantine) == 3
    assert await rig.process.delivery.outstanding() == 0
    await rig.emit([make_group(4)])
    rig.start()  # as whatever watches over it does

    async def paused() -> bool:
        return rig.process.details.get("paused", False)

    await rig.until(paused)
    await asyncio.sleep(0.3)
    assert await rig.process.redis.xlen(rig.process.keys.quarantine) == 3
    assert len(await rig.events(EventKind.STEP)) == 4
    orders = await rig.events(EventKind.ORDER)
    assert orders == [{"order": "pause", "target": "learner", "by": "learner"}]
    notices = [notice["text"] for notice in await rig.events(EventKind.NOTICE)]
    assert any("goes back to step 0 and is paused; lower the learning rate" in notice for notice in notices)
    await rig.process.orders.resume()
    assert (await rig.steps(5))[4]["updated"]


async def test_acknowledgement_follows_the_checkpoint_and_never_comes_before(rig: Rig, tmp_path: Path) -> None:
    write_run(tmp_path, every_steps=3)
    await rig.prepare()
    await rig.emit(make_group(n) for n in range(4))
    rig.start()
    await rig.steps(2)
    assert await rig.process.delivery.groups.length() == 4
    await rig.emit(make_group(n) for n in range(4, 6))

    async def acknowledged() -> bool:
        return await rig.process.delivery.groups.length() == 0

    await rig.until(acknowledged)
    progress = progress_of(checkpoint_of(tmp_path / "run", 3))
    assert progress["seen"] == [f"group-{n:04d}" for n in range(6)]
    assert len(progress["unacknowledged"]) == 6


async def test_the_last_step_is_published_saved_and_said(rig: Rig, tmp_path: Path) -> None:
    write_run(tmp_path, learner="max_steps = 2")
    await rig.prepare(publish_every=5)
    await rig.emit(make_group(n) for n in range(6))
    rig.start()
    assert await rig.ended() == 0
    assert await rig.process.redis.hget(rig.process.keys.facts, "finished") == b"1"  # pyright: ignore
    assert checkpoint_of(tmp_path / "run", 2).exists()
    assert await rig.process.delivery.groups.length() == 2
    notices = await rig.events(EventKind.NOTICE)
    assert notices == [{"text": "training is complete: step 2, weight version 1"}]
    rig.start()  # once more, on a run that is complete
    assert await rig.ended() == 0
    assert await rig.process.redis.hget(rig.process.keys.facts, "finished") == b"2"  # pyright: ignore


async def test_old_versions_are_removed_unless_a_live_generator_fetches_them(rig: Rig, tmp_path: Path) -> None:
    with write_run(tmp_path).open("a") as run_file:
        run_file.write("[weights]\nkeep = 2\nanchor_every = 1\n")
    await rig.prepare(groups_per_step=1)
    beats = {
        "generator-1": '{"role": "generator", "version": 0, "fetching": 1, "at_s": 4e9}',
        "generator-2": '{"role": "generator", "version": 2, "at_s": 4e9}',
        "generator-3": '{"role": "generator", "version": 0, "fetching": 3, "at_s": 1.0}',
    }
    await rig.process.redis.hset(rig.process.keys.processes, mapping=beats)  # pyright: ignore
    rig.start()
    for version in range(1, 7):
        await rig.emit([make_group(version)])
        await rig.published(version)

    async def pruned() -> bool:
        names = sorted(path.name for path in (tmp_path / "run" / "weights").iterdir())
        return names == ["v000001", "v000005", "v000006"]

    await rig.until(pruned)


async def test_a_disk_that_takes_nothing_is_said_and_training_goes_on(rig: Rig, tmp_path: Path) -> None:
    write_run(tmp_path, every_steps=1)
    places = [tmp_path / "run" / "weights", tmp_path / "run" / "checkpoints"]
    (tmp_path / "run").mkdir()
    for place in places:
        place.write_text("a file is in the way")
    await rig.prepare()
    await rig.emit(make_group(n) for n in range(4))
    rig.start()
    steps = await rig.steps(2)
    assert [(s["updated"], s["version"]) for s in steps] == [(True, 1), (True, 2)]

    async def said() -> bool:
        return len(await rig.events(EventKind.NOTICE)) >= 2

    await rig.until(said)
    notices = sorted(n["text"] for n in await rig.events(EventKind.NOTICE))
    assert len(notices) == 2
    assert "the checkpoint was not written, training goes on" in notices[0]
    assert "the weight version was not written, training goes on" in notices[1]
    assert await rig.process.delivery.groups.length() == 4
    for place in places:
        place.unlink()
    await rig.emit(make_group(n) for n in range(4, 6))
    assert (await rig.steps(3))[2]["version"] == 3
    assert (await rig.published(3))[-1]["version"] == 3

    async def acknowledged() -> bool:
        return await rig.process.delivery.groups.length() == 0

    await rig.until(acknowledged)
    notices = [n["text"] for n in await rig.events(EventKind.NOTICE)]
    assert {*notices[2:]} == {"the weight version could be written again", "the checkpoint could be written again"}


async def test_a_directory_that_is_no_model_is_refused_in_one_sentence(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "model" / "config.json").unlink()
    await rig.prepare()
    rig.start()
    with pytest.raises(Exception, match="is not a Hugging Face model directory"):
        await rig.ended()


async def test_being_told_to_stop_while_waiting_is_obeyed_at_once(rig: Rig) -> None:
    await rig.prepare()
    rig.start()

    async def waits() -> bool:
        return bool(rig.process.details.get("waiting"))

    await rig.until(waits)
    before_s = asyncio.get_running_loop().time()
    assert await rig.stop() == 0
    assert asyncio.get_running_loop().time() - before_s < 1


async def test_the_groups_of_another_revision_are_trained_under_the_one_in_force(rig: Rig) -> None:
    await rig.prepare()
    await rig.switch(algorithm={"kind": "dr_grpo", "rollouts": 4})
    await rig.emit([make_group(0), make_group(1)])  # sampled under revision 1
    rig.start()
    steps = await rig.steps(1)
    assert (steps[0]["algorithm"], steps[0]["revision"]) == ("dr_grpo", 2)
    assert np.isfinite(steps[0]["loss"])
