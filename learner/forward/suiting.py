"""Which layout suits a model: tried out at the start, on the device and with the kernel that training will use."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.errors import SettingsError
from learner.batch import Span
from learner.forward.attending import arguments, choose_kernel, equip, is_equipped
from learner.packing.layout import Layout
from learner.packing.writing import spans_of

_BEGINNING, _ONE, _OTHER, _STRANGER = (1, 2, 3, 4, 5), (6, 7, 8), (9, 10), (11, 12, 13, 14)
"""Token ids: a beginning, two trajectories that go on from it, and one that has nothing to do with them."""

_ROW = (Span(0, 5), Span(5, 3, 0, 5), Span(8, 2, 0, 5), Span(10, 4))
_PLACES = (*range(5), *range(5, 8), *range(5, 7), *range(4))

_TOLERANCE = 0.005
_HALF_TOLERANCE = 0.1
"""Of the norm of the hidden states. A token that sees too much or too little is off by far more."""


def suited(model: Any, layout: Layout, *, insist: bool = False) -> Layout:
    """`layout`, and `model` equipped for it; or padded rows, which suit every model, if it cannot be computed so.

    insist: SettingsError instead of padded rows; for a layout that the run file asks for by name.
    """
    if not (layout.packed or layout.shared_prompts):
        return layout
    obstacle = _obstacle(model)
    if not obstacle:
        return layout
    if insist:
        raise SettingsError(
            f'learner.layout is "packed", and {type(model).__name__} cannot be computed so ({obstacle}): '
            'set it to "rows"'
        )
    return Layout(layout.tokens)


def _obstacle(model: Any) -> str:
    """Why trajectories cannot lie in one row; "" if they can."""
    own = "sdpa" if is_equipped(model) else model.config._attn_implementation
    device = model.get_input_embeddings().weight.device
    if not equip(model, choose_kernel(device)):
        return f'its attention is "{own}" and cannot be replaced'
    try:
        wrong = not _error(model) <= _TOLERANCE
        if device.type == "cuda" and not wrong:  # the kernel is for what autocast computes in
            with torch.autocast("cuda", dtype=torch.bfloat16):
                wrong = not _error(model) <= _HALF_TOLERANCE
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        model.set_attn_implementation(own)
        return str(error).strip().splitlines()[0]
    if wrong:
        model.set_attn_implementation(own)
        return "tokens then see those of other trajectories, or not all of their own"
    return ""


@torch.no_grad()
def _error(model: Any) -> float:
    """How far the hidden states of trajectories in one row are from those of each by itself, relative to their norm."""
    embeddings = model.get_input_embeddings().weight

    def hidden(*ids: int, **given: Any) -> Tensor:
        ids_1S = torch.tensor([ids], device=embeddings.device) % len(embeddings)
        found: Tensor = model.base_model(input_ids=ids_1S, use_cache=False, **given).last_hidden_state[0]
        return found.float()

    one, other = (hidden(*_BEGINNING, *end)[len(_BEGINNING) :] for end in (_ONE, _OTHER))
    apart_SH = torch.cat([hidden(*_BEGINNING), one, other, hidden(*_STRANGER)])
    spans = spans_of(_ROW, np.array(_PLACES, dtype=np.int64)).each(lambda t: t.to(embeddings.device))
    together_SH = hidden(*_BEGINNING, *_ONE, *_OTHER, *_STRANGER, **arguments(spans))
    return float((together_SH - apart_SH).square().sum().sqrt() / apart_SH.square().sum().sqrt())
