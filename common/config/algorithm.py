"""The algorithms an operator may ask for, one class each: published defaults, and the material each needs.

`{"kind": "luffy"}` alone is LUFFY. `rollouts` is how many members of a group the policy samples; how many
demonstrations join them, and who is shown a hint, is the hint policy's business.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from common.config.methods.families import AlgorithmConfig, Corrections, PolicyGradient, Reinforcing
from common.config.methods.hinted import BREAD, UFT, PrefixRFT
from common.config.methods.imitating import HPT, SFT, ReLIFT
from common.config.methods.mixed import LUFFY, SRFT, LUFFYPaper, Mix, NaiveMix
from common.config.methods.rewarded import DAPO, GRPO, REINFORCE, DrGRPO

__all__ = [
    "ALGORITHMS",
    "BREAD",
    "DAPO",
    "GRPO",
    "HPT",
    "LUFFY",
    "REINFORCE",
    "SFT",
    "SRFT",
    "UFT",
    "Algorithm",
    "AlgorithmConfig",
    "Corrections",
    "DrGRPO",
    "LUFFYPaper",
    "Mix",
    "NaiveMix",
    "PolicyGradient",
    "PrefixRFT",
    "ReLIFT",
    "Reinforcing",
]

Algorithm = Annotated[
    SFT
    | REINFORCE
    | GRPO
    | DrGRPO
    | DAPO
    | NaiveMix
    | Mix
    | LUFFY
    | LUFFYPaper
    | ReLIFT
    | UFT
    | BREAD
    | PrefixRFT
    | SRFT
    | HPT,
    Field(discriminator="kind"),
]
ALGORITHMS: tuple[type[AlgorithmConfig], ...] = (
    SFT,
    REINFORCE,
    GRPO,
    DrGRPO,
    DAPO,
    NaiveMix,
    Mix,
    LUFFY,
    LUFFYPaper,
    ReLIFT,
    UFT,
    BREAD,
    PrefixRFT,
    SRFT,
    HPT,
)
