"""How a command ends: its exit code, and what is said of what went wrong."""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable
from enum import IntEnum
from typing import Any, ParamSpec

import typer

from modalbridge.cli.output import print_json, say
from modalbridge.errors import (
    ConnectionFailed,
    DigestMismatch,
    JobCancelled,
    JobEnded,
    JobFailed,
    ProblemError,
    Timeout,
    UnexpectedAnswer,
)

P = ParamSpec("P")


class Exit(IntEnum):
    """docs/client.md lists them; they do not change their meaning."""

    DONE = 0
    JOB_FAILED = 1
    USAGE = 2
    """The arguments, or a file here that cannot be read or written."""
    UNREACHABLE = 3
    """Nothing answers at the URL, or not this service."""
    REFUSED = 4
    """The service answered with a problem."""
    TIMEOUT = 5
    JOB_CANCELLED = 6
    DAMAGED = 7
    """A download is not what the service has."""
    BUG = 70
    """Of this command (EX_SOFTWARE)."""
    INTERRUPTED = 130
    """By Ctrl-C."""
    CUT_OFF = 141
    """Whoever read the output went away, as `head` does."""


class UsageError(Exception):
    """What the user can put right: the message says how."""


_BUG = "This is a bug of the command; please report it with the lines above."
_CODES: tuple[tuple[type[Exception], Exit], ...] = (
    (BrokenPipeError, Exit.CUT_OFF),
    (JobFailed, Exit.JOB_FAILED),
    (JobCancelled, Exit.JOB_CANCELLED),
    (ProblemError, Exit.REFUSED),
    (Timeout, Exit.TIMEOUT),
    (DigestMismatch, Exit.DAMAGED),
    (ConnectionFailed, Exit.UNREACHABLE),
    (UnexpectedAnswer, Exit.UNREACHABLE),
    (UsageError, Exit.USAGE),
    (UnicodeEncodeError, Exit.USAGE),
    (OSError, Exit.USAGE),
)


def reported(command: Callable[P, None]) -> Callable[P, None]:
    """The command with each error as a message on stderr and an exit code; with --json, as a document on stdout too."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
            sys.stdout.flush()
        except typer.Exit:
            raise
        except KeyboardInterrupt:
            raise typer.Exit(Exit.INTERRUPTED) from None
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not look like a failed job
            raise typer.Exit(_told(error, bool(kwargs.get("as_json")))) from None

    return run


def _told(error: Exception, as_json: bool) -> Exit:
    """The exit code, with what can be written of the error written."""
    code = next((code for kind, code in _CODES if isinstance(error, kind)), Exit.BUG)
    parts: list[Callable[[], None]] = []
    if code == Exit.BUG:
        parts = [lambda: traceback.print_exception(error), lambda: say(_BUG)]
    elif code != Exit.CUT_OFF:
        parts = [lambda: _tell(error)]
        if as_json:
            parts.append(lambda: print_json(error.job.raw if isinstance(error, JobEnded) else {"error": _document(error)}))
    for write in parts:
        try:
            write()
        except BrokenPipeError:
            code = Exit.CUT_OFF
        except OSError:
            continue  # the other stream may take its part, and the code tells it
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # so that nothing fails while Python ends
    return code


def _document(error: Exception) -> dict[str, Any]:
    if isinstance(error, ProblemError):
        return error.document
    return {"code": type(error).__name__, "detail": str(error)}


def _tell(error: Exception) -> None:
    problem = error.problem if isinstance(error, JobFailed) else error
    if not isinstance(problem, ProblemError):
        odd = isinstance(error, UnicodeEncodeError)
        say(f"error: {error.object!r} is not text that can be sent: {error.reason}" if odd else f"error: {error}")
        return
    who = f"{error.job.id} failed: " if isinstance(error, JobFailed) else "error: "
    say(f"{who}{problem.title or problem.code}: {problem.detail}")
    faults = problem.document.get("errors") or [{"pointer": problem.pointer}]
    for fault in faults:
        if fault.get("pointer"):
            say(f"  where  {fault['pointer']}" + (f"  {fault['detail']}" if len(faults) > 1 else ""))
    if more := problem.document.get("more_errors"):
        say(f"  where  {more} more")
    for part, outcome in problem.document.get("checks", {}).items():
        say(f"  {part:<7}{outcome}")
    if problem.remedy:
        say(f"  do     {problem.remedy}")
    say(f"  code   {problem.code}" + (f", {problem.request_id}" if problem.request_id else ""))
