"""GET /v1/generators, POST /v1/generators/{name}/{drain,admit}: the generators, and orders to them.

curl -sX POST $DASHBOARD/v1/generators/generator-2/drain
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel, Field

from common.orders import Standing
from services.control.deps import Called, Control, Controlled
from services.control.examples import answered
from services.control.overview import OrderView, ProcessView, read_orders
from services.control.problems import Problem, documented

router = APIRouter(prefix="/v1/generators", tags=["orders"])

Drain = Literal["admitted", "draining", "drained"]
Name = Annotated[str, Path(min_length=1, max_length=255, description="of a generator", examples=["generator-1"])]


class GeneratorView(ProcessView):
    """A generator as its last heartbeat tells. drained: the order to take no more requests, while it stands.

    drain: admitted (it takes requests), draining (it finishes those in flight), drained (it holds none any more).
    """

    drained: OrderView | None
    drain: Drain
    requests: int = Field(default=0, description="requests in flight there")


class Generators(BaseModel):
    """Every generator that ever beat, each as it told last."""

    generators: list[GeneratorView]


class DrainView(BaseModel):
    """A generator after an order. changed: false if the order stood already, or had been taken back already."""

    name: str
    drained: OrderView | None
    drain: Drain
    requests: int = Field(description="requests in flight there")
    changed: bool


_ORDER = {"by": "ada", "at_s": 1767225600.0}
_ADMITTED = {"name": "generator-2", "drained": None, "drain": "admitted", "requests": 6, "changed": True}
_GENERATOR: dict[str, Any] = {
    "name": "generator-2",
    "role": "generator",
    "state": "running",
    "alive": True,
    "age_s": 0.4,
    "trouble": "",
    "revision": 4,
    "version": 117,
    "drained": _ORDER,
    "drain": "draining",
    "requests": 6,
    "running": 31,
    "tokens_per_s": 893.4,
}


@router.get("", summary="The generators", responses=answered({"generators": [_GENERATOR]}) | documented(503))
async def generators(control: Controlled) -> Generators:
    """The generators, alive or not, and the orders to them. `curl -s $DASHBOARD/v1/generators`."""
    processes, standing = await read_orders(control)
    return Generators(generators=[_generator(p, standing) for p in processes if p.role == "generator"])


@router.post(
    "/{name}/drain",
    summary="Drain a generator",
    responses=answered({**_ADMITTED, "drained": _ORDER, "drain": "draining"}) | documented(404, 422, 503),
)
async def drain(name: Name, control: Controlled, caller: Called) -> DrainView:
    """Have a generator finish what it has and take no more requests; others take over what it has not begun.

    It stays alive and up to date. Once it is drained it can be stopped without losing work.

    `curl -sX POST $DASHBOARD/v1/generators/generator-2/drain`
    """
    await _known(name, control)
    changed = await control.commands.drain(name, caller.name)
    return await _drained(name, control, changed=changed)


@router.post(
    "/{name}/admit",
    summary="Have a drained generator work again",
    responses=answered(_ADMITTED) | documented(404, 422, 503),
)
async def admit(name: Name, control: Controlled, caller: Called) -> DrainView:
    """Take the order to drain back. `curl -sX POST $DASHBOARD/v1/generators/generator-2/admit`."""
    await _known(name, control)
    changed = await control.commands.admit(name, caller.name)
    return await _drained(name, control, changed=changed)


async def _known(name: str, control: Control) -> None:
    """A Problem (404) unless there is a generator, or an order to one, of this name."""
    processes, standing = await read_orders(control)
    names = [p.name for p in processes if p.role == "generator"]
    if name not in names and name not in standing.drained:
        known = f"there are {', '.join(names)}" if names else "none has started yet"
        raise Problem(404, "no-generator", f"there is no generator {name!r}: {known}")


async def _drained(name: str, control: Control, *, changed: bool) -> DrainView:
    processes, standing = await read_orders(control)
    found = next((p for p in processes if p.role == "generator" and p.name == name), None)
    return DrainView(
        name=name,
        drained=OrderView.of(standing.drained.get(name)),
        drain=_drain(name, found, standing),
        requests=_count((found.model_extra or {}).get("requests") if found else 0),
        changed=changed,
    )


def _generator(process: ProcessView, standing: Standing) -> GeneratorView:
    order = {
        "drained": OrderView.of(standing.drained.get(process.name)),
        "drain": _drain(process.name, process, standing),
        "requests": _count((process.model_extra or {}).get("requests")),
    }
    return GeneratorView.model_validate(process.model_dump() | order)


def _drain(name: str, process: ProcessView | None, standing: Standing) -> Drain:
    if name not in standing.drained:
        return "admitted"
    told = (process.model_extra or {}) if process else {}
    holds_none = process is None or not process.alive or told.get("drained") is True
    return "drained" if holds_none else "draining"


def _count(told: object) -> int:
    return told if isinstance(told, int) and not isinstance(told, bool) else 0
