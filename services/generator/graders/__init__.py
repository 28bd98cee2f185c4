"""The graders that a run file may name, and how a name becomes one. Nothing here imports vllm or torch.

A grader of one's own is named `module:function` (`function(response, answer, **options) -> Grade | float`) or
`module:Class` (built from the options once, then called with response and answer).
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from common.errors import SettingsError
from services.generator.graders.grade import Grade, Grader, as_grade

__all__ = ["KNOWN", "Grade", "Grader", "load"]

KNOWN: Mapping[str, str] = MappingProxyType(
    {
        "marker": "services.generator.graders.marker:Marker",
        "numeric": "services.generator.graders.numeric:Numeric",
    }
)


def load(name: str, options: Mapping[str, Any]) -> Grader:
    """The grader called `name` with its options; SettingsError says what is wrong with either."""
    reference = KNOWN.get(name, name)
    grader = _configured(name, _find(name, reference), options)
    return lambda response, answer: as_grade(grader(response, answer))


def _find(name: str, reference: str) -> Callable[..., Any]:
    module_name, colon, attribute = reference.partition(":")
    if not (module_name and colon and attribute):
        raise SettingsError(
            f"[grader] name: there is no grader {name!r}: choose one of {', '.join(sorted(KNOWN))}, or name your own "
            "as module:function"
        )
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except ImportError as error:
        raise SettingsError(
            f"[grader] name: {name!r} cannot be imported ({error}): install it, or add its directory to PYTHONPATH"
        ) from error
    except AttributeError as error:
        raise SettingsError(f"[grader] name: module {module_name} has no {attribute}: correct the name") from error
    except Exception as error:  # a module of somebody else's may raise anything while it is imported
        raise SettingsError(f"[grader] name: importing {name!r} raised {type(error).__name__}: {error}") from error
    if not callable(found):
        raise SettingsError(f"[grader] name: {name} is not a function or class but {type(found).__name__}")
    return found


def _configured(name: str, found: Callable[..., Any], options: Mapping[str, Any]) -> Callable[[str, str], Any]:
    try:
        if inspect.isclass(found):
            made: Any = found(**options)
            return made
        inspect.signature(found).bind("response", "answer", **options)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False))
        raise SettingsError(f"[grader] options of {name!r}: {problems}") from error
    except TypeError as error:
        raise SettingsError(f"[grader] options of {name!r} do not fit it: {error}") from error
    return partial(found, **options)
