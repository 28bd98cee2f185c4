"""Fetches what a run reads from a hub: its models and data sets. `python -m deploy.fetch RUN_FILE`

Everything lands in the shared cache (HF_HOME). The processes of the run then need no way out of their network, and
start again while the hub is down. What is there already is not fetched again.
"""

from __future__ import annotations

import sys
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from common.errors import SettingsError, TributaryError
from common.settings import RunFile, load_run
from services.curriculum.rows import Table

# No pickled weights: nothing here would load them.
WANTED = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken"]


def main(arguments: list[str]) -> int:
    """Fetch for one run file; 2 if something that it names cannot be had."""
    if len(arguments) != 1:
        print("usage: python -m deploy.fetch RUN_FILE", file=sys.stderr)
        return 2
    try:
        fetch(load_run(Path(arguments[0])))
    except TributaryError as error:
        print(f"fetch: {error}", file=sys.stderr)
        return 2
    return 0


def fetch(settings: RunFile) -> None:
    """Fetch models, then data sets. SettingsError names what cannot be had."""
    for model in models(settings):
        print(f"fetch: model {model}", flush=True)
        try:
            snapshot_download(model, allow_patterns=WANTED)
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise SettingsError(f"the model {model} cannot be fetched: {reason}") from error
    for source in (settings.data, *settings.evaluation.sets):
        print(f"fetch: data set {source.path}", flush=True)
        Table(source)  # loads it whole and looks at its columns


def models(settings: RunFile) -> list[str]:
    """The models of a run that are hub names: the policy, and the expert that scores."""
    expert = settings.expert.model if settings.expert.policy == "scored" else None
    return [name for name in dict.fromkeys((settings.model.path, expert)) if name and not Path(name).is_absolute()]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
