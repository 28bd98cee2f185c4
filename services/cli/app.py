"""`tributary`: the commands, and the edge at which every error becomes one sentence and an exit code."""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from redis.exceptions import RedisError

from common.errors import ConfigRejected, SettingsError, TributaryError
from services.cli.client import Refused
from services.cli.commands import cataloguing, exporting, inspecting, observing, ordering, steering, teaching
from services.cli.exit_codes import FAILED, INTERRUPTED, UNUSABLE
from services.cli.legible import legible

_USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]
"""What typer raises about a command line; it keeps the class itself to itself."""

app = typer.Typer(
    name="tributary",
    help="Post-train language models with rollouts and demonstrations at the same time, and steer it while it runs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done; 1 failed; 2 unusable command line, run file, data or token; 3 asked for, but not done "
    "within --wait; 130 interrupted. $TRIBUTARY_URL and $TRIBUTARY_TOKEN say which control plane, and who you are.",
)
RunFileArgument = Annotated[Path, typer.Argument(help="the run file (TOML)", show_default=False)]


@app.command()
def up(
    run_file: RunFileArgument,
    scenario: Annotated[
        Path | None, typer.Option(help="a timetable of changes (TOML), sent through the HTTP API as the steps go by")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="after the summary train on without a last step, until Ctrl-C")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="start over: the old run directory is moved aside (runs/addition.1, ...)")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a line")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="plain lines even in a terminal")] = False,
) -> None:
    """Start a run, or resume it, and watch over it until it is done.

    Starts Redis (unless REDIS_URL or the run file names one), control plane, curriculum, generators and learner, shows
    how it goes, and ends with a summary. Ctrl-C stops everything; the same command goes on from where it was.
    """
    from services.cli.up.preparation import Options
    from services.cli.up.session import conduct
    from services.cli.voice import choose_voice

    again = shlex.join(["tributary", *(argument for argument in sys.argv[1:] if argument != "--fresh")])
    voice = choose_voice(as_json=as_json, plain=plain)
    raise typer.Exit(asyncio.run(conduct(Options(run_file, scenario, keep, fresh), voice, again)))


@app.command()
def check(
    run_file: RunFileArgument,
    as_json: Annotated[bool, typer.Option("--json", help="print a JSON document")] = False,
) -> None:
    """Check a run file and everything that it names, without starting anything."""
    from services.cli.commands.checking import show_check

    raise typer.Exit(show_check(run_file, as_json=as_json))


for room in (observing, steering, ordering, inspecting, teaching, cataloguing, exporting):
    app.add_typer(room.commands)


def main() -> None:
    """Run the command that the command line names."""
    wants_json = "--json" in sys.argv
    try:
        # typer tells people itself what is wrong with a command line; programs get that from us, like all else.
        raise SystemExit(app(standalone_mode=not wants_json))
    except (TributaryError, RedisError, OSError) as error:
        code = UNUSABLE if _is_unusable_input(error) else FAILED
        _complain(str(error), code, error, wants_json=wants_json)
    except _USAGE_ERROR as error:
        _complain(error.format_message(), UNUSABLE, error, wants_json=wants_json)  # pyright: ignore
    except UnicodeEncodeError as error:
        _complain(_unwritable(error), UNUSABLE, error, wants_json=wants_json)
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


def _complain(sentence: str, code: int, error: Exception, *, wants_json: bool) -> NoReturn:
    """Say on standard error what went wrong, as a sentence or as problem details (RFC 9457), and exit."""
    if not wants_json:
        print(f"tributary: {legible(sentence)}", file=sys.stderr)
    else:
        told = error.problem if isinstance(error, Refused) else {"title": type(error).__name__}
        print(json.dumps({**told, "detail": sentence, "exit_code": code}), file=sys.stderr)
    raise SystemExit(code) from None


def _unwritable(error: UnicodeEncodeError) -> str:
    """Why something could not be written: it was no text when it came in, or the terminal takes less than all text."""
    if error.encoding == "utf-8":
        return "what stands on the command line or comes from standard input is not UTF-8 text: write it in UTF-8"
    return f"standard output takes {error.encoding} only: set PYTHONUTF8=1"


def _is_unusable_input(error: Exception) -> bool:
    """Whether something else has to be asked for, rather than the same again later."""
    if isinstance(error, Refused):
        return error.is_our_fault
    return isinstance(error, SettingsError | ConfigRejected)


if __name__ == "__main__":
    main()
