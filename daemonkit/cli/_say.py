"""What the command tells a person beside its results: on stderr, in one line."""

from __future__ import annotations

import contextlib
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


def say(text: str) -> None:
    sys.stderr.write(f"daemonkit: {text}\n")


def in_one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    text = error.args[0] if isinstance(error, LookupError) and error.args else error
    return " ".join(str(text).split()) or type(error).__name__


@contextlib.contextmanager
def progress(text: str) -> Iterator[None]:
    """Show on a terminal that something takes more than a second."""
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
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if shown:
            sys.stderr.write(f"\r{' ' * (len(text) + 4)}\r")
