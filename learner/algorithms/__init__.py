"""Every algorithm as one page; `build` turns what an operator asked for into what a batch teaches."""

from __future__ import annotations

from typing import assert_never

from common.config import algorithm as asked
from learner.algorithms.grpo import grpo
from learner.algorithms.luffy import luffy
from learner.algorithms.sft import sft
from learner.terms import Algorithm


def build(config: asked.Algorithm, *, longest_response: int) -> Algorithm:
    """The algorithm that `config` describes. longest_response: tokens a response may have, for the constant norm."""
    match config:
        case asked.SFT():
            return sft(config, longest_response=longest_response)
        case asked.GRPO() | asked.DrGRPO():
            return grpo(config, longest_response=longest_response)
        case asked.LUFFY():
            return luffy(config, longest_response=longest_response)
        case _:
            assert_never(config)
