"""Prepares GSM8K for a run: rows to train on and held-out ones, and a small model when none is named.

    python examples/gsm8k/prepare.py --train gsm8k/train.jsonl --test gsm8k/test.jsonl --out runs/gsm8k-data

The two files are GSM8K's own JSONL with `question` and `answer`; without the options they are looked for in the
directory that $GSM8K_DIR names. Written are train.jsonl and heldout.jsonl with `prompt`, `answer` and `demonstration`,
and model/ unless --model names one to use. Run again with the same arguments, it writes the same.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a file, the repository is not on the path

from examples.gsm8k.model import random_model
from examples.gsm8k.solutions import UnusableSource, read_rows
from examples.gsm8k.tokenizer import train_tokenizer

Row = dict[str, str]
DATA_VARIABLE = "GSM8K_DIR"
VOCABULARY = 4096


def without_repeats(rows: Sequence[Row], seen: Sequence[Row] = ()) -> list[Row]:
    """The rows whose prompt occurs neither earlier nor in `seen`."""
    prompts = {row["prompt"] for row in seen}
    kept: list[Row] = []
    for row in rows:
        if row["prompt"] not in prompts:
            prompts.add(row["prompt"])
            kept.append(row)
    return kept


def that_fit(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> list[Row]:
    """The rows whose prompt, demonstration and end token fit in `max_tokens`."""
    lengths = [
        len(tokenizer.encode(row["prompt"], add_special_tokens=False))
        + len(tokenizer.encode(row["demonstration"], add_special_tokens=False))
        + 1
        for row in rows
    ]
    return [row for row, length in zip(rows, lengths, strict=True) if length <= max_tokens]


def draw_heldout(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """`count` rows drawn without repetition, in their own order; all of them when there are fewer."""
    chosen = random.Random(f"{seed}/heldout").sample(range(len(rows)), min(count, len(rows)))
    return [rows[index] for index in sorted(chosen)]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write JSONL, replacing the file only when all of it is written."""
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8", newline="\n")
    partial.replace(path)


def make_model(rows: Sequence[Row], out: Path, *, max_tokens: int, seed: int) -> PreTrainedTokenizerBase:
    """Train a tokenizer on the rows, save it beside a random model, and return it."""
    texts = [row["prompt"] + row["demonstration"] for row in rows]
    tokenizer = train_tokenizer(texts, vocabulary=VOCABULARY, model_max_length=max_tokens)
    model = random_model(vocabulary=len(tokenizer), max_positions=max_tokens, seed=seed)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # written for its owner only, but an engine may run as another user
    return tokenizer


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a named model; exits with a message when there is none."""
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as problem:
        raise SystemExit(f"not prepared: --model {name} has no tokenizer that can be loaded: {problem}") from problem


def prepare(options: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Read, clean, make or load the model's tokenizer, drop what is too long, and write."""
    train = without_repeats(list(read_rows(options.train)))
    test = without_repeats(list(read_rows(options.test)), seen=train)
    say(f"read {len(train)} problems from {options.train} and {len(test)} from {options.test}")
    options.out.mkdir(parents=True, exist_ok=True)
    if options.model is None:
        folder = options.out / "model"
        tokenizer = make_model(train, folder, max_tokens=options.max_tokens, seed=options.seed)
        say(f"{folder}: a random model and a tokenizer of {len(tokenizer)} tokens trained on the problems")
    else:
        tokenizer = load_tokenizer(options.model)
        say(f"lengths are measured with the tokenizer of {options.model}")
    splits = {"train": train, "heldout": draw_heldout(test, options.heldout, options.seed)}
    for name, rows in splits.items():
        kept = that_fit(rows, tokenizer, options.max_tokens)
        path = options.out / f"{name}.jsonl"
        write_rows(path, kept)
        say(f"{path}: {len(kept)} problems; left out {len(rows) - len(kept)} longer than {options.max_tokens} tokens")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, checked; the sources default to $GSM8K_DIR."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--train", type=Path, metavar="FILE", help=f"GSM8K's train.jsonl (default: in ${DATA_VARIABLE})"
    )
    parser.add_argument("--test", type=Path, metavar="FILE", help=f"GSM8K's test.jsonl (default: in ${DATA_VARIABLE})")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory to write to")
    parser.add_argument("--model", metavar="NAME", help="model to train, a name or a directory; none makes a small one")
    parser.add_argument("--heldout", type=int, default=200, help="problems to hold out (default: %(default)s)")
    parser.add_argument(
        "--max-tokens", type=int, default=512, help="most tokens of prompt and demonstration (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and held-out draw (default: %(default)s)")
    parsed = parser.parse_args(arguments)
    folder = os.environ.get(DATA_VARIABLE)
    for split in ("train", "test"):
        if getattr(parsed, split) is None and folder:
            setattr(parsed, split, Path(folder) / f"{split}.jsonl")
        path = getattr(parsed, split)
        if path is None:
            parser.error(f"--{split} is needed: GSM8K's {split}.jsonl, or set ${DATA_VARIABLE} to its directory")
        if not path.is_file():
            parser.error(f"--{split}: there is no file {path}; it should be GSM8K's {split}.jsonl")
    if parsed.heldout < 1 or parsed.max_tokens < 1:
        parser.error(f"--heldout and --max-tokens must be at least 1, got {parsed.heldout} and {parsed.max_tokens}")
    return parsed


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepare, printing progress; exit with a message when a source is not GSM8K."""
    try:
        prepare(parse_arguments(arguments), say=lambda line: print(line, flush=True))
    except UnusableSource as problem:
        raise SystemExit(f"not prepared: {problem}") from problem


if __name__ == "__main__":
    main()
