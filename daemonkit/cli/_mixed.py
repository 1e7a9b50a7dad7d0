"""The output of several apps on one stream: whole lines, each with the name of its app before it."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

_BLOCK: Final = 1 << 16
_LONGEST: Final = 1 << 26  # bytes of a line; a longer one is cut, rather than that it takes all memory
_MOST: Final = 1 << 20  # bytes that wait to be written; while there are more, nothing is read
_AT_ONCE: Final = 4096  # bytes; a pipe that poll(2) calls writable takes so many without blocking: pipe(7), PIPE_BUF
MARK: Final = "\x1e"
"""Put before each line by an app's supervisor, so that lines of several instances are whole; it is taken away here."""
_MARK: Final = MARK.encode()
_COLOURS: Final = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)  # cyan, yellow, green, magenta, blue, and the bright ones


def prefixes(names: Iterable[str], *, colour: bool) -> dict[str, bytes]:
    """Return what stands before each line of each app: its name, as wide as the longest of them."""
    names = [*names]
    width = max(map(len, names), default=0)
    texts = {}
    for number, name in enumerate(names):
        text = f"{name:<{width}} | "
        texts[name] = (f"\x1b[{_COLOURS[number % len(_COLOURS)]}m{text}\x1b[0m" if colour else text).encode()
    return texts


class Sink:
    """A stream that lines are written to, without ever blocking: signals are to be heard meanwhile."""

    def __init__(self, fd: int) -> None:
        """Write to that descriptor."""
        self.fd = fd
        self._pending = bytearray()
        self._is_closed = False

    def add(self, data: bytes) -> None:
        """Have it written; where nobody reads any more, it is dropped."""
        if not self._is_closed:
            self._pending += data

    @property
    def waits(self) -> bool:
        """Whether there is something to be written."""
        return bool(self._pending)

    @property
    def is_full(self) -> bool:
        """Whether whoever writes should wait."""
        return len(self._pending) > _MOST

    def write(self) -> None:
        """Write some of it; poll(2) has told that there is room."""
        try:
            del self._pending[: os.write(self.fd, self._pending[:_AT_ONCE])]
        except BlockingIOError:  # somebody else has made it non-blocking
            return
        except OSError:  # the reader has gone, or the disk is full: the apps run on
            self._is_closed = True
            self._pending.clear()


class Source:
    """The read end of a pipe that an app writes to."""

    def __init__(self, fd: int, prefix: bytes, sink: Sink) -> None:
        """Read from it without blocking."""
        os.set_blocking(fd, False)
        self.fd = fd
        self.prefix = prefix
        self.sink = sink
        self._line = bytearray()

    def read(self) -> bool:
        """Pass on the lines that are whole; return False if there was nothing to read."""
        try:
            data = os.read(self.fd, _BLOCK)
        except BlockingIOError:
            return False
        self._line += data
        end = self._line.rfind(b"\n", len(self._line) - len(data)) + 1
        if end:
            self._pass_on(bytes(self._line[: end - 1]))
            del self._line[:end]
        if len(self._line) > _LONGEST:
            self._cut()
        return bool(data)

    def close(self) -> None:
        """Pass on all that has been written, also a last line without an end."""
        while self.read():
            pass
        self._cut()
        os.close(self.fd)

    def _cut(self) -> None:
        if self._line:
            self._pass_on(bytes(self._line))
            self._line.clear()

    def _pass_on(self, lines: bytes) -> None:
        lines = self.prefix + lines.replace(b"\n", b"\n" + self.prefix) + b"\n"
        self.sink.add(lines.replace(self.prefix + _MARK, self.prefix))
