"""What an instance leaves behind: processes that lose their parents come to the worker, which is a child subreaper.

A process whose parent has died becomes a direct child of the worker. When the worker kills it, its own children come up
in the same way, until nothing is left.
"""

from __future__ import annotations

import contextlib
import os
import signal

from daemonkit._supervise import marks
from daemonkit._system.process import children_of, member_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from daemonkit._supervise.policy import Run


class Strays:
    """The worker's direct children that are no main process, and which run each belongs to."""

    def __init__(
        self, first_mark: int, runs: Mapping[int, Run], mains: Mapping[int, Run], checks: Mapping[int, object]
    ) -> None:
        """Take the worker's runs by number and by the pid of their main process, and the pids of its checks."""
        self._first_mark, self._runs, self._mains, self._checks = first_mark, runs, mains, checks
        self.run_of_stray: dict[int, int | None] = {}
        """Run number by pid; None where nothing tells."""
        self._free: set[int] = set()
        """Direct children that were set free on purpose: they are reaped here, and that is all."""
        self.is_current = False
        """Whether `look_up` was called in this round of the loop: no signal tells of a new orphan."""

    def __bool__(self) -> bool:
        """Tell whether there are any."""
        return bool(self.run_of_stray)

    def look_up(self, *, all_done: bool) -> None:
        """Find all strays and kill those whose run is over; with `all_done`, also those whose run is unknown."""
        self.is_current = True
        pids = set(children_of("self")) - self._mains.keys() - self._checks.keys()
        new = pids - self.run_of_stray.keys() - self._free
        self._free = {pid for pid in self._free if pid in pids} | {pid for pid in new if marks.is_set_free(pid)}
        self.run_of_stray = {
            pid: self.run_of_stray[pid] if pid in self.run_of_stray else self._find_run(pid)
            for pid in pids - self._free
        }
        for pid, number in self.run_of_stray.items():
            run = None if number is None else self._runs.get(number)
            if all_done or (run and run.killed) or (number is not None and run is None):
                signal_child(pid, signal.SIGKILL)

    def _find_run(self, pid: int) -> int | None:
        """Return the number of a stray's run: by its mark, by its session, or because there is only one run."""
        number = marks.run_of(pid, self._first_mark)
        if number is not None:
            return number
        with contextlib.suppress(ProcessLookupError):
            session = os.getsid(pid)
            number = next((run.number for run in self._runs.values() if run.pid == session), None)
        # A process without a mark has cleared it, or could not be given one. If it has another supervisor's mark, that
        # supervisor ends it.
        if number is None and len(self._runs) == 1 and not marks.is_of_another(pid, self._first_mark):
            return next(iter(self._runs))
        return number

    def forget(self, pid: int) -> None:
        """Take note that one was reaped."""
        self.run_of_stray.pop(pid, None)
        self._free.discard(pid)

    def of(self, run: Run) -> list[int]:
        """Return those of one run."""
        return [pid for pid, number in self.run_of_stray.items() if number == run.number]

    def family_of(self, run: Run) -> set[int]:
        """Return all processes that belong to a run."""
        roots = [*self.of(run), *([run.pid] if run.pid in self._mains else [])]
        return {one for root in roots for one in (root, *marks.descendants_of(root))}

    def stop_main(self, run: Run, number: int) -> None:
        """Send a signal to the run's main process alone."""
        if run.pid in self._mains:
            signal_child(run.pid, number)

    def stop(self, run: Run, number: int) -> None:
        """Send a signal to everything that belongs to the run: its process group, and what has left that."""
        group = run.pid if run.pid in self._mains else None
        mark = self._first_mark + run.number
        roots = [*self.of(run), *([group] if group else [])]
        family = {one for root in roots for one in (root, *marks.descendants_of(root, of_run=mark))}
        if group:
            signal_group(group, number)
        for pid in family:
            if group is None or not member_of(group, pid):
                marks.signal_member(pid, number, mark, {*family, os.getpid()})

    def kill(self, run: Run) -> None:
        """Kill the run's process group and its strays; those that come up afterwards are found by `look_up`."""
        if run.pid in self._mains:
            signal_group(run.pid, signal.SIGKILL)
        for pid in self.of(run):
            signal_child(pid, signal.SIGKILL)


def signal_group(leader: int, number: int) -> None:
    """Signal the group of a child that is not reaped. One that was forked just now may not lead a group yet."""
    try:
        os.killpg(leader, number)
    except ProcessLookupError:
        signal_child(leader, number)
    except PermissionError:  # it has changed its user, as sudo does, and can't be ended from here
        pass


def signal_child(pid: int, number: int) -> None:
    """Signal a child, which nobody else reaps."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
