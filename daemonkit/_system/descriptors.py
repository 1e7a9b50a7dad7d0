"""Open descriptors: whose they are, and which of them this program was handed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from itertools import starmap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Protocol

    class HasFileno(Protocol):
        """An open file, socket or the like."""

        def fileno(self) -> int:
            """Return its descriptor."""


def append_result(results: list[int], call: Callable[[], int]) -> None:
    """Append the result of a C function, a `partial`, in one step of the interpreter.

    A signal handler runs between two steps, and may raise. ``fd = os.open(...)`` are two: the descriptor would be lost.
    """
    results.extend(starmap(call, [()]))


def descriptor_of(name: str, value: object) -> int:
    """Return the descriptor of a number or an open file; TypeError or ValueError if it has none."""
    if isinstance(value, int) and not isinstance(value, bool):
        fd = value
    elif callable(fileno := getattr(value, "fileno", None)):
        try:
            fd = fileno()
        except (OSError, ValueError) as error:
            raise ValueError(f"{name}: {value!r} has no descriptor: {error}; give a path or a real file") from error
    else:
        raise TypeError(f"{name}: a path, an open file or a descriptor, not {value!r}")
    if not isinstance(fd, int) or not 0 <= fd < 1 << 31:
        raise ValueError(f"{name}: {fd!r} is not a descriptor")
    return fd


def open_descriptors() -> dict[int, int]:
    """Return the open descriptors above 2 and their flags; the cost grows with them, not with RLIMIT_NOFILE."""
    numbers: Iterable[int]
    try:
        numbers = map(int, os.listdir("/proc/self/fd"))
    except OSError:
        # No /proc here, or a process that has changed its user may not look into its own: try every number that
        # can be one (the default of fs.nr_open), as RLIMIT_NOFILE may have been lowered since.
        numbers = range(1 << 20)
    found = {}
    for fd in numbers:
        with contextlib.suppress(OSError):  # the listing's own is closed again
            found[fd] = fcntl.fcntl(fd, fcntl.F_GETFD)
    return {fd: flags for fd, flags in found.items() if fd > 2}


def is_open(fd: int) -> bool:
    """Tell whether this number is a descriptor."""
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:
        return False
    return True


def inherited_descriptors(*, copies: bool) -> set[int]:
    """Return what this program was handed: descriptors without close-on-exec (PEP 446: its own have it).

    With `copies`, also duplicates of 0, 1, 2 that are a pipe, a terminal or a socket, so that whoever reads the
    other end sees its end.
    """
    found = open_descriptors()
    handed = {fd for fd, flags in found.items() if not flags & fcntl.FD_CLOEXEC}
    if copies and (channels := {_end_of(fd) for fd in range(3) if _is_channel(fd)}):
        handed |= {fd for fd in found if _end_of(fd) in channels}
    return handed


def close_all(descriptors: Iterable[int]) -> None:
    """Close them; one that a signal handler closed meanwhile is none of our business."""
    for fd in descriptors:
        with contextlib.suppress(OSError):
            os.close(fd)


def _is_channel(fd: int) -> bool:
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(fd)


def _end_of(fd: int) -> tuple[int, int, int]:
    """Return what tells an open file from every other: also which end of a pipe it is, as both have one inode."""
    is_pipe = stat.S_ISFIFO(os.fstat(fd).st_mode)
    return *inode(fd), fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE if is_pipe else 0


def inode(fd: int) -> tuple[int, int]:
    """Return what tells an open file from every other."""
    info = os.fstat(fd)
    return info.st_dev, info.st_ino
