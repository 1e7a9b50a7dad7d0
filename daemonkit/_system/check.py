"""Arguments that are refused before anything happens."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from daemonkit._system.streams import Path

_MODE: Final = 0o7777  # the highest of those numbers that people write in octal


def check_seconds(name: str, value: object) -> None:
    """Refuse what is not a number of seconds or None: TypeError, ValueError."""
    if value is None:
        return
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be seconds or None, not {value!r}")
    is_number = value <= 0 or value > 0  # NaN is neither
    if not is_number or (isinstance(value, int) and abs(value) >= 1 << 63):
        raise ValueError(f"{name} must be seconds or None, not {value!r}")


def check_number(name: str, value: object, highest: int) -> None:
    """Refuse what is not a number from 0 to `highest` or None: TypeError, ValueError."""
    if value is None:
        return
    limit = oct(highest) if highest <= _MODE else highest
    text = f"{name} must be a number from 0 to {limit} or None, not {value!r}"
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(text)
    if not 0 <= value <= highest:
        raise ValueError(text)


def check_path(name: str, path: Path) -> None:
    """Refuse an empty path and one with a NUL byte: ValueError."""
    if not os.fspath(path) or "\0" in os.fsdecode(path):
        raise ValueError(f"{name}: {path!r} is not a path")


def absolute_path(path: str) -> str:
    """Return the path from the root; FileNotFoundError if it is relative and the working directory is gone."""
    try:
        return os.path.abspath(path)
    except FileNotFoundError as error:
        text = "the working directory has been removed; give an absolute path, or change to another directory"
        raise FileNotFoundError(error.errno, text, path) from error


def check_boolean(name: str, value: object) -> bool:
    """Return True or False, and refuse anything else: TypeError."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return value
