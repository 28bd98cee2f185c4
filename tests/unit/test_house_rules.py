"""The house rules that a program can check: sizes, names, and words that must not appear."""

from __future__ import annotations

import ast
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON_PLACES = ("common", "learner", "services", "deploy", "examples", "benchmarks", "tests")
NOT_OURS = {".git", ".venv", "runs", "build", "dist", "__pycache__", ".pytest_cache", ".ruff_cache", ".hypothesis"}
TEXT_SUFFIXES = {".py", ".md", ".toml", ".txt", ".yml", ".yaml", ".sh", ".html", ".js", ".css", ".lua"}

MOST_LINES_OF_A_FILE = 400
MOST_LINES_OF_A_FUNCTION = 60
MOST_PARAMETERS = 6
NAMELESS = re.compile(r"(^|_)(util|helper|misc|manager|handler)s?$")
PICKLING = {"pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}
# Written apart, so that this file does not hold what it looks for.
UNFINISHED = re.compile("|".join(["TO" + "DO", "FIX" + "ME", "Not" + "ImplementedError"]))
PACKAGE_HOSTS = re.compile(r"https?://\S+/(simple|whl)\b|--(extra-)?index-url[= ]https?://")

Function = ast.FunctionDef | ast.AsyncFunctionDef
Rule = Callable[[Path], Iterator[str]]


def python_files(root: Path) -> Iterator[tuple[str, str]]:
    """Every Python source of the project: its path below the root, its text."""
    for place in PYTHON_PLACES:
        for path in sorted((root / place).rglob("*.py")):
            below = path.relative_to(root)
            if not NOT_OURS.intersection(below.parts):
                yield str(below), path.read_text(encoding="utf-8")


def text_files(root: Path) -> Iterator[tuple[str, str]]:
    """Every text of the project, whatever its kind: its path below the root, its words."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - NOT_OURS)
        for path in (Path(folder, name) for name in sorted(names)):
            if path.suffix in TEXT_SUFFIXES or path.stem in ("Makefile", "run", "Dockerfile"):
                yield str(path.relative_to(root)), path.read_text(encoding="utf-8")


def functions(root: Path) -> Iterator[tuple[str, Function]]:
    """Every function of the project, methods and inner ones included."""
    for path, text in python_files(root):
        for node in ast.walk(ast.parse(text, filename=path)):
            if isinstance(node, Function):
                yield path, node


def long_files(root: Path) -> Iterator[str]:
    """Files over the limit of lines."""
    for path, text in python_files(root):
        lines = len(text.splitlines())
        if lines > MOST_LINES_OF_A_FILE:
            yield f"{path} has {lines} lines; {MOST_LINES_OF_A_FILE} is the most: which two concepts does it hold?"


def long_functions(root: Path) -> Iterator[str]:
    """Functions that do not fit a screen."""
    for path, function in functions(root):
        lines = (function.end_lineno or function.lineno) - function.lineno + 1
        if lines > MOST_LINES_OF_A_FUNCTION:
            yield f"{path}: {function.name} has {lines} lines; {MOST_LINES_OF_A_FUNCTION} is the most"


def crowded_functions(root: Path) -> Iterator[str]:
    """Functions that take too many parameters, not counting what they are bound to."""
    for path, function in functions(root):
        given = function.args
        names = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
        count = len([name for name in names if name not in ("self", "cls")])
        # A command's parameters are its options, and a test's are its fixtures.
        if count > MOST_PARAMETERS and not function.decorator_list and not path.startswith("tests"):
            yield f"{path}: {function.name} takes {count} parameters; {MOST_PARAMETERS} is the most"


def nameless_files(root: Path) -> Iterator[str]:
    """Files that have not found their noun."""
    for path, _ in python_files(root):
        if any(NAMELESS.search(part) for part in Path(path).with_suffix("").parts):
            yield f"{path} is named after no concept"


def pickling(root: Path) -> Iterator[str]:
    """Bytes that run code when they are read."""
    for path, text in python_files(root):
        for node in ast.walk(ast.parse(text, filename=path)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if PICKLING.intersection(name.split(".")[0] for name in names):
                yield f"{path}:{getattr(node, 'lineno', 0)} imports a module that pickles"
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                safe = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
                if not safe:
                    yield f"{path}:{node.lineno} calls torch.load without weights_only=True"


def packages_below_tests(root: Path) -> Iterator[str]:
    """Packages below tests/, which would shadow the rooms of the same names."""
    for path in sorted((root / "tests").rglob("__init__.py")):
        yield f"{path.relative_to(root)} makes a package; remove it"


def twice_named_tests(root: Path) -> Iterator[str]:
    """Test files that share a basename: without packages pytest imports only one of them."""
    counts = Counter(path.name for path in (root / "tests").rglob("*.py") if path.name != "conftest.py")
    for name, count in sorted(counts.items()):
        if count > 1:
            yield f"{count} files below tests/ are called {name}"


def sleeping_unit_tests(root: Path) -> Iterator[str]:
    """Unit tests that wait for the clock on the wall."""
    for path, text in python_files(root):
        if path.startswith("tests/unit"):
            for node in ast.walk(ast.parse(text, filename=path)):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in ("time.sleep", "sleep"):
                    yield f"{path}:{node.lineno} sleeps; hand in a clock"


def unfinished_work(root: Path) -> Iterator[str]:
    """Notes to do something later, and methods that do nothing."""
    for path, text in python_files(root):
        for number, line in enumerate(text.splitlines(), start=1):
            if UNFINISHED.search(line):
                yield f"{path}:{number} leaves something undone: {line.strip()}"


def package_hosts(root: Path) -> Iterator[str]:
    """Addresses of package indexes: where packages come from is each machine's own setting."""
    for path, text in text_files(root):
        for number, line in enumerate(text.splitlines(), start=1):
            if PACKAGE_HOSTS.search(line):
                yield f"{path}:{number} names a package host"


RULES: list[Rule] = [
    long_files,
    long_functions,
    crowded_functions,
    nameless_files,
    pickling,
    packages_below_tests,
    twice_named_tests,
    sleeping_unit_tests,
    unfinished_work,
    package_hosts,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_has_no(rule: Rule) -> None:
    assert list(rule(ROOT)) == []


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        (long_files, "common/wire.py", "x = 1\n" * 401),
        (long_functions, "learner/loop.py", "def loop():\n" + "    x = 1\n" * 60),
        (crowded_functions, "learner/loop.py", "def loop(a, b, c, d, *, e, f, g): ..."),
        (nameless_files, "common/string_utils.py", ""),
        (nameless_files, "services/helpers/noun.py", ""),
        (pickling, "common/wire.py", "def f():\n    from pickle import loads"),
        (pickling, "learner/storage/checkpoint.py", "import torch\ntorch.load('f')"),
        (packages_below_tests, "tests/unit/__init__.py", ""),
        (sleeping_unit_tests, "tests/unit/test_x.py", "import time\ntime.sleep(1)"),
        (unfinished_work, "learner/loop.py", "raise Not" + "ImplementedError"),
        (package_hosts, "README.md", "pip install -i https://index.example" + "/simple x"),
        (package_hosts, ".ci/run", "URL=https://wheels.example" + "/whl/cpu"),
    ],
)
def test_a_breach_is_found(tmp_path: Path, rule: Rule, path: str, text: str) -> None:
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(text, encoding="utf-8")
    assert len(list(rule(tmp_path))) == 1


def test_two_tests_of_one_name_are_found(tmp_path: Path) -> None:
    for place in ("unit", "system"):
        (tmp_path / "tests" / place).mkdir(parents=True)
        (tmp_path / "tests" / place / "test_wire.py").touch()
    assert list(twice_named_tests(tmp_path)) == ["2 files below tests/ are called test_wire.py"]


def test_limits_themselves_are_allowed(tmp_path: Path) -> None:
    place = tmp_path / "common" / "wire.py"
    place.parent.mkdir()
    body = "class C:\n    def f(self, a, b, c, d, e, f):\n" + "        x = 1\n" * 59
    place.write_text(body + "\n" * (400 - 61), encoding="utf-8")
    assert [found for rule in (long_files, long_functions, crowded_functions) for found in rule(tmp_path)] == []
