"""Attention over spans: trajectories that lie in one row see only themselves, and the beginning that they share.

Registered with transformers as an attention of its own, with which a model is equipped once. Rows without spans are
computed exactly as by transformers' "sdpa". With spans no mask exists: on a GPU one kernel takes sequences of all
lengths at once; elsewhere each span is a call of its own.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, masking_utils
from transformers.integrations import sdpa_attention

from learner.batch import Span, Spans

NAME = "tributary"
"""What the attention is called in a model's configuration."""

# What torch and transformers do not annotate.
_as_ever: Callable[..., tuple[Tensor, None]] = cast(Any, sdpa_attention).sdpa_attention_forward
_attentions = cast(Any, AttentionInterface)
_masks = cast(Any, masking_utils).AttentionMaskInterface
_split = cast(Any, torch).split

_HALF = (torch.bfloat16, torch.float16)

_UNKNOWN = ("softcap", "s_aux", "position_bias")
"""What some models add to their attention and we do not."""


@dataclass(frozen=True, slots=True)
class Manner:
    """scale: of the scores; None: one over the root of their width. window: how many tokens a token sees; None: all."""

    scale: float | None
    window: int | None


class Kernel(Protocol):
    """Attention of the spans' queries to their keys, the last query of a span aligned with its last key."""

    def __call__(self, query_SHD: Tensor, key_THD: Tensor, value_THD: Tensor, spans: Spans, manner: Manner) -> Tensor:
        """What each query finds.    [S, heads, D], [T, key heads, D] twice -> [S, heads, D]"""
        ...


@dataclass(frozen=True, slots=True)
class SpanAttention:
    """An attention function as transformers calls it. kernel: None where every span is to be a call of its own."""

    kernel: Kernel | None

    def __call__(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **given: Any
    ) -> tuple[Tensor, None]:
        """[B, heads, S, D] three times -> [B, S, heads, D]. given: `spans`, and what "sdpa" is given."""
        spans: Spans | None = given.pop("spans", None)
        if spans is None:
            return _as_ever(module, query, key, value, attention_mask, **given)
        strange = [name for name in _UNKNOWN if given.get(name) is not None]
        if strange:
            raise ValueError(f"its attention has {' and '.join(strange)}, which attention over spans does not know")
        manner = Manner(given.get("scaling"), given.get("sliding_window"))
        dtype = _computed_in(query)
        if self.kernel is None or (query.is_cuda and dtype not in _HALF):  # the kernels of GPUs are for these only
            return _apart(query, key, value, spans, manner).transpose(1, 2).contiguous(), None
        query_SHD, key_SHD, value_SHD = (t[0].transpose(0, 1) for t in (query, key, value))
        key_THD, value_THD = (_attended(t, spans).to(dtype) for t in (key_SHD, value_SHD))
        return self.kernel(query_SHD.to(dtype), key_THD, value_THD, spans, manner)[None], None


def equip(model: Any, kernel: Kernel | None, name: str = NAME) -> bool:
    """Let a transformers model compute spans with `kernel`; whether it can. `name`: another for each kernel.

    A model that would not compute with "sdpa" by itself keeps what it has.
    """
    replaceable = model.config._attn_implementation == "sdpa" or is_equipped(model)
    if not (replaceable and model._can_set_attn_implementation()):
        return False
    _attentions.register(name, SpanAttention(kernel))
    _masks.register(name, _masks()["sdpa"])
    model.set_attn_implementation(name)
    return True


def is_equipped(model: Any) -> bool:
    """Whether the model computes spans."""
    return str(getattr(model.config, "_attn_implementation", "")).startswith(NAME)


def arguments(spans: Spans) -> dict[str, Any]:
    """What an equipped model is called with beside the token ids."""
    # transformers takes a mask of four dimensions for one that was made already and passes it on as it is: so it makes
    # none of [S, S]. Ours is empty: the spans say it all.
    made = torch.empty(1, 1, 0, 0, dtype=torch.bool, device=spans.position_ids.device)
    return {"position_ids": spans.position_ids, "attention_mask": made, "spans": spans}


def choose_kernel(device: torch.device) -> Kernel | None:
    """The fastest there is for a device: flash-attn if it is installed, else torch's own; None without a GPU."""
    if device.type != "cuda":
        return None
    hopper = torch.cuda.get_device_capability(device) == (9, 0)
    for package in ("flash_attn_interface", "flash_attn") if hopper else ("flash_attn",):  # version 3 is for Hopper
        if importlib.util.find_spec(package):
            return partial(flash_kernel, function=importlib.import_module(package).flash_attn_varlen_func)
    return varlen_kernel


def varlen_kernel(query_SHD: Tensor, key_THD: Tensor, value_THD: Tensor, spans: Spans, manner: Manner) -> Tensor:
    """torch's own."""
    found = varlen_attn(
        query_SHD,
        key_THD,
        value_THD,
        spans.query_ends_K1,
        spans.key_ends_K1,
        spans.longest_query,
        spans.longest_key,
        scale=manner.scale,
        window_size=(_left(manner), 0),
        enable_gqa=query_SHD.shape[1] != key_THD.shape[1],
    )
    return cast(Tensor, found)


def flash_kernel(
    query_SHD: Tensor,
    key_THD: Tensor,
    value_THD: Tensor,
    spans: Spans,
    manner: Manner,
    *,
    function: Callable[..., Any],
) -> Tensor:
    """flash-attn's, version 2 or 3."""
    found = function(
        query_SHD,
        key_THD,
        value_THD,
        cu_seqlens_q=spans.query_ends_K1,
        cu_seqlens_k=spans.key_ends_K1,
        max_seqlen_q=spans.longest_query,
        max_seqlen_k=spans.longest_key,
        softmax_scale=manner.scale,
        causal=True,
        window_size=(_left(manner), 0 if manner.window else -1),
    )
    return cast(Tensor, found[0] if isinstance(found, tuple) else found)


def span_by_span(query: Tensor, key: Tensor, value: Tensor, spans: Spans, manner: Manner) -> Tensor:
    """What each query finds, by one call for each span.    [1, heads, S, D] three times -> [1, heads, S, D]"""
    lengths = [span.length for span in spans.spans]
    # Split, not sliced: the gradients of the parts are then joined once, not each padded to the whole.
    queries, keys, values = (cast(tuple[Tensor, ...], _split(t, lengths, dim=2)) for t in (query, key, value))
    number = {span.start: i for i, span in enumerate(spans.spans)}
    found: list[Tensor] = []
    for i, span in enumerate(spans.spans):
        seen = [number[span.prefix_start], i] if span.prefix_length else [i]
        mask = _mask(span, manner.window, query.device)
        found.append(
            scaled_dot_product_attention(
                queries[i],
                torch.cat([keys[j] for j in seen], dim=2) if span.prefix_length else keys[i],
                torch.cat([values[j] for j in seen], dim=2) if span.prefix_length else values[i],
                attn_mask=mask,
                is_causal=mask is None,
                scale=manner.scale,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
    return torch.cat(found, dim=2)


_apart: Callable[[Tensor, Tensor, Tensor, Spans, Manner], Tensor] = cast(Any, torch.compiler).disable(span_by_span)
"""Never compiled: it would be compiled again for every number of spans."""


def _mask(span: Span, window: int | None, device: torch.device) -> Tensor | None:
    """Which keys each query sees; None if it is those up to its own number.    bool [queries, keys]"""
    if not span.prefix_length and (window is None or window >= span.length):
        return None
    seen = torch.ones(span.length, span.keys, dtype=torch.bool, device=device).tril_(span.prefix_length)
    return seen if window is None else seen.triu_(span.prefix_length - window + 1)


def _attended(tensor_SHD: Tensor, spans: Spans) -> Tensor:
    """The rows that the spans attend to, span after span.    [S, heads, D] -> [T, heads, D]"""
    if spans.keys is None:
        return tensor_SHD
    # In float32 because the gradients of a shared beginning, one for each that shares it, are added up there.
    wide = tensor_SHD.float() if tensor_SHD.dtype in _HALF else tensor_SHD
    return wide.index_select(0, spans.keys)


def _computed_in(query: Tensor) -> torch.dtype:
    """Rotating leaves queries in float32 also where the rest is computed in half of that."""
    device = query.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype


def _left(manner: Manner) -> int:
    """How many tokens before itself a token sees; -1: all."""
    return -1 if manner.window is None else manner.window - 1
