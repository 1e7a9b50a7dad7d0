"""Processes seen from outside: start times, identities, ends and exit statuses."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import select
import signal
import struct
import time
from collections import namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

_HZ = os.sysconf("SC_CLK_TCK")
_TICK: Final = 10**9 // _HZ  # nanoseconds
_MODE: Final = 0o7777  # the highest of those numbers that people write in octal
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

    Raises OSError where /proc is not mounted.
    """
    global _own  # noqa: PLW0603 - a cache for one process; a fork makes it stale, hence the check
    if _own is None or _own.pid != os.getpid():
        _, started = _read_stat("self")
        _own = Identity(os.getpid(), started)
    return _own


def _read_stat(pid: int | str) -> tuple[bool, int]:
    """Return whether the process has ended (it may be a zombie), and when it started."""
    fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    try:
        # The name (field 2) may hold blanks and parentheses: count from the last ")".
        fields = os.read(fd, 4096).rpartition(b")")[2].split()
    finally:
        os.close(fd)
    # The state is that of the first thread: after its pthread_exit(3) the process lives on in the others.
    ended = fields[0] in {b"Z", b"X"} and int(fields[17]) <= 1
    return ended, int(fields[19])


_place: tuple[int, int] | None = None


def place() -> int:
    """Return what tells this process's PID and time namespaces from others: numbers and start times are theirs.

    58 bits, as the numbers of namespaces differ in their lower 28; 0 where there is no /proc.
    """
    global _place  # noqa: PLW0603 - as above
    if _place is None or _place[0] != os.getpid():
        _place = os.getpid(), pid_namespace() << _NAMESPACE_BITS | _namespace("time")
    return _place[1]


def pid_namespace() -> int:
    """Return what tells this process's PID namespace from others."""
    return _namespace("pid")


def _namespace(kind: str) -> int:
    try:
        return os.stat(f"/proc/self/ns/{kind}").st_ino & (1 << _NAMESPACE_BITS) - 1
    except OSError:  # a kernel without them has but one
        return 0


def _is_own_proc() -> bool:
    """Tell whether the numbers in /proc are ours: not in a PID namespace that still has the outer one's."""
    try:
        return os.readlink("/proc/self") == str(os.getpid())
    except OSError:
        return False


def identity_of(pid: int) -> Identity | None:
    """Return a process's identity, though it be a zombie; None if it is gone."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Identity(pid, _read_stat(pid)[1] if _is_own_proc() else ticks())
    return None


def all_pids() -> list[int]:
    """Return every process that can be seen."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


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
    return start_of(who.pid) in {who.started, 0}


def ticks() -> int:
    """Return the time since boot in clock ticks: what a process that starts now is given as its start time."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // _TICK


_booted = math.nan
_SAME: Final = 0.005  # seconds


def wall_clock(started: int) -> float:
    """Turn clock ticks since boot into seconds since the epoch, by today's clock: the same until that is set."""
    global _booted  # noqa: PLW0603 - two clocks are never read at once
    before = after = -math.inf
    while not after - before < _SAME:  # again, if this process had to wait in between
        before, now, after = (
            time.clock_gettime(time.CLOCK_BOOTTIME),
            time.time(),
            time.clock_gettime(time.CLOCK_BOOTTIME),
        )
    if not abs(now - after - _booted) < 2 * _SAME:
        _booted = now - after
    return _booted + started / _HZ


def check_seconds(name: str, value: object) -> None:
    """Refuse what is not a number of seconds or None: TypeError, ValueError."""
    if value is None:
        return
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name}: seconds or None, not {value!r}")
    if math.isnan(value) or (isinstance(value, int) and abs(value) >= 1 << 63):
        raise ValueError(f"{name}: seconds or None, not {value!r}")


def check_number(name: str, value: object, highest: int) -> None:
    """Refuse what is not a number from 0 to `highest` or None: TypeError, ValueError."""
    limit = oct(highest) if highest <= _MODE else highest
    text = f"{name}: a number from 0 to {limit} or None, not {value!r}"
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(text)
    if not 0 <= value <= highest:
        raise ValueError(text)


def signal_name(number: int) -> str:
    """Return a signal's name, as far as it has one."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"  # a real-time signal between SIGRTMIN and SIGRTMAX has none


def wait_for_end(pid: int | None, seconds: float) -> None:
    """Return when process `pid` ends, or after that many seconds, whichever is first."""
    with contextlib.ExitStack() as stack:
        poll = select.poll()
        with contextlib.suppress(OSError):  # it has ended, or is not to be watched: the time limit remains
            pidfd = os.pidfd_open(pid or 0)
            stack.callback(os.close, pidfd)
            poll.register(pidfd, select.POLLIN)
        poll.poll(seconds * 1000)


# --- parents and children: prctl(2), which Python has not --------------------------------------------------------

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_libc: Any = None


def load_prctl() -> None:
    """Load what the rest needs: it takes 10 ms, which only a supervisor spends, and none of it after a fork."""
    global _libc  # noqa: PLW0603 - a cache
    if _libc is None:
        import ctypes  # noqa: PLC0415 - as above

        _libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: object) -> None:
    load_prctl()
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(errno.EINVAL, f"prctl({option})")


def become_subreaper() -> None:
    """Become the parent of whatever this process's descendants leave behind."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> None:
    """Be killed when the parent ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


# --- ends and exit statuses, by pidfd: a number may be given out again, a pidfd never means another process -------

_INFO = struct.Struct("QQ12I")  # struct pidfd_info of linux/pidfd.h: what is asked for, ..., the wait status
_INFO_EXIT: Final = 1 << 3
_GET_INFO: Final = 3 << 30 | _INFO.size << 16 | 0xFF << 8 | 11  # PIDFD_GET_INFO, Linux 6.15


def has_ended(pidfd: int) -> bool:
    """Tell whether the process is a zombie or gone."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def is_child(pidfd: int) -> bool:
    """Tell whether it is a child of this process that nobody has reaped yet, so that its number is its own."""
    try:
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    except OSError:
        return False
    return True


def exit_status(pidfd: int, *, reap: bool) -> int | None:
    """Return a child's exit status (negative: the signal), None while it runs; ChildProcessError if it is not ours.

    Without `reap` it is left to whoever has a claim to it.
    """
    result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | (0 if reap else os.WNOWAIT))
    if result is None:
        return None
    return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status


def told_status(pidfd: int) -> int | None:
    """Return the exit status of a process that somebody else has reaped, where the kernel still tells it."""
    info = bytearray(_INFO.pack(_INFO_EXIT, *[0] * 13))
    try:
        fcntl.ioctl(pidfd, _GET_INFO, info)
    except OSError:
        return None
    known, *_, status = _INFO.unpack(info)
    return os.waitstatus_to_exitcode(status) if known & _INFO_EXIT else None


class _Dropped:
    """Children whose handles were dropped: each is reaped at the next call of daemonkit after its end."""

    def __init__(self) -> None:
        self._pidfds: set[int] = set()
        self._poll = select.poll()
        self._parent = os.getpid()

    def add(self, pidfd: int) -> None:
        if self._parent != os.getpid():
            self.__init__()  # type: ignore[misc]  # in a fork: what is in it are another process's children
        self._pidfds.add(pidfd)
        self._poll.register(pidfd, select.POLLIN)

    def reap(self) -> None:
        if not self._pidfds or self._parent != os.getpid():
            return
        try:
            ended = self._poll.poll(0)
        except RuntimeError:  # another thread is at it
            return
        for pidfd, _ in ended:
            try:
                self._pidfds.remove(pidfd)
            except KeyError:  # ... and was first
                continue
            self._poll.unregister(pidfd)
            with contextlib.suppress(ChildProcessError):  # somebody else reaped it
                exit_status(pidfd, reap=True)
            os.close(pidfd)


_dropped = _Dropped()


def drop(pidfd: int) -> None:
    """Take over the pidfd of a child that nobody will ask about any more."""
    _dropped.add(pidfd)


def reap() -> None:
    """Reap the dropped children that have ended: whatever launches a program or looks at one calls this."""
    _dropped.reap()
