"""Start a daemon from a caller that goes on.

`detached()` makes its caller end, so a helper process, forked here, is the one that calls it: the helper waits for
the daemon, and this caller waits for the helper. A socket pair brings back the daemon's pid, and any exception as the
object that it was. The helper and the daemon have copies of the caller's frames below them and never return into them.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import signal
import socket
import traceback

from daemonkit._control import stop
from daemonkit._pidfile.holder import find_holder
from daemonkit._service import body
from daemonkit._service.underway import wait_for_start
from daemonkit._service.words import Words, words_of
from daemonkit._system.descriptors import inode, open_descriptors
from daemonkit._system.fork import fork_child
from daemonkit._system.pidfd import exit_status, open_pidfd
from daemonkit._system.signals import ALL_SIGNALS
from daemonkit._system.sockets import socketpair
from daemonkit._system.streams import flush_streams
from daemonkit._system.unpatched import close, pthread_sigmask
from daemonkit._system.wait import deadline_after, wait_readable
from daemonkit.errors import AlreadyRunningError, NotRunningError, StartError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import FrameType
    from typing import Any, Final, NoReturn

    from daemonkit._service.service import Report, Service

_PID: Final = b"P"
_WORDS: Final = b"W"
_ERROR: Final = b"E"
_LOOK: Final = 0.5  # seconds until a handler runs whose signal came after Python had looked and before poll(2) began
_GRACE: Final = 10.0  # seconds for a helper to call a start off; it takes one, and three if it has to kill
_LONGEST: Final = 1 << 16  # bytes of one message


def start_daemon(service: Service, report: Report) -> int:
    """Start the daemon; return its pid."""
    try:
        return _start(service, report)
    except AlreadyRunningError as error:
        waited = wait_for_start(service.path, error.pid)
        holder = find_holder(service.path)
        if holder and waited:
            raise AlreadyRunningError(str(error), path=service.path, pid=holder.pid) from None
        if holder:
            raise
        if waited:
            raise StartError("another start was under way, and it has failed") from None
        raise StartError(f"it ran as process {error.pid}, which has ended just now; start it again") from None


def _start(service: Service, report: Report) -> int:
    ours, theirs = socketpair(socket.SOCK_SEQPACKET)
    with ours, theirs:
        flush_streams()
        mask = pthread_sigmask(signal.SIG_BLOCK, ALL_SIGNALS)
        try:
            helper = _Helper(fork_child(lambda: _Start(service, ours, theirs, mask).run()), ours)
            theirs.close()
            try:
                pthread_sigmask(signal.SIG_SETMASK, mask)
                helper.hear()
            except BaseException:
                pthread_sigmask(signal.SIG_BLOCK, ALL_SIGNALS)
                helper.call_off(service.path)
                raise
        finally:
            pthread_sigmask(signal.SIG_SETMASK, mask)
    if words := helper.said.get(_WORDS):
        report.words = Words(*marshal.loads(words))  # noqa: S302 - this program's own words
    return helper.verdict(service.path)


class _Helper:
    """The helper as the caller sees it."""

    def __init__(self, pid: int, end: socket.socket) -> None:
        self._pid, self._end = pid, end
        self.said: dict[bytes, bytes] = {}
        self._status: int | None = None

    def hear(self) -> None:
        """Take in what is said until the helper has ended, and the daemon's pid with it."""
        pidfd = open_pidfd(self._pid)
        try:
            watched = {pidfd, self._end.fileno()}
            while pidfd not in wait_readable(watched, None, _LOOK):
                if not self._take():
                    watched = {pidfd}
            while self._take(socket.MSG_DONTWAIT):
                pass
            with contextlib.suppress(ChildProcessError):  # somebody else has reaped it: what it said must do
                self._status = exit_status(pidfd, reap=True)
        finally:
            close(pidfd)
        while not self._status and not self.said.keys() & {_PID, _ERROR} and self._take():
            pass  # a daemon that need not be ready counts as started a moment before it says its pid

    def _take(self, flags: int = 0) -> bool:
        try:
            message = self._end.recv(_LONGEST * 2, flags)
        except (BlockingIOError, ConnectionResetError):
            return False
        self.said[message[:1]] = message[1:]
        return bool(message)

    def call_off(self, path: str) -> None:
        """End the start, and the daemon, though it has started just now."""
        pidfd = -1
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)  # or the number is another's by now
            os.kill(self._pid, signal.SIGINT)
            pidfd = open_pidfd(self._pid)
        if pidfd >= 0:
            if not wait_readable([pidfd], deadline_after(_GRACE)):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                wait_readable([pidfd], None)
            with contextlib.suppress(ChildProcessError):
                exit_status(pidfd, reap=True)
            close(pidfd)
        while self._take(socket.MSG_DONTWAIT):
            pass
        self._end_daemon(path)

    def _end_daemon(self, path: str) -> None:
        holder = find_holder(path)
        if holder and str(holder.pid).encode() == self.said.get(_PID):
            with contextlib.suppress(NotRunningError):
                stop(path, _GRACE)

    def verdict(self, path: str) -> int:
        """Return the daemon's pid, or raise what went wrong."""
        if error := self.said.get(_ERROR):
            import pickle  # noqa: PLC0415 - 10 ms, which a start that goes well need not wait for

            raise pickle.loads(error)  # noqa: S301 - this program's own exception
        if self._status:
            self._end_daemon(path)
            raise StartError("the process that watched over this start was killed, so the start was called off")
        if _PID not in self.said:
            raise StartError("the daemon was killed as soon as it had started")
        return int(self.said[_PID])


class _Start:
    """The start as the helper, and then the daemon, go through it."""

    def __init__(self, service: Service, callers: socket.socket, end: socket.socket, mask: Iterable[int]) -> None:
        self._service, self._callers, self._end, self._mask = service, callers, end, mask
        self._helper = os.getpid()

    def run(self) -> NoReturn:
        """Become the daemon and do its work; never return, in neither process."""
        body.take_exit_handlers()
        self._callers.close()
        error: BaseException | None = None
        try:
            callers = {fd: inode(fd) for fd in open_descriptors()}
            context = self._context()
            with context:
                self._say(_PID, str(context.pid).encode())
                if not context.wait_ready:
                    context.has_started()
                self._perform(context)
        except BaseException as caught:  # noqa: BLE001 - this process ends here, and says why
            error = caught
        if os.getpid() == self._helper:
            self._say(_ERROR, _pickled(error))
            os._exit(1)
        status = body.conclude(error)
        del error  # its frames hold the target's files open, which are written as they close
        body.end(status, context, callers)

    def _context(self) -> body.Context:
        """Return the daemon's context; have this process's own signals end the start."""
        options = self._service.options
        context = body.context_of(
            self._service,
            detach_process=True,
            files_preserve=[*(options.get("files_preserve") or ()), self._end],
            signal_map=_handlers(options.get("signal_map") or {}),
        )
        context.on_start = self._end.close
        signal.set_wakeup_fd(-1)  # the caller's event loop, which has one, is not in this process
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _call_off)
        pthread_sigmask(signal.SIG_SETMASK, self._mask)
        return context

    def _perform(self, context: body.Context) -> None:
        try:
            body.perform(self._service.target, context)
        except BaseException as error:
            if context.on_start and os.getpid() == context.pid:  # it has not started, and is no child that it forked
                self._say(_WORDS, marshal.dumps(tuple(words_of(error))))
            raise

    def _say(self, kind: bytes, message: bytes) -> None:
        with contextlib.suppress(OSError):  # the caller was killed
            self._end.send(kind + message, socket.MSG_NOSIGNAL)


def _handlers(given: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return the daemon's handlers, with those that the program itself had set before: the helper sets its own."""
    named = {signal.Signals[key] if isinstance(key, str) else key for key in given}
    ctrl_c = signal.getsignal(signal.SIGINT) or signal.SIG_DFL
    defaults = {signal.SIGTERM: "terminate", signal.SIGHUP: "reopen", signal.SIGINT: ctrl_c}
    before = {number: signal.getsignal(number) for number in defaults.keys() - named}
    return {**given, **{number: old if callable(old) else defaults[number] for number, old in before.items()}}


def _call_off(number: int, _frame: FrameType | None) -> NoReturn:
    """End a start on SIGINT or SIGTERM, in the helper; what comes after must not disturb its end."""
    for other in (signal.SIGINT, signal.SIGTERM):
        signal.signal(other, signal.SIG_IGN)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise StartError("the start was called off by SIGTERM")


def _pickled(error: BaseException | None) -> bytes:
    """Return the exception as bytes; where it can't be had, a StartError that has its text."""
    import pickle  # noqa: PLC0415 - as above

    with contextlib.suppress(Exception):
        text = pickle.dumps(error)
        if len(text) < _LONGEST and type(pickle.loads(text)) is type(error):  # noqa: S301 - just made
            return text
    report = "" if error is None else "".join(traceback.format_exception(error))[-_LONGEST // 4 :]
    reason = "" if error is None else f": {type(error).__name__}: {error}"[:1000]
    return pickle.dumps(StartError(f"the daemon could not be started{reason}", traceback=report))
