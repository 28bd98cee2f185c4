"""Directives: what rank 0 tells the other ranks to do, as msgpack of raw bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgpack  # pyright: ignore[reportMissingTypeStubs]
import numpy as np
import torch
from torch import Tensor

from common.config.live import LiveConfig, parse_live
from common.trajectory import Group
from common.wire import decode_group, encode_group

_SENT_WHOLE = ("generators", "rehearsal")
"""Files of a checkpoint that every rank has all of. Of the others, names and shapes are sent; values come later."""


@dataclass(frozen=True, slots=True, eq=False)
class MakeStep:
    """One step on these groups."""

    live: LiveConfig
    groups: Sequence[Group]
    keep_evidence: bool


@dataclass(frozen=True, slots=True)
class GiveState:
    """Your share of the whole state, for a checkpoint."""


@dataclass(frozen=True, slots=True)
class GiveWeights:
    """Your share of the weights, as `dtype`."""

    dtype: torch.dtype


@dataclass(frozen=True, slots=True, eq=False)
class TakeState:
    """A checkpoint is restored. tensors: by file and name; shared ones have a shape only, until rank 0 fills them."""

    updates: int
    tensors: Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True, slots=True)
class End:
    """Nothing more is to be done."""


Directive = MakeStep | GiveState | GiveWeights | TakeState | End


def encode(directive: Directive) -> bytes:
    """A directive as bytes."""
    fields: dict[str, Any] = {"kind": type(directive).__name__}
    match directive:
        case MakeStep():
            fields["live"] = directive.live.model_dump(mode="json")
            fields["groups"] = [encode_group(group) for group in directive.groups]
            fields["keep_evidence"] = directive.keep_evidence
        case GiveWeights():
            fields["dtype"] = _name(directive.dtype)
        case TakeState():
            fields["updates"] = directive.updates
            fields["files"] = {
                file: {name: _packed(tensor, file in _SENT_WHOLE) for name, tensor in tensors.items()}
                for file, tensors in directive.tensors.items()
            }
        case GiveState() | End():
            pass
    return cast(bytes, msgpack.packb(fields))  # pyright: ignore[reportUnknownMemberType]


def decode(data: bytes) -> Directive:
    """The directive that `encode` made bytes of. ValueError if there is none of its kind."""
    fields = cast(dict[str, Any], msgpack.unpackb(data))  # pyright: ignore[reportUnknownMemberType]
    match fields["kind"]:
        case "MakeStep":
            groups = [decode_group(group) for group in fields["groups"]]
            return MakeStep(parse_live(fields["live"]), groups, fields["keep_evidence"])
        case "GiveState":
            return GiveState()
        case "GiveWeights":
            return GiveWeights(getattr(torch, fields["dtype"]))
        case "TakeState":
            files: dict[str, dict[str, Any]] = fields["files"]
            unpacked = {f: {name: _unpacked(packed) for name, packed in t.items()} for f, t in files.items()}
            return TakeState(fields["updates"], unpacked)
        case "End":
            return End()
        case other:
            raise ValueError(f"{other!r} is no directive: are all ranks of the same release?")


def _packed(tensor: Tensor, whole: bool) -> list[Any]:
    """Data type, shape and, if they are to be sent, the values of a tensor."""
    data = tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes() if whole else None  # pyright: ignore
    return [_name(tensor.dtype), list(tensor.shape), data]


def _unpacked(packed: Sequence[Any]) -> Tensor:
    """A tensor; one without values has only its shape."""
    name, shape, data = packed
    dtype: torch.dtype = getattr(torch, name)
    if data is None:
        return torch.empty(shape, dtype=dtype, device="meta")
    values = np.frombuffer(data, dtype=np.uint8).copy()
    return torch.from_numpy(values).view(dtype).reshape(shape)  # pyright: ignore[reportUnknownMemberType]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
