"""The one place that waits for descriptors with a deadline."""

from __future__ import annotations

import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

LONGEST: Final = 3600.0  # seconds for one poll(2), whose milliseconds are an int


def deadline_after(seconds: float | None) -> float | None:
    """Return the moment of `time.monotonic` that is so many seconds away; None means never."""
    return None if seconds is None else time.monotonic() + seconds


def wait_readable(fds: Iterable[int], deadline: float | None, longest: float = LONGEST) -> set[int]:
    """Return the descriptors that have something to read or have met their end; none once the deadline has passed.

    `longest` bounds one poll(2), in seconds: Python runs the handlers of signals at least that often.
    """
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    while True:
        left = longest if deadline is None else max(deadline - time.monotonic(), 0)
        ready = poll.poll(min(left, longest) * 1000)
        if ready or left == 0:
            return {fd for fd, _ in ready}
