"""What several ranks do that no run shows from outside. torchrun starts it, and rank 0 compares with a trainer alone.

python -m torch.distributed.run --standalone --nproc-per-node 2 -m tests.contract.ranks_rehearsal
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from learner.forward.attending import equip
from learner.insight.evidence import Evidence
from learner.outcome import Abandoned, StepOutcome, Verdict
from learner.packing.layout import Layout
from learner.publication.snapshot import Origin, Snapshots
from learner.ranks.collective import CollectiveRanks
from learner.ranks.directives import End, encode
from learner.ranks.following import obey
from learner.ranks.leading import LeadingTrainer
from learner.ranks.sharding import spread
from learner.trainer import Trainer

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "unit")]

from tiny_policy import fed_groups, heed, live, tiny_model  # noqa: E402  # pyright: ignore[reportMissingImports]

from common.config.algorithm import GRPO, LUFFY, SFT, SRFT  # noqa: E402
from common.config.base import EntropyScope  # noqa: E402

DEVICE = torch.device("cpu")
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}


def model(*, tied: bool) -> Any:
    made = tiny_model(tied=tied)
    equip(made, None)
    return made


def trainers(ranks: CollectiveRanks, layout: Layout, *, tied: bool) -> tuple[Trainer, Trainer]:
    """One shared, and one alone that is to do the same."""

    def load() -> Any:
        return spread(lambda: tiny_model(tied=tied), ranks, DEVICE, lambda made: equip(made, None))

    kind = LeadingTrainer if ranks.rank == 0 else Trainer
    shared = kind(load(), layout, load_reference=load)
    return shared, Trainer(model(tied=tied), layout, load_reference=lambda: model(tied=tied))


def lead(shared: Trainer, alone: Trainer) -> None:
    """Rank 0: every method, and every way in which a step can end."""
    tried = (GRPO(kl_coefficient=0.1), LUFFY(), SRFT(entropy_scope=EntropyScope.BATCH), SFT())
    for config in tried:
        asked = live(config)
        outcomes = [t.step(asked, fed_groups(config), heed, keep_evidence=True) for t in (shared, alone)]
        compare(*outcomes)
    few = fed_groups(GRPO())[:1]
    compare(*(t.step(live(GRPO()), few, heed) for t in (shared, alone)))
    nothing = [t.step(live(SFT()), few, heed) for t in (shared, alone)]
    compare(*nothing)
    assert nothing[0].verdict is Verdict.FLAT
    abandon(shared)
    same_state(shared, alone)
    same_publication(shared, alone)
    saved = {f: {n: t.clone() for n, t in tensors.items()} for f, tensors in alone.tensors().items()}
    compare(*(t.step(live(LUFFY()), fed_groups(LUFFY()), heed) for t in (shared, alone)))
    for trainer in (shared, alone):
        trainer.restore(saved, 5)
    same_state(shared, alone)
    compare(*(t.step(live(LUFFY()), fed_groups(LUFFY()), heed) for t in (shared, alone)))
    same_state(shared, alone)


def compare(shared: StepOutcome, alone: StepOutcome) -> None:
    assert shared.verdict is alone.verdict
    figures = ("tokens", "trajectories", "flat_groups", "learning_rate")
    assert [getattr(shared, name) for name in figures] == [getattr(alone, name) for name in figures]
    torch.testing.assert_close(shared.sums.flat(), alone.sums.flat(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(shared.grad_norm, alone.grad_norm, **CLOSE)
    if shared.evidence is not None:
        assert alone.evidence is not None
        ours, theirs = said(shared.evidence), said(alone.evidence)
        assert ours.keys() == theirs.keys()
        for place, columns in theirs.items():
            torch.testing.assert_close(ours[place], columns, **CLOSE)


def said(evidence: Evidence) -> dict[Any, list[torch.Tensor]]:
    """What the policy said of each trajectory."""
    found: dict[Any, list[torch.Tensor]] = {}
    for exhibit in evidence.exhibits():
        outputs = exhibit.outputs
        columns = [outputs.logprobs_T, outputs.entropy_T, outputs.reference_logprobs_T]
        for i, place in enumerate(exhibit.places):
            of_row_T = exhibit.tokens.segment_T == i
            found[place] = [column[of_row_T] for column in columns if column is not None]
    return found


def abandon(shared: Trainer) -> None:
    """Rank 0 gives a step up between two micro-batches: nobody waits for the rest of it."""
    calls = iter([None, Abandoned("stop")])

    def give_up() -> None:
        reason = next(calls)
        if reason is not None:
            raise reason

    try:
        shared.step(live(LUFFY()), fed_groups(LUFFY()), give_up)
    except Abandoned:
        return
    raise AssertionError("the step was made")


def same_state(shared: Trainer, alone: Trainer) -> None:
    ours, theirs = shared.tensors(), alone.tensors()
    assert [*ours] == [*theirs]
    for file, tensors in ours.items():
        assert [*tensors] == [*theirs[file]]
        for name, tensor in tensors.items():
            torch.testing.assert_close(tensor, theirs[file][name], **CLOSE)


def same_publication(shared: Trainer, alone: Trainer) -> None:
    tokens = ((1, 2, 3, 4), (5, 6, 7, 8))
    taken = [
        Snapshots(trainer.shell, torch.float32, tokens, source=trainer.weights, device=DEVICE).take(1, Origin(1, 1))
        for trainer in (shared, alone)
    ]
    assert [*taken[0].tensors] == [*taken[1].tensors]
    songs = [snapshot.sing() for snapshot in taken if snapshot.sing is not None]
    torch.testing.assert_close(torch.tensor(songs[0].logprobs), torch.tensor(songs[1].logprobs), **CLOSE)


def main() -> None:
    """Every layout, with and without tied weights."""
    torch.set_num_threads(1)
    ranks = CollectiveRanks(DEVICE)
    for layout in (Layout(14), Layout(14, packed=True), Layout(20, packed=True, shared_prompts=True)):
        for tied in (False, True):
            shared, alone = trainers(ranks, layout, tied=tied)
            if ranks.rank == 0:
                lead(shared, alone)
                shared.ranks.tell(encode(End()))
            else:
                obey(shared)
    ranks.close()
    print("all is the same", flush=True)


if __name__ == "__main__":
    main()
