"""How a daemon is started: three processes, and what they tell each other.

Three processes take part in a start. The caller waits; the middle process leads the new session; the daemon is
the middle's child. The middle stays until the daemon counts as started: as the parent it has the daemon's true
exit status, it can end the daemon without ever hitting a stranger, and it pins the process group. It runs with
all signals blocked, so a terminal that hangs up in the meantime does not stop a start.

Three socket pairs carry the report, one between each two. A message is one byte, and text where there is any, up
to the end of the stream. That it has started the daemon tells the middle first and then the caller, which need not
wait for the middle to wake up: by then nothing can overtake it. All else is the middle's to say, and once a start
has been called off only the middle is believed.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
import traceback

from daemonkit._pidfile.hold import locks_inherited, take_back_locks
from daemonkit._system.fork import fork, no_fork_warning
from daemonkit._system.signals import ALL_SIGNALS, signal_name
from daemonkit.errors import StartError, StartTimeoutError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final, NoReturn

_STARTED: Final = b"S"
_FAILED: Final = b"F"
_ABORT: Final = b"A"
_GRACE: Final = 1.0  # seconds from SIGTERM to SIGKILL for a start that is called off
_LONGEST: Final = 3600.0  # seconds for one poll(2), whose milliseconds are an int
_LOOK: Final = 0.5  # seconds until a handler runs whose signal came after Python had looked and before poll(2) began
_BUFFER: Final = 1 << 16


class Reporter:
    """The daemon's end: it says once whether the start went well."""

    def __init__(self, middle: socket.socket, caller: socket.socket) -> None:
        """Take over the sockets to the middle process and to the caller."""
        self._middle, self._caller = middle, caller

    def descriptors(self) -> set[int]:
        """Return its descriptors, to be kept open."""
        return {self._middle.fileno(), self._caller.fileno()}

    def started(self) -> None:
        """Tell the caller that the daemon counts as started; StartError if it was told otherwise already."""
        with self._middle, self._caller:
            try:
                self._middle.sendall(_STARTED, socket.MSG_NOSIGNAL)
            except OSError as error:
                raise StartError(
                    "the process that watched over this start was killed, so the caller was told that it failed"
                ) from error
            _say(self._caller, _STARTED)

    def failed(self, text: str, status: int) -> NoReturn:
        """Tell the caller why not, and end this process: exit handlers and open files are the caller's again."""
        with self._middle:
            _say(self._middle, _FAILED + text.encode(errors="backslashreplace"))
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(status)


def detach(timeout: float | None) -> Reporter:  # noqa: RET503 - _await does not return
    """Split off a daemon; return in the daemon alone, with every signal still blocked.

    The caller exits with status 0 once the daemon counts as started, or raises: StartError, StartTimeoutError
    after `timeout` seconds, or whatever interrupts it; by then the daemon has ended.
    """
    with contextlib.ExitStack() as ends:
        pairs = [tuple(map(ends.enter_context, _socketpair())) for _ in range(3)]
        to_middle, from_daemon = pairs[0][0], pairs[1][0]
        # If SIGCHLD is ignored, the kernel reaps the daemon, and its exit status is lost to the middle process.
        before = signal.getsignal(signal.SIGCHLD)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        try:
            # Until each process has its handlers: a Ctrl-C must find the caller waiting, a hang-up nobody.
            signal.pthread_sigmask(signal.SIG_BLOCK, ALL_SIGNALS)
            with no_fork_warning(), locks_inherited():
                middle = fork()
                if middle == 0:
                    ends.pop_all()
                    to_middle.close()
                    from_daemon.close()
                    return _lead(pairs[0][1], pairs[1][1], pairs[2], before)
        except BaseException:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            raise
        for end in (pairs[0][1], pairs[1][1], *pairs[2]):
            end.close()
        _await(to_middle, from_daemon, middle, timeout, mask)


def _socketpair() -> tuple[socket.socket, socket.socket]:
    try:
        return socket.socketpair()
    except OSError as error:
        text = f"{error.strerror}: no descriptor for the daemon's report; close some, or raise the limit (ulimit -n)"
        raise OSError(error.errno, text) from error


def _wait(ends: Iterable[int | socket.socket], deadline: float | None, longest: float = _LONGEST) -> set[int]:
    """Return the descriptors that have something to read, none of them once the deadline has passed.

    `longest` is the most that it waits at a time, in seconds.
    """
    poll = select.poll()
    for end in ends:
        poll.register(end, select.POLLIN)
    while True:
        left = longest if deadline is None else max(deadline - time.monotonic(), 0)
        ready = poll.poll(min(left, longest) * 1000)
        if ready or left == 0:
            return {fd for fd, _ in ready}


def _await(
    middle_end: socket.socket, daemon_end: socket.socket, middle: int, timeout: float | None, mask: Iterable[int]
) -> NoReturn:
    """Wait for the verdict; end with status 0, or raise.

    Signals stay blocked but for the moments of waiting, so that no exception can come between what is said and
    what is made of it.
    """
    said = bytearray()
    try:
        try:
            in_time = _read_verdict([middle_end, daemon_end], said, timeout, mask)
        except BaseException:
            _settle(middle_end, middle, said, call_off=True)
            raise
        _settle(middle_end, middle, said, call_off=not in_time)
        raise _start_error(bytes(said), None if in_time else timeout)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _read_verdict(
    ends: list[socket.socket], said: bytearray, timeout: float | None, mask: Iterable[int] | None = None
) -> bool:
    """Add what the middle process says to `said`; return False if the verdict takes too long.

    A second end is the daemon's, which says no more than that it has started. With a mask, signals are let in
    by it while waiting, and only then: whatever has been said is not lost.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    while said[:1] != _STARTED:
        try:
            if mask is not None:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            ready = _wait(ends, deadline, _LONGEST if mask is None else _LOOK)
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, ALL_SIGNALS)
        if not ready:
            return False
        end = next(end for end in ends if end.fileno() in ready)
        try:
            part = end.recv(_BUFFER)
        except ConnectionResetError:  # it ended without reading what it was told
            part = b""
        if not part and end is ends[0]:
            return True
        if end is not ends[0]:
            ends.pop()
        said += part
    return True


def _settle(middle_end: socket.socket, middle: int, said: bytearray, *, call_off: bool) -> None:
    """End with status 0 if the daemon runs, though it be since a moment ago; else have it ended, and clear up."""
    if call_off:
        _say(middle_end, _ABORT)
        # The middle takes no longer than the grace; one that was stopped or killed does not answer at all.
        _read_verdict([middle_end], said, 3 * _GRACE)
    if said[:1] == _STARTED:
        try:
            os.waitpid(middle, 0)
        finally:  # whatever happens: the daemon runs, and to say otherwise would be false
            os._exit(0)
    _clear(middle)


def _clear(middle: int) -> None:
    """End what is left of the middle process's group, and hold again the locks that were passed on."""
    with contextlib.suppress(ChildProcessError):  # somebody else reaped it: then its number is not ours to use
        os.waitid(os.P_PID, middle, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        os.kill(middle, signal.SIGKILL)
        os.waitid(os.P_PID, middle, os.WEXITED | os.WNOWAIT)
        # Dead but not reaped, it keeps its number, which is also the group's, from being given out again.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(middle, signal.SIGKILL)
        os.waitpid(middle, 0)
    take_back_locks()


def _start_error(verdict: bytes, timeout: float | None) -> StartError:
    status, _, text = verdict[1:].decode(errors="replace").partition("\n")
    exitcode = int(status) if status else None
    cause = text.rstrip().rpartition("\n")[2]
    if timeout is not None:
        message = f"the daemon had not started within {timeout:g} s, so it was ended"
        return StartTimeoutError(message, traceback=text, exitcode=exitcode)
    if not verdict:
        how = "could not be watched: the process that did was killed, so the start was called off"
    elif exitcode is None:
        how = "could not be started"
    elif exitcode < 0:
        how = f"was killed by {signal_name(-exitcode)} before it had started"
    else:
        how = f"ended with status {exitcode} before it had started"
    return StartError(f"the daemon {how}" + (f": {cause}" if cause else ""), traceback=text, exitcode=exitcode)


def _lead(
    caller_end: socket.socket, past_middle: socket.socket, pair: tuple[socket.socket, ...], on_child: object
) -> Reporter:
    """Lead a new session and fork the daemon in it; return in the daemon alone."""
    ours, theirs = pair
    try:
        os.setsid()
        if on_child in (signal.SIG_IGN, None):  # None: not set from Python, so it can't be set again from here
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        daemon = fork()
    except BaseException:  # noqa: BLE001 - whatever it is, the caller is to learn it, and this process ends here
        _say(caller_end, _accident())
        os._exit(1)
    if daemon == 0:
        caller_end.close()
        ours.close()
        if on_child == signal.SIG_IGN:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        return Reporter(theirs, past_middle)
    past_middle.close()
    theirs.close()
    try:
        verdict = _watch(caller_end, ours, daemon)
    except BaseException:  # noqa: BLE001 - as above
        os.kill(daemon, signal.SIGKILL)
        verdict = _accident()
    _say(caller_end, verdict)
    if verdict[:1] != _STARTED:
        os.killpg(0, signal.SIGKILL)  # what the body had started, and this process
    os._exit(0)


def _watch(  # noqa: C901 - the cases of one loop
    caller_end: socket.socket, daemon_end: socket.socket, daemon: int
) -> bytes:
    """Wait until the daemon counts as started, or has ended; return what the caller is to be told.

    A caller that goes away without a word was killed or hung up: the start goes on without it.
    """
    report, called_off, deadline = b"", False, None
    try:
        pidfd = os.pidfd_open(daemon)
        ends = {caller_end.fileno(), daemon_end.fileno(), pidfd}
        while True:
            ready = _wait(ends, deadline)
            if daemon_end.fileno() in ready:
                part = daemon_end.recv(_BUFFER)
                report += part
                if not part:
                    ends.discard(daemon_end.fileno())
                if report[:1] == _STARTED and not called_off:
                    return _STARTED
            elif pidfd in ready:
                _, status = os.waitpid(daemon, 0)
                return b"%s%d\n%s" % (_FAILED, os.waitstatus_to_exitcode(status), report[1:])
            elif caller_end.fileno() in ready:
                ends.discard(caller_end.fileno())
                if caller_end.recv(1) == _ABORT:
                    called_off, deadline = True, time.monotonic() + _GRACE
                    os.kill(daemon, signal.SIGTERM)
            elif not ready:
                os.kill(daemon, signal.SIGKILL)
                deadline = None
    except BaseException:
        if called_off or not _has_started(daemon_end):
            raise
        return _STARTED


def _has_started(daemon_end: socket.socket) -> bool:
    """Tell whether the daemon has said so, and may have told the caller; from here on it can't say it any more."""
    daemon_end.shutdown(socket.SHUT_RD)
    try:
        return daemon_end.recv(1, socket.MSG_DONTWAIT) == _STARTED
    except BlockingIOError:
        return False


def _accident() -> bytes:
    """Return the verdict on a start that failed in this process; never raises, as nothing would catch it here."""
    return _FAILED + b"\n" + traceback.format_exc().encode(errors="backslashreplace")


def _say(end: socket.socket, message: bytes) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        end.sendall(message, socket.MSG_NOSIGNAL)
