"""What instances print: it goes through a pipe, which the calling process reads, to a log.

So an instance that opens its /dev/stderr anew (``echo >/dev/stderr``) opens the pipe, and can't empty the log; lines of
several instances in one log stay whole; and a log can be rotated. What is no regular file is handed on as it is.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import os
import time

from daemonkit._supervise.logs import BusyError
from daemonkit._system.unpatched import close, genuine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from daemonkit._supervise.logs import Sink

_logger = logging.getLogger("daemonkit")

_PIPE_SIZE: Final = 1 << 20
_READ: Final = 1 << 18  # bytes; for more, the C library maps fresh memory each time, which takes as long as the rest
_READ_LINES: Final = 1 << 14  # ... where whole lines are put together, so that there are several versions of them
_AT_ONCE: Final = 64  # reads, after which other work has its turn
_LONGEST_LINE: Final = 1 << 25  # bytes that are kept for the end of a line
_RETRY: Final = 1.0  # seconds until a log that could not be written is tried again
_PATIENCE: Final = 5.0  # seconds that a reader may take in the end
_BUSY_RETRY: Final = 0.02  # ... and one whose reader does not keep up


class Pump:
    """Reads what an instance writes into a pipe, and writes it to its log.

    Nothing is lost: where the log can't be written, nothing is read, so that the instance waits. A log that several
    write to gets `whole_lines`: the begin of one is kept until the rest is there. With `prefix` each line gets one.
    """

    def __init__(self, log: Sink, *, whole_lines: bool, prefix: Callable[[], bytes] | None = None) -> None:
        """Open the pipe; OSError."""
        self.log, self._prefix = log, prefix
        self._whole_lines = whole_lines or prefix is not None
        try:
            self.reader, self.writer = os.pipe()
        except OSError as error:
            text = f"{error.strerror}: each instance's log takes two descriptors; raise the limit (ulimit -n)"
            raise OSError(error.errno, text, getattr(log, "path", None)) from error
        os.set_blocking(self.reader, False)
        with contextlib.suppress(OSError):
            fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
        self._begun = bytearray()
        """The begin of a line."""
        self._pending = b""
        """What is to be written, as soon as that is possible."""
        self.retry_at = math.inf

    def close(self) -> None:
        """Write what is left, and close both ends."""
        self._drain()
        self._pending += self._dress(bytes(self._begun))  # a last line without an end
        self._begun.clear()
        self._drain()
        self.close_ends()

    def _drain(self) -> None:
        while self.pump() or (self._pending and self.log.wait(_PATIENCE)):  # nobody writes any more
            pass

    def close_ends(self) -> None:
        """Close both ends."""
        for fd in (self.reader, self.writer):
            close(fd)

    def configure(self, *, whole_lines: bool, prefix: Callable[[], bytes] | None) -> None:
        """Do it so from now on."""
        self._prefix, self._whole_lines = prefix, whole_lines or prefix is not None

    def pump(self) -> bool:
        """Write what there is to read, but not for ever; return whether there may be more."""
        if self.log.held_by not in {None, self}:
            self.retry_at = time.monotonic() + _RETRY
            return False
        try:
            self._write()  # what was left, as the log could not be written
            size = _READ_LINES if self._whole_lines else _READ
            for _ in range(_AT_ONCE):
                self._take(genuine(os.read)(self.reader, size))
                self._write()
        except BlockingIOError:
            self.retry_at = math.inf
            return False
        except BusyError:
            self.retry_at = time.monotonic() + _BUSY_RETRY
            return False
        except OSError as error:
            if self.retry_at == math.inf:
                name = getattr(self.log, "path", "a log")
                _logger.error("%s can't be written, so its writers wait: %s", name, error)  # noqa: TRY400 - said
            self.retry_at = time.monotonic() + _RETRY
            return False
        self.retry_at = math.inf
        return True

    def _take(self, data: bytes) -> None:
        """Take in what was read: whole lines are to be written, and with them the begin of a line that is too long."""
        if not self._whole_lines:
            self._pending += bytes(self._begun) + data
            self._begun.clear()
            return
        cut = data.rfind(b"\n") + 1
        if not cut and len(self._begun) + len(data) < _LONGEST_LINE:
            self._begun += data
            return
        cut = cut or len(data)
        self._pending += self._dress(bytes(self._begun) + data[:cut])
        self._begun[:] = data[cut:]

    def _dress(self, lines: bytes) -> bytes:
        """Put the prefix before each line."""
        if not self._prefix or not lines:
            return lines
        prefix = self._prefix()
        return prefix + lines.replace(b"\n", b"\n" + prefix, lines.count(b"\n", 0, len(lines) - 1))

    def _write(self) -> None:
        while self._pending:
            self._pending = self._pending[self.log.write(self._pending, self) :]
