"""Processes seen from outside: start times, identities, ends."""

from __future__ import annotations

import contextlib
import math
import os
import select
import time
from typing import NamedTuple

_HZ = os.sysconf("SC_CLK_TCK")
_PID_BITS = 22  # the kernel's PID_MAX_LIMIT is 2**22: include/linux/threads.h


class Identity(NamedTuple):
    """A process told apart from any later one that is given the same number."""

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


def _read_stat(pid: int | str) -> tuple[str, int]:
    fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    try:
        # The name (field 2) may hold blanks and parentheses: count from the last ")".
        fields = os.read(fd, 4096).rpartition(b")")[2].split()
    finally:
        os.close(fd)
    return fields[0].decode(), int(fields[19])


def start_of(pid: int) -> int | None:
    """Return when process `pid` started, in clock ticks since boot; None if it has ended (a zombie has).

    0 means that it lives and /proc hides the rest (``hidepid``, or a chroot without /proc).
    """
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        state, started = _read_stat(pid)
        return None if state in "ZX" else started
    try:
        os.kill(pid, 0)
    except PermissionError:
        return 0  # EPERM means alive
    except (ProcessLookupError, OverflowError):
        return None
    return None if os.path.exists("/proc/self/stat") else 0


def is_alive(who: Identity) -> bool:
    """Tell whether that very process lives, not one that was given its number later."""
    return start_of(who.pid) in {who.started, 0}


def wall_clock(started: int) -> float:
    """Turn clock ticks since boot into seconds since the epoch, by today's clock."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + started / _HZ


def check_seconds(name: str, value: object) -> None:
    """Refuse what is not a number of seconds or None: TypeError, ValueError."""
    if value is None:
        return
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name}: seconds or None, not {value!r}")
    if math.isnan(value) or (isinstance(value, int) and abs(value) >= 1 << 63):
        raise ValueError(f"{name}: seconds or None, not {value!r}")


def wait_for_end(pid: int | None, seconds: float) -> None:
    """Return when process `pid` ends, or after that many seconds, whichever is first."""
    with contextlib.ExitStack() as stack:
        poll = select.poll()
        with contextlib.suppress(OSError):  # it has ended, or is not to be watched: the time limit remains
            pidfd = os.pidfd_open(pid or 0)
            stack.callback(os.close, pidfd)
            poll.register(pidfd, select.POLLIN)
        poll.poll(seconds * 1000)
