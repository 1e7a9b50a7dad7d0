"""Logs that are rotated by size: what instances write goes through a pipe that the calling process reads."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import os
import stat
import time

from daemonkit import _stdio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

    from daemonkit import _users

_logger = logging.getLogger("daemonkit")

_PIPE_SIZE: Final = 1 << 20
_READ: Final = 1 << 18  # bytes; for more, the C library maps fresh memory each time, which takes as long as the rest
_AT_ONCE: Final = 64  # reads, after which other work has its turn
_RETRY: Final = 1.0  # seconds until a log that could not be written is tried again


class Pump:
    """Reads what an instance writes into a pipe, and writes it to a file that is rotated by size.

    No line is split or lost: where the file can't be written, nothing is read, so that the instance waits.
    """

    def __init__(self, path: str, max_bytes: int, backups: int, umask: int | None, owner: _users.Owner | None) -> None:
        self._path, self._max, self._backups, self._umask, self._owner = path, max_bytes, backups, umask, owner
        self._open()
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)
        with contextlib.suppress(OSError):
            fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
        self._pending = b""
        self._in_line = False
        self.retry_at = math.inf

    def _open(self) -> None:
        self._fd, created = _stdio.open_log(self._path, self._umask)
        if created and self._owner:
            os.fchown(self._fd, self._owner.uid, self._owner.gid)
        info = os.fstat(self._fd)
        self._size: float = info.st_size if stat.S_ISREG(info.st_mode) else -math.inf  # a device is not rotated

    def close_reading(self) -> None:
        """In the worker, which only hands on the other end."""
        os.close(self.reader)
        os.close(self._fd)

    def close(self) -> None:
        """Write what is left, and close all of it."""
        self.drain()
        for fd in (self.reader, self.writer, self._fd):
            os.close(fd)

    def drain(self) -> None:
        """Write all that there is to read, now that nobody writes any more."""
        while self.pump():
            pass

    def pump(self) -> bool:
        """Write what there is to read, but not for ever; return whether there may be more."""
        try:
            for _ in range(_AT_ONCE):
                if not self._pending:
                    self._pending = os.read(self.reader, _READ)
                self._write()
        except BlockingIOError:
            self.retry_at = math.inf
            return False
        except OSError as error:
            if self.retry_at == math.inf:
                _logger.error("%s can't be written, so its writers wait: %s", self._path, error)  # noqa: TRY400 - said
            self.retry_at = time.monotonic() + _RETRY
            return False
        self.retry_at = math.inf
        return True

    def _write(self) -> None:
        while self._pending:
            room = self._max - self._size
            cut = len(self._pending)
            if cut > room:
                cut = self._pending.rfind(b"\n", 0, max(int(room), 0)) + 1
                if cut == 0 and self._size > 0 and not self._in_line:
                    self._rotate()
                    continue
                if cut == 0:  # a line that is longer than a file may be, or goes on
                    cut = self._pending.find(b"\n") + 1 or len(self._pending)
            done = os.write(self._fd, memoryview(self._pending)[:cut])
            self._in_line = self._pending[done - 1 : done] != b"\n"
            self._size += done
            self._pending = self._pending[done:]

    def _rotate(self) -> None:
        if self._backups:
            for number in range(self._backups - 1, 0, -1):
                with contextlib.suppress(FileNotFoundError):
                    os.rename(f"{self._path}.{number}", f"{self._path}.{number + 1}")
            os.rename(self._path, f"{self._path}.1")
        else:
            os.unlink(self._path)
        os.close(self._fd)
        self._open()


def pumps(  # noqa: PLR0913, PLR0917 - what a pump is made of
    templates: Mapping[int, str],
    count: int,
    max_bytes: int,
    backups: int,
    umask: int | None,
    owner: _users.Owner | None,
    stack: contextlib.ExitStack,
) -> dict[tuple[int, int], Pump]:
    """Return the pump of each (descriptor, instance); those that share a path share a pump."""
    by_path: dict[str, Pump] = {}
    found: dict[tuple[int, int], Pump] = {}
    for number, template in templates.items():
        for index in range(count):
            path = template.replace("{instance}", str(index))
            if path not in by_path:
                by_path[path] = Pump(path, max_bytes, backups, umask, owner)
                stack.callback(by_path[path].close)
            found[number, index] = by_path[path]
    return found
