"""Logs: files that are rotated by size and opened anew on request, and descriptors that were handed in."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import select
import stat

from daemonkit._system.streams import open_log
from daemonkit._system.unpatched import close, genuine, poll

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from daemonkit._system.users import Owner

_logger = logging.getLogger("daemonkit")
_logs: dict[str, Log] = {}
_PIPE_BUF: Final = select.PIPE_BUF  # what a pipe that is writable takes without making the writer wait: pipe(7)


def log_at(path: str) -> Log | None:
    """Return the log with that path that is being written, for what is to be rotated with it."""
    return _logs.get(path)


class BusyError(Exception):
    """The reader of a log that is a pipe or a terminal does not keep up."""


class Sink:
    """Where lines go. One writer at a time may be in the midst of a line."""

    fd: int
    held_by: object = None
    """Who was interrupted in the midst of a line, which is to be finished first."""

    def write(self, data: bytes | bytearray, who: object) -> int:
        """Write some of it; return how much."""
        raise NotImplementedError

    def wait(self, seconds: float) -> bool:  # noqa: ARG002 - a file has no reader to wait for
        """Wait until its reader takes more, at most that long; return whether it does."""
        return False

    def reopen(self) -> None:
        """Open the path anew if another file, or none, is there now."""

    def close(self) -> None:
        """Be done."""

    def configure(self, max_bytes: int | None, backups: int, umask: int | None, owner: Owner | None) -> None:
        """Keep it so from now on; a descriptor is never rotated."""


class Descriptor(Sink):
    """A file, pipe or terminal that was handed in open; it is not closed here."""

    def __init__(self, fd: int) -> None:
        """Take the descriptor."""
        self.fd = fd

    def write(self, data: bytes | bytearray, who: object) -> int:
        """Write some of it, but never wait for a reader: BusyError."""
        if stat.S_ISREG(os.fstat(self.fd).st_mode):
            done = genuine(os.write)(self.fd, data)
        else:
            done = self._write_writable(memoryview(data))
        self.held_by = who if done < len(data) and data[done - 1 : done] != b"\n" else None
        return done

    def wait(self, seconds: float) -> bool:
        """Do so; a regular file that can't be written has no reader."""
        if stat.S_ISREG(os.fstat(self.fd).st_mode):
            return False
        poller = poll()
        poller.register(self.fd, select.POLLOUT)
        return any(event == select.POLLOUT for _, event in poller.poll(seconds * 1000))

    def _write_writable(self, data: memoryview) -> int:
        poller = poll()
        poller.register(self.fd, select.POLLOUT)
        done = 0
        while done < len(data) and poller.poll(0):
            done += genuine(os.write)(self.fd, data[done : done + _PIPE_BUF])
        if not done:
            raise BusyError
        return done


class Log(Sink):
    """A file that is rotated by size, if it has a limit; no line is split."""

    def __init__(self, path: str, max_bytes: int | None, backups: int, umask: int | None, owner: Owner | None) -> None:
        """Open it; OSError."""
        self.path = path
        self.configure(max_bytes, backups, umask, owner)
        self._open()
        _logs[path] = self
        self._in_line = False

    def configure(self, max_bytes: int | None, backups: int, umask: int | None, owner: Owner | None) -> None:
        """Keep it so from now on."""
        self._backups, self._umask, self._owner = backups, umask, owner
        self._max = math.inf if max_bytes is None else max_bytes

    def _open(self) -> None:
        self.fd, _ = open_log(self.path, self._umask, self._owner)
        info = os.fstat(self.fd)
        self._size: float = info.st_size if stat.S_ISREG(info.st_mode) else -math.inf  # a device is not rotated

    def reopen(self) -> None:
        """Open the path anew, after logrotate or a deployment; where that fails the old file is written on."""
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(self.path), os.fstat(self.fd)):
                return
        before = self.fd
        try:
            self._open()
        except OSError as error:
            _logger.warning("%s can't be opened anew, so the old file stays in use: %s", self.path, error)
        else:
            close(before)

    def close(self) -> None:
        """Close it."""
        _logs.pop(self.path, None)
        close(self.fd)

    def write(self, data: bytes | bytearray, who: object) -> int:
        """Write some of it, or rotate; return how much was written."""
        room = self._max - self._size
        cut = len(data)
        if cut > room:
            cut = data.rfind(b"\n", 0, max(int(room), 0)) + 1
            if cut == 0 and self._size > 0 and not self._in_line:
                self._rotate()
                return 0
            if cut == 0:  # a line that is longer than a file may be, or goes on
                cut = data.find(b"\n") + 1 or len(data)
        done = genuine(os.write)(self.fd, memoryview(data)[:cut])
        self._in_line = data[done - 1 : done] != b"\n"
        self.held_by = who if done < cut and self._in_line else None
        self._size += done
        return done

    def _rotate(self) -> None:
        if os.path.lexists(self.path):  # somebody may have moved it
            first_free = 1
            while first_free < self._backups and os.path.lexists(f"{self.path}.{first_free}"):
                first_free += 1  # what is beyond need not move, so the time does not grow with the number of backups
            for number in range(first_free - 1, 0, -1):
                with contextlib.suppress(FileNotFoundError):
                    os.rename(f"{self.path}.{number}", f"{self.path}.{number + 1}")
            with contextlib.suppress(FileNotFoundError):
                if self._backups:
                    os.rename(self.path, f"{self.path}.1")
                else:
                    os.unlink(self.path)
        before = self.fd
        self._open()
        close(before)
