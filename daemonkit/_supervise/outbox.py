"""Messages from the worker to the guardian: each a tuple whose first word is its tag, as marshal takes no classes."""

from __future__ import annotations

import contextlib
import marshal
import select
import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final, Literal

    from daemonkit._supervise.policy import State
    from daemonkit._supervise.records import Kind

    Message = (
        tuple[Literal["event"], Kind, int, int, int | None, float]  # kind, instance, pid, exit status, time
        | tuple[Literal["state"], int, State, int, int | None]  # instance, state, starts, last exit status
        | tuple[Literal["starting"], int]  # instance; said before its run can print anything
        | tuple[Literal["settled"], int, bool]  # serial number of a trial, whether it came up
        | tuple[Literal["log"], int, str]  # level, text
        | tuple[Literal["done"]]  # nothing is left to run
    )

_BATCH: Final = 128  # messages in one packet, far below what a socket takes at once
_BUFFER: Final = 1 << 16


class Outbox:
    """What the worker has to say; sending never waits for a guardian that is busy."""

    def __init__(self, control: socket.socket) -> None:
        """Nothing is to be said yet."""
        self._control = control
        self._messages: list[Message] = []
        self.events = select.EPOLLIN
        """What the control socket is to be watched for."""

    def say(self, message: Message) -> None:
        """Put a message at the end."""
        self._messages.append(message)

    def clear(self) -> None:
        """Forget everything: nobody listens any more."""
        self._messages.clear()

    def send(self) -> None:
        """Send as much as the socket takes."""
        self.events = select.EPOLLIN
        try:
            while self._messages:
                self._control.send(marshal.dumps(self._messages[:_BATCH]), socket.MSG_NOSIGNAL)
                del self._messages[:_BATCH]
        except BlockingIOError:
            self.events |= select.EPOLLOUT
        except OSError:
            self.clear()

    def send_all(self) -> None:
        """Send the rest, and wait for it."""
        with contextlib.suppress(OSError):
            self._control.setblocking(True)
        self.send()


def read_packets(control: socket.socket) -> Iterator[list[Message]]:
    """Yield the packets that have arrived at the guardian's end."""
    while True:
        try:
            packet = control.recv(_BUFFER)
        except (BlockingIOError, ConnectionResetError):
            return
        if not packet:
            return
        yield marshal.loads(packet)  # noqa: S302 - from this very program
