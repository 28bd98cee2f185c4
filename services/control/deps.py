"""What the routes need: one immutable bundle, and the dependencies that hand it to them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated

from fastapi import Depends, Header, Request
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from common.additions import Additions
from common.config.store import ConfigStore
from common.events import EventLog
from common.examined import Examined
from common.keys import Keys
from common.metrics import ControlMetrics
from common.orders import Orders
from common.process import Process
from common.settings import RunFile
from common.weights import WeightAnnouncements
from services.control.chronicle import Chronicle
from services.control.commands import Commands
from services.control.doors import CALLER
from services.control.dry_runs import DryRuns
from services.control.steering import Steering
from services.control.tokens import Caller
from services.control.words import Words


@dataclass(frozen=True, slots=True)
class Control:
    """Everything that the routes of one run work with. clock: Unix time in seconds. stop: set when we end."""

    settings: RunFile
    redis: Redis
    keys: Keys
    config: ConfigStore
    events: EventLog
    weights: WeightAnnouncements
    steering: Steering
    orders: Orders
    commands: Commands
    dry_runs: DryRuns
    examined: Examined
    additions: Additions
    words: Words
    chronicle: Chronicle
    registry: CollectorRegistry
    metrics: ControlMetrics
    stop: asyncio.Event
    clock: Callable[[], float]

    @staticmethod
    def of(process: Process, clock: Callable[[], float] = time.time) -> Control:
        """The bundle of a process."""
        return Control(
            settings=process.settings,
            redis=process.redis,
            keys=process.keys,
            config=process.config,
            events=process.events,
            weights=WeightAnnouncements(process.redis, process.keys),
            steering=Steering(process.redis, process.keys, clock),
            orders=process.orders,
            commands=Commands(process.redis, process.keys, clock),
            dry_runs=DryRuns(process.redis, process.keys),
            examined=Examined(process.redis, process.keys),
            additions=Additions(process.redis, process.keys),
            words=Words(process.settings.model),
            chronicle=Chronicle(process.events),
            registry=process.registry,
            metrics=ControlMetrics(process.registry),
            stop=process.stop,
            clock=clock,
        )


async def _control(request: Request) -> Control:
    return request.app.state.control


async def caller(
    request: Request,
    author: Annotated[
        str | None,
        Header(
            alias="X-Tributary-Author",
            max_length=64,
            pattern=r"^[ -~]+$",
            description="who asks, where no token says it; with a token its name counts, whatever is written here",
        ),
    ] = None,
) -> Caller:
    """Who makes this call, as the doors found out."""
    found: Caller = request.scope[CALLER]
    return found if found.known or author is None else replace(found, name=author)


Controlled = Annotated[Control, Depends(_control)]
Called = Annotated[Caller, Depends(caller)]
