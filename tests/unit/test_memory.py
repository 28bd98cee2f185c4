"""Memory that runs out: the step is made from smaller micro-batches, the same step, and that is remembered."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learner_cases import demonstration, group, rollout
from tiny_policy import heed, live, same, tiny_model, weights

from common.config.algorithm import GRPO, ReLIFT
from common.settings import LearnerSettings
from learner.memory import Budget, Extent, OutOfMemory, is_shortage
from learner.outcome import Verdict
from learner.packing.layout import Layout
from learner.trainer import Trainer

GROUPS = [group(rollout(4, 1.0, seed=s), rollout(3, 0.0, seed=s + 1), rollout(6, 0.5, seed=s + 2)) for s in (1, 7)]
LIVE = live(GRPO())


def gpu_shortage() -> Exception:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def host_shortage() -> Exception:
    return RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to")


class Cramped:
    """Makes a model fail above so many tokens in one forward, and counts how often it does."""

    def __init__(self, model: Any, room: int, shortage: Callable[[], Exception] = gpu_shortage) -> None:
        self.room, self.shortage, self.failures = room, shortage, 0
        model.base_model.register_forward_pre_hook(self._look, with_kwargs=True)

    def _look(self, module: Any, positional: Any, named: Any) -> None:
        if named["input_ids"].numel() > self.room:
            self.failures += 1
            raise self.shortage()


def cramped(room: int, **given: Any) -> tuple[Trainer, Cramped]:
    model = tiny_model()
    limit = Cramped(model, room, given.pop("shortage", gpu_shortage))
    return Trainer(model, Layout(64), **given), limit


def budget(directory: Path | None = None, *, asked: int = 64, **more: Any) -> Budget:
    return Budget({"micro_batch_tokens": asked}, directory, **more)


@pytest.mark.parametrize("shortage", [gpu_shortage, host_shortage, MemoryError])
def test_a_step_that_ran_out_of_memory_is_the_same_step_in_the_end(shortage: Callable[[], Exception]) -> None:
    free = Trainer(tiny_model(), Layout(64))
    narrow, limit = cramped(20, shortage=shortage)
    expected, found = (t.step(LIVE, GROUPS, heed) for t in (free, narrow))
    assert (limit.failures, narrow.layout.tokens, narrow.updates) == (2, 16, 1)
    assert found.verdict is Verdict.UPDATED
    assert (found.tokens, found.trajectories) == (expected.tokens, expected.trajectories)
    assert found.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
    assert found.sums.record()["loss"] == pytest.approx(expected.sums.record()["loss"], rel=1e-5)
    ours, theirs = narrow.tensors()["optimizer"], free.tensors()["optimizer"]
    assert ours.keys() == theirs.keys()
    for name, moment in ours.items():
        torch.testing.assert_close(moment, theirs[name], rtol=1e-5, atol=1e-9)


def test_shortages_are_told_once_with_what_was_done() -> None:
    trainer, _ = cramped(20)
    trainer.step(LIVE, GROUPS, heed)
    news = trainer.budget.news()
    assert [(s.before, s.after) for s in news] == [(64, 32), (32, 16)]
    assert "at most 32 tokens in one instead of 64" in news[0].text
    assert trainer.budget.news() == []


def test_a_budget_far_above_the_step_is_halved_in_one_go_until_the_step_is_cut_smaller() -> None:
    wide = budget(asked=4096)
    wide.lower(Extent(trajectories=3, tokens=100))
    assert wide.tokens == 64


def test_what_did_not_fit_is_not_tried_again_after_a_restart(tmp_path: Path) -> None:
    first, _ = cramped(20, budget=budget(tmp_path / "checkpoints"))
    first.step(LIVE, GROUPS, heed)
    second, limit = cramped(20, budget=budget(tmp_path / "checkpoints"))
    second.step(LIVE, GROUPS, heed)
    assert (limit.failures, second.layout.tokens) == (0, 16)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["memory.json"]


def test_an_operator_who_asks_for_another_budget_or_leaner_layers_starts_afresh(tmp_path: Path) -> None:
    asked = LearnerSettings(micro_batch_tokens=64)
    Budget.of(asked, tmp_path).lower(Extent(2, 64))
    assert Budget.of(asked, tmp_path).tokens == 32
    for changed in ({"micro_batch_tokens": 128}, {"activation_checkpointing": True}, {"processes": 2}):
        other = asked.model_copy(update=changed)
        assert Budget.of(other, tmp_path).tokens == other.micro_batch_tokens
    assert Budget.of(asked.model_copy(update={"threads": 2}), tmp_path).tokens == 32, "threads take no memory"


@pytest.mark.parametrize("text", ["", "[]", '{"tokens": 3}', '{"asked": {"micro_batch_tokens": 64}, "tokens": "few"}'])
def test_a_file_that_cannot_be_read_is_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "memory.json").write_text(text)
    assert budget(tmp_path).tokens == 64


def test_a_disk_that_does_not_take_the_file_does_not_stop_the_step(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where a directory should be")
    trainer, _ = cramped(20, budget=budget(tmp_path / "checkpoints"))
    assert trainer.step(LIVE, GROUPS, heed).verdict is Verdict.UPDATED


def test_a_trajectory_that_never_fits_ends_the_learner_and_leaves_everything_as_it_was() -> None:
    trainer, _ = cramped(7)
    before = weights(trainer)
    with pytest.raises(OutOfMemory, match=r"one trajectory of 8 tokens alone: set learner\.activation_checkpointing"):
        trainer.step(LIVE, GROUPS, heed)
    assert same(before, weights(trainer))
    assert not trainer.tensors()["optimizer"]
    assert (trainer.updates, all(p.grad is None for p in trainer.model.parameters())) == (0, True)


def test_where_others_take_part_the_smaller_budget_is_for_the_next_start(tmp_path: Path) -> None:
    trainer, limit = cramped(20, budget=budget(tmp_path, retries=False))
    with pytest.raises(OutOfMemory, match="begin again from their checkpoint"):
        trainer.step(LIVE, GROUPS, heed)
    assert (limit.failures, json.loads((tmp_path / "memory.json").read_text())["tokens"]) == (1, 32)
    assert budget(tmp_path, retries=False).tokens == 32


def test_what_ended_a_process_is_told_by_the_next_one_once(tmp_path: Path) -> None:
    for tokens in (32, 16):
        with pytest.raises(OutOfMemory):
            budget(tmp_path, retries=False).lower(Extent(3, tokens + 1))
    told = budget(tmp_path, retries=False).news()
    assert [(s.at, s.before, s.after) for s in told] == [(Extent(3, 33), 64, 32), (Extent(3, 17), 32, 16)]
    after = budget(tmp_path, retries=False)
    assert (after.news(), after.tokens) == ([], 16)


def test_a_shortage_that_was_told_is_not_left_for_the_next_start(tmp_path: Path) -> None:
    here = budget(tmp_path)
    here.lower(Extent(3, 64))
    assert len(here.news()) == 1
    assert budget(tmp_path).news() == []


def test_where_not_even_a_filler_fits_it_is_the_model_that_is_too_large(tmp_path: Path) -> None:
    with pytest.raises(OutOfMemory, match="this GPU's share of the model"):
        budget(tmp_path, retries=False).lower(Extent(0, 1))
    assert not [*tmp_path.iterdir()], "smaller micro-batches would not help"


def test_memory_that_the_optimiser_lacks_is_said_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(tiny_model(), Layout(64))
    before = weights(trainer)
    made = torch.zeros_like
    left = iter(range(5))

    def zeros(like: torch.Tensor, **given: Any) -> torch.Tensor:
        if isinstance(like, torch.nn.Parameter) and next(left, None) is None:
            raise gpu_shortage()
        return made(like, **given)

    monkeypatch.setattr(torch, "zeros_like", zeros)
    with pytest.raises(OutOfMemory, match="the optimiser's two moments"):
        trainer.step(LIVE, GROUPS, heed)
    assert same(before, weights(trainer))


def test_a_rehearsal_may_run_out_of_memory_as_well() -> None:
    trainer, limit = cramped(1000)
    config = ReLIFT(buffer_size=2, sft_learning_rate=1e-2)
    unsolved = [group(rollout(2, 0.0), rollout(3, 0.0), demonstration(4, seed=s)) for s in (1, 5)]
    groups = [replace(g, group_id=f"g{n}", prompt_id=f"p{n}") for n, g in enumerate(unsolved)]
    limit.room = 12
    outcome = trainer.step(live(config), groups, heed)
    assert outcome.rehearsal is not None
    assert [step.verdict for step in outcome.rehearsal.steps] == [Verdict.UPDATED]


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (gpu_shortage(), True),
        (host_shortage(), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("shapes do not match"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_a_shortage_is_told_from_other_errors(error: Exception, is_one: bool) -> None:
    assert is_shortage(error) is is_one


def test_what_torch_and_numpy_raise_is_recognised() -> None:
    for allocate in (lambda: torch.empty(10**15), lambda: np.empty(10**15)):
        with pytest.raises((RuntimeError, MemoryError)) as raised:
            allocate()
        assert is_shortage(raised.value)


def test_any_other_error_goes_through() -> None:
    trainer, limit = cramped(20, shortage=lambda: RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        trainer.step(LIVE, GROUPS, heed)
    assert (limit.failures, trainer.layout.tokens) == (1, 64)
