"""Sockets that are bound once and handed to every instance."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import socket
import stat
from collections.abc import Iterable

from daemonkit._system.check import absolute_path
from daemonkit._system.sockets import Socket, getaddrinfo, is_socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

Listen = str | socket.socket

_BACKLOG: Final = 1024
_LAST_STREAM: Final = 2
_LAST_PORT: Final = 65535


def bind_sockets(
    listen: object, known: Mapping[object, socket.socket], stack: contextlib.ExitStack, *, nonblocking: bool
) -> tuple[list[socket.socket], list[socket.socket], dict[object, socket.socket]]:
    """Return the sockets, those of them that were opened here, and all by what they were given as.

    A `known` one is used again. The stack closes those that are opened, and sets back the others.
    """
    wanted = [listen] if isinstance(listen, str) or is_socket(listen) else listen
    if not isinstance(wanted, Iterable):
        raise TypeError(f'listen must be "host:port", "unix:path" or a socket, not {listen!r}')
    given = [*wanted]
    found = {one: known.get(one) or _bound(one, stack) for one in given}
    for one, sock in found.items():
        if sock is one and one not in known:  # the caller's own, which is as before afterwards
            stack.callback(_set_back, sock, os.get_blocking(sock.fileno()), _has_no_delay(sock))
        _set_up(sock, nonblocking=nonblocking)
    sockets = [found[one] for one in given]
    return sockets, [sock for one, sock in found.items() if sock is not one], found


def _set_up(sock: socket.socket, *, nonblocking: bool) -> None:
    """Set what the instances inherit: an answer of a web server must not wait for the client's acknowledgement."""
    if _has_no_delay(sock) is False:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if nonblocking:
        os.set_blocking(sock.fileno(), False)


def _has_no_delay(sock: socket.socket) -> bool | None:
    """Tell whether a TCP socket has TCP_NODELAY; None for other sockets."""
    if sock.family in {socket.AF_INET, socket.AF_INET6} and sock.type == socket.SOCK_STREAM:
        return bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
    return None


def _set_back(sock: socket.socket, blocking: bool, no_delay: bool | None) -> None:  # noqa: FBT001 - how it was
    with contextlib.suppress(OSError):  # the caller closed it
        os.set_blocking(sock.fileno(), blocking)
        if no_delay is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, no_delay)


def _bound(one: object, stack: contextlib.ExitStack) -> socket.socket:
    if is_socket(one):
        return _handed_in(one, stack)
    if not isinstance(one, str):
        raise TypeError(f'listen must be "host:port", "unix:path" or a socket, not {one!r}')
    if one == "unix:" or "\0" in one:
        raise ValueError(f"listen: {one!r} does not name a socket")
    if one.startswith("unix:"):
        return _bound_unix(absolute_path(one.removeprefix("unix:")), stack)
    return _bound_port(one, stack)


def _handed_in(one: socket.socket, stack: contextlib.ExitStack) -> socket.socket:
    if one.fileno() < 0:
        raise ValueError(f"listen: {one!r} is closed")
    if one.type == socket.SOCK_STREAM and not one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        one.listen(_BACKLOG)
    if one.fileno() > _LAST_STREAM:
        return one
    # Where one of 0, 1, 2 was closed before: an instance's own streams come to be there.
    return stack.enter_context(Socket(fileno=fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, _LAST_STREAM + 1)))


def addresses_of(option: str, one: object, flags: int = 0) -> tuple[tuple[int, object], ...]:
    """Return the addresses that "host:port" means, each with its family; TypeError, ValueError, OSError."""
    if not isinstance(one, str):
        raise TypeError(f'{option} must be "host:port", not {one!r}')
    form = re.fullmatch(r"(?P<host>\[[^][]*\]|[^][:]*):(?P<port>[0-9]{1,5})", one)
    if not form or int(form["port"]) > _LAST_PORT:
        raise ValueError(f'{option} must be "host:port", such as "127.0.0.1:8000" or "[::1]:8000", not {one!r}')
    host, port = form["host"].strip("[]"), int(form["port"])
    try:
        found = getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=flags)
    except socket.gaierror as error:
        raise OSError(errno.EADDRNOTAVAIL, f"{option}: {one!r}: {error.strerror}") from error
    return tuple((int(family), address) for family, _, _, _, address in found)


def _bound_port(one: str, stack: contextlib.ExitStack) -> socket.socket:
    family, address = addresses_of("listen", one, socket.AI_PASSIVE)[0]
    sock = stack.enter_context(Socket(family, socket.SOCK_STREAM))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)  # type: ignore[arg-type]  # as getaddrinfo returned it
    except OSError as error:
        raise OSError(error.errno, f"listen: {one!r}: {error.strerror}") from error
    sock.listen(_BACKLOG)
    return sock


def _bound_unix(path: str, stack: contextlib.ExitStack) -> socket.socket:
    _remove_stale_socket(path)
    sock = stack.enter_context(Socket(socket.AF_UNIX))
    try:
        sock.bind(path)
    except OSError as error:
        number = error.errno or errno.ENAMETOOLONG  # Python itself refuses such a path, without one
        raise OSError(number, f"listen: {error.strerror or error}", path) from error
    info = os.lstat(path)
    stack.callback(_remove_socket, path, info)
    sock.listen(_BACKLOG)
    return sock


def _remove_stale_socket(path: str) -> None:
    try:
        info = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(info.st_mode):
        raise FileExistsError(errno.EEXIST, "listen: a file of that name exists, and is not a socket", path)
    with Socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # one with a full backlog would keep us waiting
        try:
            probe.connect(path)
        except BlockingIOError:
            pass  # ... and lives
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError as error:
            raise OSError(error.errno, f"listen: {error.strerror}", path) from error
    raise OSError(errno.EADDRINUSE, "listen: another process listens there; end that one, or give another path", path)


def _remove_socket(path: str, info: os.stat_result) -> None:
    with contextlib.suppress(OSError):
        if os.path.samestat(info, os.lstat(path)):
            os.unlink(path)
