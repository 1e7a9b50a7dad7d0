"""What the command tells a person beside its results: on stderr, in one line."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


class Failure(Exception):  # noqa: N818 - never seen as such
    """What a user is told, in one line."""


class Usage(Exception):  # noqa: N818 - the same
    """What is wrong with the command line."""


class Interrupted(Exception):  # noqa: N818 - the same
    """How things are after a Ctrl-C."""


# --- the streams --------------------------------------------------------------------------------------------------


def open_streams() -> None:
    """Put the null device where a stream is closed; and let a name that is no text out as it came in."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - as long as the process lives
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")


def flush(status: int) -> int:
    """Write what is left, so that nothing is at the interpreter's end; return the status, 1 if that failed."""
    try:
        sys.stdout.flush()
    except OSError as error:
        _silence(1)
        if not status and not isinstance(error, BrokenPipeError):  # whoever read it, as head(1), has seen enough
            say(f"standard output: {error.strerror}")
        status = status or 1
    try:
        sys.stderr.flush()
    except OSError:
        _silence(2)
    return status


def _silence(number: int) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, number)
    os.close(null)


def say(text: str) -> None:
    """Tell it; with nobody to tell it to, nothing else changes."""
    clear()
    with contextlib.suppress(OSError):
        sys.stderr.write(f"daemonkit: {text}\n")


def in_one_line(error: BaseException) -> str:
    if isinstance(error, OSError):
        if isinstance(error.filename, (str, bytes)):
            return f"{os.fsdecode(error.filename)}: {error.strerror}"
        if error.errno == errno.ENOENT and not _is_somewhere():
            return "this directory has been removed; change to another one"
    text = error.args[0] if isinstance(error, LookupError) and error.args else error
    return " ".join(str(text).split()) or type(error).__name__


def _is_somewhere() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


# --- what takes more than a second ----------------------------------------------------------------------------------

_progress = ""
"""What is being shown, here or in the process that forked this one."""


def clear() -> None:
    """Make room on the terminal's line."""
    if _progress:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"\r{' ' * (len(_progress) + 4)}\r")
            sys.stderr.flush()


@contextlib.contextmanager
def progress(text: str) -> Iterator[None]:
    """Show on a terminal that something takes more than a second."""
    global _progress  # noqa: PLW0603 - there is one terminal
    if not sys.stderr.isatty():
        yield
        return
    shown = 0

    def show(_number: int, _frame: FrameType | None) -> None:
        nonlocal shown
        shown += 1
        sys.stderr.write(f"\r{text} {'.' * (shown % 4):<3}")
        sys.stderr.flush()

    before = signal.signal(signal.SIGALRM, show)
    signal.setitimer(signal.ITIMER_REAL, 1.0, 0.25)
    _progress = text
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if shown:
            clear()
        _progress = ""
