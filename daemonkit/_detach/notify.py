"""Telling a service manager that the program is ready: sd_notify(3)."""

from __future__ import annotations

import contextlib
import os
import socket

from daemonkit._detach.crash import logger, reason_of
from daemonkit._system.sockets import Socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def connect_manager() -> socket.socket | None:
    """Return a socket connected to $NOTIFY_SOCKET (a path, or "@" and an abstract name), None if there is none.

    Connected early, it works also after a chroot. A manager that can't be reached is a warning: it will say so
    itself, in its own time, and the program runs all the same.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return None
    connection = Socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        connection.connect("\0" + address[1:] if address[0] == "@" else address)
    except (OSError, ValueError) as error:
        connection.close()
        logger().warning(
            "NOTIFY_SOCKET=%s can't be reached, so the service manager is told nothing: %s", address, error
        )
        return None
    return connection


def tell_manager(connection: socket.socket | None, **fields: str | None) -> None:
    """Send the given fields in one message, `send(c, READY="1", STATUS="listening")`; None fields are left out."""
    message = "\n".join(f"{name}={' '.join(text.split())}" for name, text in fields.items() if text is not None)
    if connection is None or not message:
        return
    try:
        connection.send(message.encode(errors="backslashreplace"), socket.MSG_NOSIGNAL)
    except OSError as error:
        logger().warning("the service manager was not told %s: %s", " ".join(message.split()), error)


@contextlib.contextmanager
def refusals_told() -> Iterator[None]:
    """Tell the service manager why a start fails in this block."""
    try:
        yield
    except Exception as error:
        if connection := connect_manager():
            with connection:
                tell_manager(connection, STATUS=f"failed to start: {reason_of(error)}")
        raise
