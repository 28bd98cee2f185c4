"""The exchange inside an engine core, on a core that writes down what is asked of it."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest

from services.generator.exchange import exchange_weights

PAYLOAD = {"kind": "complete", "path": "/weights"}


class Core:
    """paused: what pausing gives back. failing: the call that fails."""

    def __init__(self, paused: Future[Any] | None = None, failing: str = "") -> None:
        self.calls: list[str] = []
        self.model_executor = self
        self._paused = paused
        self._failing = failing

    def _do(self, call: str) -> None:
        self.calls.append(call)
        if call == self._failing:
            raise RuntimeError(f"no {call}")

    def pause_scheduler(self, mode: str, clear_cache: bool) -> Future[Any] | None:
        assert (mode, clear_cache) == ("keep", False)
        self._do("pause")
        return self._paused

    def _reset_caches(self) -> None:
        self._do("reset caches")

    def collective_rpc(self, method: str, args: tuple[Any, ...]) -> None:
        assert args == (PAYLOAD,)
        self._do(method)

    def set_weight_version(self, weight_version: str) -> None:
        self._do(f"label {weight_version}")

    def resume_scheduler(self) -> None:
        self._do("resume")

    def wake(self) -> None:
        self._do("wake")


def test_a_core_that_stands_still_goes_on_with_other_weights_under_their_version() -> None:
    core = Core()
    done = exchange_weights(core, PAYLOAD, "7", True, core.wake)
    assert core.calls == ["pause", "reset caches", "replace_weights", "label 7", "resume", "wake"]
    assert 0.0 <= done.result(0) < 1.0


def test_caches_are_kept_where_that_is_asked_for() -> None:
    core = Core()
    exchange_weights(core, PAYLOAD, "7", False, core.wake)
    assert core.calls == ["pause", "replace_weights", "label 7", "resume", "wake"]


def test_a_step_in_flight_is_waited_for() -> None:
    paused: Future[Any] = Future()
    core = Core(paused)
    done = exchange_weights(core, PAYLOAD, "7", True, core.wake)
    assert (core.calls, done.done()) == (["pause"], False)
    paused.set_result(None)
    assert core.calls == ["pause", "reset caches", "replace_weights", "label 7", "resume", "wake"]
    assert done.done()


@pytest.mark.parametrize("failing", ["reset caches", "replace_weights", "label 7"])
def test_a_core_stays_paused_after_whatever_fails(failing: str) -> None:
    core = Core(failing=failing)
    with pytest.raises(RuntimeError, match=f"no {failing}"):
        exchange_weights(core, PAYLOAD, "7", True, core.wake).result(0)
    assert core.calls[-1] == failing


def test_a_pause_that_fails_replaces_nothing() -> None:
    paused: Future[Any] = Future()
    core = Core(paused)
    done = exchange_weights(core, PAYLOAD, "7", True, core.wake)
    paused.set_exception(RuntimeError("no pause"))
    with pytest.raises(RuntimeError, match="no pause"):
        done.result(0)
    assert core.calls == ["pause"]
