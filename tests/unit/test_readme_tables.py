"""The README's tables name every algorithm and hint policy there is, and what feeds each, as the configuration says."""

from __future__ import annotations

import re
from pathlib import Path

from common.config.algorithm import ALGORITHMS
from common.config.hints import HINT_POLICIES, FixedHint, HintConfig

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BOTH = FixedHint(ratio=0.5, demonstrations=1)


def rows(heading: str) -> dict[str, list[str]]:
    """Kind → the other cells of its row, in the table whose first heading is `heading`."""
    lines = README[README.index(f"| {heading} |") :].partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {first.strip("`"): rest for first, *rest in cells}


def feeding() -> dict[str, HintConfig]:
    """How the README names a hint policy → the policy."""
    named = {f"`{h.model_fields['kind'].default}`": h.model_validate(h.suggestion) for h in HINT_POLICIES}
    return {**named, "*fixed + d*": BOTH}


def test_every_algorithm_has_a_row_with_its_paper_its_page_and_what_it_needs() -> None:
    table = rows("`kind`")
    assert list(table) == [a.model_fields["kind"].default for a in ALGORITHMS]
    for algorithm in ALGORITHMS:
        _, paper, page, needs, _, _ = table[str(algorithm.model_fields["kind"].default)]
        assert algorithm.paper.replace("-", "–") in paper if "survey" in paper else f"]({algorithm.paper})" in paper
        assert (ROOT / re.findall(r"\((.*?)\)", page)[0]).is_file()
        assert needs == (", ".join(sorted(algorithm.requires)) or "–")


def test_every_algorithm_names_the_hint_policies_that_feed_it_and_its_published_one() -> None:
    for algorithm in ALGORITHMS:
        kind = str(algorithm.model_fields["kind"].default)
        fed_by = rows("`kind`")[kind][4]
        fits = {
            name for name, policy in feeding().items() if algorithm.requires <= policy.provides <= algorithm.accepts
        }
        assert set(fed_by.replace("**", "").split(", ")) == fits, kind
        assert re.findall(r"\*\*`(\w+)`\*\*", fed_by) == [algorithm.published_hints["kind"]], kind


def test_every_hint_policy_has_a_row() -> None:
    assert list(rows("hint policy")) == [h.model_fields["kind"].default for h in HINT_POLICIES]
