"""Processes seen from outside: start times, identities, namespaces."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections import namedtuple
from posix import close  # what `unpatched` has too, which loads `select`

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_HZ = os.sysconf("SC_CLK_TCK")
_TICK: Final = 10**9 // _HZ  # nanoseconds
_PID_BITS = 22  # the kernel's PID_MAX_LIMIT is 2**22: include/linux/threads.h
_NAMESPACE_BITS: Final = 29


class Identity(namedtuple("Identity", ("pid", "started"))):
    """A process told apart from any later one that is given the same number."""

    __slots__ = ()
    pid: int
    started: int
    """Clock ticks since boot: field 22 of proc(5)'s /proc/PID/stat."""

    @property
    def token(self) -> int:
        """Both in one number, which fits the offset of a kernel lock (62 of 63 bits)."""
        return self.started << _PID_BITS | self.pid

    @classmethod
    def from_token(cls, token: int) -> Identity:
        """Undo `token`."""
        return cls(token & (1 << _PID_BITS) - 1, token >> _PID_BITS)


_own: Identity | None = None


def identity() -> Identity:
    """Return this process's identity; it is read once in each process.

    Raises FileNotFoundError where /proc is not mounted.
    """
    global _own  # noqa: PLW0603 - a cache for one process; a fork makes it stale, hence the check
    if _own is None or _own.pid != os.getpid():
        try:
            _, started = _read_stat("self")
        except FileNotFoundError as error:
            text = "not mounted, but needed to tell one process from another; mount it: mount -t proc proc /proc"
            raise FileNotFoundError(error.errno, text, "/proc") from error
        _own = Identity(os.getpid(), started)
    return _own


def _read_stat(pid: int | str) -> tuple[bool, int]:
    """Return whether the process has ended (it may be a zombie), and when it started."""
    fields = _stat_fields(pid)
    # The state is that of the first thread: after its pthread_exit(3) the process lives on in the others.
    ended = fields[0] in {b"Z", b"X"} and int(fields[17]) <= 1
    return ended, int(fields[19])


def _stat_fields(pid: int | str) -> list[bytes]:
    """Return the fields of proc(5)'s /proc/PID/stat from the third one on, those after the 22nd in one piece."""
    fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    try:
        # The name (field 2) may hold blanks and parentheses: count from the last ")".
        return os.read(fd, 4096).rpartition(b")")[2].split(None, 20)
    finally:
        close(fd)


_namespace_id: tuple[int, int] | None = None


def namespace_id() -> int:
    """Return the number of this process's PID and time namespaces: pids and start times mean nothing outside them.

    It has 58 bits, as the inodes of namespaces differ in their lower 28. It is 0 where there is no /proc.
    """
    global _namespace_id  # noqa: PLW0603 - a cache for one process; a fork makes it stale, hence the check
    if _namespace_id is None or _namespace_id[0] != os.getpid():
        _namespace_id = os.getpid(), pid_namespace() << _NAMESPACE_BITS | _namespace("time")
    return _namespace_id[1]


def pid_namespace() -> int:
    """Return the number of this process's PID namespace."""
    return _namespace("pid")


def place() -> list[str | int]:
    """Return in which boot, and in which PID namespace of it, this process's pids and start times mean something."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return [file.read().strip(), pid_namespace()]
    except OSError:
        return []


def _namespace(kind: str) -> int:
    try:
        return os.stat(f"/proc/self/ns/{kind}").st_ino & (1 << _NAMESPACE_BITS) - 1
    except OSError:  # a kernel without namespaces has only one
        return 0


def _is_own_proc() -> bool:
    """Tell whether /proc shows this PID namespace; a new namespace may still have the /proc of the outer one."""
    try:
        return os.readlink("/proc/self") == str(os.getpid())
    except OSError:
        return False


def identity_of(pid: int) -> Identity | None:
    """Return the identity of a process, also of a zombie; None if it is gone."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Identity(pid, _read_stat(pid)[1] if _is_own_proc() else ticks())
    return None


def all_pids() -> list[int]:
    """Return every process that can be seen."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def member_of(group: int, pid: int) -> Identity | None:
    """Return a process's identity if it lives and is in that process group."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        if int(_stat_fields(pid)[2]) == group:
            ended, started = _read_stat(pid)
            return None if ended else Identity(pid, started)
    return None


def members_of(group: int) -> list[Identity]:
    """Return every process in that group that lives and can be seen."""
    return [who for pid in all_pids() if (who := member_of(group, pid))] if _is_own_proc() else []


def parent_of(pid: int) -> int | None:
    """Return a process's parent; None if it is gone."""
    try:
        return int(_stat_fields(pid)[1])
    except OSError:
        return None


def children_of(pid: int | str) -> list[int]:
    """Return the children of all threads of a process, zombies too; none if it is gone."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/children", "rb", 0) as file:
                found += map(int, file.read().split())
    return found


def start_of(pid: int) -> int | None:
    """Return when process `pid` started, in clock ticks since boot; None if it has ended (a zombie has).

    0 means that it lives and /proc hides the rest (``hidepid``, a chroot without /proc, another PID namespace's).
    """
    own = _is_own_proc()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        if own:
            ended, started = _read_stat(pid)
            return None if ended else started
    try:
        os.kill(pid, 0)
    except PermissionError:
        return 0  # EPERM means alive
    except (ProcessLookupError, OverflowError):
        return None
    return None if own else 0


def is_alive(who: Identity) -> bool:
    """Tell whether that very process lives, not one that was given its number later."""
    # Whatever /proc this is: no other process has that number and started in that very moment.
    try:
        if _read_stat(who.pid) == (False, who.started):
            return True
    except OSError:  # not suppress(), which would add a tenth to a look at a pidfile
        pass
    return start_of(who.pid) in {who.started, 0}


def ticks() -> int:
    """Return the time since boot in clock ticks: what a process that starts now is given as its start time."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // _TICK


_booted = float("nan")
_SAME: Final = 0.005  # seconds


def wall_clock(started: int) -> float:
    """Turn clock ticks since boot into seconds since the epoch, by today's clock: the same until that is set."""
    global _booted  # noqa: PLW0603 - two clocks are never read at once
    before = after = -float("inf")
    while not after - before < _SAME:  # again, if this process had to wait in between
        before, now, after = (
            time.clock_gettime(time.CLOCK_BOOTTIME),
            time.time(),
            time.clock_gettime(time.CLOCK_BOOTTIME),
        )
    if not abs(now - after - _booted) < 2 * _SAME:
        _booted = now - after
    return _booted + started / _HZ


def has_terminal() -> bool:
    """Tell whether this process has a controlling terminal; OSError where no descriptor is left to find out."""
    try:
        fd = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOMEM}:
            raise
        return False
    close(fd)
    return True


def terminal_has_gone() -> bool:
    """Tell whether this process, which had a controlling terminal, has none any more."""
    try:
        return not has_terminal()
    except OSError:  # no descriptor is left to find out; a SIGHUP usually asks for a reload
        return False
