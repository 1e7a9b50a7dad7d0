"""Checks of instances: `ready_check`, `ready_tcp` and `health_check`.

Each is due at certain times, and at most one of a kind is under way for a run: a check that is late is killed, and
only once it has ended the next one starts. A command is a process group with a mark of its own, so that what it leaves
behind is ended too. Where there is no check, nothing of this costs anything.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import select
import signal
import socket
import time

from daemonkit._supervise.strays import signal_group
from daemonkit._system.record import record
from daemonkit._system.sockets import Socket
from daemonkit._system.unpatched import close, genuine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final, Literal

    from daemonkit._supervise.policy import Run

    CheckKind = Literal["ready_check", "ready_tcp", "health_check"]
    Address = tuple[int, object]
    """A family, and an address of it."""

_READY_EVERY: Final = 0.5  # seconds
_TCP_EVERY: Final = 0.1
_READY_LIMIT: Final = 10.0  # seconds that one attempt may take; all of them together, start_timeout
_READ: Final = 1 << 16
_TAIL: Final = 2000  # bytes of what a check prints that are kept
_PLENTY: Final = 1 << 27  # bytes; a check that prints more waits after each read, or it would take a whole processor
_READ_PAUSE: Final = 0.1  # seconds


@record(eq=False)
class Check:
    """One kind of check for one run."""

    run: Run
    kind: CheckKind
    every: float
    """Seconds from one begin to the next."""
    limit: float
    """Seconds after which an attempt is late."""
    due: float
    begun: float = math.nan
    pid: int = 0
    """Of the command that is under way."""
    reader: int = -1
    """The pipe that it prints to."""
    connection: socket.socket | None = None
    attempts: int = 0
    """Connections that were tried: each takes the next address."""
    late: bool = False
    printed: bytes = b""
    """The end of what it printed last."""
    length: int = 0
    """Of all that it has printed, in bytes."""
    read_at: float = math.inf
    """When it is read again, if it prints too much."""

    @property
    def under_way(self) -> bool:
        """Whether an attempt has begun and not ended."""
        return bool(self.pid or self.connection)

    def next_time(self) -> float:
        """Return when it has to be looked at."""
        if self.under_way:
            return min(math.inf if self.late else self.begun + self.limit, self.read_at)
        return math.inf if self.run.ending else self.due

    def last_words(self) -> str:
        """Return the last lines that it printed."""
        lines = self.printed.decode(errors="backslashreplace").strip().splitlines()
        return " | ".join(lines[-5:])


class Checks:
    """All checks of a worker."""

    def __init__(
        self,
        epoll: select.epoll,
        fork: Callable[[Check, int], int],
        tell: Callable[[Check, bool], None],
        owns: Callable[[Run, int], bool],
    ) -> None:
        """Take how to start a command whose output goes to a descriptor; whom to tell whether a check went well.

        `owns` says whether a run, and not another one, may be who listens on a port.
        """
        self._epoll, self._fork, self._tell, self._owns = epoll, fork, tell, owns
        self._checks: dict[tuple[int, CheckKind], Check] = {}
        self.by_pid: dict[int, Check] = {}
        self._by_fd: dict[int, Check] = {}
        self._addresses: tuple[Address, ...] = ()

    def add(self, run: Run, kind: CheckKind, *, interval: float = 0.0, addresses: tuple[Address, ...] = ()) -> None:
        """Begin to check a run."""
        now = time.monotonic()
        match kind:
            case "ready_check":
                check = Check(run, kind, _READY_EVERY, _READY_LIMIT, now)
            case "ready_tcp":
                check, self._addresses = Check(run, kind, _TCP_EVERY, _READY_LIMIT, now), addresses
            case "health_check":
                check = Check(run, kind, interval, interval, now + interval)
        self._checks[run.number, kind] = check

    def drop(self, run: Run) -> None:
        """Check a run no longer, and end what is under way."""
        for kind in ("ready_check", "ready_tcp", "health_check"):
            self._drop(self._checks.pop((run.number, kind), None))

    def _drop(self, check: Check | None) -> None:
        if check:
            check.late = True  # whatever comes of it counts for nothing
            if check.pid:
                signal_group(check.pid, signal.SIGKILL)
            self._close(check)

    def last_words(self, run: Run) -> str:
        """Return what the ready_check of a run printed last."""
        check = self._checks.get((run.number, "ready_check"))
        return check.last_words() if check else ""

    def next_time(self) -> float:
        """Return when `tick` is next to be called."""
        return min((check.next_time() for check in self._checks.values()), default=math.inf)

    def tick(self, now: float) -> None:
        """Begin what is due, and end what is late."""
        for check in list(self._checks.values()):
            if now >= check.read_at:
                check.read_at = math.inf
                self._epoll.modify(check.reader, select.EPOLLIN)
            if now < check.next_time():
                continue
            if check.under_way:
                check.late = True
                if check.pid:
                    signal_group(check.pid, signal.SIGKILL)
                else:
                    self._close(check)
                self._tell(check, False)
            elif check.kind == "ready_tcp":
                self._connect(check, now)
            else:
                self._begin(check, now)

    def ended(self, pid: int, code: int) -> None:
        """Take note that a command has ended, which is not reaped yet."""
        check = self.by_pid.pop(pid)
        signal_group(pid, signal.SIGKILL)  # what it left in its group
        self._read(check)
        self._close(check)
        check.pid = 0
        check.due = max(check.begun + check.every, time.monotonic())
        if not check.late:
            self._result(check, good=code == 0)

    def _result(self, check: Check, *, good: bool) -> None:
        if good and check.kind != "health_check":
            self._checks.pop((check.run.number, check.kind), None)
        self._tell(check, good)

    # --- commands ---------------------------------------------------------------------------------------------------

    def _begin(self, check: Check, now: float) -> None:
        check.begun, check.late, check.due = now, False, now + check.every
        try:
            check.reader, writer = os.pipe()
        except OSError:  # no descriptor is left: that is not the instance's fault, so it is tried again
            return
        try:
            os.set_blocking(check.reader, False)
            check.pid = self._fork(check, writer)
        except OSError:
            close(check.reader)
            check.reader = -1
            return
        finally:
            close(writer)
        check.printed, check.length = b"", 0
        self.by_pid[check.pid] = self._by_fd[check.reader] = check
        self._epoll.register(check.reader, select.EPOLLIN)

    def take_event(self, fd: int) -> bool:
        """Take note that a descriptor can be read or written; return whether it is one of a check."""
        check = self._by_fd.get(fd)
        if not check:
            return False
        if check.connection:
            self._connected(check, check.connection)
        elif not self._read(check):
            check.read_at = math.inf
            self._forget(fd)
        elif check.length > _PLENTY:
            self._epoll.modify(fd, 0)
            check.read_at = time.monotonic() + _READ_PAUSE
        return True

    def _read(self, check: Check) -> bool:
        """Keep the end of what it printed; return False once nobody can print any more."""
        with contextlib.suppress(OSError):
            data = genuine(os.read)(check.reader, _READ) if check.reader >= 0 else b""
            check.printed = (check.printed + data[-_TAIL:])[-_TAIL:]
            check.length += len(data)
            return bool(data)
        return True

    def _forget(self, fd: int) -> None:
        if self._by_fd.pop(fd, None):
            self._epoll.unregister(fd)

    def _close(self, check: Check) -> None:
        if check.reader >= 0:
            self._forget(check.reader)
            close(check.reader)
            check.reader, check.read_at = -1, math.inf
        if check.connection:
            self._forget(check.connection.fileno())
            check.connection.close()
            check.connection = None

    def descriptors(self) -> set[int]:
        """Return what is open for checks."""
        found = {check.reader for check in self._checks.values() if check.reader >= 0}
        return found | {c.connection.fileno() for c in self._checks.values() if c.connection}

    # --- connections ------------------------------------------------------------------------------------------------

    def _connect(self, check: Check, now: float) -> None:
        check.begun, check.late, check.due = now, False, now + check.every
        for _ in self._addresses:
            # One that is refused only later, or not answered at all, must not keep the others from their turn.
            family, address = self._addresses[check.attempts % len(self._addresses)]
            check.attempts += 1
            connection = Socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            error = connection.connect_ex(address)  # type: ignore[arg-type]  # as getaddrinfo returned it
            if error == 0:
                check.connection = connection
                self._connected(check, connection)
                return
            if error == errno.EINPROGRESS:
                check.connection = self._connecting(check, connection)
                return
            connection.close()

    def _connecting(self, check: Check, connection: socket.socket) -> socket.socket:
        self._by_fd[connection.fileno()] = check
        self._epoll.register(connection.fileno(), select.EPOLLOUT)
        return connection

    def _connected(self, check: Check, connection: socket.socket) -> None:
        error = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        port = 0
        with contextlib.suppress(OSError):
            port = connection.getpeername()[1]
        self._close(check)
        if not error and not check.late and self._owns(check.run, port):
            self._result(check, good=True)
