"""Feeding an algorithm: the hint policy that goes with a switch when the operator names none."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter, ValidationError

from common.config.algorithm import ALGORITHMS
from common.config.hints import HintConfig, Hints

Json = dict[str, Any]
_HINTS: TypeAdapter[HintConfig] = TypeAdapter(Hints)


def with_hints(patch: Json, current: Json) -> tuple[Json, str]:
    """The patch of a switch with the published hint policy of its algorithm, if the current one does not feed it.

    current: the whole configuration. The sentence says what was added; "" if nothing was: because a hint policy was
    named, or the current one will do, or the algorithm is not known here and the control plane has to judge.
    """
    kind = patch["algorithm"]["kind"]
    algorithm = next((a for a in ALGORITHMS if a.model_fields["kind"].default == kind), None)
    if "hints" in patch or algorithm is None:
        return patch, ""
    try:
        provided = _HINTS.validate_python(current["hints"]).provides
    except ValidationError:  # a control plane of another version
        return patch, ""
    if algorithm.requires <= provided <= algorithm.accepts:
        return patch, ""
    published = algorithm.published_hints
    sentence = (
        f"hint policy {current['hints']['kind']} does not feed {kind}: {published['kind']} comes with it, as published "
        "(--hints KIND chooses another)"
    )
    return {**patch, "hints": published}, sentence
