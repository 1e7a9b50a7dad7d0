"""What descriptors 0, 1 and 2 become."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import stat
import sys
from collections import namedtuple

from daemonkit._constants import DEVNULL, STDOUT, stands_for
from daemonkit._system.check import absolute_path, check_path
from daemonkit._system.descriptors import descriptor_of, inode, is_open
from daemonkit._system.unpatched import close

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final, TextIO, TypeGuard

    from daemonkit._system.descriptors import HasFileno
    from daemonkit._system.users import Owner

    Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]
    StreamOption = Path | int | HasFileno | None
    """What `stdin`, `stdout` and `stderr` can be given as."""

_LOG_MODE: Final = 0o640
STREAM_NAMES: Final = ("stdin", "stdout", "stderr")


class Source(namedtuple("Source", ("fd", "path", "created"), defaults=(None, False))):
    """The open file that one of the descriptors 0, 1, 2 becomes."""

    __slots__ = ()
    fd: int
    """This package's own descriptor, above 2."""
    path: str | None
    """Where it was opened, absolute; None if it was handed in open."""
    created: bool


def check_stream(name: str, value: object) -> None:
    """Refuse what can't be a stream: TypeError, ValueError."""
    if isinstance(value, (str, bytes, os.PathLike)):
        check_path(name, value)
        return
    if value is None or stands_for(value, DEVNULL) or (stands_for(value, STDOUT) and name == "stderr"):
        return
    fd = descriptor_of(name, value)
    try:
        mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    except OSError as error:
        raise ValueError(f"{name}: descriptor {fd} is not open") from error
    if mode == (os.O_WRONLY if name == "stdin" else os.O_RDONLY):
        raise ValueError(f"{name}: {value!r} is not open for {'reading' if name == 'stdin' else 'writing'}")


def check_enterable(directory: str) -> None:
    """Refuse a directory that can't be entered: OSError with its path."""
    try:
        # The dot makes the kernel check the right to enter, without entering: open(2), path_resolution(7).
        close(os.open(os.path.join(directory, "."), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.ENOENT:
            absolute_path(directory)  # which tells whether it is only the working directory that is gone
        raise OSError(error.errno, os.strerror(error.errno or 0), directory) from None


def open_source(name: str, value: StreamOption, umask: int | None, owner: Owner | None = None) -> Source:
    """Open what a stream is to become, on a descriptor above 2 so that no later `dup2` runs it over.

    Logs are opened by `open_log`. Raises OSError with the path.
    """
    if value is None or stands_for(value, DEVNULL):
        return Source(_lifted(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC), name))
    if isinstance(value, (str, bytes, os.PathLike)):
        path = absolute_path(os.fsdecode(value))
        if name == "stdin":
            return Source(_lifted(_open_blocking(path, os.O_RDONLY), name), path)
        fd, created = open_log(path, umask, owner)
        return Source(_lifted(fd, name), path, created)
    if callable(flush := getattr(value, "flush", None)) and name != "stdin":
        flush()  # what the program wrote to it before comes before what the daemon writes
    return Source(_above_2(descriptor_of(name, value), name))


def open_log(path: str, umask: int | None, owner: Owner | None = None) -> tuple[int, bool]:
    """Open a log for appending; return its descriptor and whether this call created it.

    A new log is created 0o640 less `umask` (None: the caller's) and given to `owner`, who may have to open it anew.
    A file or a device that was there before keeps its owner: it may be another user's log, or /dev/null. No symbolic
    link is followed.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW
    while True:
        try:
            return _open_blocking(path, flags), False
        except FileNotFoundError:
            try:
                mode = _LOG_MODE if umask is None else 0o600
                fd = os.open(path, flags | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            except FileExistsError:
                if os.path.islink(path):
                    raise OSError(errno.ELOOP, _LINK, path) from None
                continue  # another program created it just now
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise OSError(errno.ELOOP, _LINK, path) from error
            raise
        try:
            if umask is not None:
                os.fchmod(fd, _LOG_MODE & ~umask)
            if owner:
                os.fchown(fd, owner.uid, owner.gid)
        except OSError as error:
            remove_if_empty(path, inode(fd))
            close(fd)
            raise OSError(error.errno, f"{error.strerror}: the new log can't be given to its user", path) from error
        return fd, True


_LINK: Final = "a symbolic link, so it can't be a log; give the path that it leads to, or an open file"


def _open_blocking(path: str, flags: int) -> int:
    """Open without waiting for the other end of a FIFO, nor taking a terminal; reads and writes block as usual."""
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        close(fd)
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    os.set_blocking(fd, True)
    return fd


def _lifted(fd: int, name: str) -> int:
    if fd > 2:
        return fd
    try:
        return _above_2(fd, name)
    finally:
        close(fd)


def _above_2(fd: int, name: str) -> int:
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    except OSError as error:
        text = f"{error.strerror}: no descriptor for {name}; close some, or raise the limit (ulimit -n)"
        raise OSError(error.errno, text) from error


def reopen_log(fd: int, path: str, umask: int) -> None:
    """Make descriptor `fd` the file that is at `path` now. Nothing is flushed: finished lines have left already."""
    new, _ = open_log(path, umask)
    try:
        os.dup2(new, fd)
    finally:
        close(new)


def remove_if_empty(path: str, inode: tuple[int, int]) -> None:
    """Take back a log that was created for a start that failed before anything was written to it."""
    with contextlib.suppress(OSError):
        info = os.lstat(path)
        if info.st_size == 0 and inode == (info.st_dev, info.st_ino):
            os.unlink(path)


def fill_closed(undo: contextlib.ExitStack) -> None:
    """Open the null device on whichever of 0, 1, 2 is closed, so that nothing else lands there."""
    if all(map(is_open, range(3))):
        return
    while (fd := os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)) < 3:
        undo.callback(close, fd)
    close(fd)


def flush_streams() -> None:
    """Flush what the program has printed so far, in the process that printed it."""
    for stream in {id(s): s for s in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)}.values():
        if _is_usable(stream):
            stream.flush()


def _is_usable(stream: object) -> TypeGuard[TextIO]:
    try:
        return hasattr(stream, "flush") and not getattr(stream, "closed", False)
    except ValueError:  # its buffer was detached
        return False


def redirect(sources: Iterable[Source | None]) -> None:
    """Make descriptors 0, 1, 2 what the sources say (None: leave it), all of them inheritable."""
    for fd, source in enumerate(sources):
        if source is None:
            os.set_inheritable(fd, True)
        else:
            os.dup2(source.fd, fd)


_replaced: list[TextIO | None] = []  # kept alive: collecting them could close 0, 1 or 2


def rebind(*, stdin: bool = True) -> None:
    """Bind sys.stdin, sys.stdout and sys.stderr to 0, 1, 2, whatever they were; finished lines leave at once.

    Without `stdin` the old one stays, if it reads from 0: it may have read ahead.
    """
    _replaced.extend((sys.stdin, sys.stdout, sys.stderr))
    if stdin or not _is_on(sys.stdin, 0):  # anew: the old one may have read ahead from the caller's input
        sys.stdin = open(0, encoding=_encoding(sys.__stdin__), errors="surrogateescape", closefd=False)  # noqa: SIM115 - for life
    sys.stdout = _writer(1, sys.stdout, sys.__stdout__)
    sys.stderr = _writer(2, sys.stderr, sys.__stderr__)


def _writer(fd: int, *candidates: TextIO | None) -> TextIO:
    """Return an old stream that already writes to `fd` (others may hold on to it), else a new one."""
    for stream in candidates:
        if isinstance(stream, io.TextIOWrapper) and _is_on(stream, fd):
            stream.reconfigure(line_buffering=True)
            return stream
    return open(fd, "w", 1, encoding=_encoding(candidates[-1]), errors="backslashreplace", closefd=False)


def _is_on(stream: TextIO | None, fd: int) -> bool:
    try:
        return stream is not None and stream.fileno() == fd and (stream.writable() if fd else stream.readable())
    except (AttributeError, OSError, ValueError):
        return False


def _encoding(stream: TextIO | None) -> str:
    return getattr(stream, "encoding", None) or "utf-8"
