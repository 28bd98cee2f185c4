"""What the routes need: one immutable bundle, and the dependencies that hand it to them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from common.config.store import ConfigStore
from common.events import EventLog
from common.keys import Keys
from common.metrics import ControlMetrics
from common.process import Process
from common.settings import RunFile
from common.weights import WeightAnnouncements
from services.control.chronicle import Chronicle
from services.control.steering import Steering


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
            chronicle=Chronicle(process.events),
            registry=process.registry,
            metrics=ControlMetrics(process.registry),
            stop=process.stop,
            clock=clock,
        )


async def _control(request: Request) -> Control:
    return request.app.state.control


Controlled = Annotated[Control, Depends(_control)]
