"""How a daemon is started: three processes, and what they report to each other.

The caller waits. The middle process leads the new session. The daemon is the middle process's child. The middle
process stays until the daemon counts as started, for three reasons. As the parent it gets the daemon's true exit
status. It can end the daemon without ever signalling a stranger, because a child keeps its pid until it is reaped. And
while the middle process lives, no other group can get the number of its process group. It runs with all signals
blocked, so a terminal that hangs up in the meantime does not stop a start.

Two socket pairs carry the reports: the daemon reports to the middle process, and the middle process reports to the
caller. Each report is one packet (SOCK_SEQPACKET). A stream would end only with the last copy of its descriptor, and a
fork by another thread could keep such a copy open. The caller believes the middle process alone.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import signal
import socket
import sys
from functools import partial

from daemonkit._detach.middle import ABORT, FAILED, STARTED, Verdict, lead, send
from daemonkit._pidfile.hold import locks_inherited, take_back_locks
from daemonkit._system.fork import fork, no_fork_warning
from daemonkit._system.pidfd import wait_for_end
from daemonkit._system.signals import ALL_SIGNALS, signal_name
from daemonkit._system.sockets import socketpair
from daemonkit._system.unpatched import close, get_handler, pthread_sigmask
from daemonkit._system.wait import deadline_after, wait_readable
from daemonkit.errors import StartError, StartTimeoutError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Final, NoReturn

_MIDDLE_ENDS_WITHIN: Final = 3.0  # seconds; it takes one at most, unless it was stopped
# Seconds. Python looks for signals before it calls poll(2). A signal that comes between the two does not end the poll,
# so its handler runs up to this much later.
_LOOK: Final = 0.5
_LONGEST_TEXT: Final = 1 << 15  # bytes of a traceback: a packet has to fit into the socket's buffer


class Reporter:
    """The daemon's end: it reports once whether the start went well."""

    def __init__(self, middle: socket.socket) -> None:
        """Take over the socket to the middle process."""
        self._middle = middle

    def descriptors(self) -> set[int]:
        """Return its descriptors, to be kept open."""
        return {self._middle.fileno()}

    def started(self) -> None:
        """Report that the daemon counts as started; StartError if the caller was already told that the start failed."""
        try:
            self._middle.sendall(STARTED, socket.MSG_NOSIGNAL)
        except OSError as error:
            raise StartError(
                "the process that watched over this start was killed, so the caller was told that it failed"
            ) from error
        finally:
            self._middle.close()

    def failed(self, reason: str, text: str, status: int) -> NoReturn:
        """Report why it failed, and end this process at once: its exit handlers and open files are left to the caller.

        `reason` is one line, `text` the whole traceback.
        """
        parts = tuple(part.encode(errors="backslashreplace")[-_LONGEST_TEXT:] for part in (reason, text))
        with self._middle:
            send(self._middle, FAILED + marshal.dumps(parts))
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(status)


def detach(timeout: float | None) -> Reporter:
    """Split off a daemon; return in the daemon alone, with every signal still blocked.

    The caller exits with status 0 once the daemon counts as started, or raises: StartError, StartTimeoutError
    after `timeout` seconds, or whatever interrupts it; by then the daemon has ended.
    """
    # What is run between the forks and the report touches pages that three processes share, and each of them is copied:
    # so there are few functions and no ExitStack, and most ends that are another process's are closed late. Nobody
    # waits for the end of a socket, which comes with its last copy: the caller and the middle process have pidfds.
    closers: list[Callable[[], object]] = []
    try:
        caller_end, to_caller = _open_pair(closers)
        middle_end, to_middle = _open_pair(closers)
        middle = _Middle(caller_end, to_caller, closers)
        child_handler = get_handler(signal.SIGCHLD)
        mask = pthread_sigmask(signal.SIG_BLOCK, ())
        try:
            # A Ctrl-C may only interrupt the caller's wait, and a hang-up must not end a process before it is set up.
            pthread_sigmask(signal.SIG_BLOCK, ALL_SIGNALS)
            with no_fork_warning(), locks_inherited():
                middle.pid = fork()
                if middle.pid == 0:
                    lead(to_caller, middle_end, child_handler)
                    closers.pop()  # that of `to_middle`
                    return Reporter(to_middle)
            middle_end.close()  # now, so that the daemon's report fails if the middle process has been killed
            in_time = middle.wait(timeout, mask)
            middle.settle(call_off=not in_time)
        except BaseException:  # also one that a signal handler raises: another thread may have taken the signal
            if middle.pid:
                middle.settle(call_off=True)
            pthread_sigmask(signal.SIG_SETMASK, mask)
            raise
        pthread_sigmask(signal.SIG_SETMASK, mask)
        raise _start_error(middle.verdict, None if in_time else timeout)
    finally:
        for close_end in closers:
            close_end()


def _open_pair(closers: list[Callable[[], object]]) -> tuple[socket.socket, socket.socket]:
    one, other = _socketpair()
    closers += one.close, other.close
    return one, other


def _socketpair() -> tuple[socket.socket, socket.socket]:
    try:
        return socketpair(socket.SOCK_SEQPACKET)
    except OSError as error:
        text = f"{error.strerror}: no descriptor for the daemon's report; close some, or raise the limit (ulimit -n)"
        raise OSError(error.errno, text) from error


class _Middle:
    """The middle process as the caller sees it."""

    def __init__(self, end: socket.socket, other_end: socket.socket, closers: list[Callable[[], object]]) -> None:
        """Take both ends of the socket. `wait` opens a pidfd, and adds its closing to `closers`."""
        self.pid = 0
        self.verdict = Verdict()
        self._end, self._other_end, self._closers = end, other_end, closers
        self._watched = [end.fileno()]

    def wait(self, timeout: float | None, mask: Iterable[int] | None = None) -> bool:
        """Read its verdict, or see its end; return False if neither comes in time.

        With `mask`, that signal mask applies during the wait, and all signals are blocked again afterwards. So no
        handler can raise an exception between the arrival of the verdict and what follows from it.
        """
        deadline = deadline_after(timeout)
        if len(self._watched) == 1:
            try:
                self._watched.insert(0, os.pidfd_open(self.pid))
                self._closers.append(partial(close, self._watched[0]))
            except OSError:  # another thread has reaped it already: its report may be there
                self._other_end.close()
        try:
            if mask is None:
                ready = wait_readable(self._watched, deadline)
            else:
                pthread_sigmask(signal.SIG_SETMASK, mask)
                ready = wait_readable(self._watched, deadline, _LOOK)
        finally:
            pthread_sigmask(signal.SIG_BLOCK, ALL_SIGNALS)
        if self._end.fileno() in ready:
            with contextlib.suppress(ConnectionResetError):  # it ended without reading what it was sent
                self.verdict.read(self._end)
        return bool(ready)

    def settle(self, *, call_off: bool) -> None:
        """Exit with 0 if the daemon has started, even just now. Otherwise end it and clean up."""
        if call_off and not self.verdict.started:
            send(self._end, ABORT)
            self.wait(_MIDDLE_ENDS_WITHIN)
        if self.verdict.started:
            try:  # after the middle process's end the daemon is the child of process 1, as systemd wants it
                wait_for_end(self.pid, _MIDDLE_ENDS_WITHIN)
            finally:  # whatever happens: the daemon runs, and to report anything else would be false
                os._exit(0)
        self._end_group()

    def _end_group(self) -> None:
        """End the middle process and its group, and hold again the locks that were passed on."""
        # Somebody else may have reaped it, or reap it just now, as the kernel does where SIGCHLD is ignored: then its
        # number is not ours to use.
        with contextlib.suppress(ChildProcessError, ProcessLookupError):
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            os.kill(self.pid, signal.SIGKILL)
            wait_for_end(self.pid, _MIDDLE_ENDS_WITHIN)
            # It is dead but not reaped: so no other process, and no other group, can have got its number.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG)
        self.pid = 0
        take_back_locks()


def _start_error(verdict: Verdict, timeout: float | None) -> StartError:
    exitcode, fields = verdict.exitcode, {"traceback": verdict.traceback, "reason": verdict.reason}
    if timeout is not None:
        message = f"the daemon had not started within {timeout:g} s, so it was ended"
        return StartTimeoutError(message, exitcode=exitcode, **fields)
    if not verdict.arrived:
        how = "was ended, because the process that watched over its start was killed"
    elif exitcode is None:
        how = "could not be started"
    elif exitcode < 0:
        how = f"was killed by {signal_name(-exitcode)} before it had started"
    else:
        how = f"ended with status {exitcode} before it had started"
    message = f"the daemon {how}" + (f": {verdict.reason}" if verdict.reason else "")
    return StartError(message, exitcode=exitcode, **fields)
