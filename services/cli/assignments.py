"""Values on the command line: `algorithm.gamma=0.2` and `--gamma 0.2`, turned into JSON merge patches."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from common.config.hints import HINT_POLICIES
from common.errors import SettingsError

Json = dict[str, Any]
_HINTS = "hints"


def parse_value(text: str) -> Any:
    """A JSON value if it is one (numbers, true, null, lists), else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def parse_assignments(assignments: Sequence[str]) -> Json:
    """The merge patch of `path=value` pairs; SettingsError if one is not such a pair."""
    patch: Json = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        names = path.strip().split(".")
        if not equals or not all(names):
            raise SettingsError(f"{assignment!r} assigns nothing: write it like algorithm.gamma=0.2")
        table = patch
        for name in names[:-1]:
            inner = table.setdefault(name, {})
            if not isinstance(inner, dict):
                raise SettingsError(f"{assignment!r} contradicts another one: {name} cannot be both value and table")
            table = inner
        table[names[-1]] = parse_value(text)
    return patch


def parse_switch(kind: str, options: Sequence[str]) -> Json:
    """The merge patch of `switch KIND --key value ... --hints KIND --key value ...`.

    What follows --hints KIND belongs to the hint policy, everything else to the algorithm.
    """
    if kind.startswith("-"):
        raise SettingsError("name the algorithm first: tributary switch luffy --gamma 0.2 --hints demonstration")
    patch: Json = {"algorithm": {"kind": kind}}
    part = patch["algorithm"]
    for name, value in _options(options):
        if name == _HINTS:
            part = patch.setdefault(_HINTS, {"kind": str(value)})
        elif name == "kind":
            raise SettingsError("there is no --kind: the algorithm's kind comes first, the hint policy's after --hints")
        else:
            part[name] = value
    return patch


def _options(words: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """(key, value) of `--key value` and `--key=value`; a key without a value is true."""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not name:
            raise SettingsError(f"{word!r} is out of place: options are written --key value, such as --gamma 0.2")
        if not equals:
            if rest and not rest[0].startswith("--"):
                text = rest.pop(0)
            elif name == _HINTS:
                kinds = ", ".join(str(policy.model_fields["kind"].default) for policy in HINT_POLICIES)
                raise SettingsError(f"--hints needs a kind: one of {kinds}")
            else:
                text = "true"
        yield name.replace("-", "_"), parse_value(text)
