"""The children that were launched, and those among them whose handles were dropped: nobody else reaps these.

Every look at a pidfile reaps too, so this loads little. `select`, which takes a millisecond to load, comes with the
first handle that is dropped: whoever has launched something has loaded it by then.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    import select
    from typing import Final

launched: Final[set[int]] = set()
"""Pids of the children of this process that were launched to be detached, until it is known that they have ended."""


class _Dropped:
    """Children whose handles were dropped: each is reaped at the next call of daemonkit after its end."""

    _poll: select.poll
    """It is there once something was dropped."""

    def __init__(self) -> None:
        self._pids: dict[int, int] = {}
        """By pidfd."""
        self._parent = os.getpid()

    def add(self, pidfd: int, pid: int) -> None:
        from daemonkit._system.unpatched import POLLIN, poll  # noqa: PLC0415 - see above

        if self._parent != os.getpid():  # after a fork: the children in it are another process's
            vars(self).clear()
            self.__init__()  # type: ignore[misc]  # anew
        poller = vars(self).setdefault("_poll", poll())  # in one step: another thread may be doing the same
        self._pids[pidfd] = pid
        poller.register(pidfd, POLLIN)

    def reap(self) -> None:
        if not self._pids or self._parent != os.getpid():
            return
        from daemonkit._system.unpatched import close  # noqa: PLC0415 - see above

        try:
            ended = self._poll.poll(0)
        except RuntimeError:  # another thread is polling it
            return
        for pidfd, _ in ended:
            try:
                launched.discard(self._pids.pop(pidfd))
            except KeyError:  # another thread was first
                continue
            self._poll.unregister(pidfd)
            try:
                os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
            except ChildProcessError:  # somebody else reaped it
                pass
            close(pidfd)


_dropped = _Dropped()


def drop(pidfd: int, pid: int) -> None:
    """Take over the pidfd of a child whose handle is gone, to reap the child after its end."""
    _dropped.add(pidfd, pid)


def reap() -> None:
    """Reap the dropped children that have ended. Every public call does this, so that zombies never pile up."""
    _dropped.reap()
