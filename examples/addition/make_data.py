"""Writes the addition data: hard problems to train on, and held-out hard and easy ones to measure with.

    python examples/addition/make_data.py --out examples/addition/data --seed 0

Each line holds `prompt`, `answer` and `demonstration`; the same arguments give the same bytes. A share of the training
demonstrations can be left out (null): scarce demonstrations are where mixing them with rollouts pays.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a file, the repository is not on the path

from examples.addition.task import EASY, HARD, Problem, answer, demonstration, draw_distinct, prompt


def make_rows(problems: Sequence[Problem], without_demonstration: frozenset[int]) -> list[dict[str, str | None]]:
    """One row for each problem; the demonstration is null at the given indices."""
    return [
        {
            "prompt": prompt(problem),
            "answer": answer(problem),
            "demonstration": None if index in without_demonstration else demonstration(problem),
        }
        for index, problem in enumerate(problems)
    ]


def make_splits(
    seed: int, *, train: int, heldout: int, share_without_demonstration: float
) -> dict[str, list[dict[str, str | None]]]:
    """The rows of every file by the file's name; held-out problems never occur in training.

    The problems do not depend on the share: only which of them keep their demonstration does.
    """
    hard = draw_distinct(random.Random(f"{seed}/hard"), HARD, train + heldout)
    easy = draw_distinct(random.Random(f"{seed}/easy"), EASY, heldout)
    shuffled = random.Random(f"{seed}/demonstrations").sample(range(train), train)
    bare = frozenset(shuffled[: round(train * share_without_demonstration)])
    return {
        "train.jsonl": make_rows(hard[heldout:], bare),
        "heldout_hard.jsonl": make_rows(hard[:heldout], frozenset()),
        "heldout_easy.jsonl": make_rows(easy, frozenset()),
    }


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory to write to")
    parser.add_argument("--seed", type=int, default=0, help="seed of every draw (default: %(default)s)")
    parser.add_argument("--train", type=int, default=512, help="training problems (default: %(default)s)")
    parser.add_argument(
        "--heldout", type=int, default=256, help="problems of each held-out file (default: %(default)s)"
    )
    parser.add_argument(
        "--without-demonstration",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of the training problems whose demonstration is null, 0 to 1 (default: %(default)s)",
    )
    parsed = parser.parse_args(arguments)
    if parsed.train < 1 or parsed.heldout < 1:
        parser.error(f"--train and --heldout must be at least 1, got {parsed.train} and {parsed.heldout}")
    if not 0 <= parsed.without_demonstration <= 1:
        parser.error(f"--without-demonstration is a share from 0 to 1, got {parsed.without_demonstration}")
    return parsed


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the three files and say what was written."""
    options = parse_arguments(arguments)
    splits = make_splits(
        options.seed,
        train=options.train,
        heldout=options.heldout,
        share_without_demonstration=options.without_demonstration,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        path = options.out / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8", newline="\n")
        shown = sum(row["demonstration"] is not None for row in rows)
        print(f"{path}: {len(rows)} problems, {shown} with a demonstration")


if __name__ == "__main__":
    main()
