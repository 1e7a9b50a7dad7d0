"""Sockets as the system has them: once gevent or eventlet has patched `socket`, those there wait with the greenlets."""

from __future__ import annotations

import _socket
import socket

__all__ = ["Socket", "getaddrinfo", "is_socket", "socketpair"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import getaddrinfo
    from socket import socket as Socket  # noqa: N812 - a class
    from typing import Self, TypeGuard
else:
    from _socket import getaddrinfo

    class Socket(_socket.socket):
        """A socket that `with` closes."""

        __slots__ = ()

        def __enter__(self) -> Self:
            """Return it."""
            return self

        def __exit__(self, *_exc: object) -> None:
            """Close it."""
            self.close()


def socketpair(kind: int) -> tuple[Socket, Socket]:
    """Return two connected Unix sockets of that kind."""
    one, other = _socket.socketpair(_socket.AF_UNIX, kind)
    return Socket(_socket.AF_UNIX, kind, 0, one.detach()), Socket(_socket.AF_UNIX, kind, 0, other.detach())


def is_socket(value: object) -> TypeGuard[Socket]:
    """Tell whether it is a socket, made before a patch or after it."""
    return isinstance(value, (_socket.socket, socket.socket))
