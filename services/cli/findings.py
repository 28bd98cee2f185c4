"""Findings of a dry run side by side: the active configuration and each candidate, figure by figure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table
from rich.text import Text

from services.cli.legible import legible
from services.cli.progress import describe_changes

Json = dict[str, Any]
_FIRST = ("loss", "terms", "gradient_weight", "pull", "entropy", "ratio", "effective_sample_size", "clip_fraction")
_LAST = ("cosine", "tokens", "trajectories", "missing_trajectories")
_BESIDE = ("algorithm", "notes")
_NAMES = {
    "terms": "loss of term",
    "gradient_weight": "gradient weight of term",
    "pull": "pull of",
    "ratio": "importance ratio of",
    "effective_sample_size": "effective sample size of",
    "clip_fraction": "clipped share of",
    "cosine": "cosine with the active gradient",
    "missing_trajectories": "trajectories left out",
}


def findings_table(answer: Json) -> Table:
    """A column for the active configuration and for each candidate that has a finding; what differs stands out."""
    columns = [("active", answer["active"]), *((c["label"], c["finding"]) for c in answer["candidates"])]
    columns = [(label, finding) for label, finding in columns if finding is not None]
    table = Table(f"step {answer['step']}")
    for label, finding in columns:
        table.add_column(Text(legible(f"{label}\n{finding['algorithm']}")), justify="right", overflow="fold")
    figures = [dict(figures_of(finding)) for _, finding in columns]
    for name in _ordered(figures):
        shown = [_shown(found.get(name)) for found in figures]
        cells = [Text(cell, style="" if cell == shown[0] else "bold") for cell in shown]
        table.add_row(Text(legible(name)), *cells)
    return table


def remarks(answer: Json) -> Iterator[str]:
    """What the table does not say: what each candidate changes, why one has no finding, and the notes."""
    for candidate in answer["candidates"]:
        label = legible(candidate["label"])
        yield f"{label} changes {legible(describe_changes(candidate['changes']))}"
        if candidate["problem"]:
            yield f"{label} could not be tried: {legible(candidate['problem'])}"
        yield from (f"{label}: {legible(note)}" for note in (candidate["finding"] or {}).get("notes", ()))


def figures_of(finding: Json) -> Iterator[tuple[str, Any]]:
    """(name, value) of every figure, those told per term or source one by one."""
    known = [*_FIRST, *(name for name in finding if name not in (*_FIRST, *_LAST, *_BESIDE)), *_LAST]
    for name in known:
        value = finding.get(name)
        label = _NAMES.get(name, name.replace("_", " "))
        if isinstance(value, dict):
            yield from ((f"{label} {inner}", part) for inner, part in value.items())
        elif name in finding:
            yield label.removesuffix(" of"), value


def _ordered(figures: list[dict[str, Any]]) -> list[str]:
    """The names of all figures, in the order of the first that has them; others follow their predecessor."""
    names: list[str] = []
    for found in figures:
        place = 0
        for name in found:
            if name in names:
                place = names.index(name) + 1
            else:
                names.insert(place, name)
                place += 1
    return names


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else legible(value)
