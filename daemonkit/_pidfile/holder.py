"""Who holds a pidfile. Everything here only reads."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections import namedtuple

from daemonkit._pidfile.ranges import DAEMON, LENT, NAMED, NAMESPACE_SHIFT, PID_MAX, locked_by
from daemonkit._system.pidfd import reap
from daemonkit._system.process import all_pids, identity_of, is_alive, namespace_id, start_of, wall_clock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from daemonkit._system.process import Identity
    from daemonkit.errors import AlreadyRunningError

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_CLOCK_SLACK: Final = 0.02  # seconds; start times and file times both tick in steps of up to 10 ms


class Holder(namedtuple("Holder", ("pid", "started", "ours", "here", "daemon"), defaults=(True, False))):
    """The live process that a pidfile belongs to."""

    __slots__ = ()
    pid: int
    started: int
    """Clock ticks since boot, 0 where /proc hides it."""
    ours: bool
    """Whether it has daemonkit's lock; if not, another tool's process seems to run it."""
    here: bool
    """Whether the pid means something here; if not, it is that of another PID namespace (a container)."""
    daemon: bool
    """Whether it is a detached daemon, so that its process group is its own, though it does not lead it."""


def find_holder(path: str) -> Holder | None:
    """Return the live holder of the pidfile, or None; reads only. Raises OSError for what can't be a pidfile."""
    reap()
    try:
        fd = os.open(path, _READ)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise explained(error, path) from error
    try:
        return examine(fd, path)
    finally:
        os.close(fd)


def examine(fd: int, path: str) -> Holder | None:
    """Do the same for an open file, by the lock's own words."""
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        number = errno.EISDIR if stat.S_ISDIR(info.st_mode) else errno.EINVAL
        raise OSError(number, "not a regular file, which a pidfile must be; give another path", path)
    if lock := locked_by(fd):
        owner, told = lock
        place, kind = divmod(told, 1 << NAMESPACE_SHIFT)
        if (here := namespace_id()) and place != here:  # whether it lives can't be seen from here, but it is locked
            return Holder(*owner, ours=True, here=False)
        if is_alive(owner):
            return Holder(*owner, ours=True, daemon=kind == DAEMON)
        return _borrower(fd, owner, kind) if kind in {LENT, NAMED} else None
    pid = _parse(os.pread(fd, 64, 0))
    started = start_of(pid) if pid else None
    if started is None or wall_clock(started) > info.st_mtime + _CLOCK_SLACK:
        return None  # dead, or a number that was given out again after the file was written
    return Holder(pid, started, ours=False)


def _borrower(fd: int, launcher: Identity, kind: int) -> Holder | None:
    """Return the program that a launcher lent the lock to, and was killed before it could say so.

    It is the one that the file names, or else the oldest of all that have the lock's descriptor.
    """
    inode, mark = os.fstat(fd), f" {launcher.token} "
    named = _parse(os.pread(fd, 64, 0))
    pids = all_pids() if kind == LENT and named == launcher.pid else [named]
    found = [identity_of(pid) for pid in pids if _has_lock(pid, inode, mark)]
    oldest = min((who for who in found if who), key=lambda who: who.started, default=None)
    return Holder(*oldest, ours=True) if oldest else None


def _has_lock(pid: int, inode: os.stat_result, mark: str) -> bool:
    """Tell whether a process has the very file open that the lock with that mark was taken through: proc(5), fdinfo."""
    with contextlib.suppress(OSError):
        for number in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.path.samestat(os.stat(f"/proc/{pid}/fd/{number}"), inode):
                    with open(f"/proc/{pid}/fdinfo/{number}", encoding="ascii") as lines:
                        if any(line.startswith("lock:") and mark in line for line in lines):
                            return True
    return False


def _parse(text: bytes) -> int:
    """Return the pid that a pidfile's first line names, 0 if none: generous, as the FHS asks of readers."""
    first = text.split(b"\n", 1)[0].strip()
    return int(first) if first.isdigit() and len(first) < 20 and int(first) < PID_MAX else 0


def already_running(path: str, holder: Holder) -> AlreadyRunningError:
    from daemonkit.errors import AlreadyRunningError  # noqa: PLC0415 - see above

    started = holder.here and (holder.started or start_of(holder.pid))
    since = f" (since {time.strftime('%H:%M', time.localtime(wall_clock(started)))})" if started else ""
    if holder.pid == os.getpid() and holder.here:
        way_out = "that is this process itself: release it first"
    elif not holder.here:
        way_out = "its number is that of another PID namespace (a container): end it there"
    elif holder.ours:
        way_out = f"end that one first (kill {holder.pid})"
    else:
        way_out = (
            f"another tool's process, it seems: end it (kill {holder.pid}), or remove the file if it is a stranger"
        )
    message = f"{path} is held by process {holder.pid}{since}; {way_out}"
    return AlreadyRunningError(message, path=path, pid=holder.pid)


def explained(error: OSError, path: str) -> OSError:
    """Return the same error with the pidfile's path and, where the bare text would puzzle, the cause."""
    text = error.strerror or str(error)
    if error.errno == errno.ELOOP:
        text = "a symbolic link, which a pidfile must not be; give the path it leads to"
    return OSError(error.errno, text, path)
