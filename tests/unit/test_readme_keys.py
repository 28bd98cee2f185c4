"""examples/REFERENCE.md names every key of the run file and of the live configuration, with its true default and range.

A cell that holds for some kinds only is written like "`8`; `sft`: `0`": what holds for all others comes first.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from common.config.live import LiveConfig
from common.settings import RunFile

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
REFERENCE = (ROOT / "examples" / "REFERENCE.md").read_text(encoding="utf-8")
REQUIRED = "*required*"
WORDS = {Path: "path", str: "text", dict: "table", tuple: "list"}
Cells = dict[str, str]


@dataclass(frozen=True)
class Value:
    """What a key may be set to. default: REQUIRED if there is none."""

    default: Any
    range: str


@dataclass
class Keys:
    """The keys of a model by dotted path, each by kind ("" where there is no choice), and the kinds of each choice."""

    values: dict[str, dict[str, Value]] = field(default_factory=dict)
    kinds: dict[str, list[str]] = field(default_factory=dict)

    def add(self, model: type[BaseModel], above: str = "", kind: str = "") -> Keys:
        for name, info in model.model_fields.items():
            inside = models(info.annotation)
            if len(inside) > 1:
                kinds = self.kinds[f"{above}{name}"] = [str(m.model_fields["kind"].default) for m in inside]
                default = REQUIRED if info.is_required() else info.get_default(call_default_factory=True).kind
                self.values[f"{above}{name}.kind"] = {"": Value(default, named(kinds))}
            elif not inside and name != "kind":
                default = REQUIRED if info.is_required() else info.get_default(call_default_factory=True)
                self.values.setdefault(f"{above}{name}", {})[kind] = Value(default, span(info))
            for member in inside:
                self.add(member, f"{above}{name}.", kind if len(inside) == 1 else member.model_fields["kind"].default)
        return self

    def kinds_at(self, path: str) -> list[str]:
        """The kinds that the keys at a path belong to, as far as there is a choice."""
        return next((kinds for choice, kinds in self.kinds.items() if path.startswith(f"{choice}.")), [])


def models(annotation: Any) -> list[type[BaseModel]]:
    """The models that a value may be made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in models(argument)]


def named(values: list[str]) -> str:
    return ", ".join(f"`{value}`" for value in values)


def span(info: FieldInfo) -> str:
    """The range of a field, as the reference writes it."""
    options = [option for option in get_args(info.annotation) if option is not NoneType]
    is_nullable = NoneType in get_args(info.annotation)
    annotation: Any = options[0] if is_nullable else info.annotation
    bounds = {kind: getattr(m, kind) for m in info.metadata for kind in ("ge", "gt", "le", "lt") if hasattr(m, kind)}
    return _span(annotation, bounds) + (", `null`" if is_nullable else "")


def _span(annotation: Any, bounds: Mapping[str, float]) -> str:
    if get_origin(annotation) is Literal:
        return named([str(o.value if isinstance(o, Enum) else o) for o in get_args(annotation)])
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return named([str(option.value) for option in annotation])
    if annotation is bool:
        return named(["true", "false"])
    if annotation is int:
        return f"{bounds['ge']} … {bounds.get('le', '')}".strip()
    if annotation is float:
        low, high = bounds.get("gt", bounds.get("ge", -math.inf)), bounds.get("lt", bounds.get("le", math.inf))
        ends = ("[" if "ge" in bounds else "("), ("]" if "le" in bounds else ")")
        return f"{ends[0]}{_number(low)}, {_number(high)}{ends[1]}"
    return WORDS[get_origin(annotation) or annotation]


def _number(value: float) -> str:
    return f"{value:.0f}" if math.isfinite(value) else f"{value}".replace("inf", "∞")


def tables(text: str) -> Iterator[tuple[str, list[Cells]]]:
    """The tables of a document: (the heading above, the rows by column)."""
    heading, columns, rows = "", [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("#"):
            heading = line.lstrip("# ")
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            columns = columns or cells
            rows.append(dict(zip(columns, cells, strict=True)))
        elif rows:
            yield heading, rows[2:]
            columns, rows = [], []


def part(heading: str) -> str:
    """A part of the reference: from one `##` heading to the next."""
    return REFERENCE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def run_rows() -> Iterator[tuple[str, Cells]]:
    """Dotted path → row of every key that the reference names of the run file; a table can be that of two headings."""
    for heading, rows in tables(part("Run file")):
        for table in re.findall(r"`\[+([\w.]+)\]+`", heading):
            for row in rows:
                yield f"{table}.{row['key'].strip('`')}", row


def live_rows() -> Iterator[tuple[str, Cells]]:
    for _, rows in tables(part("Live configuration")):
        for row in rows:
            yield row["key"].strip("`"), row


def of_kind(cell: str, kind: str) -> str:
    """What a cell says of a kind."""
    first, *others = cell.split("; ")
    for other in others:
        kinds, _, said = other.partition(": ")
        if f"`{kind}`" in kinds.split(", "):
            return said
    return first


def read(cell: str, default: Any) -> Any:
    """The default that a cell names. Texts stand there without quotes; a dash is a key of the run file left out."""
    if cell == REQUIRED:
        return REQUIRED
    code = cell.strip("`")
    if code in ("–", "null"):
        return None
    if isinstance(default, str):
        return code.replace("\\n", "\n")
    value = tomllib.loads(f"value = {code}")["value"]
    return tuple(value) if isinstance(value, list) else value


def belongs_to(cell: str, kinds: list[str]) -> set[str]:
    """The kinds that a cell names: all, all but some, or some."""
    listed = set(re.findall(r"`(\w+)`", cell))
    assert listed <= set(kinds), cell
    return set(kinds) - listed if cell.startswith("all") else listed


RUN = {path: of[""] for path, of in Keys().add(RunFile).values.items() if not path.startswith("live.")}
LIVE = Keys().add(LiveConfig)


def test_every_key_of_the_run_file_has_one_row() -> None:
    paths = [path for path, _ in run_rows()]
    assert sorted(paths) == sorted(RUN)


def test_every_key_of_the_live_configuration_has_one_row() -> None:
    paths = [path for path, _ in live_rows()]
    assert sorted(paths) == sorted(LIVE.values)


@pytest.mark.parametrize(("path", "row"), [pytest.param(*found, id=found[0]) for found in run_rows()])
def test_a_row_of_the_run_file_tells_default_and_range(path: str, row: Cells) -> None:
    value = RUN[path]
    assert read(row["default"], value.default) == value.default
    assert row["unit, range"].rpartition(": ")[2] == value.range.removesuffix(", `null`")
    assert row["what it does"]


@pytest.mark.parametrize(("path", "row"), [pytest.param(*found, id=found[0]) for found in live_rows()])
def test_a_row_of_the_live_configuration_tells_default_and_range_of_every_kind(path: str, row: Cells) -> None:
    kinds = LIVE.kinds_at(path)
    if set(LIVE.values[path]) != {""}:
        assert belongs_to(row["of"], kinds) == set(LIVE.values[path])
    for kind, value in LIVE.values[path].items():
        assert read(of_kind(row["default"], kind), value.default) == value.default, kind
        assert of_kind(row["range"], kind) == value.range, kind
    assert row["what it changes"]


def test_the_readme_leads_to_the_reference_and_agrees_with_it() -> None:
    assert "](examples/REFERENCE.md)" in README
    told = {row["key"].strip("`"): row["default"] for row in dict(tables(README))["The learner"]}
    assert told
    for key, default in told.items():
        assert read(default, RUN[f"learner.{key}"].default) == RUN[f"learner.{key}"].default


def test_a_wrong_cell_is_found() -> None:
    assert read(of_kind("`8`; `sft`: `0`", "sft"), 0) == 0
    assert read(of_kind("`8`; `sft`: `0`", "grpo"), 8) == 8
    assert read("`true`", False) is True
    assert read("`rows`", "auto") == "rows"
    assert belongs_to("all but `a`", ["a", "b"]) == {"b"}
    with pytest.raises(AssertionError):
        belongs_to("`c`", ["a", "b"])
