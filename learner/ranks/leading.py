"""Leading: the trainer of rank 0. Before it does what takes all ranks, it tells the others to do the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from common.config.live import LiveConfig
from common.trajectory import Group
from learner.forward.model import check_fit
from learner.outcome import StepOutcome
from learner.ranks.alone import Heed
from learner.ranks.directives import Directive, End, GiveState, GiveWeights, MakeStep, TakeState, encode
from learner.trainer import TensorFiles, Trainer


class LeadingTrainer(Trainer):
    """A trainer that others follow: see learner.ranks.following."""

    def step(
        self, live: LiveConfig, groups: Sequence[Group], heed: Heed, *, keep_evidence: bool = False
    ) -> StepOutcome:
        """One step, made by all ranks."""
        self._tell(MakeStep(live, groups, keep_evidence))
        return super().step(live, groups, heed, keep_evidence=keep_evidence)

    def tensors(self) -> TensorFiles:
        """The whole state, gathered from all ranks into this one's host memory."""
        self._tell(GiveState())
        return super().tensors()

    def weights(self, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """The weights, gathered one by one. They must be taken to the last."""
        self._tell(GiveWeights(dtype))
        yield from super().weights(dtype)

    def restore(self, tensors: TensorFiles, updates: int) -> None:
        """Take a state, and give everyone else their share of it. ValueError if it is another model's."""
        check_fit(self.model, tensors["model"])  # before anyone is told
        self._tell(TakeState(updates, tensors))
        super().restore(tensors, updates)

    def close(self) -> None:
        """Let the others end."""
        self._tell(End())
        super().close()

    def _tell(self, directive: Directive) -> None:
        self.ranks.tell(encode(directive))
