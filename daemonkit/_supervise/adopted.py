"""Processes that come to the calling process: it is a child subreaper while it supervises.

If the worker is killed, what its instances left comes here. Most of that bears a mark, and is ended by it (`marks`).
But su, sudo and whatever else loads pam_limits(8) reset RLIMIT_RTTIME, and a set-user-ID program clears
PR_SET_PDEATHSIG. So what came here without a mark is ended too, as far as it provably came from an instance. The
caller's own children, and orphans of theirs, are left alone; what nobody can attribute is named in the log.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading

from daemonkit._supervise import marks
from daemonkit._system.pidfd import wait_for_end
from daemonkit._system.prctl import become_subreaper, is_subreaper
from daemonkit._system.process import children_of, start_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_logger = logging.getLogger("daemonkit")


class Adopted:
    """The calling process's children beside the worker: the caller's own, and what came to it as a subreaper."""

    def __init__(self) -> None:
        """Take what is a child now for the caller's own."""
        self.worker = 0
        self._own = set(children_of("self"))
        self._had_own = bool(self._own)
        self._hopeless: set[int] = set()
        """Those that can't be ended, or that nobody can attribute: each is named once."""
        self._was_subreaper = is_subreaper()

    def begin(self) -> None:
        """Become a subreaper."""
        become_subreaper()

    def finish(self) -> None:
        """Be one no longer, unless the caller was: so what was set free is not left to it."""
        become_subreaper(on=self._was_subreaper)

    @contextlib.contextmanager
    def callers_turn(self) -> Iterator[None]:
        """Take the children that are started in this block, in which the caller's code runs, for its own.

        If the worker is killed meanwhile, what its instances left comes here in the block too. Then only those in the
        caller's own session, which no instance is in, are taken for it; the others are left to proof.
        """
        before = children_of("self")
        try:
            yield
        finally:
            started = set(children_of("self")).difference(before)
            self._had_own |= bool(started)
            if self._worker_has_ended():
                started = {pid for pid in started if marks.session_of(pid) == os.getsid(0)}
            self._own |= started

    def _worker_has_ended(self) -> bool:
        """Ask the kernel, not /proc: where the caller's code left no descriptor, this must not fail."""
        if not self.worker:
            return False
        try:
            return os.waitid(os.P_PID, self.worker, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    def reap(self) -> None:
        """Reap what came here and has ended. With other threads nobody can tell it from what those have started."""
        if threading.active_count() == 1:
            for pid in set(children_of("self")) - self._own - {self.worker}:
                with contextlib.suppress(ChildProcessError):
                    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)

    def end_left(self, first_mark: int, mains: set[int]) -> None:
        """End what a killed worker's instances have left here; `mains` are the pids of their main processes.

        A child's pid stays its own until it is reaped. Killing one brings up its children, which are looked for again.
        """
        # An instance that was started just now may be known by its mark alone, as the worker could not tell of it yet.
        mains = mains | {pid for pid in children_of("self") if marks.run_of(pid, first_mark) is not None}
        below: set[int] = set()
        while True:
            self.reap()
            found = set(children_of("self")) - self._own - self._hopeless
            found = {pid for pid in found if not marks.is_set_free(pid)}
            proven = {pid for pid in found if pid in below or self._is_proven(pid, first_mark, mains)}
            if not proven:
                break
            for pid in proven:
                below.update(marks.descendants_of(pid))
            for pid in proven:
                self._end(pid)
        for pid in found:
            if start_of(pid) is None:  # a zombie, whose parent another thread may be
                continue
            self._give_up(pid, "came to this process, and nothing tells whether an instance started it")

    def _is_proven(self, pid: int, first_mark: int, mains: set[int]) -> bool:
        if not self._had_own and threading.active_count() == 1:
            return True  # there was nobody else that it could come from
        if pid in mains or marks.run_of(pid, first_mark) is not None:
            return True
        try:
            return os.getsid(pid) in mains or (b"DAEMONKIT_INSTANCE" not in os.environb and marks.has_instance(pid))
        except ProcessLookupError:
            return False

    def _end(self, pid: int) -> None:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:  # somebody else reaped it
            return
        except PermissionError:
            self._give_up(pid, "was left by an instance and belongs to another user, so it can't be ended from here")
            return
        wait_for_end(pid, marks.END)
        with contextlib.suppress(ChildProcessError):
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG) is None:
                self._give_up(pid, "was left by an instance and does not end, though it was killed")

    def _give_up(self, pid: int, why: str) -> None:
        if pid not in self._hopeless:
            self._hopeless.add(pid)
            _logger.warning("process %d %s; it is left alone", pid, why)
