"""The one place that waits for descriptors with a deadline."""

from __future__ import annotations

import select
import time

from daemonkit._system.unpatched import is_green, poll

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

LONGEST: Final = 3600.0  # seconds for one poll(2), whose milliseconds are an int


def deadline_after(seconds: float | None) -> float | None:
    """Return the moment of `time.monotonic` that is so many seconds away; None means never."""
    return None if seconds is None else time.monotonic() + seconds


def pause(seconds: float) -> None:
    """Return after that many seconds, or later."""
    wait_readable([], deadline_after(seconds))


def wait_readable(fds: Iterable[int], deadline: float | None, longest: float = LONGEST) -> set[int]:
    """Return the descriptors that have something to read or have met their end; none once the deadline has passed.

    `longest` bounds one poll(2), in seconds: Python runs the handlers of signals at least that often.
    """
    poller = poll()
    for fd in fds:
        poller.register(fd, select.POLLIN)
    while True:
        left = longest if deadline is None else max(deadline - time.monotonic(), 0)
        ready = poller.poll(min(left, longest) * 1000)
        if ready or left == 0:
            return {fd for fd, _ in ready}


def wait_among_greenlets(fds: Iterable[int], deadline: float | None) -> set[int]:
    """Do the same in a program's own time: where gevent or eventlet has patched `select`, other greenlets go on.

    Whoever is waited for may be served by one of them, or wait for one to release a pidfile.
    """
    if not is_green(select.select):
        return wait_readable(fds, deadline)
    left = None if deadline is None else max(deadline - time.monotonic(), 0)
    return set(select.select(list(fds), [], [], left)[0])
