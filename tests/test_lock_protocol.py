"""The pidfile's lock protocol, one system call at a time, in an order that Hypothesis draws.

Contenders are threads that play processes: each has a pid, a start time, descriptors, record locks and holds of its
own, and stops before every system call until the scheduler lets it go on. Files and open file description locks are
the kernel's own. What is played is what one process can't have twice: identities, record locks, forks and deaths.
After every call the promises are checked from outside. The planted bugs at the end prove that a broken protocol is
found by the same means.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import errno
import fcntl
import functools
import os
import struct
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from daemonkit import AlreadyRunningError, PidFile
from daemonkit._pidfile import hold as hold_module
from daemonkit._pidfile import holder as holder_module
from daemonkit._pidfile import ranges
from daemonkit._system.process import Identity, namespace_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# More schedules, and other ones each time: DAEMONKIT_SCHEDULES=20000.
SCHEDULES: Final = int(os.environ.get("DAEMONKIT_SCHEDULES", "0"))
HANG: Final = 20.0  # seconds for one system call: a contender that takes longer is stuck where no scheduler helps
LONGEST: Final = 3000  # system calls in one run; a protocol that gets anywhere needs some hundred
CALLS: Final = frozenset({
    "open", "close", "link", "unlink", "rename", "stat", "lstat", "fstat", "read", "write", "pread", "pwrite",
    "ftruncate", "fchmod",
})  # fmt: skip
FLOCK: Final = struct.Struct("hhqqi")
UNTIL_IT_HOLDS: Final = 0  # as a number of system calls
AFTER_ITS_FORK: Final = -1  # as a moment to be killed
HOLDER_RANGE: Final = 1 << 22  # offsets from here on are the holder's, for life
HERE: Final = (1 << 62) + 5 + (namespace_id() << 3)  # ... to here, by a holder of these namespaces
DEAD: Final = Identity(4000, 3)
FOREIGN: Final = Identity(4100, 4)


class BrokenPromiseError(AssertionError):
    """The protocol broke a promise."""


class Died(BaseException):
    """Unwinds the thread of a contender that was killed; not an Exception, so that nothing handles it."""


# --- what Hypothesis draws ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """What one contender does, and after how many of its own system calls it is killed."""

    kind: str = "starter"
    dies: int | None = None
    orphan: bool = False
    """Whether a descendant of it, made without any of our hooks, keeps its lock open for ever."""
    daemon_dies: int | None = None
    daemon_pid: int = 9


@dataclass(frozen=True)
class Scenario:
    """One run: the file before it, the parts, and who makes how many system calls in which order."""

    before: str
    parts: tuple[Part, ...]
    switches: tuple[tuple[int, int], ...]
    unnamed: bool = True
    """Whether the file system has O_TMPFILE."""


BEFORE: Final = ("stale", "none", "empty", "rubbish", "orphan", "namesake", "recycled", "foreign")
PIDS: Final = (7, 70001, 500, 31999)


def parts(*kinds: str) -> st.SearchStrategy[Part]:
    deaths = st.none() | st.integers(0, 45) | st.just(AFTER_ITS_FORK)
    return st.builds(
        Part,
        kind=st.sampled_from(kinds),
        dies=deaths,
        orphan=st.booleans(),
        daemon_dies=st.none() | st.integers(0, 14),
        daemon_pid=st.sampled_from((9, 123456)),
    )


def scenarios(
    *first: str,
    others: tuple[str, ...],
    before: tuple[str, ...] = BEFORE,
    overtaken: st.SearchStrategy[tuple[tuple[int, int], ...]],
) -> st.SearchStrategy[Scenario]:
    """Draw runs whose first contender is of one of the kinds `first`."""
    lengths = st.integers(1, 8) | st.integers(1, 30) | st.just(UNTIL_IT_HOLDS)
    return st.builds(
        Scenario,
        before=st.sampled_from(before),
        parts=st.builds(
            lambda one, more: (one, *more), parts(*first), st.lists(parts(*others), min_size=1, max_size=3)
        ),
        # Few switches at any place find more than many switches everywhere: most races need two or three.
        switches=st.builds(
            lambda begin, more: (*begin, *more),
            st.just(()) | overtaken,
            st.lists(st.tuples(st.integers(0, 4), lengths), max_size=10),
        ),
        unnamed=st.sampled_from((True, True, True, False)),
    )


# --- contenders -----------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Group:
    """A process and the daemon that it hands its lock to: between them they hold it once."""

    pids: set[int]
    handing_over: bool = False

    def may_read(self, text: bytes, pid: int) -> bool:
        if not self.handing_over:
            return text == b"%d\n" % pid
        return text.endswith(b"\n") and text.strip() in {b"%d" % pid for pid in self.pids}  # padded, then shortened


@dataclass(eq=False)
class Contender:
    """A thread that plays a process."""

    world: World
    who: Identity
    group: Group
    script: Callable[[Contender], None]
    dies: int | None = None
    orphan: bool = False
    unprivileged: bool = False
    parent: Contender | None = None
    holds: set[hold_module.Hold] = field(default_factory=set)
    calls: int = 0
    dead: bool = False
    finished: bool = False
    waiting: bool = False
    settled: bool = False  # a daemon that took its lock over and counts as started, or gave up
    started: bool = False
    took_over: bool = False  # a daemon that may have made the lock its own
    believes: bool = False  # it was told that it holds, and has not begun to release
    published: bool = False  # the file names it
    seen: set[int] | None = None  # who was published at some time during its present attempt
    steady: Group | None = None  # who held all through its present look
    error: BaseException | None = None

    def __post_init__(self) -> None:
        self.turn = threading.Lock()
        self.turn.acquire()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        self.turn.acquire()
        here.contender = self
        try:
            if not self.dead:
                self.script(self)
        except Died:
            pass
        except BaseException as error:
            self.error = error
        finally:
            self.finished = True
            self.world.control.release()

    def pause(self) -> None:
        """Let the scheduler decide when to go on."""
        if not self.dead:
            self.world.control.release()
            self.turn.acquire()
        if self.dead:
            raise Died
        self.calls += 1

    def wait(self) -> None:
        """Pause, and tell that nothing will come of going on before somebody else has."""
        self.waiting = True
        self.pause()
        self.waiting = False

    def attempt(self, action: Callable[[], Any]) -> bool:
        """Try for the lock; a refusal must name somebody who really held it meanwhile."""
        self.seen = self.world.published()
        try:
            action()
        except AlreadyRunningError as error:
            if error.pid not in self.seen:
                raise BrokenPromiseError(
                    f"{self.who.pid} was refused for {error.pid}, not one of {self.seen}"
                ) from error
            return False
        finally:
            self.seen = None
        return True


here = threading.local()


def current() -> Contender | None:
    return getattr(here, "contender", None)


def starter(me: Contender, *, drop: bool = False) -> None:
    lock = PidFile(me.world.path)
    if me.attempt(functools.partial(lock.acquire, 0)):
        me.believes = True
        me.pause()
        me.believes = False
        me.unprivileged = drop
        lock.release()
    me.published = False


def twice(me: Contender) -> None:
    starter(me)
    starter(me)


def unprivileged(me: Contender) -> None:
    """Drop privileges while it holds: it may not remove its file then."""
    starter(me, drop=True)


def breaker(me: Contender) -> None:
    me.attempt(PidFile(me.world.path).break_lock)


def reader(me: Contender) -> None:
    for _ in range(2):
        me.seen, me.steady = me.world.published(), me.world.holding()
        holder = holder_module.find_holder(str(me.world.path))
        if holder and holder.pid not in me.seen:
            raise BrokenPromiseError(f"read {holder.pid}, not one of {me.seen}")
        if me.steady and not (holder and holder.pid in me.steady.pids and holder.locked_by_daemonkit):
            raise BrokenPromiseError(f"read {holder} while {me.steady.pids} held it all along")
        me.seen = me.steady = None
        me.pause()


def launcher(me: Contender) -> None:
    """Acquire, fork a daemon, and go once that has taken over; if it does not, hold again."""
    lock = PidFile(me.world.path)
    if not me.attempt(functools.partial(lock.acquire, 0)):
        return
    me.believes = True
    me.pause()
    with hold_module.locks_inherited():
        child = me.world.fork(me)
    if me.dies == AFTER_ITS_FORK:
        me.world.end(me)
        raise Died
    while not (child.settled or child.dead):
        me.wait()
    if child.started:
        me.world.end(me)
        raise Died
    hold_module.take_back_locks()
    me.group.handing_over = False
    me.believes = bool(me.holds)
    me.pause()
    me.believes = False
    if me.holds:
        lock.release()


def daemon(me: Contender) -> None:
    try:
        hold_module.adopt_locks()
    except FileNotFoundError:  # taken for stale once its parent had died, and removed: that start has failed
        for hold in tuple(me.holds):
            hold.close()
        me.settled = True
        return
    assert me.parent
    me.parent.believes = me.parent.published = False
    me.believes = True
    me.group.handing_over = False
    me.pause()
    me.settled = me.started = True
    me.pause()
    me.believes = False
    next(iter(me.holds)).release()


KINDS: Final = {script.__name__: script for script in (starter, twice, unprivileged, breaker, reader, launcher)}


# --- the world ------------------------------------------------------------------------------------------------------


class World:
    """The contenders, what the kernel would know about them, and the scheduler."""

    def __init__(self, scenario: Scenario, directory: Path) -> None:
        self.scenario = scenario
        self.directory = directory
        self.path = directory / "app.pid"
        self.control = threading.Semaphore(0)
        self.contenders: list[Contender] = []
        self.others = {FOREIGN} if scenario.before == "foreign" else set()
        self.owners: dict[int, set[object]] = {}
        self.records: dict[tuple[int, tuple[int, int]], int] = {}  # their lengths, in the order in which they came
        self.steps = 0
        self.trace: list[list[Any]] = []

    # What the kernel does.

    def alive(self) -> Iterator[Contender]:
        return (contender for contender in self.contenders if not contender.dead)

    def start_of(self, pid: int) -> int | None:
        living = [contender.who for contender in self.alive()]
        return next((who.started for who in [*living, *self.others] if who.pid == pid), None)

    def call(self, me: Contender, name: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Make a system call as contender `me`, once the scheduler wants it."""
        me.pause()
        entry = [me.who.pid, name, args, None]
        self.trace.append(entry)
        try:
            entry[3] = result = getattr(self, f"_{name}", self._plain)(me, function, *args, **options)
        except OSError as error:
            entry[3] = error
            raise
        return result

    def _plain(self, _me: Contender, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return function(*args, **options)

    def _open(
        self, me: Contender, function: Callable[..., int], path: str, flags: int, *args: Any, **options: Any
    ) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE and not self.scenario.unnamed:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), path)
        fd = function(path, flags, *args, **options)
        self.owners[fd] = {me}
        return fd

    def _close(self, me: Contender, _function: object, fd: int) -> None:
        if me not in self.owners.get(fd, ()):
            raise BrokenPromiseError(f"{me.who.pid} closes descriptor {fd}, which is not open")
        self.records.pop((me.who.pid, inode(fd)), None)  # as fcntl(2) says: whichever descriptor it was
        self.let_go(me, fd)

    def let_go(self, owner: object, fd: int) -> None:
        self.owners[fd].discard(owner)
        if not self.owners[fd]:
            del self.owners[fd]
            os.close(fd)

    def _link(self, me: Contender, function: Callable[..., None], *args: Any, **options: Any) -> None:
        function(*args, **options)
        me.published = True

    def _unlink(self, me: Contender, function: Callable[..., None], path: str, **options: Any) -> None:
        if me.unprivileged and not path.startswith("."):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        function(path, **options)

    def _pwrite(self, me: Contender, function: Callable[..., int], *args: Any) -> int:
        me.published = True
        return function(*args)

    def _fcntl(self, me: Contender, function: Callable[..., bytes], fd: int, command: int, argument: bytes) -> bytes:
        kind, whence, start, length, _ = FLOCK.unpack(argument)
        if command == fcntl.F_SETLK:
            self.records.pop((me.who.pid, inode(fd)), None)
            if kind != fcntl.F_UNLCK:
                self.records[me.who.pid, inode(fd)] = length
            return argument
        if command == fcntl.F_GETLK:
            for (pid, where), size in self.records.items():
                if where == inode(fd) and pid != me.who.pid and start <= pid < start + length:
                    return FLOCK.pack(fcntl.F_WRLCK, whence, pid, size, pid)
            return FLOCK.pack(fcntl.F_UNLCK, whence, start, length, 0)
        if me.parent and command == fcntl.F_OFD_SETLK and start + (length or HOLDER_RANGE + 1) > HOLDER_RANGE:
            me.took_over = True
        return function(fd, command, argument)

    def fork(self, me: Contender) -> Contender:
        """Add a child of `me` with the same holds and descriptors, and none of its record locks, as a fork makes one."""
        part = self.scenario.parts[self.contenders.index(me)]
        who = Identity(part.daemon_pid + len(self.contenders), me.who.started)
        child = Contender(self, who, me.group, daemon, part.daemon_dies, part.orphan, parent=me)
        child.holds = {copy.deepcopy(hold) for hold in me.holds}
        for owners in self.owners.values():
            if me in owners:
                owners.add(child)
        me.group.pids.add(who.pid)
        me.group.handing_over = True
        self.contenders.append(child)
        return child

    def end(self, me: Contender) -> None:
        """End a process: its descriptors and locks go, but for those that a descendant has too."""
        me.dead = True
        if me.parent and me.took_over:
            me.parent.believes = False  # until it has looked
        me.believes = me.published = False
        self.records = {key: size for key, size in self.records.items() if key[0] != me.who.pid}
        kept = {hold.fd for hold in me.holds} if me.orphan else set()
        for fd in [fd for fd, owners in self.owners.items() if me in owners]:
            if fd in kept:
                self.owners[fd].add("a descendant")
            self.let_go(me, fd)

    # What the scheduler does.

    def prepare(self) -> None:
        first = Identity(PIDS[0], 1)
        texts = {
            "stale": b"4000\n", "empty": b"", "rubbish": b"\xff\xfe no number\n", "orphan": b"4000\n",
            "namesake": b"%d\n" % first.pid, "recycled": b"%d\n" % first.pid, "foreign": b"%d\n" % FOREIGN.pid,
        }  # fmt: skip
        if self.scenario.before == "none":
            return
        self.path.write_bytes(texts[self.scenario.before])
        if self.scenario.before in {"namesake", "recycled"}:
            os.utime(self.path, (1, 1))  # written long before the present owner of that number started
        if self.scenario.before in {"orphan", "namesake"}:
            dead = DEAD if self.scenario.before == "orphan" else Identity(first.pid, 99)
            fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, dead.token, HERE - dead.token, 0))
            self.owners[fd] = {"a descendant"}

    def add(self, number: int, part: Part) -> Contender:
        who = Identity(PIDS[number], number + 5)
        contender = Contender(self, who, Group({who.pid}), KINDS[part.kind], part.dies, part.orphan)
        self.contenders.append(contender)
        return contender

    def run(self) -> None:
        """Play the whole scenario."""
        try:
            self.prepare()
            for number, part in enumerate(self.scenario.parts):
                self.add(number, part)
            for who, length in self.scenario.switches:
                contender = self.contenders[who % len(self.contenders)]
                if length == UNTIL_IT_HOLDS:
                    self.go_on(contender)
                for _ in range(length):
                    self.step(contender)
            while left := [contender for contender in self.contenders if not contender.finished]:
                for contender in left:
                    self.go_on(contender)
            self.conclude()
        except BrokenPromiseError as error:
            raise BrokenPromiseError("\n".join([str(error), *map(told, self.trace[-150:])])) from error
        finally:
            self.clear()

    def go_on(self, contender: Contender) -> None:
        """Let a contender go on until it holds, waits or ends."""
        self.step(contender)
        while not (contender.finished or contender.waiting or contender.believes):
            self.step(contender)

    def step(self, contender: Contender) -> None:
        """Let a contender make one system call, or die in place of it; then check everything."""
        if contender.finished:
            return
        self.steps += 1
        if self.steps > LONGEST:
            raise BrokenPromiseError(f"nobody gets on: after {LONGEST} system calls some still try")
        if contender.dies is not None and contender.calls >= contender.dies >= 0:
            self.trace.append([contender.who.pid, "killed", (), None])
            self.end(contender)
        self.hand_over(contender)
        if contender.error:
            raise BrokenPromiseError(f"{contender.who.pid} met {contender.error!r}") from contender.error
        if contender.finished and not contender.dead:
            if [fd for fd, owners in self.owners.items() if contender in owners]:
                raise BrokenPromiseError(f"{contender.who.pid} left descriptors open")
            self.end(contender)
        self.check()

    def hand_over(self, contender: Contender) -> None:
        contender.turn.release()
        if not self.control.acquire(timeout=HANG):
            raise RuntimeError(f"contender {contender.who.pid} is stuck after {self.trace[-1:]}")

    def published(self) -> set[int]:
        return {contender.who.pid for contender in self.alive() if contender.published} | {
            other.pid for other in self.others
        }

    def holding(self) -> Group | None:
        return next((contender.group for contender in self.alive() if contender.believes), None)

    def check(self) -> None:
        """Look from outside, as any process may at any time."""
        believers = [contender for contender in self.alive() if contender.believes]
        if len({contender.group for contender in believers}) > 1:
            raise BrokenPromiseError(f"two hold it: {[contender.who.pid for contender in believers]}")
        text, owner = self.look()
        held = {(contender.group, contender.who.pid) for contender in believers}
        held |= {(contender.group, contender.who.pid) for contender in self.alive() if contender.who == owner}
        for group, pid in held:
            if text is None or not group.may_read(text, pid):
                raise BrokenPromiseError(f"while {pid} holds it, a reader sees {text!r}")
        published, holding = self.published(), self.holding()
        for contender in self.contenders:
            if contender.seen is not None:
                contender.seen |= published
            if contender.steady is not holding:
                contender.steady = None

    def look(self) -> tuple[bytes | None, Identity | None]:
        """Return the file's text and whom the kernel says to have locked it."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None, None
        try:
            question = FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, HOLDER_RANGE, 0, 0)
            kind, _, start, _, _ = FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, question))
            return os.pread(fd, 64, 0), None if kind == fcntl.F_UNLCK else Identity.from_token(start)
        finally:
            os.close(fd)

    def conclude(self) -> None:
        """When nobody lives, the next one wins, and leaves nothing behind."""
        if self.others and self.look()[0] != b"%d\n" % FOREIGN.pid:
            raise BrokenPromiseError("another tool's file was touched")
        self.others.clear()
        who = Identity(999, 1000)
        last = Contender(self, who, Group({who.pid}), starter)
        self.contenders.append(last)
        won = False
        while not last.finished:
            self.step(last)
            won = won or last.believes
        if not won:
            raise BrokenPromiseError("nobody lives, and yet it can't be acquired")
        killed = any(part.dies is not None or part.daemon_dies is not None for part in self.scenario.parts)
        left = [
            path.name
            for path in self.directory.iterdir()
            # Without O_TMPFILE there is a moment at which a kill leaves the file under a name of its own.
            if self.scenario.unnamed or not killed or not path.name.startswith(".")
        ]
        if left:
            raise BrokenPromiseError(f"left behind: {left}")

    def clear(self) -> None:
        """End whoever is left, and empty the directory for the next run."""
        for contender in self.contenders:
            if not contender.dead:
                self.end(contender)
            while not contender.finished:
                self.hand_over(contender)
            contender.thread.join(HANG)
        for fd in self.owners:
            os.close(fd)
        for path in self.directory.iterdir():
            path.unlink()


def told(entry: list[Any]) -> str:
    """Return one line of the trace: who called what, and what came of it."""
    pid, name, args, result = entry
    flat = [FLOCK.unpack(arg) if isinstance(arg, bytes) and len(arg) == FLOCK.size else arg for arg in args]
    if isinstance(result, os.stat_result):
        result = result.st_ino
    elif isinstance(result, bytes) and len(result) == FLOCK.size:
        result = FLOCK.unpack(result)
    return f"{pid:>6} {name}({', '.join(map(repr, flat))}) = {result!r}"


def inode(fd: int) -> tuple[int, int]:
    info = os.fstat(fd)
    return info.st_dev, info.st_ino


# --- the module under test, driven ----------------------------------------------------------------------------------


class Proxy:
    """A module whose system calls are a contender's, when a contender makes them."""

    def __init__(self, module: Any, calls: frozenset[str], **instead: Any) -> None:
        self.__dict__.update(instead)
        self._module = module
        for name in calls:
            self.__dict__[name] = self._driven(name, getattr(module, name))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    @staticmethod
    def _driven(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            me = current()
            return me.world.call(me, name, function, *args, **options) if me else function(*args, **options)

        return call


class HoldsOfEach:
    """The module's set of holds: each contender's own."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own(), name)

    def __iter__(self) -> Iterator[hold_module.Hold]:
        return iter(self._own())

    def __len__(self) -> int:
        return len(self._own())

    def __contains__(self, hold: object) -> bool:
        return hold in self._own()

    def _own(self) -> set[hold_module.Hold]:
        me = current()
        assert me, "only contenders hold"
        return me.holds


def _me() -> Contender:
    me = current()
    assert me, "only contenders have identities"
    return me


def _replace(patch: pytest.MonkeyPatch, name: str, value: object) -> None:
    """Replace a name wherever the protocol's modules have it."""
    having = [module for module in (ranges, holder_module, hold_module) if hasattr(module, name)]
    assert having, name
    for module in having:
        patch.setattr(module, name, value)


@pytest.fixture(autouse=True)
def _driven(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    instead = {
        "os": Proxy(os, CALLS, getpid=lambda: _me().who.pid if current() else os.getpid()),
        "fcntl": Proxy(fcntl, frozenset({"fcntl"})),
        "time": Proxy(time, frozenset(), monotonic=lambda: 0.0),  # patience never ends
        "_holds": HoldsOfEach(),
        "_hook_fork": lambda: None,  # nothing forks here
        "identity": lambda: _me().who,
        "start_of": lambda pid: _me().world.start_of(pid),
        "is_alive": lambda who: _me().world.start_of(who.pid) == who.started,
        "wait_for_end": lambda _pid, _seconds: _me().wait(),
    }
    for name, value in instead.items():
        _replace(monkeypatch, name, value)
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})  # one thread runs at a time: handing over to another core only takes longer
    yield
    os.sched_setaffinity(0, cores)


def explore(strategy: Any, directory: Path, examples: int, *, planted: bool = False) -> None:
    """Play drawn scenarios until one shows a violation, or enough have been played."""
    phases = (Phase.generate,) if planted else (Phase.explicit, Phase.generate, Phase.shrink)

    @settings(
        max_examples=examples if planted else SCHEDULES or examples,
        derandomize=planted or not SCHEDULES,
        phases=phases,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def play(scenario: Scenario) -> None:
        World(scenario, directory).run()

    play()


# --- the promises ---------------------------------------------------------------------------------------------------

# One that is anywhere in its work is overtaken by another; what follows is drawn freely.
OVERTAKEN: Final = st.integers(1, 30).map(lambda calls: ((0, calls), (1, UNTIL_IT_HOLDS)))
DAEMON_OVERTAKEN: Final = st.integers(0, 10).map(
    lambda calls: ((0, UNTIL_IT_HOLDS), (0, 3), *(((-1, calls), (1, 30)) if calls else ()))
)
CONTENDED: Final = scenarios("starter", others=("starter", "starter", "reader"), overtaken=OVERTAKEN)
UNNAMED: Final = CONTENDED.map(lambda scenario: dataclasses.replace(scenario, unnamed=True))
HANDED_OVER: Final = scenarios(
    "launcher", others=("starter", "reader"), before=("none", "stale", "orphan"), overtaken=DAEMON_OVERTAKEN
)
STALE: Final = scenarios(
    "starter", others=("starter",), before=("stale", "empty", "rubbish", "orphan"), overtaken=OVERTAKEN
)
WATCHED: Final = scenarios("launcher", others=("reader",), before=("none",), overtaken=DAEMON_OVERTAKEN)
ANYONE: Final = scenarios(
    "starter",
    "twice",
    others=("starter", "starter", "twice", "unprivileged", "breaker", "reader", "launcher"),
    overtaken=OVERTAKEN,
)


def test_any_number_of_starters_one_holds_and_readers_see_exactly_that_one(tmp_path: Path) -> None:
    explore(CONTENDED, tmp_path, 400)


def test_a_lock_that_is_handed_to_a_daemon_is_never_held_twice_and_never_by_nobody(tmp_path: Path) -> None:
    explore(HANDED_OVER, tmp_path, 400)


def test_starters_readers_breakers_and_daemons_all_at_once(tmp_path: Path) -> None:
    explore(ANYONE, tmp_path, 400)


@pytest.mark.parametrize("before", BEFORE)
def test_a_lone_starter_wins_unless_another_tools_process_lives(tmp_path: Path, before: str) -> None:
    world = World(Scenario(before, (Part(),), ()), tmp_path)
    won: list[int] = []
    plain = world.check
    world.check = lambda: (won.extend(world.published() - {FOREIGN.pid}), plain())[1]  # type: ignore[method-assign]
    world.run()
    assert (PIDS[0] in won) is (before != "foreign")


def test_a_starter_that_is_killed_at_any_system_call_stops_nobody_after_it(tmp_path: Path) -> None:
    for before in BEFORE:
        for dies in range(45):
            for orphan in (False, True):
                World(Scenario(before, (Part(dies=dies, orphan=orphan),), ()), tmp_path).run()


def test_a_hand_over_with_either_side_killed_at_any_system_call_stops_nobody_after_it(tmp_path: Path) -> None:
    deaths = [(dies, None) for dies in range(40)] + [(None, dies) for dies in range(14)]
    for dies, daemon_dies in deaths:
        for daemon_pid in (9, 123456):
            part = Part("launcher", dies=dies, daemon_dies=daemon_dies, daemon_pid=daemon_pid)
            World(Scenario("stale", (part,), ()), tmp_path).run()


def test_a_start_that_is_killed_wholly_leaves_the_file_free_also_while_a_descendant_has_its_lock_open(
    tmp_path: Path,
) -> None:
    for daemon_dies in range(20):
        part = Part("launcher", dies=AFTER_ITS_FORK, orphan=True, daemon_dies=daemon_dies)
        World(Scenario("none", (part,), ()), tmp_path).run()


# --- planted bugs ---------------------------------------------------------------------------------------------------


def _replace_system_call(patch: pytest.MonkeyPatch, module: str, name: str, function: Callable[..., Any]) -> None:
    """Put `function(original, *args)` in the place of a system call, inside the module under test."""
    proxy = getattr(hold_module, module)
    patch.setitem(proxy.__dict__, name, functools.partial(function, getattr(proxy, name)))


def _removal_without_a_look_at_the_inode(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(hold_module.os.__dict__, "path", Proxy(os.path, frozenset(), samestat=lambda _one, _other: True))


def _no_mutex(patch: pytest.MonkeyPatch) -> None:
    def call(original: Callable[..., Any], fd: int, command: int, argument: bytes) -> Any:
        _, _, start, length, _ = FLOCK.unpack(argument)
        return argument if (start, length) == (0, 1) else original(fd, command, argument)

    _replace_system_call(patch, "fcntl", "fcntl", call)


def _a_mutex_that_never_waits(patch: pytest.MonkeyPatch) -> None:
    def call(original: Callable[..., Any], fd: int, command: int, argument: bytes) -> Any:
        with contextlib.suppress(BlockingIOError):
            return original(fd, command, argument)

    _replace_system_call(patch, "fcntl", "fcntl", call)


def _no_second_look_under_the_mutex(patch: pytest.MonkeyPatch) -> None:
    mutex, examine = hold_module._mutex, hold_module.examine

    @contextlib.contextmanager
    def marked(fd: int, path: str) -> Iterator[None]:
        with mutex(fd, path):
            here.inside = True
            try:
                yield
            finally:
                here.inside = False

    patch.setattr(hold_module, "_mutex", marked)
    patch.setattr(
        hold_module, "examine", lambda fd, path: None if getattr(here, "inside", False) else examine(fd, path)
    )


def _a_dead_holders_lock_counts(patch: pytest.MonkeyPatch) -> None:
    _replace(patch, "is_alive", lambda _who: True)


def _published_empty_then_locked_then_written(patch: pytest.MonkeyPatch) -> None:
    _publish_in_order(patch, ("link", "lock", "write"))


def _published_locked_then_written(patch: pytest.MonkeyPatch) -> None:
    _publish_in_order(patch, ("lock", "link", "write"))


def _publish_in_order(patch: pytest.MonkeyPatch, order: tuple[str, ...]) -> None:
    """Publish a new file as ever, with its three steps in another order."""

    def publish(hold: hold_module.Hold) -> bool:
        system, me = hold_module.os, _me().who
        directory = system.open(hold.folder, os.O_PATH | os.O_DIRECTORY)
        fd = system.open(hold.folder, os.O_TMPFILE | os.O_RDWR, 0o644)
        hold.fds += [directory, fd]
        info = system.fstat(fd)
        hold.inode, hold.owner = (info.st_dev, info.st_ino), me
        steps: dict[str, Callable[[], Any]] = {
            "link": lambda: system.link(f"/proc/self/fd/{fd}", hold.name, dst_dir_fd=directory, follow_symlinks=True),
            "lock": lambda: hold_module._lock(fd, fcntl.F_WRLCK, me.token, HERE - me.token),
            "write": lambda: system.write(fd, b"%d\n" % me.pid),
        }
        try:
            for step in order:
                steps[step]()
        except FileExistsError:
            hold.close()
            return False
        return True

    patch.setattr(hold_module, "_publish", publish)


def _a_taken_name_is_replaced(patch: pytest.MonkeyPatch) -> None:
    def link(original: Callable[..., Any], *args: Any, **options: Any) -> Any:
        with contextlib.suppress(FileNotFoundError):
            hold_module.os.unlink(args[1], dir_fd=options["dst_dir_fd"])
        return original(*args, **options)

    _replace_system_call(patch, "os", "link", link)


def _a_claim_without_a_look_at_the_inode(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(hold_module.Hold, "is_current", lambda self: bool(self.fds))


def _a_claim_that_unlocks_first(patch: pytest.MonkeyPatch) -> None:
    def lock(fd: int, kind: int, start: int, length: int) -> None:
        original(fd, kind, start, length)

    def cut_first(fd: int, kind: int, start: int, length: int) -> None:
        if kind == fcntl.F_WRLCK and start >= HOLDER_RANGE and _me().parent:
            original(fd, fcntl.F_UNLCK, HOLDER_RANGE, 0)
        lock(fd, kind, start, length)

    original = hold_module._lock
    patch.setattr(hold_module, "_lock", cut_first)


def _a_claim_that_empties_the_file_first(patch: pytest.MonkeyPatch) -> None:
    def pwrite(original: Callable[..., int], fd: int, text: bytes, offset: int) -> int:
        hold_module.os.ftruncate(fd, 0)
        return original(fd, text, offset)

    _replace_system_call(patch, "os", "pwrite", pwrite)


def _a_claim_that_leaves_the_text(patch: pytest.MonkeyPatch) -> None:
    _replace_system_call(patch, "os", "pwrite", lambda _original, _fd, text, _offset: len(text))


PLANTED: Final = {
    _removal_without_a_look_at_the_inode: (STALE, "two hold it|a reader sees None"),
    _no_mutex: (STALE, "two hold it|a reader sees None"),
    _a_mutex_that_never_waits: (STALE, "two hold it|a reader sees None"),
    _no_second_look_under_the_mutex: (HANDED_OVER, "two hold it|a reader sees None"),
    _a_dead_holders_lock_counts: (CONTENDED, "not one of|nobody lives"),
    _published_empty_then_locked_then_written: (UNNAMED, "two hold it|a reader sees"),
    _published_locked_then_written: (UNNAMED, "a reader sees b''"),
    _a_taken_name_is_replaced: (CONTENDED, "two hold it|a reader sees"),
    _a_claim_without_a_look_at_the_inode: (HANDED_OVER, "two hold it|a reader sees"),
    _a_claim_that_unlocks_first: (WATCHED, "held it all along|two hold it|not one of"),
    _a_claim_that_empties_the_file_first: (HANDED_OVER, "a reader sees b''"),
    _a_claim_that_leaves_the_text: (HANDED_OVER, "a reader sees"),
}


@pytest.mark.parametrize("bug", PLANTED, ids=lambda bug: bug.__name__.strip("_"))
def test_the_scheduler_finds_a_planted_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bug: Callable[[pytest.MonkeyPatch], None]
) -> None:
    strategy, what = PLANTED[bug]
    bug(monkeypatch)
    with pytest.raises(BrokenPromiseError, match=what):
        explore(strategy, tmp_path, 1500, planted=True)
