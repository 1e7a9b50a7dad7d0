"""The middle process of a start: it leads the session, watches the daemon and reports to the caller."""

from __future__ import annotations

import contextlib
import marshal
import os
import signal
import socket
import traceback

from daemonkit._system.fork import fork
from daemonkit._system.pidfd import exit_status
from daemonkit._system.unpatched import set_handler
from daemonkit._system.wait import deadline_after, wait_readable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

STARTED: Final = b"S"
FAILED: Final = b"F"
"""A marshalled tuple follows: from the daemon (reason, traceback), to the caller (exit status, reason, traceback)."""
ABORT: Final = b"A"
_LONGEST: Final = 1 << 17
_GRACE: Final = 1.0  # seconds from SIGTERM to SIGKILL for a start that is called off


class Verdict:
    """How a start ended, as the middle process reports it."""

    def __init__(self) -> None:
        """Nothing has been reported yet."""
        self.arrived = self.started = False
        self.exitcode: int | None = None
        self.reason = self.traceback = ""

    def read(self, end: socket.socket) -> None:
        """Take in a report; an empty one means that the middle process is gone."""
        packet = receive(end)
        self.arrived, self.started = bool(packet), packet == STARTED
        if packet[:1] == FAILED:
            self.exitcode, *texts = marshal.loads(packet[1:])  # noqa: S302 - written by this program's own fork
            self.reason, self.traceback = (text.decode(errors="replace") for text in texts)


def receive(end: socket.socket) -> bytes:
    """Return one report. The usual one needs no buffer for the longest, whose pages would be fresh ones each time."""
    packet = end.recv(1, socket.MSG_PEEK)
    return end.recv(len(STARTED) if packet == STARTED else _LONGEST)


def send(end: socket.socket, packet: bytes) -> None:
    """Send one report, if anybody still listens."""
    with contextlib.suppress(OSError):
        end.sendall(packet, socket.MSG_NOSIGNAL)


def lead(caller: socket.socket, from_daemon: socket.socket, child_handler: object) -> None:
    """Lead a new session and fork the daemon in it; return in the daemon alone.

    `child_handler` is the caller's handler of SIGCHLD. The middle process must not ignore that signal: the kernel would
    reap the daemon, and its exit status would be lost.
    """
    try:
        os.setsid()
        if child_handler in (signal.SIG_IGN, None):  # None: C code has set one, which Python can't set again later
            set_handler(signal.SIGCHLD, signal.SIG_DFL)
        daemon = fork()
    except BaseException as error:  # noqa: BLE001 - whatever it is, the caller is to learn it, and this process ends here
        send(caller, _accident(error))
        os._exit(1)
    if daemon == 0:
        if child_handler == signal.SIG_IGN:
            set_handler(signal.SIGCHLD, signal.SIG_IGN)
        return
    try:
        report = _watch(caller, from_daemon, daemon)
    except BaseException as error:  # noqa: BLE001 - as above
        os.kill(daemon, signal.SIGKILL)
        report = _accident(error)
    send(caller, report)
    if report != STARTED:
        os.killpg(0, signal.SIGKILL)  # what the body had started, and this process
    os._exit(0)


def _watch(caller: socket.socket, from_daemon: socket.socket, daemon: int) -> bytes:
    """Wait until the daemon counts as started, or has ended; return the report to the caller.

    A caller that goes away without a word was killed or hung up: the start goes on without it.
    """
    failure, deadline, called_off = marshal.dumps((b"", b"")), None, False
    pidfd = os.pidfd_open(daemon)
    # The pidfd comes first: if poll(2) finds that the daemon has ended, it also finds what was sent before.
    ends = [pidfd, from_daemon.fileno(), caller.fileno()]
    while True:
        ready = wait_readable(ends, deadline)
        if from_daemon.fileno() in ready:
            packet = receive(from_daemon)
            if packet == STARTED and not called_off:
                return STARTED
            if packet[:1] == FAILED:
                failure = packet[1:]
            if not packet:
                ends.remove(from_daemon.fileno())
        elif pidfd in ready:
            texts = marshal.loads(failure)  # noqa: S302 - written by this process's own child
            return FAILED + marshal.dumps((exit_status(pidfd, reap=True), *texts))
        elif caller.fileno() in ready:
            ends.remove(caller.fileno())
            if caller.recv(1) == ABORT:
                called_off, deadline = True, deadline_after(_GRACE)
                os.kill(daemon, signal.SIGTERM)
        else:
            os.kill(daemon, signal.SIGKILL)
            deadline = None


def _accident(error: BaseException) -> bytes:
    """Return the report on a start that failed in this process."""
    reason = "".join(traceback.format_exception_only(error)).strip()
    texts = (reason, "".join(traceback.format_exception(error)))
    return FAILED + marshal.dumps((None, *(text.encode(errors="backslashreplace") for text in texts)))
