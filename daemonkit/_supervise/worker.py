"""The worker process of `supervise`: one loop that carries out what `policy` decides.

It leads a session of its own and is a child subreaper: whatever its instances leave behind becomes its child, so
that nothing is lost sight of (`strays`). A run's processes carry a mark that can be read from outside (`marks`).
"""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import os
import select
import signal
import socket
import time
from _pickle import load  # pickle itself takes 400 KB in each process
from collections import deque

from daemonkit._supervise.checks import Checks
from daemonkit._supervise.describe import describe, describe_left, is_wished
from daemonkit._supervise.memory import memory_of
from daemonkit._supervise.notify_sockets import NotifySockets
from daemonkit._supervise.outbox import Outbox
from daemonkit._supervise.policy import Emit, Instance, Kill, Run, Start, Stop
from daemonkit._supervise.ports import listening_ports, sockets_of
from daemonkit._supervise.run import become, become_check
from daemonkit._supervise.strays import Strays
from daemonkit._system.descriptors import close_all
from daemonkit._system.fork import fork_child, fork_to_exec
from daemonkit._system.prctl import become_subreaper
from daemonkit._system.process import start_of
from daemonkit._system.record import field, record, replace
from daemonkit._system.run_mark import WORKER, put_mark
from daemonkit._system.signals import ALL_SIGNALS
from daemonkit._system.sockets import socketpair
from daemonkit._system.unpatched import close, epoll, set_handler

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Final, NoReturn

    from daemonkit._supervise.checks import Check
    from daemonkit._supervise.policy import Action, State
    from daemonkit._supervise.records import Kind
    from daemonkit._supervise.settings import Settings

_MEMORY_EVERY: Final = 5.0  # seconds
_COMMANDS: Final = 16  # bytes
_FDS: Final = 253  # unix(7)
_GARBAGE: Final = 100_000  # objects
_ORDERS: Final = frozenset(
    {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
)
"""Signals that people and service managers send to whole groups of processes, so to the worker too."""


@record
class Worker:
    """The loop."""

    settings: Settings
    control: socket.socket
    guardian: int
    """A pidfd of the calling process."""
    instances: list[Instance]
    next_mark: int
    epoll: select.epoll = field(default_factory=epoll)
    mains: dict[int, Run] = field(default_factory=dict)
    """Runs by the pid of their main process, until that is reaped."""
    ending: dict[int, Run] = field(default_factory=dict)
    """Runs by number whose main process is gone, until nothing of them is left."""
    runs: dict[int, Run] = field(default_factory=dict)
    """All runs by number."""
    queue: deque[Instance] = field(default_factory=deque)
    """Instances that wait for their turn in a rolling restart."""
    rolling: Instance | None = None
    fallback: Settings | None = None
    """The settings that are in force, while others are on trial."""
    serial: int = 0
    """Of the settings on trial; 0: there are none."""
    trial_failed: bool = False
    coming: set[Instance] = field(default_factory=set)
    """Instances that the settings on trial have started, beside those that are replaced."""
    leaving: set[Instance] = field(default_factory=set)
    """Instances that are stopped as there are to be fewer."""
    stopping: bool = False
    """Whether all are to be stopped."""
    received: list[int] = field(default_factory=list)
    """Descriptors for settings that are to come."""
    settings_of: dict[int, Settings] = field(default_factory=dict)
    """Of each run, by its number."""
    watched: int = select.EPOLLIN
    """What the control socket is watched for."""
    guardian_is_gone: bool = False
    memory_at: float = math.inf
    too_big: set[Instance] = field(default_factory=set)
    """Instances above max_memory, which wait to be replaced."""
    pid: int = field(default_factory=os.getpid)
    bell: tuple[socket.socket, socket.socket] = field(default_factory=lambda: socketpair(socket.SOCK_STREAM))
    """Rung by signals: SIGCHLD."""
    known_states: dict[int, tuple[State, int, int | None]] = field(default_factory=dict)
    """By instance: the state, starts and exit status that the guardian knows of."""
    changed: dict[Instance, None] = field(default_factory=dict)
    """Those that something has happened to. Only they are looked at, or a round would cost more with each instance."""
    due: dict[Instance, float] = field(default_factory=dict)
    """When an instance is to be looked at, if ever."""
    undone: set[Instance] = field(default_factory=set)
    """Those of which something is left, or is to come."""

    def __post_init__(self) -> None:
        """Make the parts."""
        self.changed = dict.fromkeys(self.instances)
        self.undone = {instance for instance in self.instances if not instance.done}
        self.outbox = Outbox(self.control)
        self.notify = NotifySockets(self.epoll, self.settings.mark)
        self.checks = Checks(self.epoll, self._fork_check, self._checked, self._may_listen)
        self.strays = Strays(self.settings.mark, self.runs, self.mains, self.checks.by_pid)

    # --- the loop ---------------------------------------------------------------------------------------------------

    def work(self) -> NoReturn:
        """Supervise until nothing is left to run; end this process."""
        os.setsid()
        become_subreaper()
        for number in range(3):
            os.set_inheritable(number, True)
        self._set_up_signals()
        # Or each garbage collection would copy memory that is shared with the caller or an instance, by writing to it.
        # What is made here is in no circles.
        gc.freeze()
        if self.settings.target is None:  # a callable has the caller's threshold
            gc.set_threshold(_GARBAGE)
        self.epoll.register(self.control.fileno(), select.EPOLLIN)
        self.epoll.register(self.guardian, select.EPOLLIN)
        if self.settings.max_memory is not None:
            self.memory_at = time.monotonic() + _MEMORY_EVERY
        for instance in self.instances:
            if instance.state == "backoff":
                self._do(instance, instance.begin())
        while self.strays or self.checks.by_pid or self.undone:
            self._note_changes()
            self._send()
            self._wait()
        if self.guardian_is_gone:
            self.settings.plumbing.drain(self.settings.umask, self.settings.owner)
        self._note_changes()
        self.outbox.say(("done",))
        self.outbox.send_all()
        with contextlib.suppress(OSError):
            # The guardian shuts its end down once it is no subreaper any more: what was set free does not come to it.
            while self.control.recv(_COMMANDS):
                pass
        os._exit(0)

    def _set_up_signals(self) -> None:
        for number in ALL_SIGNALS - {signal.SIGKILL, signal.SIGSTOP}:
            set_handler(number, signal.SIG_DFL)  # instances inherit this
        for end in self.bell:
            end.setblocking(False)
        signal.set_wakeup_fd(self.bell[1].fileno(), warn_on_full_buffer=False)
        set_handler(signal.SIGCHLD, lambda *_: None)
        # The calling process gets these signals too, and its orders are what counts here. They are blocked rather than
        # handled: one that reaches an instance between fork and exec then waits for the exec. No more of them are:
        # pthread_sigmask() returns the old mask as names, and for all signals that would double the time of a start.
        signal.pthread_sigmask(signal.SIG_SETMASK, {*_ORDERS, self.settings.stop_signal} - {signal.SIGCHLD})
        self.epoll.register(self.bell[0].fileno(), select.EPOLLIN)

    def _wait(self) -> None:
        self.strays.is_current = False
        now = time.monotonic()
        due = min(min(self.due.values(), default=math.inf), self.memory_at, self.checks.next_time())
        timeout = None if due == math.inf else max(min(due - now, 3600.0) + 0.0005, 0)
        # What was sent in time is read before anything counts as late. After SIGSTOP and SIGCONT the first poll ends
        # with its time without having looked, so there is a second one.
        events = self.epoll.poll(timeout) or self.epoll.poll(0)
        # The calling process's end comes first: nothing is started again after that.
        for fd, _ in sorted(events, key=lambda event: event[0] != self.guardian):
            self._dispatch(fd)
        self._note_changes()
        now = time.monotonic()
        for instance in [one for one, due in self.due.items() if due <= now]:
            self._do(instance, instance.tick(now))
        self.checks.tick(now)
        if now >= self.memory_at:
            self.memory_at = now + _MEMORY_EVERY
            self._weigh()
        self._roll()
        self._judge()
        if self.leaving:
            self._fill()

    def _dispatch(self, fd: int) -> None:
        if fd == self.control.fileno():
            self._command()
        elif fd == self.guardian:
            self.epoll.unregister(fd)
            self.outbox.clear()
            self.guardian_is_gone = self.stopping = True
            for instance in self.instances:
                self._do(instance, instance.kill())
        elif fd == self.bell[0].fileno():
            with contextlib.suppress(BlockingIOError):
                while self.bell[0].recv(4096):
                    pass
            self._reap()
        elif run := self.notify.run_at(fd):
            self._read_notify(run)
        else:
            self.checks.take_event(fd)

    def _command(self) -> None:
        try:
            message, fds, _, _ = socket.recv_fds(self.control, _COMMANDS, _FDS)
        except BlockingIOError:  # there is room for what is to be said
            return
        except OSError:
            message, fds = b"", []
        if fds:
            self._take(message, fds)
            return
        match message:
            case b"stop":
                self.queue.clear()
                self.stopping = True
                now = time.monotonic()
                for instance in self.instances:
                    self._do(instance, instance.stop(now))
            case b"kill":
                self.stopping = True
                for instance in self.instances:
                    self._do(instance, instance.kill())
            case b"reload":
                self.queue = deque(self.instances)
            case _ if not message and self.control.fileno() >= 0:
                self.epoll.unregister(self.control.fileno())  # the guardian is gone, and its pidfd says so too

    # --- other settings ---------------------------------------------------------------------------------------------

    def _take(self, message: bytes, fds: list[int]) -> None:
        """Take what the guardian hands over: its streams, descriptors that settings speak of, settings."""
        match message:
            case b"streams":
                for number, fd in enumerate(fds, 1):
                    os.dup2(fd, number)
                    close(fd)
            case b"descriptors":
                for fd in fds:
                    os.set_inheritable(fd, False)
                self.received += fds
            case b"settings":
                with open(fds[0], "rb") as file:
                    file.seek(0)
                    serial, only_scale, numbers, settings = load(file)
                received, self.received = dict(zip(numbers, self.received, strict=True)), []
                self._try(serial, settings.moved(received), only_scale=only_scale)

    def _try(self, serial: int, settings: Settings, *, only_scale: bool) -> None:
        """Roll in other settings. They are on trial until all that starts for them is up."""
        settings = replace(settings, target=self.settings.target if not settings.argv else None)
        if self.serial:  # those on trial are superseded
            self.outbox.say(("settled", self.serial, False))
            close_all(set(self.settings.descriptors()) - set(settings.descriptors()))
        else:
            self.fallback = self.settings
        self.serial, self.trial_failed = serial, False
        self._go_by(settings)
        if not only_scale:
            self.queue = deque(one for one in self.instances if one.index < settings.instances)
            self.coming = set()
        self._fill()

    def _fill(self) -> None:
        """Begin the instances that are wanted and not there; one that is leaving has to end first."""
        if self.stopping:
            return
        self.instances = [one for one in self.instances if one not in self.leaving or not one.done]
        self.leaving &= set(self.instances)
        there = {one.index for one in self.instances}
        for index in range(self.settings.instances):
            if index not in there:
                instance = Instance(index, self.settings.rules)
                self.instances.append(instance)
                if self.serial:
                    self.coming.add(instance)
                self._do(instance, instance.begin())

    def _go_by(self, settings: Settings) -> None:
        self.settings = settings
        for instance in self.instances:
            instance.rules = settings.rules
            self.changed[instance] = None
        if settings.max_memory is None:
            self.memory_at = math.inf
        elif self.memory_at == math.inf:
            self.memory_at = time.monotonic() + _MEMORY_EVERY
        signal.pthread_sigmask(signal.SIG_BLOCK, {settings.stop_signal} - {signal.SIGCHLD})

    def _judge(self) -> None:
        """Put the settings on trial in force, once all are up; or go back to the old ones."""
        if not self.serial or not self.fallback:
            return
        if self.trial_failed:
            self._end_trial(good=False)
            before = self.settings
            self._go_by(self.fallback)
            self.queue = deque(one for one in self.instances if not self._is_of_old(one))
        elif self._all_have_come():
            self._end_trial(good=True)
            before = self.fallback
        else:
            return
        self.fallback = None
        close_all(set(before.descriptors()) - set(self.settings.descriptors()))
        now = time.monotonic()
        for instance in self.instances:
            if instance.index >= self.settings.instances and instance not in self.leaving:
                self.leaving.add(instance)
                self._do(instance, instance.stop(now))
        self._roll()

    def _is_of_old(self, instance: Instance) -> bool:
        """Tell whether an instance runs by the settings in force, or does not run."""
        return instance.current is None or self.settings_of.get(instance.current.number) is self.settings

    def _end_trial(self, *, good: bool) -> None:
        self.outbox.say(("settled", self.serial, good))
        self.serial, self.trial_failed, self.coming = 0, False, set()

    def _all_have_come(self) -> bool:
        """Tell whether all that the settings on trial start is up."""
        if self.queue or (self.rolling and self.rolling.spare):
            return False
        return all(one.done or (one.current and one.current.up) for one in self.coming)

    # --- carrying it out --------------------------------------------------------------------------------------------

    def _do(self, of: Instance, actions: Iterable[Action]) -> None:
        self.changed[of] = None
        for action in actions:
            match action:
                case Start(instance):
                    self._start(instance)
                case Stop(run):
                    self._stop(run)
                case Kill(run):
                    self.strays.kill(run)
                case Emit(kind, run):
                    self._emit(kind, run)
        if of.done:
            self.undone.discard(of)
        else:
            self.undone.add(of)

    def _stop(self, run: Run) -> None:
        settings = self.settings_of[run.number]
        if settings.rules.kill_mode == "main":
            self.strays.stop_main(run, settings.stop_signal)
            return
        if not self.strays.is_current:
            self._look_after_strays()
        self.strays.stop(run, settings.stop_signal)

    def _start(self, instance: Instance) -> None:
        number = self.next_mark
        self.next_mark += 1
        self.outbox.say(("starting", instance.index))
        self.outbox.send()  # it is there before anything that the run prints
        with contextlib.ExitStack() as undo:
            try:
                notify = self._open_notify()
                if notify:
                    undo.enter_context(notify)
                # This process has the mark while it forks, so the child has it from its first moment on.
                put_mark(self.settings.mark + number)
                settings, index, address = self.settings, instance.index, notify.getsockname() if notify else b""
                if settings.target:
                    pid = fork_child(lambda: become(settings, index, address, self.pid, self._own_descriptors(notify)))
                else:  # an exec closes them
                    pid = fork_to_exec(lambda: become(settings, index, address, self.pid, ()))
                put_mark(self.settings.mark + WORKER)
            except OSError as error:
                self._start_failed(instance, number, error)
                return
            undo.pop_all()
        run = Run(instance, number, pid, time.monotonic())
        self.mains[pid] = self.runs[number] = run
        self.settings_of[number] = self.settings
        if notify:
            self.notify.add(notify, run)
        instance.started(run)
        self._emit("start", run)
        if self.settings.checks:
            if self.settings.rules.ready_check:
                self.checks.add(run, "ready_check")
            if self.settings.rules.ready_tcp:
                self.checks.add(run, "ready_tcp", addresses=self.settings.checks.addresses)

    def _open_notify(self) -> socket.socket | None:
        rules = self.settings.rules
        return self.notify.open() if rules.wait_ready or rules.watchdog is not None else None

    def _start_failed(self, instance: Instance, number: int, error: OSError) -> None:
        """Count it as a run that failed, so that the next start is delayed."""
        run = Run(instance, number, 0, time.monotonic(), killed=True, reason="not started")
        instance.started(run)
        run.exitcode = 1
        self._log(logging.ERROR, f"instance {instance.index} could not be started: {error}")
        self._do(instance, instance.emptied(run, time.monotonic()))

    def _own_descriptors(self, notify: socket.socket | None) -> set[int]:
        """Return what is open for this process alone."""
        own = {self.epoll.fileno(), self.guardian, *self.notify.descriptors(), *self.checks.descriptors()}
        own |= self.settings.plumbing.descriptors()
        return own | {end.fileno() for end in (self.control, *self.bell, notify) if end}

    def _fork_check(self, check: Check, output: int) -> int:
        number = self.next_mark
        self.next_mark += 1
        settings = self.settings_of[check.run.number]
        put_mark(settings.mark + number)
        try:
            return fork_to_exec(lambda: become_check(settings, check.run.instance.index, check.kind, output, self.pid))
        finally:
            put_mark(settings.mark + WORKER)

    def _checked(self, check: Check, good: bool) -> None:  # noqa: FBT001 - a callback's result
        run, now = check.run, time.monotonic()
        if check.kind == "health_check":
            actions = run.instance.checked(run, now, good=good)
            if actions and check.printed:
                self._log(logging.WARNING, f"health_check of instance {run.instance.index}: {check.last_words()}")
            self._do(run.instance, actions)
        elif good:
            self._do(run.instance, run.instance.ready(run, now, check.kind))

    def _may_listen(self, run: Run, port: int) -> bool:
        """Tell whether this run may be the one that listens on a port: not if only another one is seen to do so."""
        there = {inode for inode, where in listening_ports().items() if where == port}
        if not there or len(self.runs) == 1 or there & sockets_of(self.strays.family_of(run)):
            return True
        others = [other for other in self.runs.values() if other is not run]
        return not any(there & sockets_of(self.strays.family_of(other)) for other in others)

    def _read_notify(self, run: Run) -> None:
        main = run.pid if run.pid in self.mains else None
        for line in self.notify.read(run, self.settings.owner, main):
            now = time.monotonic()
            if line == b"READY=1":
                self._do(run.instance, run.instance.ready(run, now))
            elif line == b"WATCHDOG=1":
                run.instance.heartbeat(run, now)
                self.changed[run.instance] = None

    # --- what has ended ---------------------------------------------------------------------------------------------

    def _reap(self) -> None:
        """Take note of what has ended, and end what has lost its run."""
        with contextlib.suppress(ChildProcessError):
            while zombie := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                self._bury(zombie)
        self._look_after_strays()
        now = time.monotonic()
        left = set(self.strays.run_of_stray.values())
        for number, run in list(self.ending.items()):
            if number not in left:
                del self.ending[number]
                del self.runs[number], self.settings_of[number]
                self.notify.close(run)
                self._do(run.instance, run.instance.emptied(run, now))
        if self.strays and not self.undone:
            self._look_after_strays()  # once more: now also those that could not be attributed to a run are killed

    def _bury(self, zombie: Any) -> None:  # noqa: ANN401 - waitid's result
        pid = zombie.si_pid
        code = zombie.si_status if zombie.si_code == os.CLD_EXITED else -zombie.si_status
        run = self.mains.get(pid)
        if run:
            self._read_notify(run)  # what was sent before it ended
            if code == 0 and not run.ending and (left := self._left_by(run)):
                self._log(logging.WARNING, describe_left(run, left))
            # Done before it is reaped: until then nobody else can get its number, which is also its group's.
            self._do(run.instance, run.instance.exited(run, code))
            self.checks.drop(run)
            del self.mains[pid]
            self.ending[run.number] = run
        elif pid in self.checks.by_pid:
            self.checks.ended(pid, code)
        self.strays.forget(pid)
        os.waitid(os.P_PID, pid, os.WEXITED)

    def _left_by(self, run: Run) -> int:
        """Count the processes that a run has left; look again while others come up, as one ends and its child comes."""
        before = alive = -1
        while True:
            self._look_after_strays()
            found = self.strays.of(run)  # those that have ended too: none is reaped meanwhile
            if len(found) == before:
                return alive
            before, alive = len(found), sum(start_of(pid) is not None for pid in found)

    def _look_after_strays(self) -> None:
        self.strays.look_up(all_done=not self.undone)

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
            self._do(instance, instance.replace(must_go=instance in self.too_big))
            self.too_big.discard(instance)
            if instance.starts > before and instance.replacing:
                self.rolling = instance
            elif instance.starts > before and self.serial:
                self.coming.add(instance)

    def _weigh(self) -> None:
        limit = self.settings.max_memory or 0
        self._look_after_strays()
        for instance in self.instances:
            run = instance.current
            busy = instance.replacing or instance in self.queue
            if run and run.up and not run.ending and not busy and memory_of(self.strays.family_of(run), limit) > limit:
                self._emit("memory", run)
                self.too_big.add(instance)
                self.queue.append(instance)

    # --- telling the guardian -----------------------------------------------------------------------------------------

    def _emit(self, kind: Kind, run: Run) -> None:
        ended_by_itself = not run.instance.stopping and run.reason != "replaced"
        if kind == "exit" and run.instance in self.coming and not run.up and ended_by_itself:
            self._emit("reload-failed", run)
        if kind == "reload-failed":
            self.queue.clear()
            self.trial_failed = True
            self._hint_at_ports(run.instance)
        elif kind == "ready" and self.settings.checks and self.settings.checks.health[1]:
            self.checks.add(run, "health_check", interval=self.settings.checks.health_interval)
        elif kind == "exit" and run.reason == "start-timeout" and (words := self.checks.last_words(run)):
            self._log(logging.WARNING, f"ready_check of instance {run.instance.index} printed at last: {words}")
        exitcode = run.exitcode if kind in {"exit", "gave-up", "reload-failed"} else None
        now, when = time.monotonic(), time.time()
        if kind == "start":  # the time of its birth: the time that it takes to become ready counts from then
            when -= now - run.born
        self.outbox.say(("event", kind, run.instance.index, run.pid, exitcode, when))
        self._log(logging.INFO if is_wished(kind, run) else logging.WARNING, describe(kind, run, now))

    def _hint_at_ports(self, instance: Instance) -> None:
        """Say what to do if the new run could not have the port that the old one listens on."""
        if not instance.current:
            return
        own = sockets_of(self.strays.family_of(instance.current)) - {os.fstat(fd).st_ino for fd in self.settings.listen}
        if ports := sorted({port for inode, port in listening_ports().items() if inode in own}):
            where = f"instance {instance.index} itself listens on port {', '.join(map(str, ports))}"
            hint = "use restart, or let the supervisor bind the port (--listen, listen=)"
            self._log(logging.WARNING, f"{where}: if its new run said 'Address already in use', {hint}")

    def _log(self, level: int, text: str) -> None:
        self.outbox.say(("log", level, text))

    def _note_changes(self) -> None:
        """Note when those that have changed are due, and tell the guardian of their states."""
        for instance in self.changed:
            due = instance.next_time()
            if due < math.inf:
                self.due[instance] = due
            else:
                self.due.pop(instance, None)
            state = (instance.state, instance.starts, instance.exitcode)
            if state != self.known_states.get(instance.index):
                self.known_states[instance.index] = state
                self.outbox.say(("state", instance.index, *state))
        self.changed.clear()

    def _send(self) -> None:
        self.outbox.send()
        if self.outbox.events != self.watched:
            with contextlib.suppress(OSError):
                self.epoll.modify(self.control.fileno(), self.outbox.events)
            self.watched = self.outbox.events
