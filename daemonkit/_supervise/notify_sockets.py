"""The sockets that instances send READY=1 and WATCHDOG=1 to, as sd_notify(3) does."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct

from daemonkit._supervise import marks
from daemonkit._system.sockets import Socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

    from daemonkit._supervise.policy import Run
    from daemonkit._system.users import Owner

_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred of unix(7): pid, uid, gid


class NotifySockets:
    """One for each run, in the abstract namespace: so a program that became another user can reach it too."""

    def __init__(self, epoll: select.epoll, first_mark: int) -> None:
        """There are none yet; `epoll` is told of each that comes."""
        self._epoll = epoll
        self._first_mark = first_mark
        self._sockets: dict[Run, socket.socket] = {}
        self._runs: dict[int, Run] = {}
        """By descriptor."""

    def open(self) -> socket.socket:
        """Return a new socket, bound to a name that the kernel chooses: unix(7)."""
        notify = Socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        notify.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        notify.bind("")
        return notify

    def add(self, notify: socket.socket, run: Run) -> None:
        """Watch the socket of a run that was started."""
        self._sockets[run], self._runs[notify.fileno()] = notify, run
        self._epoll.register(notify.fileno(), select.EPOLLIN)

    def close(self, run: Run) -> None:
        """Close the socket of a run that is over."""
        if notify := self._sockets.pop(run, None):
            del self._runs[notify.fileno()]
            self._epoll.unregister(notify.fileno())
            notify.close()

    def descriptors(self) -> set[int]:
        """Return all of them."""
        return set(self._runs)

    def run_at(self, fd: int) -> Run | None:
        """Return the run whose socket that is."""
        return self._runs.get(fd)

    def read(self, run: Run, owner: Owner | None, main: int | None) -> Iterator[bytes]:
        """Yield each line that was sent for the run, by somebody who may; `main` is its main process while it lives."""
        notify = self._sockets.get(run)
        while notify:
            try:
                text, ancillary, _, _ = notify.recvmsg(4096, socket.CMSG_SPACE(_CREDENTIALS.size))
            except BlockingIOError:
                break
            if self._is_trusted(ancillary, run, owner, main):
                yield from text.split(b"\n")

    def _is_trusted(
        self, ancillary: list[tuple[int, int, bytes]], run: Run, owner: Owner | None, main: int | None
    ) -> bool:
        """Tell whether root, the instance's user or one of its processes sent it: anybody can reach the socket."""
        users = {0, os.getuid(), owner.uid if owner else os.getuid()}
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                pid, uid, _ = _CREDENTIALS.unpack(data[: _CREDENTIALS.size])
                return uid in users or uid == _user_of(main) or marks.run_of(pid, self._first_mark) == run.number
        return False


def _user_of(main: int | None) -> int | None:
    """Return the user that the main process has become: the sender itself may be gone by now."""
    with contextlib.suppress(OSError):  # hidden by /proc (hidepid)
        return None if main is None else os.stat(f"/proc/{main}").st_uid
    return None
