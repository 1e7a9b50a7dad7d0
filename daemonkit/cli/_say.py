"""Messages to the person who types: one line each, on stderr."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import FrameType
    from typing import Final

    from daemonkit.cli._app import App


OWN: Final = "daemonkit: "
"""The beginning of each line that a supervisor itself writes to an app's log, and of each message."""


class Failure(Exception):  # noqa: N818 - never seen as such
    """A failure, in the words that the user reads; `lines` are shown before them."""

    def __init__(self, text: str, lines: Iterable[str] = ()) -> None:
        super().__init__(text)
        self.lines = [*lines]


class Usage(Exception):  # noqa: N818 - the same
    """A mistake in the command line, in the words that the user reads."""


class Interrupted(Exception):  # noqa: N818 - the same
    """A Ctrl-C; its text says how things are now."""


# --- the streams -----------------------------------------------------------------------------------------------------


def open_streams() -> None:
    """Put the null device where a stream is closed. Let names of any bytes pass to stdout unchanged."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - open as long as the process lives
    if isinstance(sys.stdout, io.TextIOWrapper):
        encoding = "utf-8" if sys.stdout.encoding.lower() in {"ascii", "us-ascii", "ansi_x3.4-1968"} else None
        sys.stdout.reconfigure(encoding=encoding, errors="surrogateescape")  # the C locale knows no letter beyond z


def flush(status: int) -> int:
    """Write the rest of the output; return the status, or 1 if that failed.

    Left to the interpreter's end, a failure would be a traceback.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        _silence(1)
        if not status and not isinstance(error, BrokenPipeError):  # the reader, such as head(1), has seen enough
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
    """Print a message. A stderr that can't be written changes nothing else."""
    clear()
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{OWN}{text}\n")


def fail(error: BaseException) -> None:
    """Print a failure: the lines that lead to it, and the one that is its own."""
    clear()
    with contextlib.suppress(OSError):
        sys.stderr.writelines(f"{line}\n" for line in getattr(error, "lines", ()))
    say(in_one_line(error))


def for_each(apps: Iterable[App], do: Callable[[App], object], *, debug: bool) -> int:
    """Do something with each app; return 1 if it failed for one of them: the others have their turn all the same."""
    status = 0
    for app in apps:
        try:
            do(app)
        except KeyboardInterrupt:
            raise Interrupted(f"{app.name} {'runs' if app.holder() else 'does not run'}") from None
        except (Interrupted, BrokenPipeError):
            raise
        except Exception as error:
            if debug:
                raise
            fail(error)
            status = 1
    return status


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


# --- progress, for what takes more than a second ---------------------------------------------------------------------

_progress = ""
"""The text that is shown now, by this process or by the one that forked it."""


def clear() -> None:
    """Erase the progress from the terminal's line."""
    if _progress:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"\r{' ' * (len(_progress) + 4)}\r")
            sys.stderr.flush()


@contextlib.contextmanager
def progress(text: str) -> Iterator[None]:
    """Show the text on a terminal while the body runs, from its second second on."""
    global _progress  # noqa: PLW0603 - there is one terminal
    if not sys.stderr.isatty():
        yield
        return
    import signal

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
