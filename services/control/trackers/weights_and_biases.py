"""Weights & Biases, if its package is installed: `pip install "tributary[wandb]"`, and $WANDB_API_KEY or offline mode.

Rows are sent by its own process, so after a kill the last few may be missing there, or be there twice.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.config.live import dump_live
from common.errors import SettingsError
from common.settings import RunFile
from services.control.trackers.port import Place, Row, load_place, save_place

_PLACE = "wandb-place.json"
# Nothing is sent that was not asked for: no source code, no list of packages, no state of the machine.
_NOT_SENT: dict[str, Any] = {
    "disable_git": True,
    "save_code": False,
    "x_save_requirements": False,
    "x_disable_meta": True,
    "x_disable_stats": True,
}

OpenRun = Callable[[RunFile, str], Any]
"""(run file, id) → an open run of the wandb package: new, or the one that has this id."""


class WeightsAndBiases:
    """Sends rows to a run of the project that [trackers] wandb_project names."""

    name = "wandb"

    def __init__(self, settings: RunFile, open_run: OpenRun | None = None) -> None:
        self._settings = settings
        self._open_run = open_run or _open_run
        self._file: Path = settings.run.directory / _PLACE
        self._state: dict[str, Any] = {}
        self._run: Any = None

    def resume(self) -> Place:
        """Open the run that was open before, or a new one. SettingsError if the package is not installed."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        place = load_place(self._file)
        self._state = {"id": place.state.get("id") or f"{self._settings.run.name}-{secrets.token_hex(4)}"}
        self._run = self._open_run(self._settings, self._state["id"])
        # Evaluations come after later steps began, and W&B's own steps may not go back.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        return place

    def write(self, rows: Sequence[Row], place: Place) -> None:
        """Send rows, and save the place behind them."""
        for row in rows:
            notes = {f"notes/{name}": text for name, text in row.notes.items()}
            self._run.log({"step": row.step, **row.scalars, **notes})
        save_place(self._file, replace(place, state=self._state))

    def close(self) -> None:
        """Finish the run, which sends what is left."""
        if self._run is not None:
            self._run.finish()
            self._run = None


def _open_run(settings: RunFile, run_id: str) -> Any:
    try:
        import wandb  # pyright: ignore[reportMissingImports]  # optional, and slow to import
    except ImportError as error:
        raise SettingsError(
            f"[trackers] wandb_project is {settings.trackers.wandb_project!r}, but the wandb package is not installed: "
            'pip install "tributary[wandb]", or take wandb_project out of the run file'
        ) from error
    return wandb.init(
        project=settings.trackers.wandb_project,
        id=run_id,
        name=settings.run.name,
        resume="allow",
        dir=str(settings.run.directory),
        config={"model": settings.model.path, "data": settings.data.path, "live": dump_live(settings.live)},
        settings=wandb.Settings(console="off", silent=True, **_NOT_SENT),
    )
