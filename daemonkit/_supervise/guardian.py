"""The calling process of `supervise`: signals, events, logs, and a look at the worker."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import resource
import select
import signal
import socket
import time
from _pickle import dumps  # pickle itself takes 400 KB in each process

from daemonkit._supervise import marks
from daemonkit._supervise.adopted import Adopted
from daemonkit._supervise.outbox import read_packets
from daemonkit._supervise.policy import FINAL, Instance
from daemonkit._supervise.records import Event, InstanceRecord, Summary
from daemonkit._supervise.rules import Backoff
from daemonkit._supervise.wishes import RefusedError
from daemonkit._supervise.worker import Worker
from daemonkit._system.descriptors import close_all, inheritable_descriptors
from daemonkit._system.fork import fork_child, load_fork
from daemonkit._system.libc import c_handler_kept, load_libc
from daemonkit._system.process import has_terminal, terminal_has_gone
from daemonkit._system.record import field, record, replace
from daemonkit._system.sockets import socketpair
from daemonkit._system.unpatched import close, epoll, get_handler, poll, set_handler

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType
    from typing import Any, Final, NoReturn

    from daemonkit._supervise.policy import State
    from daemonkit._supervise.pump import Pump
    from daemonkit._supervise.wishes import Trial, Wishes

load_libc(), load_fork()  # here, as root's Python may be unreadable once rights were dropped; once for all workers

_logger = logging.getLogger("daemonkit")
_FDS: Final = 200  # in one message; unix(7) allows 253
_WORKER_BACKOFF: Final = Backoff(initial=0.1, maximum=0.4)  # it is back within a second


@record
class _Record:
    state: State = "backoff"
    starts: int = 0
    before: int = 0
    """Starts under earlier workers."""
    exitcode: int | None = None
    pids: set[int] = field(default_factory=set)


class Guardian:
    """What the calling process does meanwhile: signals, events, logs, and a look at the worker."""

    def __init__(
        self,
        wishes: Wishes,
        on_event: Callable[[Event], object] | None,
        after_events: Callable[[], object] | None = None,
    ) -> None:
        self._wishes = wishes
        self._on_event = on_event
        self._after_events = after_events
        """Called once all events that have come by now were told."""
        self._has_told = False
        self._records = [_Record() for _ in range(wishes.settings.instances)]
        self._workers = 0
        self._order = ""
        """What it was told by signals: "", "stop", then "kill"."""
        self._signals: list[int] = []
        self._owes_reload = False
        """Whether a SIGHUP came while there was no worker to do it."""
        self._control: socket.socket | None = None
        self._pumps: dict[int, Pump] = {}
        """By the descriptor that is read."""
        self._late: set[Pump] = set()
        """Those whose log could not be written; they are not watched meanwhile."""
        self._epoll: select.epoll
        self._terminal = has_terminal()
        self.adopted = Adopted()
        self.bell: tuple[socket.socket, socket.socket] | None = None
        self.before: dict[int, Any] = {}

    def record_signal(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal: the loop acts."""
        self._signals.append(number)

    def watch(self) -> Summary:
        """Keep a worker at work until it is done."""
        in_row = 0
        while True:
            begun = time.monotonic()
            if self._watch_one(first=self._workers == 0):
                return self._summary()
            if time.monotonic() - begun > 1.0:
                in_row = 0
            self._pause(_WORKER_BACKOFF.delay(in_row))
            in_row += 1
            if self._order:
                for record in self._records:
                    record.state = "stopped" if record.state not in FINAL else record.state
                return self._summary()

    def _watch_one(self, *, first: bool) -> bool:
        """Start a worker and watch it until its end; return whether it was done.

        OSError if the first one can't be started. A later one is tried again, as an instance would be.
        """
        with contextlib.ExitStack() as stack:
            try:
                self._epoll = stack.enter_context(epoll())
                control, worker = self._start_worker(stack)
            except OSError as error:
                if first:
                    raise
                _logger.error("no new worker process could be started, so it is tried again: %s", error)  # noqa: TRY400 - said
                return False
            done = False
            try:
                self._control = control
                done = self._loop(control, worker)
            finally:
                # It has ended; but whatever leaves on_event, as SystemExit, leaves here too: then it ends now.
                self._control = None
                _end_worker(worker)
                if not done:
                    self._end_what_is_left()
        if not done:
            _logger.error("the worker process was killed or failed; what it ran is ended, and a new one starts")
        return done

    def _start_worker(self, stack: contextlib.ExitStack) -> tuple[socket.socket, int]:
        """Return the socket to a new worker process, and its pidfd; the stack closes both."""
        control, theirs = map(stack.enter_context, socketpair(socket.SOCK_SEQPACKET))
        control.setblocking(False)
        me = os.pidfd_open(os.getpid())
        stack.callback(close, me)
        spare = os.dup(me)  # so that there is a descriptor for the worker's pidfd once the worker runs
        try:
            pid = fork_child(lambda: self._become_worker(control, theirs, me, spare))
        finally:
            close(spare)
        self._workers += 1
        self.adopted.worker = pid
        worker = os.pidfd_open(pid)
        stack.callback(close, worker)
        theirs.close()
        return control, worker

    def _become_worker(self, control: socket.socket, theirs: socket.socket, guardian: int, spare: int) -> NoReturn:
        """Turn the forked child into the worker process; does not return."""
        settings = self._wishes.settings
        control.close()
        self._epoll.close()
        close(spare)
        if self.bell:
            signal.set_wakeup_fd(-1)
            for end in self.bell:
                end.close()
        hard = settings.nofile[1]
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        if settings.target is None:
            keep = {*settings.listen, *settings.plumbing.descriptors(), theirs.fileno(), guardian}
            close_all(inheritable_descriptors() - keep)
            for fd in settings.listen:  # as 3 and up, and not a second time
                os.set_inheritable(fd, False)
        theirs.setblocking(False)
        instances = [
            Instance(index, settings.rules, state=record.state if record.state in FINAL else "backoff")
            for index, record in enumerate(self._records[: settings.instances])
        ]
        for instance, known in zip(instances, self._records, strict=False):
            instance.exitcode = known.exitcode
        Worker(
            settings=settings,
            control=theirs,
            guardian=guardian,
            instances=instances,
            next_mark=self._workers % marks.WORKERS * marks.RUNS,
        ).work()

    def _loop(self, control: socket.socket, worker: int) -> bool:
        """Serve until the worker has ended; return whether it was done."""
        self._pumps, self._late = {}, set()
        for fd in (control.fileno(), worker):
            self._epoll.register(fd, select.EPOLLIN)
        self._watch_pumps()
        if self.bell:
            self._epoll.register(self.bell[0], select.EPOLLIN)
        done = False
        self._obey()
        while True:
            self._end_events()
            retry = min((pump.retry_at for pump in self._late), default=math.inf)
            timeout = None if retry == math.inf else max(retry - time.monotonic(), 0) + 0.001
            ready = {fd for fd, _ in self._epoll.poll(timeout)}
            if self.bell and self.bell[0].fileno() in ready:
                self._hear_bell()
            self._obey()
            # First of all, as it says that a run starts, whose output may go to a log that is to be opened anew.
            if control.fileno() in ready:
                done = self._read_messages(control) or done
            for fd in ready.intersection(self._pumps) if retry == math.inf else tuple(self._pumps):
                self._pump(self._pumps[fd])
            if done and control.fileno() in ready:
                # The worker waits for this before it ends: so what was set free does not come to this process.
                self.adopted.finish()
                with contextlib.suppress(OSError):
                    control.shutdown(socket.SHUT_WR)
                self._epoll.unregister(control.fileno())  # or its end would be told again and again
            if worker in ready:
                return self._read_messages(control) or done

    def _watch_pumps(self) -> None:
        """Read from all pumps, also from those that are new."""
        for pump in self._wishes.pumps():
            if pump.reader not in self._pumps:
                self._pumps[pump.reader] = pump
                self._epoll.register(pump.reader, select.EPOLLIN)
                self._watch_or_retry(pump)

    def _pump(self, pump: Pump) -> None:
        pump.pump()
        self._watch_or_retry(pump)

    def _watch_or_retry(self, pump: Pump) -> None:
        is_late = pump.retry_at < math.inf
        if is_late != (pump in self._late):
            self._epoll.modify(pump.reader, 0 if is_late else select.EPOLLIN)
            (self._late.add if is_late else self._late.discard)(pump)

    def _hear_bell(self) -> None:
        if self.bell:
            with contextlib.suppress(BlockingIOError):
                self.bell[0].recv(4096)
        self.adopted.reap()

    def _obey(self) -> None:
        """Pass on what signals have said."""
        if self._owes_reload and self._control:
            self._reload()
        while self._signals:
            number = self._signals.pop(0)
            before = self.before.get(number)
            gone = number == signal.SIGHUP and self._terminal and terminal_has_gone()
            if gone and before == signal.SIG_IGN:
                self._terminal = False  # nohup(1): this one is not for it; a later one can't be the terminal's
            elif number == signal.SIGHUP and not gone:
                if callable(before):
                    with self.adopted.callers_turn():
                        before(number, None)  # as that of detached(), which opens the logs anew
                self._reload()
            elif self._order:
                self._order = "kill"
                self._send("kill")
            else:
                self._order = "stop"
                self._send("stop")

    def _reload(self) -> None:
        """Open the logs anew, and restart the instances: with other settings, if `on_reload` says so."""
        self._owes_reload = self._control is None
        if self._owes_reload:
            return
        for sink in self._wishes.sinks():
            sink.reopen()
        try:
            with self.adopted.callers_turn():
                trial = self._wishes.ask()
        except RefusedError:
            self._tell(Event(-1, "reload-failed", 0, None, time.time()))
            return
        self._send("streams", [1, 2])
        if trial is None:
            self._send("reload")
            return
        for index in range(self._wishes.count()):
            if index == len(self._records):
                self._records.append(_Record())
            if index >= self._wishes.settings.instances:  # the worker counts its starts anew
                self._records[index].before = self._records[index].starts
        self._watch_pumps()
        self._send_trial(trial)

    def _send_trial(self, trial: Trial) -> None:
        fds = trial.settings.descriptors()
        for first in range(0, len(fds), _FDS):
            self._send("descriptors", fds[first : first + _FDS])
        content = dumps((trial.serial, trial.only_scale, fds, replace(trial.settings, target=None)))
        with open(os.memfd_create("settings", os.MFD_CLOEXEC), "w+b", buffering=0) as file:
            file.write(content)
            self._send("settings", [file.fileno()])

    def _send(self, order: str, fds: Sequence[int] = ()) -> None:
        if self._control:
            with contextlib.suppress(OSError):
                socket.send_fds(self._control, [order.encode()], fds, socket.MSG_NOSIGNAL)

    def _read_messages(self, control: socket.socket) -> bool:
        """Take in what the worker has sent; return whether it is done."""
        done = False
        for packet in read_packets(control):
            for message in packet:
                match message:
                    case ("done",):
                        done = True
                    case ("state", index, state, starts, exitcode):
                        record = self._records[index]
                        record.state, record.starts, record.exitcode = state, record.before + starts, exitcode
                    case ("starting", index):
                        for pump in self._wishes.pumps_of(index):
                            pump.log.reopen()
                    case ("settled", serial, good):
                        self._wishes.settled(serial, good=good)
                    case ("log", level, text):
                        _logger.log(level, "%s", text)
                    case ("event", kind, index, pid, exitcode, when):
                        self._tell(Event(index, kind, pid, exitcode, when))
        return done

    def _tell(self, event: Event) -> None:
        if event.kind == "start":
            self._records[event.instance].pids.add(event.pid)
        elif event.kind == "exit":
            self._records[event.instance].pids.discard(event.pid)
            for pump in self._wishes.pumps_of(event.instance):  # its last lines come before the news of its end
                pump.log.reopen()  # the next run may have begun to print
                self._pump(pump)
        self._has_told = True
        if self._on_event:
            try:
                with self.adopted.callers_turn():
                    self._on_event(event)
            except Exception:
                _logger.exception("on_event raised an exception; the supervising goes on")

    def _end_events(self) -> None:
        if self._has_told and self._after_events:
            self._after_events()
        self._has_told = False

    def _end_what_is_left(self) -> None:
        """End what a worker that was killed has left."""
        if self._wishes.drop_trials():  # told before the exits, which the old settings judge
            self._tell(Event(-1, "reload-failed", 0, None, time.time()))
        mains = {pid for record in self._records for pid in record.pids}
        self.adopted.end_left(self._wishes.settings.mark, mains)
        marks.end_all_of(self._wishes.settings.mark)  # what could not come here: nothing else has these marks
        for index, known in enumerate(self._records):
            known.before = known.starts
            for pid in sorted(known.pids):
                known.exitcode = -signal.SIGKILL
                self._tell(Event(index, "exit", pid, -signal.SIGKILL, time.time()))
        for pump in self._pumps.values():
            pump.pump()
        self._end_events()

    def _pause(self, seconds: float) -> None:
        """Wait, unless a signal orders to stop."""
        end = time.monotonic() + seconds
        poller = poll()
        if self.bell:
            poller.register(self.bell[0], select.POLLIN)
        while not self._order and (left := end - time.monotonic()) > 0:
            poller.poll(left * 1000)
            self._hear_bell()
            self._obey()
        self._obey()

    def _summary(self) -> Summary:
        wanted = self._records[: self._wishes.settings.instances]
        good = all(record.state in {"exited", "stopped"} for record in wanted)
        records = (InstanceRecord(i, r.starts, r.exitcode, r.state) for i, r in enumerate(wanted))
        return Summary(exitcode=0 if good else 1, instances=tuple(records))


def _end_worker(worker: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(worker, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):  # somebody else reaped it
        os.waitid(os.P_PIDFD, worker, os.WEXITED)


@contextlib.contextmanager
def recorded_signals(guardian: Guardian) -> Iterator[None]:
    """Have signals recorded, and put everything back in the end."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    with contextlib.ExitStack() as stack:
        bell = socketpair(socket.SOCK_STREAM)
        for end in bell:
            stack.enter_context(end)
            end.setblocking(False)
        guardian.bell = bell
        stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(bell[1].fileno(), warn_on_full_buffer=False))
        for number in numbers:
            guardian.before[number] = before = signal.signal(number, guardian.record_signal)
            stack.callback(signal.signal, number, signal.SIG_DFL if before is None else before)
        mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
        stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, mask)
        chld = get_handler(signal.SIGCHLD)
        if chld in {signal.SIG_IGN, signal.SIG_DFL}:  # ignored, the kernel would reap the worker, and what it left
            stack.enter_context(c_handler_kept(signal.SIGCHLD))  # that of gevent, which Python does not know of
            stack.callback(set_handler, signal.SIGCHLD, chld)
            set_handler(signal.SIGCHLD, lambda *_: None)  # which rings the bell
        guardian.adopted.begin()
        stack.callback(guardian.adopted.finish)
        yield
