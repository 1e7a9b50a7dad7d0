"""What a process leaves behind in its process group: found, asked to end, waited for.

The number of a group is given out again once the group is empty, so a signal by that number could reach strangers. A
member is therefore signalled through a pidfd only, and only if it is proven to be one. It is proven if it was found in
the group while the process itself or another proven member was still in there: as long as a group has members, nobody
else is given its number. It is proven, too, if it started before the last such moment: a stranger's group of the same
number is younger, and so is everybody in it. (Start times tick in steps of 10 ms. That is too short for numbers, which
are given out in turn, to come round.)
"""

from __future__ import annotations

import contextlib
import os

from daemonkit._system.handle import signal_process
from daemonkit._system.pidfd import has_ended, open_pidfd
from daemonkit._system.process import member_of, members_of, ticks
from daemonkit._system.unpatched import close
from daemonkit._system.wait import wait_readable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from daemonkit._system.handle import DetachedProcess
    from daemonkit._system.process import Identity


class ProcessGroup:
    """The members of a process's own group, but for the process itself and for the caller."""

    def __init__(self, process: DetachedProcess) -> None:
        """Find them while the process lives. There are none if the group is not its own."""
        self._process = process
        self._proven_at = ticks()
        self._number = process.own_group()
        self._pidfds: dict[Identity, int] = {}
        self._find()

    def close(self) -> None:
        """Close the pidfds."""
        while self._pidfds:
            close(self._pidfds.popitem()[1])

    def end(self, sig: int, deadline: float | None) -> int | None:
        """Send each of them a signal, wait for their end, and return the pid of one that is left at the deadline.

        Raises PermissionError for one that belongs to another user, after all others have been sent the signal.
        """
        asked: set[Identity] = set()
        while living := self._find():
            refused: PermissionError | None = None
            for who in living.keys() - asked:
                asked.add(who)
                try:
                    signal_process(who.pid, living[who], sig)
                except PermissionError as error:
                    refused = error
            if refused:
                raise refused
            if not wait_readable(living.values(), deadline):
                return next(iter(living)).pid
        return None

    def _find(self) -> dict[Identity, int]:
        """Look for members that have come since; return those that live, with their pidfds."""
        if (group := self._number) is None:
            return {}
        known = {self._process.pid, os.getpid(), *(who.pid for who in self._pidfds)}
        found = [who for who in members_of(group) if who.pid not in known]
        for who in found:
            with contextlib.suppress(ProcessLookupError):
                self._pidfds[who] = open_pidfd(who.pid)
        now = ticks()
        if still_own := self._is_still_own(group, found):
            self._proven_at = now
        for who in found:
            # The pidfd is that of `who` if it is there after the opening, too.
            proven = still_own or who.started <= self._proven_at
            if who in self._pidfds and not (proven and member_of(group, who.pid) == who):
                close(self._pidfds.pop(who))
        return {who: pidfd for who, pidfd in self._pidfds.items() if not has_ended(pidfd)}

    def _is_still_own(self, group: int, found: list[Identity]) -> bool:
        """Tell whether the process or a member that was proven before is still in the group."""
        if not has_ended(self._process.fileno()) or self._process.leads_a_group():
            return True
        before = (who for who in self._pidfds if who not in found)
        return any(member_of(group, who.pid) == who for who in before)
