"""Which processes belong to a supervisor, seen from outside: by a mark that fork and exec hand on.

The mark is a soft RLIMIT_RTTIME that no program sets, as the environment would be cleared by `env -i`. It names the
supervisor by its pid and some bits of its PID namespace, and one of its runs. Whoever may look into /proc can read it,
also once all parents are gone.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal

from daemonkit._system.pidfd import has_ended
from daemonkit._system.process import all_pids, identity_of, pid_namespace, start_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

_LOWEST: Final = 1 << 62
_RUN_BITS: Final = 32
_PID_BITS: Final = 22
_NAMESPACE_BITS: Final = 8  # what is left
RUNS: Final = 1 << 20  # of one worker process
WORKERS: Final = 1 << (_RUN_BITS - 20)  # of one supervisor
_END: Final = 5.0  # seconds until a process that was killed is given up: it hangs in the kernel


def base() -> int:
    """Return the first mark of this process as a supervisor; there are RUNS * WORKERS."""
    namespace = pid_namespace() & (1 << _NAMESPACE_BITS) - 1
    return _LOWEST + ((namespace << _PID_BITS | os.getpid()) << _RUN_BITS)


def put(mark: int) -> None:
    """Mark this process, and all that it will start; not where the hard limit is too low: sessions tell then."""
    with contextlib.suppress(OSError, ValueError):
        hard = resource.getrlimit(resource.RLIMIT_RTTIME)[1]
        resource.setrlimit(resource.RLIMIT_RTTIME, (mark, hard))


def mark_of(pid: int) -> int | None:
    """Return the mark of a process; None if it has none, or is gone."""
    try:
        fd = os.open(f"/proc/{pid}/limits", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        text = os.read(fd, 4096)
    except OSError:
        return None
    finally:
        os.close(fd)
    soft = text.partition(b"Max realtime timeout")[2].split(None, 1)[:1]
    return int(soft[0]) if soft and soft[0].isdigit() and int(soft[0]) >= _LOWEST else None


def run_of(pid: int, first: int) -> int | None:
    """Return the number of the run that a process belongs to, if it is of the supervisor with that first mark."""
    mark = mark_of(pid)
    return None if mark is None or mark >> _RUN_BITS != first >> _RUN_BITS else mark & (1 << _RUN_BITS) - 1


def _supervisor(mark: int) -> int:
    return mark >> _RUN_BITS & (1 << _PID_BITS) - 1


def signal_run(pid: int, number: int, mark: int, not_in: int | None) -> None:
    """Signal a process that has the mark and is not in that group, which was signalled as a whole."""
    with contextlib.suppress(OSError):
        pidfd = os.pidfd_open(pid)
        try:
            # Looked at after the pidfd was opened: so it is that process's, whoever had the number before.
            if mark_of(pid) == mark and group_of(pid) != not_in:
                signal.pidfd_send_signal(pidfd, number)
        finally:
            os.close(pidfd)


def end_all_of(first: int) -> None:
    """Kill all that the runs of the supervisor with that first mark consist of, and return once it is gone."""
    _end_all(lambda _, mark: mark >> _RUN_BITS == first >> _RUN_BITS)


def end_orphaned() -> None:
    """Kill what was left by supervisors that were killed together with their workers; return once it is gone."""
    namespace = _namespace_of(os.getpid())
    # Elsewhere the number of the supervisor means another process.
    _end_all(lambda pid, mark: _is_orphaned(pid, _supervisor(mark)) and _namespace_of(pid) == namespace)


def _is_orphaned(pid: int, supervisor: int) -> bool:
    started, child = start_of(supervisor), identity_of(pid)
    # One that is younger has got the number since; one that /proc hides, lives.
    return child is not None and (started is None or started > child.started)


def _namespace_of(pid: int) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return None


def _end_all(belongs: Callable[[int, int], bool]) -> None:
    hopeless: set[int] = set()
    with contextlib.suppress(OSError):  # without /proc there is nothing to be found
        while found := _killed(belongs, hopeless):  # again, as they may have forked meanwhile
            hopeless |= _buried(found)


def _killed(belongs: Callable[[int, int], bool], without: set[int]) -> dict[int, int]:
    """Kill all that belong; return the pidfds of those, by pid."""
    found: dict[int, int] = {}
    for pid in all_pids():
        mark = None if pid in without else mark_of(pid)
        if mark is None or not belongs(pid, mark):
            continue
        with contextlib.suppress(OSError):
            pidfd = os.pidfd_open(pid)
            try:
                if mark_of(pid) != mark:  # as in signal_run
                    continue
                if has_ended(pidfd):
                    _bury(pidfd)
                    continue
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                found[pid] = pidfd
            finally:
                if pid not in found:
                    os.close(pidfd)
    return found


def _buried(pidfds: dict[int, int]) -> set[int]:
    """Wait for the ends of processes; return those that do not come to one."""
    late: set[int] = set()
    for pid, pidfd in pidfds.items():
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(_END * 1000):
            late.add(pid)
        _bury(pidfd)
        os.close(pidfd)
    return late


def _bury(pidfd: int) -> None:
    """Reap it, if it is a child: so it is where this process is init, or a subreaper."""
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)


# --- the family -----------------------------------------------------------------------------------------------------


def children_of(pid: int | str) -> list[int]:
    """Return the children of all of its threads, zombies too; none if it is gone."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                found += map(int, file.read().split())
    return found


def descendants_of(pid: int) -> list[int]:
    """Return all processes below this one."""
    found = children_of(pid)
    for one in found:  # which grows meanwhile
        found += children_of(one)
    return found


def group_of(pid: int) -> int | None:
    """Return a process's group; None if it is gone."""
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None
