"""Open descriptors: whose they are, and which of them this program was handed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import sys
from itertools import starmap

from daemonkit._system.unpatched import close

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Final, Protocol

    class HasFileno(Protocol):
        """An open file, socket or the like."""

        def fileno(self) -> int:
            """Return its descriptor."""


def append_result(results: list[int], call: Callable[[], int]) -> None:
    """Append the result of a C function, a `partial`, in one step of the interpreter.

    A signal handler runs between two steps, and may raise. ``fd = os.open(...)`` takes two: if the handler raises after
    the first one, the descriptor is lost; so would be the pid of a program that was started.
    """
    results.extend(starmap(call, [()]))


# Not by an import, which would make a circle that mypy can't follow.
_OPEN_AT_IMPORT: Final[dict[int, tuple[int, int, int]]] = sys.modules["daemonkit"]._OPEN_AT_IMPORT  # noqa: SLF001


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
        raise TypeError(f"{name} must be a path, an open file or a descriptor, not {value!r}")
    if not isinstance(fd, int) or not 0 <= fd < 1 << 31:
        raise ValueError(f"{name}: {fd!r} is not a descriptor")
    return fd


def open_descriptors() -> dict[int, int]:
    """Return the open descriptors above 2 and their flags; the cost grows with them, not with RLIMIT_NOFILE."""
    numbers: Iterable[int]
    try:
        numbers = map(int, os.listdir("/proc/self/fd"))
    except OSError:
        # There is no /proc, or this process has changed its user and may not read its own folder there. So every
        # number is tried (up to the default of fs.nr_open): a descriptor may be above an RLIMIT_NOFILE lowered since.
        numbers = range(1 << 20)
    found = {}
    for fd in numbers:
        if fd > 2:
            try:
                found[fd] = fcntl.fcntl(fd, fcntl.F_GETFD)
            except OSError:  # the listing's own is closed again
                continue
    return found


def is_open(fd: int) -> bool:
    """Tell whether this number is a descriptor."""
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:
        return False
    return True


def inheritable_descriptors() -> set[int]:
    """Return the descriptors that a program executed now would inherit: those above 2 without close-on-exec."""
    return {fd for fd, flags in open_descriptors().items() if not flags & fcntl.FD_CLOEXEC}


def handed_descriptors(*, copies: bool) -> set[int]:
    """Return the descriptors above 2 that whoever started this program handed to it, and may be waiting for.

    They were open and inheritable when daemonkit was imported, and are still the same files. That a descriptor is
    inheritable now proves nothing: HDF5, LMDB, inotify_init(2), dup2(2) and many servers leave close-on-exec off. With
    `copies`, also duplicates of this program's 0, 1 and 2 that are a pipe, a terminal or a socket: so whoever reads
    from the other end sees the end of the output.
    """
    handed = {fd for fd, file in _OPEN_AT_IMPORT.items() if fd > 2 and _is_file(fd, file) and _may_be_awaited(fd)}
    if copies:
        handed |= _copies_of_streams()
    return handed


def _copies_of_streams() -> set[int]:
    """Return duplicates of 0, 1 and 2, as they are and as they were at import: a log may have taken their place."""
    ends = {_end_of(fd) for fd in range(3)}
    for fd, (device, number, mode) in _OPEN_AT_IMPORT.items():
        if fd <= 2:
            ends.add((device, number, (os.O_WRONLY if fd else os.O_RDONLY) if stat.S_ISFIFO(mode) else 0))
    return {fd for fd in open_descriptors() if _end_of(fd) in ends - {None}}


def _is_file(fd: int, file: tuple[int, int, int]) -> bool:
    try:
        info = os.fstat(fd)
    except OSError:
        return False
    return (info.st_dev, info.st_ino, info.st_mode) == file


def _may_be_awaited(fd: int) -> bool:
    """Tell whether anybody can notice that this descriptor is closed.

    Nobody waits for a regular file, a directory, a source of random numbers or for an epoll, inotify or event
    descriptor (which have no file type), and a library may have opened it before daemonkit was imported. A lock of
    flock(1) on it is different: somebody may wait for that lock. But not if this very process took it, as HDF5 locks
    what it opens.
    """
    info = os.fstat(fd)
    if stat.S_IFMT(info.st_mode) == 0:
        return False
    if not (stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode) or _is_random(info)):
        return True
    return _flock_holder(fd) not in {None, os.getpid()}


def _is_random(info: os.stat_result) -> bool:
    """Tell whether it is /dev/random or /dev/urandom: random(4)."""
    return stat.S_ISCHR(info.st_mode) and info.st_rdev in {os.makedev(1, 8), os.makedev(1, 9)}


def _flock_holder(fd: int) -> int | None:
    """Return the pid of whoever took the flock(2) that is on this open file, None if there is none: proc(5)."""
    with contextlib.suppress(OSError), open(f"/proc/self/fdinfo/{fd}", "rb") as lines:
        for line in lines:  # lock: 1: FLOCK ADVISORY WRITE 4242 fe:01:99 0 EOF
            fields = line.split()
            if fields[0] == b"lock:" and fields[2] == b"FLOCK":
                return int(fields[5])
    return None


def give_up(descriptors: Iterable[int], null: int) -> None:
    """Put the null device, which is open as `null`, in their place: no number is left free.

    An object of the program's that still writes to such a number would otherwise reach whatever is opened next.
    """
    for fd in descriptors:
        try:
            os.dup2(null, fd, inheritable=False)
        except OSError:  # a number beyond a lowered RLIMIT_NOFILE: nothing can take it
            close_all([fd])


def close_all(descriptors: Iterable[int]) -> None:
    """Close them; a signal handler may have closed some of them already."""
    for fd in descriptors:
        with contextlib.suppress(OSError):
            close(fd)


def _end_of(fd: int) -> tuple[int, int, int] | None:
    """Return a key that is the same for all duplicates of an end of a pipe, a socket or a terminal; else None.

    Both ends of a pipe have one inode, so the key includes whether it is open for reading or for writing.
    """
    try:
        info = os.fstat(fd)
        if stat.S_ISFIFO(info.st_mode):
            return info.st_dev, info.st_ino, fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        is_channel = stat.S_ISSOCK(info.st_mode) or os.isatty(fd)
    except OSError:  # it is not open
        return None
    return (info.st_dev, info.st_ino, 0) if is_channel else None


def inode(fd: int) -> tuple[int, int]:
    """Return what tells an open file from every other."""
    info = os.fstat(fd)
    return info.st_dev, info.st_ino
