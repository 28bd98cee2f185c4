"""The caches that libraries keep in the home directory, and where they go when that cannot be written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from common.errors import SettingsError

_DEFAULTS = {
    "HF_HOME": ("XDG_CACHE_HOME", ".cache", "huggingface"),
    "VLLM_CACHE_ROOT": ("XDG_CACHE_HOME", ".cache", "vllm"),
    "MPLCONFIGDIR": ("XDG_CONFIG_HOME", ".config", "matplotlib"),
}
"""Variable that names a cache → its default place: the variable of the parent, that one's default, and the name."""


def beside_home(*variables: str) -> dict[str, str]:
    """What to add to the environment for caches (all, or the named ones) whose default place cannot be written.

    What the user has set is left alone, right or wrong.
    """
    wanted = [name for name in variables or _DEFAULTS if not os.environ.get(name)]
    return {name: str(_replacement(_DEFAULTS[name][2])) for name in wanted if not _is_writable(_default(name))}


def _default(variable: str) -> Path:
    parent_variable, parent, name = _DEFAULTS[variable]
    directory = Path(os.environ.get(parent_variable) or f"~/{parent}", name)
    try:
        return directory.expanduser()
    except RuntimeError:  # nobody knows where home is
        return directory


def _is_writable(directory: Path) -> bool:
    """Whether a directory is there, or can be made, and takes files."""
    if not directory.is_absolute():
        return False
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(directory, os.W_OK | os.X_OK)


def _replacement(name: str) -> Path:
    """A cache below the directory for temporary files, in a folder that belongs to this user alone."""
    own = Path(tempfile.gettempdir(), f"tributary-{os.getuid()}")
    try:
        own.mkdir(mode=0o700, exist_ok=True)
        found = own.lstat()
        if not own.is_dir() or own.is_symlink() or found.st_uid != os.getuid():
            raise PermissionError(f"{own} is not a directory of this user")
        (own / name).mkdir(exist_ok=True)
    except OSError as error:
        variables = ", ".join(_DEFAULTS)
        raise SettingsError(
            f"the home directory cannot be written, and {own} neither ({error.strerror or error}): "
            f"set {variables} to places that can"
        ) from error
    return own / name
