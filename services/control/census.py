"""The census: tells, as events, when a process of the run starts, changes its state, falls silent or returns."""

from __future__ import annotations

from services.control.overview import ProcessView

LOST = "lost"


class Census:
    """Remembers how each process was, so that only changes are told."""

    def __init__(self) -> None:
        self._states: dict[str, str] | None = None

    def changes(self, processes: list[ProcessView]) -> list[dict[str, str]]:
        """The process events since the last call; none at the first, which only takes stock."""
        states = {p.name: _state(p) for p in processes}
        known, self._states = self._states, states
        if known is None:
            return []
        roles = {p.name: p.role for p in processes}
        changed = (name for name, state in states.items() if known.get(name) != state)
        return [{"name": name, "role": roles[name], "state": states[name]} for name in changed]


def _state(process: ProcessView) -> str:
    ended = process.state in ("stopped", "failed")
    return process.state if process.alive or ended else LOST
