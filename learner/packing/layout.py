"""The layout of a step: how much fits one forward, how trajectories lie in it, and what one of several ranks does."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from common.settings import LearnerSettings


@dataclass(frozen=True, slots=True)
class Layout:
    """tokens: of one forward, padding included. packed: trajectories lie one after another, without padding; else in
    padded rows. shared_prompts: what a group's trajectories begin with is computed once where that saves enough.
    """

    tokens: int
    packed: bool = False
    shared_prompts: bool = False

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"a forward of {self.tokens} tokens computes nothing: give it at least 1")

    @staticmethod
    def of(settings: LearnerSettings, device: torch.device) -> Layout:
        """What the run file asks for; `learner.forward.suiting` finds out whether the model can be computed so."""
        # On a CPU the two cost nearly the same, and padded rows ask nothing of the model.
        packed = settings.layout == "packed" or (settings.layout == "auto" and device.type == "cuda")
        return Layout(settings.micro_batch_tokens, packed, settings.shared_prompts)


@dataclass(frozen=True, slots=True)
class Share:
    """What one of `size` ranks computes of a step. All shares of a step have the same number of micro-batches."""

    rank: int
    size: int

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank {self.rank} of {self.size} ranks does not exist: ranks count from 0")


WHOLE = Share(0, 1)
"""All of the step."""
