"""Who holds a pidfile. Nothing in here writes, and nothing locks: a reader never disturbs a starter.

A reader opens the file and asks the kernel for the holder's lock (`ranges`):

1. There is a lock, and its owner lives: the owner holds the file. The text is not looked at.
2. There is a lock whose owner is dead: a descendant of the dead holder has inherited the descriptor, and the file is
   free. There is one exception: a launcher that was killed between launching a program and naming it. The state says
   so, and the program that has the lock's descriptor is the holder.
3. There is a lock of another PID or time namespace: the file is held. Its owner cannot be looked up from here.
4. There is no lock, but the text names a process: another tool may have written it. See `_named_by_another_tool`.

Reading loads no `lockfile`, which takes as long as all the rest; the exceptions that derive from its classes are
imported where they are raised. `pidfile` loads them before any right can be dropped.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
import time
from collections import namedtuple

from daemonkit._pidfile.ranges import PID_MAX, State, find_lock
from daemonkit._system.check import absolute_path, check_path
from daemonkit._system.process import all_pids, identity_of, is_alive, namespace_id, start_of, wall_clock
from daemonkit._system.reaping import reap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from daemonkit._pidfile.pidfile import PidFile
    from daemonkit._system.process import Identity
    from daemonkit._system.streams import Path
    from daemonkit.errors import AlreadyRunningError

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_CLOCK_SLACK: Final = 0.02  # seconds; start times and file times both tick in steps of up to 10 ms


class Holder(
    namedtuple("Holder", ("pid", "started", "locked_by_daemonkit", "same_namespace", "daemon"), defaults=(True, False))
):
    """The live process that holds a pidfile."""

    __slots__ = ()
    pid: int
    started: int
    """Clock ticks since boot, 0 where /proc hides it."""
    locked_by_daemonkit: bool
    """Whether it has daemonkit's lock. If not, another tool's process seems to hold the file."""
    same_namespace: bool
    """Whether the pid means something here. If not, the holder is in another PID namespace (a container)."""
    daemon: bool
    """Whether it is a detached daemon. Its process group is its own, although it does not lead the group."""


def pidfile_path(pidfile: Path | PidFile) -> str:
    """Return the absolute path of a pidfile that was given as a path or a `PidFile`.

    Raises TypeError, ValueError, and FileNotFoundError for a relative path where the working directory is gone.
    """
    module = sys.modules.get("daemonkit._pidfile.pidfile")  # where it is not loaded, nobody has made a PidFile
    if module is not None and isinstance(pidfile, module.PidFile):
        return pidfile.path  # type: ignore[no-any-return]  # as isinstance() has said
    if not isinstance(pidfile, (str, bytes, os.PathLike)):
        raise TypeError(f"pidfile must be a path or a PidFile, not {pidfile!r}")
    check_path("pidfile", pidfile)
    return absolute_path(os.fsdecode(pidfile))


def find_holder(path: str) -> Holder | None:
    """Return the live holder of the pidfile, or None. Raises OSError for what cannot be a pidfile."""
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
    """Return the live holder of the pidfile that is open as `fd`, or None."""
    if (lock := find_lock(fd)) is None:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):  # nothing else can have daemonkit's lock
            number = errno.EISDIR if stat.S_ISDIR(info.st_mode) else errno.EINVAL
            raise OSError(number, "not a regular file, so it can't be a pidfile; give another path", path)
        return _named_by_another_tool(fd, info)
    if (own := namespace_id()) and lock.namespace != own:
        return Holder(*lock.owner, locked_by_daemonkit=True, same_namespace=False)
    if is_alive(lock.owner):
        return Holder(*lock.owner, locked_by_daemonkit=True, daemon=lock.state == State.DAEMON)
    if lock.state in {State.LENT, State.NAMED}:
        return _launched_program(fd, os.fstat(fd), lock.owner, lock.state)
    return None


def _named_by_another_tool(fd: int, info: os.stat_result) -> Holder | None:
    """Return the process that an unlocked file names, if it may have written the file: it started before that.

    A process that started later was given the number of one that has died. A file that is dated in the future proves
    nothing: it was written before a power cut, which has put a clock without a battery back. Nor does a file in which
    a process finds its own number: it has executed itself anew, which ended its lock, or its wrapper wrote the number.
    """
    pid = _parse(os.pread(fd, 64, 0))
    if not pid or pid == os.getpid() or info.st_mtime > time.time() + _CLOCK_SLACK:
        return None
    started = start_of(pid)
    if started is None or wall_clock(started) > info.st_mtime + _CLOCK_SLACK:
        return None
    return Holder(pid, started, locked_by_daemonkit=False)


def _launched_program(fd: int, info: os.stat_result, launcher: Identity, state: int) -> Holder | None:
    """Return the program that a launcher lent the lock to, and was killed before it could hand it over.

    It is the process that the file names, or else the oldest of all that have the lock's descriptor.
    """
    mark = f" {launcher.token} "
    named = _parse(os.pread(fd, 64, 0))
    pids = all_pids() if state == State.LENT and named == launcher.pid else [named]
    found = [identity_of(pid) for pid in pids if _has_lock(pid, info, mark)]
    oldest = min((who for who in found if who), key=lambda who: who.started, default=None)
    return Holder(*oldest, locked_by_daemonkit=True) if oldest else None


def _has_lock(pid: int, info: os.stat_result, mark: str) -> bool:
    """Tell whether a process has the open file through which the lock with that mark was taken: proc(5), fdinfo."""
    with contextlib.suppress(OSError):
        for number in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.path.samestat(os.stat(f"/proc/{pid}/fd/{number}"), info):
                    with open(f"/proc/{pid}/fdinfo/{number}", encoding="ascii") as lines:
                        if any(line.startswith("lock:") and mark in line for line in lines):
                            return True
    return False


def _parse(text: bytes) -> int:
    """Return the pid in a pidfile's first line, 0 if there is none. The FHS asks readers to be generous."""
    first = text.split(b"\n", 1)[0].strip()
    return int(first) if first.isdigit() and len(first) < 20 and int(first) < PID_MAX else 0


def already_running(path: str, holder: Holder) -> AlreadyRunningError:
    """Return the exception that names the holder and the way out."""
    from daemonkit.errors import AlreadyRunningError  # noqa: PLC0415 - Importing lockfile takes 10 ms.

    started = holder.same_namespace and (holder.started or start_of(holder.pid))
    since = f" (since {time.strftime('%H:%M', time.localtime(wall_clock(started)))})" if started else ""
    if not holder.same_namespace:
        way_out = "it is in another PID namespace (a container): stop it there"
    elif holder.pid == os.getpid():
        way_out = "that is this process itself: release it first"
    elif holder.locked_by_daemonkit:
        way_out = f"stop it with daemonkit.stop({path!r}), or kill {holder.pid}"
    else:
        way_out = (
            f"it seems to belong to another tool: stop it (kill {holder.pid}), "
            "or delete the file if that process is unrelated"
        )
    message = f"{path} is held by process {holder.pid}{since}; {way_out}"
    return AlreadyRunningError(message, path=path, pid=holder.pid)


def explained(error: OSError, path: str) -> OSError:
    """Return the same error with the pidfile's path and, where the bare text would puzzle, the cause."""
    text = error.strerror or str(error)
    if error.errno == errno.ELOOP:
        text = "a symbolic link, so it can't be a pidfile; give the path that it leads to"
    return OSError(error.errno, text, path)
