"""The live configuration: one immutable snapshot of everything that an operator may change while the run goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from pydantic import Field, ValidationError, model_validator

from common.config.algorithm import HPT, Algorithm, DrGRPO
from common.config.base import Frozen, Material
from common.config.guards import Guard, SetValues
from common.config.hints import BranchOnFailure, Hints, IfUnsolved, NoHints
from common.config.schedules import ConstantRate, Schedule
from common.errors import ConfigRejected

Json = dict[str, Any]


class SamplingConfig(Frozen):
    """How training rollouts are sampled. Truncated sampling is not offered: it would bias every importance ratio."""

    temperature: float = Field(default=1.0, gt=0, le=10, description="sampling temperature")
    max_response_tokens: int = Field(default=1024, ge=1, le=1_000_000, description="longest response, hint included")


class OptimizerConfig(Frozen):
    """AdamW, and how far one step may go."""

    learning_rate: float = Field(default=1e-6, ge=0, le=1, description="learning rate after warm-up")
    warmup_steps: int = Field(default=0, ge=0, description="optimiser steps over which the rate rises from zero")
    schedule: Schedule = Field(default_factory=ConstantRate, description="how the rate goes on after the warm-up")
    weight_decay: float = Field(default=0.0, ge=0, le=1, description="decoupled weight decay")
    max_grad_norm: float = Field(default=1.0, gt=0, description="gradients are scaled down to this global norm")


class LiveConfig(Frozen):
    """What takes effect at a step boundary in the learner and at a request boundary elsewhere."""

    algorithm: Algorithm = Field(default_factory=DrGRPO, description="what a batch teaches")
    hints: Hints = Field(default_factory=NoHints, description="what the policy is shown of demonstrations")
    sampling: SamplingConfig = SamplingConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    groups_per_step: int = Field(default=16, ge=1, le=65_536, description="prompts per optimiser step")
    max_staleness: int = Field(
        default=4, ge=0, le=1000, description="a group more versions behind than this is dropped"
    )
    publish_every: int = Field(default=1, ge=1, le=10_000, description="optimiser steps between weight versions")
    publish_min_interval_s: float = Field(
        default=0.0, ge=0, le=86_400, description="seconds from one weight version to the next at least"
    )
    guards: tuple[Guard, ...] = Field(default=(), max_length=32, description="what is done when a figure runs off")

    @model_validator(mode="after")
    def _material_fits(self) -> LiveConfig:
        algorithm, provided = self.algorithm, self.hints.provides
        remedy = json.dumps({"hints": algorithm.published_hints})
        for material in sorted(algorithm.requires - provided):
            raise ValueError(
                f'algorithm "{algorithm.kind}" needs {material}, which hint policy "{self.hints.kind}" does not '
                f"provide: set {remedy} in the same change, or choose an algorithm that does without"
            )
        for material in sorted(provided - algorithm.accepts):
            raise ValueError(
                f'hint policy "{self.hints.kind}" provides {material}, which algorithm "{algorithm.kind}" cannot use: '
                f"set {remedy} in the same change, or choose an algorithm that uses them"
            )
        if isinstance(algorithm, HPT) and isinstance(self.hints, IfUnsolved) and algorithm.gate > self.hints.gate:
            raise ValueError(
                f'algorithm "hpt" wants demonstrations where up to {algorithm.gate} rollouts are right, and hint '
                f'policy "if_unsolved" brings them where up to {self.hints.gate} are: set '
                f'{{"hints": {{"gate": {algorithm.gate}}}}} in the same change, or lower algorithm.gate'
            )
        if algorithm.rollouts == 0 and Material.DEMONSTRATIONS not in provided:
            raise ValueError("no rollouts and no demonstrations leave a group empty: raise algorithm.rollouts")
        if isinstance(self.hints, BranchOnFailure) and not self.hints.can_take(algorithm.rollouts):
            raise ValueError(
                f'hint policy "branch_on_failure" takes a branch where a share between {self.hints.band_low} and '
                f"{self.hints.band_high} is right, which is no number of {algorithm.rollouts} rollouts: raise "
                "algorithm.rollouts, or widen hints.band_low and hints.band_high"
            )
        return self

    @model_validator(mode="after")
    def _guards_can_act(self) -> LiveConfig:
        names = [guard.name for guard in self.guards]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"guards need names of their own: {', '.join(sorted(twice))} comes more than once")
        for guard in self.guards:
            if isinstance(guard.action, SetValues):
                unguarded = dump_live(self.model_copy(update={"guards": ()}))
                try:
                    parse_live(merge_patch(unguarded, guard.action.patch))
                except ConfigRejected as error:
                    raise ValueError(
                        f'guard "{guard.name}" would make a configuration that is refused: {error}'
                    ) from error
        return self


def parse_live(document: Mapping[str, Any]) -> LiveConfig:
    """The configuration that `document` describes. ConfigRejected names every problem by its path."""
    try:
        return LiveConfig.model_validate_json(json.dumps(document), strict=True)
    except ValidationError as error:
        raise ConfigRejected([(_path(e["loc"]), _sentence(e)) for e in error.errors(include_url=False)]) from error
    except (TypeError, ValueError) as error:
        raise ConfigRejected([("", f"not a JSON document: {error}")]) from error


def dump_live(config: LiveConfig) -> Json:
    """The configuration as a JSON document, every value written out."""
    return config.model_dump(mode="json")


def merge_patch(document: Any, patch: Any) -> Any:
    """`document` changed by a JSON merge patch (RFC 7396).

    A patch that names another `kind` replaces the whole tagged object: one method's parameters are not another's.
    """
    if not isinstance(patch, dict):
        return patch
    changes = cast(Json, patch)
    base = cast(Json, document) if isinstance(document, dict) else {}
    if "kind" in changes and changes["kind"] != base.get("kind"):
        base = {}
    merged = dict(base)
    for key, value in changes.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged


def _path(location: tuple[int | str, ...]) -> str:
    """A dotted path, without the tags that pydantic inserts for the members of a union."""
    tagged = {"algorithm", "hints", "action", "schedule"}
    return ".".join(str(part) for i, part in enumerate(location) if i == 0 or location[i - 1] not in tagged)


def _sentence(error: Any) -> str:
    match error["type"]:
        case "extra_forbidden":
            return "this key is not known here: remove it, or check its spelling (GET /v1/algorithms lists the keys)"
        case "union_tag_invalid":
            return f"kind {error['ctx']['tag']!r} is not known: choose one of {error['ctx']['expected_tags']}"
        case "union_tag_not_found":
            return 'it has no "kind": name one (GET /v1/algorithms and /v1/hint-policies list them)'
        case "value_error":
            return str(error["ctx"]["error"])
        case _:
            return f"{error['msg']} (it is {error['input']!r})"
