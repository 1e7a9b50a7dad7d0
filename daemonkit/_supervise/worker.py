"""The worker process of `supervise`: one loop that carries out what `_policy` decides.

It leads a session of its own and is a child subreaper: whatever its instances leave behind becomes its child, so
that nothing is lost sight of. A run's processes carry a mark that is inherited through fork and exec and can be read
from outside: a soft RLIMIT_RTTIME that no program sets, as the environment would be cleared by `env -i`. All that is
alive and has no other parent is a direct child here; killing those brings up the next, until nothing is left.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import marshal
import math
import os
import select
import signal
import socket
import struct
import time
from collections import deque
from dataclasses import dataclass, field

from daemonkit._supervise import marks
from daemonkit._supervise.policy import Instance, Run
from daemonkit._supervise.run import become
from daemonkit._system.fork import fork_child
from daemonkit._system.prctl import become_subreaper
from daemonkit._system.signals import ALL_SIGNALS, signal_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Final, NoReturn

    from daemonkit._supervise.policy import Action
    from daemonkit._supervise.settings import Settings

_MEMORY_EVERY: Final = 5.0  # seconds
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred of unix(7): pid, uid, gid
_COMMANDS: Final = 16
_ORDERS: Final = frozenset(
    {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
)
"""What people and service managers send to everything there is."""
_BATCH: Final = 128  # messages in one, far below what a socket takes at once


@dataclass
class Worker:
    """The loop."""

    settings: Settings
    control: socket.socket
    guardian: int
    """A pidfd of the calling process."""
    instances: list[Instance]
    next_mark: int
    epoll: select.epoll = field(default_factory=select.epoll)
    mains: dict[int, Run] = field(default_factory=dict)
    """Runs by the pid of their main process, until that is reaped."""
    ending: dict[int, Run] = field(default_factory=dict)
    """Runs by number whose main process is gone, until nothing of them is left."""
    runs: dict[int, Run] = field(default_factory=dict)
    """All runs by number."""
    notify: dict[int, tuple[socket.socket, Run]] = field(default_factory=dict)
    queue: deque[Instance] = field(default_factory=deque)
    """Instances that wait for their turn in a rolling restart."""
    rolling: Instance | None = None
    strays: dict[int, int | None] = field(default_factory=dict)
    """Marks of direct children that are no main process."""
    outbox: list[tuple[Any, ...]] = field(default_factory=list)
    wanted: int = select.EPOLLIN
    """What the control socket is watched for."""
    looked: bool = False
    """Whether the strays were looked up in this round of the loop."""
    memory_at: float = math.inf
    pid: int = field(default_factory=os.getpid)
    bell: tuple[socket.socket, socket.socket] = field(default_factory=socket.socketpair)
    """Rung by signals: SIGCHLD."""
    told: list[tuple[Any, ...]] = field(default_factory=list)
    """The states that the guardian knows of."""

    # --- the loop ---------------------------------------------------------------------------------------------------

    def work(self) -> NoReturn:
        """Supervise until nothing is left to run; end this process."""
        os.setsid()
        become_subreaper()
        for number in range(3):
            os.set_inheritable(number, True)
        self._set_up_signals()
        gc.freeze()  # or each collection would write to what is shared with the caller
        self.epoll.register(self.control.fileno(), select.EPOLLIN)
        self.epoll.register(self.guardian, select.EPOLLIN)
        if self.settings.max_memory is not None:
            self.memory_at = time.monotonic() + _MEMORY_EVERY
        for instance in self.instances:
            if instance.state == "backoff":
                self._do(instance.begin())
        while self.strays or not all(instance.done for instance in self.instances):
            self._send()
            self._wait()
        self._say(("done",))
        self.control.setblocking(True)
        self._send()
        os._exit(0)

    def _set_up_signals(self) -> None:
        for number in ALL_SIGNALS - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)  # instances inherit this
        for end in self.bell:
            end.setblocking(False)
        signal.set_wakeup_fd(self.bell[1].fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        # The calling process obeys, and says what to do: also where a whole group or everything is signalled. Blocked
        # and not handled, so that a stop that finds an instance between fork and exec is not lost; these and no more,
        # as each instance is told its old mask by names, which takes it as long as all the rest.
        signal.pthread_sigmask(signal.SIG_SETMASK, {*_ORDERS, self.settings.stop_signal} - {signal.SIGCHLD})
        self.epoll.register(self.bell[0].fileno(), select.EPOLLIN)

    def _wait(self) -> None:
        self.looked = False
        now = time.monotonic()
        due = min((instance.next_time() for instance in self.instances), default=math.inf)
        due = min(due, self.memory_at)
        timeout = None if due == math.inf else max(min(due - now, 3600.0) + 0.0005, 0)
        # What was sent in time is read before anything counts as late. A second look, as after SIGSTOP and SIGCONT the
        # first has ended without one.
        events = self.epoll.poll(timeout) or self.epoll.poll(0)
        # The calling process's end comes first: nothing is started again after that.
        for fd, _ in sorted(events, key=lambda event: event[0] != self.guardian):
            self._dispatch(fd)
        now = time.monotonic()
        for instance in self.instances:
            if instance.next_time() <= now:
                self._do(instance.tick(now))
        if now >= self.memory_at:
            self.memory_at = now + _MEMORY_EVERY
            self._weigh()
        self._roll()

    def _dispatch(self, fd: int) -> None:
        if fd == self.control.fileno():
            self._command()
        elif fd == self.guardian:
            self.epoll.unregister(fd)
            self.outbox.clear()
            for instance in self.instances:
                self._do(instance.kill())
        elif fd == self.bell[0].fileno():
            with contextlib.suppress(BlockingIOError):
                while self.bell[0].recv(4096):
                    pass
            self._reap()
        elif fd in self.notify:
            self._hear(*self.notify[fd])

    def _command(self) -> None:
        try:
            message, fds, _, _ = socket.recv_fds(self.control, _COMMANDS, 2)
        except BlockingIOError:  # there is room for what is to be said
            return
        except OSError:
            message, fds = b"", []
        for number, fd in enumerate(fds, 1):
            os.dup2(fd, number)
            os.close(fd)
        now = time.monotonic()
        if message == b"stop":
            self.queue.clear()
            for instance in self.instances:
                self._do(instance.stop(now))
        elif message == b"kill":
            for instance in self.instances:
                self._do(instance.kill())
        elif message == b"reload":
            self.queue = deque(self.instances)
        elif not message and self.control.fileno() >= 0:
            self.epoll.unregister(self.control.fileno())  # the guardian is gone, and its pidfd says so too

    # --- carrying it out --------------------------------------------------------------------------------------------

    def _do(self, actions: Iterable[Action]) -> None:
        for verb, *what in actions:
            match verb:
                case "start":
                    self._start(*what)
                case "stop":
                    self._stop(*what)
                case "kill":
                    self._kill(*what)
                case "emit":
                    self._emit(*what)

    def _start(self, instance: Instance) -> None:
        number = self.next_mark
        self.next_mark += 1
        notify = None
        try:
            notify = self._notify_socket()
            # Put on this process, it is there from the fork on: there is no moment at which nobody knows whose it is.
            marks.put(self.settings.mark + number)
            pid = fork_child(lambda: self._become(instance.index, notify))
        except OSError as error:
            if notify:
                notify.close()
            # As a run that failed: the next one is backed off from.
            run = Run(instance, number, 0, time.monotonic(), stop_by=math.inf, reason="not started")
            instance.started(run)
            run.exitcode = 1
            self._say(("log", logging.ERROR, f"instance {instance.index} could not be started: {error}"))
            self._do(instance.emptied(run, time.monotonic()))
            return
        run = Run(instance, number, pid, time.monotonic())
        self.mains[pid] = self.runs[number] = run
        if notify:
            self.notify[notify.fileno()] = notify, run
            self.epoll.register(notify.fileno(), select.EPOLLIN)
        instance.started(run)
        self._emit("start", run)

    def _become(self, index: int, notify: socket.socket | None) -> NoReturn:
        own: set[int] = set()
        if self.settings.target:  # an exec closes them
            own = {self.epoll.fileno(), self.guardian, *self.settings.pipes.values(), *self.notify}
            own |= {end.fileno() for end in (self.control, *self.bell, notify) if end}
            own |= {stream.fd for stream in self.settings.streams if stream.fd is not None and stream.fd > 2}
        become(self.settings, index, notify.getsockname() if notify else b"", self.pid, own)

    def _notify_socket(self) -> socket.socket | None:
        rules = self.settings.rules
        if not rules.wait_ready and rules.watchdog is None:
            return None
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        notify.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        notify.bind("")  # the kernel chooses a name in the abstract namespace: unix(7)
        return notify

    def _hear(self, notify: socket.socket, run: Run) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                text, ancillary, _, _ = notify.recvmsg(4096, socket.CMSG_SPACE(_CREDENTIALS.size))
                if not self._is_trusted(ancillary, run):
                    continue
                now = time.monotonic()
                for line in text.split(b"\n"):
                    if line == b"READY=1":
                        self._do(run.instance.ready(run, now))
                    elif line == b"WATCHDOG=1":
                        run.instance.fed(run, now)

    def _is_trusted(self, ancillary: list[tuple[int, int, bytes]], run: Run) -> bool:
        """Anybody can reach an abstract socket: the instance's user and root are listened to, and its processes."""
        owner = self.settings.owner
        ours = {0, os.getuid(), owner.uid if owner else os.getuid()}
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                pid, uid, _ = _CREDENTIALS.unpack(data[: _CREDENTIALS.size])
                return uid in ours or uid == self._user_of(run) or marks.run_of(pid, self.settings.mark) == run.number
        return False

    def _user_of(self, run: Run) -> int | None:
        """Return who the main process has become: one that it started to say something may be gone by now."""
        with contextlib.suppress(OSError):  # hidden by /proc (hidepid)
            return os.stat(f"/proc/{run.pid}").st_uid if run.pid in self.mains else None
        return None

    def _stop(self, run: Run) -> None:
        """Ask all that belongs to the run: its process group, and what has left that."""
        number = self.settings.stop_signal
        if not self.looked:  # an orphan comes to this process without a signal
            self._look_after_strays()
        roots = [pid for pid, mark in self.strays.items() if mark == run.number]
        group = run.pid if run.pid in self.mains else None
        if group:
            roots.append(group)
        others = {one for root in roots for one in (root, *marks.descendants_of(root))}
        if group:
            _signal_group(group, number)
        for pid in others:
            marks.signal_run(pid, number, self.settings.mark + run.number, group)

    def _kill(self, run: Run) -> None:
        if run.pid in self.mains:
            _signal_group(run.pid, signal.SIGKILL)
        for pid, mark in self.strays.items():
            if mark == run.number:
                _signal_child(pid, signal.SIGKILL)

    # --- what has ended ---------------------------------------------------------------------------------------------

    def _reap(self) -> None:
        """Take note of what has ended, and end what has lost its run."""
        with contextlib.suppress(ChildProcessError):
            while zombie := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                self._bury(zombie)
        self._look_after_strays()
        now = time.monotonic()
        left = set(self.strays.values())
        for number, run in list(self.ending.items()):
            if number not in left:
                del self.ending[number]
                self._forget(run)
                self._do(run.instance.emptied(run, now))
        if self.strays and all(instance.done for instance in self.instances):
            self._look_after_strays()  # once more: those that nobody could attribute

    def _bury(self, zombie: Any) -> None:  # noqa: ANN401 - waitid's result
        pid = zombie.si_pid
        code = zombie.si_status if zombie.si_code == os.CLD_EXITED else -zombie.si_status
        run = self.mains.get(pid)
        if run:
            for notify, of in tuple(self.notify.values()):
                if of is run:
                    self._hear(notify, run)  # what it has said before it ended
            # Before it is reaped: until then its number is the group's, and nobody else's.
            self._do(run.instance.exited(run, code))
            del self.mains[pid]
            self.ending[run.number] = run
        self.strays.pop(pid, None)
        os.waitid(os.P_PID, pid, os.WEXITED)

    def _look_after_strays(self) -> None:
        """Learn whose the direct children are that are no main process; kill those whose run is over."""
        self.looked = True
        own = set(marks.children_of("self")) - self.mains.keys()
        self.strays = {pid: self.strays[pid] if pid in self.strays else self._number_of(pid) for pid in own}
        over = all(instance.done for instance in self.instances)
        for pid, number in self.strays.items():
            run = self.runs.get(number) if number is not None else None
            # One that nobody can attribute lives as long as any instance does.
            if over or (run and run.stop_by == math.inf) or (number is not None and run is None):
                _signal_child(pid, signal.SIGKILL)

    def _number_of(self, pid: int) -> int | None:
        """Return the number of the run that a process belongs to, by its mark, its session, or it alone is there."""
        number = marks.run_of(pid, self.settings.mark)
        if number is not None:
            return number
        with contextlib.suppress(ProcessLookupError):
            session = os.getsid(pid)
            number = next((run.number for run in self.runs.values() if run.pid == session), None)
        if number is None and len(self.runs) == 1:  # it has cleared its mark, or could not be given one
            return next(iter(self.runs))
        return number

    def _forget(self, run: Run) -> None:
        self.runs.pop(run.number, None)
        for fd, (notify, of) in list(self.notify.items()):
            if of is run:
                self.epoll.unregister(fd)
                notify.close()
                del self.notify[fd]

    # --- rolling restarts, memory -------------------------------------------------------------------------------------

    def _roll(self) -> None:
        """Replace one instance at a time."""
        while self.queue or self.rolling:
            if self.rolling:
                if self.rolling.replacing:
                    return
                self.rolling = None
                continue
            instance = self.queue.popleft()
            before = instance.starts
            self._do(instance.replace())
            if instance.starts > before and instance.replacing:
                self.rolling = instance

    def _weigh(self) -> None:
        self._look_after_strays()
        for instance in self.instances:
            run = instance.current
            if run and run.up and not instance.replacing and run.stop_by is None and instance not in self.queue:
                below = {*self.strays, *marks.descendants_of(run.pid)}
                group = [run.pid, *(pid for pid in below if marks.group_of(pid) == run.pid)]
                if sum(map(_resident, group)) > (self.settings.max_memory or 0):
                    self._emit("memory", run)
                    self.queue.append(instance)

    # --- telling the guardian -----------------------------------------------------------------------------------------

    def _emit(self, kind: str, run: Run) -> None:
        instance = run.instance
        if kind == "reload-failed":
            self.queue.clear()
        exitcode = run.exitcode if kind in {"exit", "gave-up", "reload-failed"} else None
        when = time.time()
        if kind == "start":  # its birth, which its time to become ready is counted from
            when -= time.monotonic() - run.born
        self._say((kind, instance.index, run.pid, exitcode, when))
        wished = kind in {"start", "ready"} or (
            kind == "exit" and (run.reason in {"stop", "replaced"} or exitcode in instance.rules.success_codes)
        )
        text = f"instance {instance.index} (pid {run.pid}) {_told(kind, run, time.monotonic())}"
        self._say(("log", logging.INFO if wished else logging.WARNING, text))

    def _say(self, message: tuple[Any, ...]) -> None:
        self.outbox.append(message)

    def _send(self) -> None:
        """Send what there is to say, and how the instances are; never wait for a guardian that is busy."""
        for index, instance in enumerate(self.instances):
            state = (instance.state, instance.starts, instance.exitcode)
            if state != self.told[index]:
                self.told[index] = state
                self._say(("state", index, *state))
        try:
            while self.outbox:
                self.control.send(marshal.dumps(self.outbox[:_BATCH]), socket.MSG_NOSIGNAL)
                del self.outbox[:_BATCH]
        except BlockingIOError:
            wanted = select.EPOLLIN | select.EPOLLOUT
        except OSError:
            self.outbox.clear()
            return
        else:
            wanted = select.EPOLLIN
        if wanted != self.wanted:
            with contextlib.suppress(OSError):
                self.epoll.modify(self.control.fileno(), wanted)
            self.wanted = wanted


# --- in words -----------------------------------------------------------------------------------------------------

_TOLD: Final = {
    "ready": "is up",
    "memory": "uses more memory than it may, so it is replaced",
    "reload-failed": "did not come up, so the old run stays, and the rolling restart ends",
}
_CAUSES: Final = {"start-timeout": ", as it was not up in time,", "watchdog": ", as its watchdog was silent,"}


def _ending(run: Run) -> str:
    code = run.exitcode or 0
    how = f"ended with status {code}" if code >= 0 else f"was ended by {signal_name(-code)}"
    return how + _CAUSES.get(run.reason or "", "")


def _told(kind: str, run: Run, now: float) -> str:
    """Put an event into words: what, why, and what comes next."""
    instance = run.instance
    match kind:
        case "exit":
            return f"{_ending(run)} after {now - run.born:.1f} s; {instance.outlook(run, now)}"
        case "start":
            return f"has started (start {instance.starts})"
        case "watchdog":
            return f"has not sent WATCHDOG=1 for {instance.rules.watchdog:g} s, so it is killed"
        case "gave-up":
            return f"was the last run: {instance.rules.max_restarts} restarts in a row are allowed, so it is given up"
        case _:
            return _TOLD[kind]


# --- in /proc -----------------------------------------------------------------------------------------------------


def _signal_group(leader: int, number: int) -> None:
    """Signal a child's group; not reaped, it keeps the number. One that was forked just now leads none yet."""
    try:
        os.killpg(leader, number)
    except ProcessLookupError:
        _signal_child(leader, number)
    except PermissionError:  # it became somebody else, as sudo does: it ends when it likes
        pass


def _signal_child(pid: int, number: int) -> None:
    """Signal a child, which nobody else reaps."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _resident(pid: int) -> int:
    """Return a process's resident memory in bytes."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except OSError:
        return 0
