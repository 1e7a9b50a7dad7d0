"""Which processes belong to a supervisor, seen from outside: by their marks (`_system.run_mark`)."""

from __future__ import annotations

import contextlib
import os
import select
import signal

from daemonkit._system.pidfd import has_ended
from daemonkit._system.process import all_pids, children_of, identity_of, parent_of, pid_namespace, start_of
from daemonkit._system.run_mark import (
    FREE,
    LOWEST,
    NAMESPACE_BITS,
    PID_BITS,
    RUN_BITS,
    mark_of,
    supervisor_of,
)
from daemonkit._system.unpatched import close, poll

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from typing import Final

RUNS: Final = 1 << 20  # of one worker process
WORKERS: Final = 1 << (RUN_BITS - 20)  # of one supervisor
END: Final = 5.0  # seconds until a process that was killed is given up: it hangs in the kernel


def base() -> int:
    """Return the first mark of this process as a supervisor; there are RUNS * WORKERS."""
    namespace = pid_namespace() & (1 << NAMESPACE_BITS) - 1
    return LOWEST + ((namespace << PID_BITS | os.getpid()) << RUN_BITS)


def run_of(pid: int, first: int) -> int | None:
    """Return the number of the run that a process belongs to, if it is of the supervisor with that first mark."""
    mark = mark_of(pid)
    return None if mark is None or mark >> RUN_BITS != first >> RUN_BITS else mark & (1 << RUN_BITS) - 1


def signal_member(pid: int, number: int, mark: int, family: set[int]) -> None:
    """Signal one of a run's family; the mark is the run's."""
    with contextlib.suppress(OSError):
        pidfd = os.pidfd_open(pid)
        try:
            # Looked at after the pidfd was opened: so it is that process's, whoever had the number before.
            found = mark_of(pid)
            if found == mark or (found is None and parent_of(pid) in family):
                signal.pidfd_send_signal(pidfd, number)
        finally:
            close(pidfd)


def end_all_of(first: int) -> None:
    """Kill all that the runs of the supervisor with that first mark consist of, and return once it is gone."""
    _end_all(lambda _, mark: mark is not None and mark >> RUN_BITS == first >> RUN_BITS)


def end_orphaned() -> None:
    """Kill what was left by supervisors that were killed together with their workers; return once it is gone."""
    namespace = _namespace_of(os.getpid())
    # Elsewhere the number of the supervisor means another process.

    def belongs(pid: int, mark: int | None) -> bool:
        return mark is not None and _is_orphaned(pid, supervisor_of(mark)) and _namespace_of(pid) == namespace

    _end_all(belongs)


def end_sessions(leaders: Collection[int], until: int) -> list[int]:
    """Kill the sessions that these processes led at the time `until`; return who is left in one of that number.

    A session keeps its number as long as it has a member, and nothing joins it but children of members. So if one of
    them is older than `until` (in clock ticks since boot), the session is the one of that time, not a later one whose
    leader was given the same pid.
    """

    def members() -> list[int]:
        return [pid for pid in all_pids() if session_of(pid) in leaders and start_of(pid) is not None]

    proven = {session_of(pid) for pid in members() if 0 < (start_of(pid) or 0) <= until} - {None}
    if proven:
        _end_all(lambda pid, _: session_of(pid) in proven)
    return members()


def unproven_orphans(directory: str) -> list[int]:
    """Return processes without a mark that may have been left by supervisors that were killed: nothing proves it.

    They were executed in an instance's environment and are in its directory; nothing above them is supervised any more.
    Those in other directories are somebody else's, who is told of them at a start of his own.
    """
    if b"DAEMONKIT_INSTANCE" in os.environb:  # then so are all that run beside this program
        return []

    with contextlib.suppress(OSError):
        here = os.stat(directory)
        # Most are elsewhere, and that is seen soonest.
        near = [pid for pid in all_pids() if _is_in(pid, here)]
        return [pid for pid in near if mark_of(pid) is None and has_instance(pid) and not _is_below_a_mark(pid)]
    return []


def _is_in(pid: int, directory: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(f"/proc/{pid}/cwd"), directory)
    except OSError:
        return False


def _is_below_a_mark(pid: int) -> bool:
    above = parent_of(pid)
    while above:
        if mark_of(above) is not None:
            return True
        above = parent_of(above)
    return False


def _is_orphaned(pid: int, supervisor: int) -> bool:
    started, child = start_of(supervisor), identity_of(pid)
    # One that is younger has got the number since; one that /proc hides, lives.
    return child is not None and (started is None or started > child.started)


def _namespace_of(pid: int) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return None


def _end_all(belongs: Callable[[int, int | None], bool]) -> None:
    hopeless: set[int] = set()
    with contextlib.suppress(OSError):  # without /proc there is nothing to be found
        while found := _killed(belongs, hopeless):  # again, as they may have forked meanwhile
            hopeless |= _buried(found)


def _killed(belongs: Callable[[int, int | None], bool], without: set[int]) -> dict[int, int]:
    """Kill all that belong; return the pidfds of those, by pid."""
    found: dict[int, int] = {}

    def is_one(pid: int) -> bool:
        mark = mark_of(pid)
        return mark != FREE and belongs(pid, mark)

    for pid in all_pids():
        if pid in without or not is_one(pid):
            continue
        with contextlib.suppress(OSError):
            pidfd = os.pidfd_open(pid)
            try:
                if not is_one(pid):  # as in signal_member
                    continue
                if has_ended(pidfd):
                    _bury(pidfd)
                    continue
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                found[pid] = pidfd
            finally:
                if pid not in found:
                    close(pidfd)
    return found


def _buried(pidfds: dict[int, int]) -> set[int]:
    """Wait for the ends of processes; return those that do not come to one."""
    late: set[int] = set()
    for pid, pidfd in pidfds.items():
        poller = poll()
        poller.register(pidfd, select.POLLIN)
        if not poller.poll(END * 1000):
            late.add(pid)
        _bury(pidfd)
        close(pidfd)
    return late


def _bury(pidfd: int) -> None:
    """Reap it, if it is a child: so it is where this process is init, or a subreaper."""
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)


# --- the family -----------------------------------------------------------------------------------------------------


def descendants_of(pid: int, *, of_run: int | None = None) -> list[int]:
    """Return all processes below this one, without those that were set free and what is below them.

    With the mark `of_run` also without those that another supervisor runs: that one stops them in its own way.
    """

    def belongs(child: int) -> bool:
        mark = mark_of(child)
        return mark != FREE and (of_run is None or mark in {None, of_run})

    found = list(filter(belongs, children_of(pid)))
    for one in found:  # which grows meanwhile
        found += filter(belongs, children_of(one))
    return found


def is_set_free(pid: int) -> bool:
    """Tell whether a process outlives the instance that it was started in."""
    return mark_of(pid) == FREE


def has_instance(pid: int) -> bool:
    """Tell whether a process has DAEMONKIT_INSTANCE in the environment that it was executed with."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return b"\0DAEMONKIT_INSTANCE=" in b"\0" + file.read()
    except OSError:
        return False


def is_of_another(pid: int, first: int) -> bool:
    """Tell whether a process belongs to another supervisor, which lives."""
    mark = mark_of(pid)
    if mark is None or mark == FREE or mark >> RUN_BITS == first >> RUN_BITS:
        return False
    return not _is_orphaned(pid, supervisor_of(mark))


def session_of(pid: int) -> int | None:
    """Return a process's session; None if it is gone."""
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None
