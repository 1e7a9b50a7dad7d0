"""A failure as a command line tells it: an exit status and one line."""

from __future__ import annotations

from collections import namedtuple

from daemonkit._system.fork import exit_status_of, first_cause


class Words(namedtuple("Words", ("status", "text", "alone"))):
    """What is said of a failure."""

    __slots__ = ()
    status: int
    text: str
    alone: bool
    """Whether the text stands without the program's name before it: the program's own `sys.exit("text")`."""


def words_of(error: BaseException) -> Words:
    """Return what a command line says of an exception."""
    cause = error.__cause__ if isinstance(error, SystemExit) else None
    status = getattr(cause, "exit_code", None)
    if cause is not None and isinstance(status, int):  # click.ClickException, typer.Exit
        tell = getattr(cause, "format_message", None)
        return Words(status or 1, _line(str(tell())) if callable(tell) else _ended(status), alone=False)
    if not isinstance(error, SystemExit):
        return Words(1, in_one_line(error), alone=False)
    if isinstance(error.code, str):
        return Words(1, error.code, alone=True)
    return Words(exit_status_of(error) or 1, _ended(exit_status_of(error)), alone=False)


def _ended(status: int) -> str:
    return f"it ended with status {status} before it was ready"


def in_one_line(error: BaseException) -> str:
    """Return an exception's message, and its type where the message would puzzle without."""
    error, others = first_cause(error)
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        files = [name for name in (error.filename, error.filename2) if isinstance(name, (str, bytes))]
        text = ": ".join([" -> ".join(map(_text, files)), error.strerror] if files else [error.strerror])
    elif isinstance(error, LookupError) and not isinstance(error, KeyError | IndexError | UnicodeError):
        text = str(error.args[0]) if error.args else ""
    elif isinstance(error, KeyError | AssertionError | StopIteration | SystemExit):
        text = f"{type(error).__name__}: {text}" if text else ""
    return (_line(text) or type(error).__name__) + others


def _text(name: str | bytes) -> str:
    return name if isinstance(name, str) else name.decode(errors="backslashreplace")


def _line(text: str) -> str:
    return " ".join(text.split())
