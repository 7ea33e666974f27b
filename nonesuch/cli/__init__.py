"""The command line: a file a command, with the words of the library.

Results go to standard output (as JSON with --json), progress to standard error. Exit codes: 0; 1, it ran and the answer is no;
2, the input is at fault, and one sentence says what to do; 130, interrupted. torch is imported by the commands that need it.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence

import typer

from nonesuch.cli._words import FAILED, INTERRUPTED, WRONG, Version, app

_UsageError = typer.BadParameter.__mro__[2]  # click's ClickException, wherever typer keeps click


def name_of(command: typer.models.CommandInfo) -> str:
    """What is typed to call it."""
    return command.name or getattr(command.callback, "__name__", "")


for _found in pkgutil.iter_modules(__path__):  # each file adds its commands to the app
    if not _found.name.startswith("_"):
        importlib.import_module(f"{__name__}.{_found.name}")
_ORDER = (  # of the help; others follow
    *("list", "doctor", "fit", "sample", "score", "compare", "demo", "synthesize", "augment", "audit", "restore", "inpaint"),
    *("upscale", "colorize", "enhance", "translate", "style", "explore", "whence", "cite"),
)
app.registered_commands.sort(key=lambda c: (*_ORDER, name_of(c)).index(name_of(c)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; mistakes of the caller become one sentence on standard error."""
    try:
        code = app(args=None if argv is None else list(argv), prog_name="nonesuch", standalone_mode=False)
        if code == INTERRUPTED:  # typer's word for KeyboardInterrupt
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except _UsageError as error:
        return _complain(error.format_message())  # type: ignore[attr-defined]
    except ValueError as error:
        return _complain(str(error))
    except BrokenPipeError:  # such as `nonesuch list | head`
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ArithmeticError, ConnectionError) as error:  # not finite, or a process lost: not the input's fault, and saved
        _complain(str(error))
        return FAILED
    except SystemExit:  # SIGTERM, after the run was saved
        print("Ended by a signal; what was saved is kept, and the same command goes on from there.", file=sys.stderr)
        raise
    except (typer.Abort, KeyboardInterrupt):
        print("Interrupted; what was saved is kept, and the same command goes on from there.", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        return _complain(f"{error.filename or 'a file'}: {error.strerror or error}.")


def _complain(sentence: str) -> int:
    print(f"nonesuch: {' '.join(sentence.split())}", file=sys.stderr)
    return WRONG


@app.callback(invoke_without_command=True)
def options(context: typer.Context, version: Version = False) -> None:
    """Deep generative models of images: every family under one contract."""
    if version:
        from nonesuch import __version__

        print(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
