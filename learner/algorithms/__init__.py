"""Every algorithm as one page; `build` turns what an operator asked for into what a batch teaches."""

from __future__ import annotations

from typing import assert_never

from common.config import algorithm as asked
from learner.algorithms.bread import bread
from learner.algorithms.grpo import grpo
from learner.algorithms.hpt import hpt
from learner.algorithms.luffy import luffy
from learner.algorithms.mix import mix, naive_mix
from learner.algorithms.prefix_rft import prefix_rft
from learner.algorithms.reinforce import reinforce
from learner.algorithms.relift import relift
from learner.algorithms.sft import sft
from learner.algorithms.srft import srft
from learner.algorithms.uft import uft
from learner.terms import Algorithm


def build(config: asked.Algorithm, *, longest_response: int) -> Algorithm:
    """The algorithm that `config` describes. longest_response: tokens a response may have, for the constant norm."""
    match config:
        case asked.SFT():
            return sft(config, longest_response=longest_response)
        case asked.REINFORCE():
            return reinforce(config, longest_response=longest_response)
        case asked.GRPO():  # and its presets
            return grpo(config, longest_response=longest_response)
        case asked.NaiveMix():
            return naive_mix(config, longest_response=longest_response)
        case asked.Mix():
            return mix(config, longest_response=longest_response)
        case asked.LUFFY():  # and its preset
            return luffy(config, longest_response=longest_response)
        case asked.UFT():
            return uft(config, longest_response=longest_response)
        case asked.BREAD():
            return bread(config, longest_response=longest_response)
        case asked.PrefixRFT():
            return prefix_rft(config, longest_response=longest_response)
        case asked.SRFT():
            return srft(config, longest_response=longest_response)
        case asked.HPT():
            return hpt(config, longest_response=longest_response)
        case asked.ReLIFT():
            return relift(config, longest_response=longest_response)
        case _:
            assert_never(config)
