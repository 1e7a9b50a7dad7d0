"""Another start of the same daemon that is under way: seen from its processes, as it leaves no other trace.

While a daemon has not started yet, its parent is the process that leads its session and watches over the start; that
one ends once it has. Before that, for some milliseconds, the starting process itself holds the pidfile.
"""

from __future__ import annotations

import os

from daemonkit._pidfile.holder import find_holder
from daemonkit._system.pidfd import wait_for_end
from daemonkit._system.process import ticks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from daemonkit._pidfile.holder import Holder

_YOUNG: Final = os.sysconf("SC_CLK_TCK")  # one second, in clock ticks
_LOOK: Final = 0.02  # seconds
_CLEANING: Final = 150  # looks; it takes milliseconds


def watcher_of(daemon: int) -> int | None:
    """Return the process that watches over a daemon's start, None once it has started."""
    try:
        with open(f"/proc/{daemon}/stat", "rb") as stat:
            _, parent, _, session = stat.read().rpartition(b")")[2].split()[:4]
    except OSError:  # it has ended, or is hidden
        return None
    return int(parent) if parent == session and parent != b"0" else None


def _may_be_a_starter(holder: Holder) -> bool:
    return (
        not holder.daemon
        and holder.locked_by_daemonkit
        and holder.same_namespace
        and 0 <= ticks() - holder.started < _YOUNG
    )


def is_starting(path: str) -> bool:
    """Tell whether the pidfile's holder has not started yet."""
    holder = find_holder(path)
    return bool(holder and holder.daemon and watcher_of(holder.pid))


def wait_for_start(path: str, pid: int | None) -> bool:
    """Wait while a start is under way; return whether one was."""
    while (holder := find_holder(path)) and _may_be_a_starter(holder):
        wait_for_end(holder.pid, _LOOK)
    waited = holder is None or holder.pid != pid
    while (holder := find_holder(path)) and holder.daemon and (watcher := watcher_of(holder.pid)):
        waited = True
        wait_for_end(watcher, 1.0)
    for _ in range(_CLEANING):
        # A starting process whose daemon has failed holds the pidfile again until it has cleaned up.
        if not (waited and holder and holder.locked_by_daemonkit and not holder.daemon):
            break
        wait_for_end(holder.pid, _LOOK)
        holder = find_holder(path)
    return waited
