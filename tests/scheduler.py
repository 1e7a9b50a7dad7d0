"""A scheduler for the pidfile's lock protocol: one system call at a time, in an order that Hypothesis draws.

Contenders are threads that play processes: each has a pid, a start time, descriptors and holds of its own, and stops
before every system call until the scheduler lets it go on. Files and open file description locks are the kernel's own.
What is played is what one process cannot have twice: identities, forks and deaths. After every call the promises are
checked from outside.
"""

from __future__ import annotations

import copy
import errno
import fcntl
import functools
import os
import struct
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from hypothesis import strategies as st

from daemonkit import AlreadyRunningError, PidFile
from daemonkit._pidfile import hold as hold_module
from daemonkit._pidfile import holder as holder_module
from daemonkit._system.process import Identity, namespace_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

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
        _, _, start, length, _ = FLOCK.unpack(argument)
        if me.parent and command == fcntl.F_OFD_SETLK and start + (length or HOLDER_RANGE + 1) > HOLDER_RANGE:
            me.took_over = True
        return function(fd, command, argument)

    def fork(self, me: Contender) -> Contender:
        """Add a child of `me` with the same holds and descriptors, as a fork makes one."""
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
