"""`PidFile`: the pidfile as a `lockfile` class."""

from __future__ import annotations

import math
import os

from lockfile import NotLocked, NotMyLock
from lockfile.pidlockfile import PIDLockFile

from daemonkit._pidfile.hold import Hold, keep, own_hold, remove_stale, take
from daemonkit._pidfile.holder import find_holder, pidfile_path
from daemonkit._system.check import check_seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, Self

    from daemonkit._system.streams import Path


_AS_BUILT: Final = -math.inf  # no timeout was given to acquire(): the one that the object was made with


class PidFile(PIDLockFile):
    """A pidfile held by a kernel lock that ends with its process, however that process dies.

    Usable wherever a `lockfile.pidlockfile.PIDLockFile` is: `acquire`, `release`, `is_locked`, `i_am_locking`,
    `read_pid`, `break_lock`, ``DaemonContext(pidfile=...)``, and as a context manager. The path is made absolute
    at once. While it is held, the file has the holder's pid and a newline, mode 0o644. A forked child neither
    keeps the lock nor removes the file. `timeout`: how many seconds `acquire` waits for the lock; None: for ever, 0 or
    less: not at all. Locks are Linux's open file description locks; see fcntl(2).

    >>> lock = PidFile("app.pid")
    >>> with lock:
    ...     lock.read_pid() == os.getpid()
    True
    >>> print(lock.read_pid())
    None
    """

    path: str
    timeout: float | None

    def __init__(self, path: Path, timeout: float | None = 0, *, threaded: bool = False) -> None:
        """Name the file; nothing is opened yet. `threaded` is lockfile's, and without effect there too."""
        check_seconds("timeout", timeout)
        super().__init__(pidfile_path(path), threaded, timeout)
        self._hold: Hold | None = None

    def __enter__(self) -> Self:
        """Acquire it."""
        self.acquire()
        return self

    def __exit__(self, *_exc: object) -> None:
        """Release it, if it is still this process's: not in a forked child, nor after `break_lock`."""
        if self._own():
            self.release()

    def acquire(self, timeout: float | None = _AS_BUILT) -> None:
        """Take the lock and publish this process's pid.

        `timeout` in seconds, by default the object's. Raises AlreadyRunningError, or `lockfile.LockTimeout` where
        it was to wait; OSError, with the path, for a file or directory that can't be used.
        """
        hold = Hold(self.path)
        try:
            take(hold, self.timeout if timeout == _AS_BUILT else timeout)
            keep(hold)
            self._hold = hold
        except BaseException:
            hold.release()
            raise

    def release(self) -> None:
        """Free the file; raises `lockfile.NotLocked` or `lockfile.NotMyLock` if this process does not hold it.

        It is removed; where the directory is not writable any more (privileges were dropped), emptied. It works
        also after a chroot, and after a chdir.
        """
        if hold := self._own():
            hold.release()
        elif self.is_locked():
            raise NotMyLock(f"{self.path} is held, but not by this process")
        else:
            raise NotLocked(f"{self.path} is not held")

    def break_lock(self) -> None:
        """Free this process's own lock, or remove a stale file; AlreadyRunningError against a live holder."""
        if hold := self._own():
            hold.release()
            return
        remove_stale(self.path)

    def read_pid(self) -> int | None:
        """Return the live holder's pid, or None. Reads only, and never disturbs a starter."""
        if self.i_am_locking():  # also after a chroot, where the path leads nowhere
            return os.getpid()
        holder = find_holder(self.path)
        return holder.pid if holder else None

    def is_locked(self) -> bool:
        """Tell whether a live process holds it."""
        return self.read_pid() is not None

    def i_am_locking(self) -> bool:
        """Tell whether this process holds it, through whichever object."""
        hold = self._own()
        return hold is not None and hold.is_current()

    def _own(self) -> Hold | None:
        return own_hold(self.path, self._hold)
