"""Logs that are rotated by size: what instances write goes through a pipe that the calling process reads."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import os
import stat
import time

from daemonkit._system.streams import open_log
from daemonkit._system.unpatched import close, genuine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

    from daemonkit._system.users import Owner


_logger = logging.getLogger("daemonkit")

_PIPE_SIZE: Final = 1 << 20
_READ: Final = 1 << 18  # bytes; for more, the C library maps fresh memory each time, which takes as long as the rest
_AT_ONCE: Final = 64  # reads, after which other work has its turn
_LONGEST_LINE: Final = 1 << 20  # bytes that are kept for the end of a line in a log that several write to
_RETRY: Final = 1.0  # seconds until a log that could not be written is tried again


_logs: dict[str, Log] = {}


def log_at(path: str) -> Log | None:
    """Return the log with that path that is being written, for what is to be rotated with it."""
    return _logs.get(path)


class Log:
    """A file that is rotated by size; no line is split."""

    def __init__(self, path: str, max_bytes: int, backups: int, umask: int | None, owner: Owner | None) -> None:
        self.path, self._max, self._backups, self._umask, self._owner = path, max_bytes, backups, umask, owner
        self._open()
        _logs[path] = self
        self._in_line = False
        self.held_by: object = None
        """Who was interrupted in the midst of a line, which is to be finished first."""

    def _open(self) -> None:
        self.fd, _ = open_log(self.path, self._umask, self._owner)
        info = os.fstat(self.fd)
        self._size: float = info.st_size if stat.S_ISREG(info.st_mode) else -math.inf  # a device is not rotated

    def close(self) -> None:
        del _logs[self.path]
        close(self.fd)

    def write(self, data: bytes, who: object) -> int:
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
            for number in range(self._backups - 1, 0, -1):
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


class Pump:
    """Reads what an instance writes into a pipe, and writes it to its log.

    Nothing is lost: where the file can't be written, nothing is read, so that the instance waits. A log that several
    write to gets whole lines: what begins one is kept until the rest is there.
    """

    def __init__(self, log: Log, *, shared: bool) -> None:
        self.log, self._shared = log, shared
        try:
            self.reader, self.writer = os.pipe()
        except OSError as error:
            text = f"{error.strerror}: each instance's log takes two; raise the limit (ulimit -n)"
            raise OSError(error.errno, text, log.path) from error
        os.set_blocking(self.reader, False)
        with contextlib.suppress(OSError):
            fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
        self._pending = b""
        self.retry_at = math.inf

    def close(self) -> None:
        """Write what is left, and close both ends."""
        while self.pump():  # nobody writes any more
            pass
        self._shared = False
        self.pump()
        for fd in (self.reader, self.writer):
            close(fd)

    def pump(self) -> bool:
        """Write what there is to read, but not for ever; return whether there may be more."""
        if self.log.held_by not in {None, self}:
            self.retry_at = time.monotonic() + _RETRY
            return False
        try:
            self._write()  # what was left, as the file could not be written
            for _ in range(_AT_ONCE):
                self._pending += genuine(os.read)(self.reader, _READ)
                self._write()
        except BlockingIOError:
            self.retry_at = math.inf
            return False
        except OSError as error:
            if self.retry_at == math.inf:
                _logger.error("%s can't be written, so its writers wait: %s", self.log.path, error)  # noqa: TRY400 - said
            self.retry_at = time.monotonic() + _RETRY
            return False
        self.retry_at = math.inf
        return True

    def _write(self) -> None:
        whole = len(self._pending)
        if self._shared:
            whole = self._pending.rfind(b"\n") + 1 or (whole if whole >= _LONGEST_LINE else 0)
        while whole:
            done = self.log.write(self._pending[:whole], self)
            self._pending = self._pending[done:]
            whole -= done


def path_of_instance(template: str, index: int) -> str:
    """Return a path whose ``{instance}`` is the instance's number."""
    return template.replace("{instance}", str(index))


def make_pumps(  # noqa: PLR0913, PLR0917 - what a pump is made of
    templates: Mapping[int, str],
    count: int,
    max_bytes: int,
    backups: int,
    umask: int | None,
    owner: Owner | None,
    stack: contextlib.ExitStack,
) -> dict[tuple[int, int], Pump]:
    """Return the pump of each (descriptor, instance): one for each log that an instance writes to."""
    paths = {
        (number, index): path_of_instance(template, index)
        for number, template in templates.items()
        for index in range(count)
    }
    logs: dict[str, Log] = {}
    for path in paths.values():
        if path not in logs:
            logs[path] = Log(path, max_bytes, backups, umask, owner)
            stack.callback(logs[path].close)
    found: dict[tuple[str, int], Pump] = {}
    for (_, index), path in paths.items():
        if (path, index) not in found:
            shared = len({i for (_, i), other in paths.items() if other == path}) > 1
            found[path, index] = Pump(logs[path], shared=shared)
            stack.callback(found[path, index].close)
    return {(number, index): found[path, index] for (number, index), path in paths.items()}
