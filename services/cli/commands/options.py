"""The options that many commands share, and the control plane that they lead to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from services.cli import location
from services.cli.client import ControlClient

RunOption = Annotated[Path | None, typer.Option("--run", help="directory or run file; default: the newest in ./runs")]
UrlOption = Annotated[str | None, typer.Option("--url", help="the control plane's address", envvar="TRIBUTARY_URL")]
JsonOption = Annotated[bool, typer.Option("--json", help="print a JSON document")]
LimitOption = Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="how many at most")]


def connect(run: Path | None, url: str | None) -> ControlClient:
    """The control plane of the run that the options name."""
    return ControlClient(location.control_url(run, url))


def print_json(document: Any) -> None:
    """Print a document as JSON."""
    print(json.dumps(document, indent=2))
