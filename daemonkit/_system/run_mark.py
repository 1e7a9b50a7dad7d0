"""The mark that tells which run of which supervisor a process belongs to.

It is a soft RLIMIT_RTTIME that no program sets: fork and exec hand it on, `env -i` does not clear it, and whoever may
look into /proc can read it, also once all parents are gone. It names the supervisor by its pid and by some bits of its
PID namespace, and one of its runs. A lower value, `FREE`, says that a process was set free on purpose: it outlives the
instance that it was started in.
"""

from __future__ import annotations

import contextlib
import os
import resource

from daemonkit._system.process import children_of
from daemonkit._system.unpatched import close

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

LOWEST: Final = 1 << 62
FREE: Final = 1 << 61
RUN_BITS: Final = 32
PID_BITS: Final = 22
NAMESPACE_BITS: Final = 8  # what is left
WORKER: Final = (1 << RUN_BITS) - 1
"""The run number that a worker process has itself, but for the moments in which it forks."""


def put_mark(mark: int) -> None:
    """Mark this process, and all that it will start; not where the hard limit is too low: sessions tell then."""
    with contextlib.suppress(OSError, ValueError):
        hard = resource.getrlimit(resource.RLIMIT_RTTIME)[1]
        resource.setrlimit(resource.RLIMIT_RTTIME, (mark, hard))


def mark_of(pid: int) -> int | None:
    """Return the mark of a process; None if it has none, or is gone."""
    try:
        return _mark_in(resource.prlimit(pid, resource.RLIMIT_RTTIME)[0])  # in a tenth of the time that /proc takes
    except ProcessLookupError:
        return None
    except OSError:  # another user's
        return _shown_mark(pid)


def _shown_mark(pid: int) -> int | None:
    """Return what /proc, which shows it to everybody, says of the mark of a process."""
    try:
        fd = os.open(f"/proc/{pid}/limits", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        text = os.read(fd, 4096)
    except OSError:
        return None
    finally:
        close(fd)
    soft = text.partition(b"Max realtime timeout")[2].split(None, 1)[:1]
    return _mark_in(int(soft[0])) if soft and soft[0].isdigit() else None


def own_mark() -> int | None:
    """Return this process's mark."""
    return _mark_in(resource.getrlimit(resource.RLIMIT_RTTIME)[0])


def _mark_in(soft: int) -> int | None:
    return soft if soft == FREE or soft >= LOWEST else None


def supervisor_of(mark: int) -> int:
    """Return the pid of the supervisor that a mark names; FREE names none."""
    return mark >> RUN_BITS & (1 << PID_BITS) - 1


def is_supervised() -> bool:
    """Tell whether a supervisor has executed this very process, as the main process of an instance."""
    mark = own_mark()
    return mark is not None and mark != FREE and mark_of(os.getppid()) == mark | WORKER


def set_free(pid: int = 0) -> None:
    """Take a child, or this process, out of the run that it was started in, with what it has started by now."""
    if resource.getrlimit(resource.RLIMIT_RTTIME)[0] < LOWEST:  # no mark, or it is free already
        return
    free = [pid]
    for one in free:  # which grows meanwhile
        with contextlib.suppress(OSError, ValueError):
            resource.prlimit(one, resource.RLIMIT_RTTIME, (FREE, resource.prlimit(one, resource.RLIMIT_RTTIME)[1]))
        free += children_of(one) if one else []
