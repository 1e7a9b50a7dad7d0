"""Look after a daemon by its pidfile: `status`, `attach`, `send_signal`, `stop`.

Whom the pidfile names does not matter; who holds its lock does. A signal goes through a pidfd, which is opened before
the lock is looked at for the last time, so that it never reaches a process that was given the same number later.
"""

from __future__ import annotations

import contextlib
import os
import signal as _signal
from dataclasses import dataclass, field
from datetime import UTC, datetime

from daemonkit._pidfile.holder import find_holder
from daemonkit._pidfile.pidfile import PidFile
from daemonkit._system.check import check_seconds
from daemonkit._system.handle import DetachedProcess
from daemonkit._system.process import wall_clock
from daemonkit.errors import NotRunningError, StopTimeoutError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from daemonkit._pidfile.holder import Holder
    from daemonkit._system.streams import Path

_AFTER_KILL: Final = 10.0  # seconds; only a process that hangs in the kernel takes longer to die


@dataclass(frozen=True, slots=True, repr=False)
class Status:
    """What a pidfile said at one moment; true if it was held.

    >>> with daemonkit.PidFile("app.pid"):
    ...     status = daemonkit.status("app.pid")
    >>> status.running, status.pid == os.getpid(), bool(daemonkit.status("app.pid"))
    (True, True, False)
    """

    running: bool
    """Whether a live process holds it."""
    pid: int | None
    """The holder's, None if there is none."""
    _ticks: int | None = field(default=None)

    @property
    def started(self) -> datetime | None:
        """When the holder started, by today's clock, in UTC; None if nothing runs, or where /proc hides it."""
        return datetime.fromtimestamp(wall_clock(self._ticks), UTC) if self._ticks else None

    def __bool__(self) -> bool:
        """Whether it was held."""
        return self.running

    def __repr__(self) -> str:
        """Show all three."""
        return f"Status(running={self.running}, pid={self.pid}, started={self.started!r})"


def status(pidfile: Path | PidFile) -> Status:
    """Tell whether the pidfile is held, and by whom.

    Reads only, and disturbs nobody who starts or stops. A file that another tool wrote, naming a live process that
    started before, counts as held. Raises OSError for what can't be a pidfile, with the path.
    """
    holder = find_holder(_path(pidfile))
    return Status(running=True, pid=holder.pid, _ticks=holder.started) if holder else Status(running=False, pid=None)


def attach(pidfile: Path | PidFile) -> DetachedProcess:
    """Return a handle on the process that holds the pidfile.

    It works as that of `spawn_detached`, but takes nobody's exit status: that of a process that is not this one's
    child it tells where the kernel does (Linux 6.15), once the parent has taken it. Raises NotRunningError if there
    is no holder, or none that daemonkit can prove to be it.
    """
    path = os.path.abspath(_path(pidfile))
    while True:
        holder = _holder(path)
        try:
            pidfd = os.pidfd_open(holder.pid)
        except ProcessLookupError:  # it ended in between
            continue
        # If the same process still holds it, it lived all the while, and its number was its own.
        if find_holder(path) == holder:
            return DetachedProcess(holder.pid, pidfd, path, child=False, daemon=holder.daemon)
        os.close(pidfd)


def send_signal(pidfile: Path | PidFile, sig: int) -> None:
    """Send a signal to the process that holds the pidfile, and to no other: kill(2).

    Raises NotRunningError if there is none, PermissionError if it belongs to another user.
    """
    attach(pidfile).send_signal(sig)


def stop(
    pidfile: Path | PidFile, timeout: float | None = 10.0, *, signal: int = _signal.SIGTERM, kill: bool = True
) -> bool:
    """End the process that holds the pidfile; return once it is gone and the file is free.

    It is sent `signal`, and after `timeout` seconds (None: never) SIGKILL, with its process group if that is its own:
    if it leads it, or was detached by `detached`. Returns True if it ended on request, False if it was killed. Raises
    NotRunningError if nothing ran, PermissionError if it belongs to another user, StopTimeoutError with `kill=False`,
    when it goes on running.

    >>> daemonkit.spawn_detached(["sleep", "60"], pidfile="b.pid").running
    True
    >>> daemonkit.stop("b.pid")
    True
    """
    check_seconds("timeout", timeout)
    if not isinstance(kill, bool):
        raise TypeError(f"kill: True or False, not {kill!r}")
    process = attach(pidfile)
    process.send_signal(signal)
    if process.wait_for_end(timeout):
        return True
    if not kill:
        message = f"process {process.pid} ({process.args}) did not end within {timeout:g} s, and was not to be killed"
        raise StopTimeoutError(message, pid=process.pid)
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it ended; all others are another user's
        if os.getpgid(process.pid) != os.getpgid(0):  # a child of the daemon may be who stops it
            process.send_signal(_signal.SIGKILL, group=True)
    process.kill()
    if not process.wait_for_end(_AFTER_KILL):
        message = f"process {process.pid} ({process.args}) hangs in the kernel: SIGKILL has not ended it"
        raise StopTimeoutError(message, pid=process.pid)
    return False


def _path(pidfile: Path | PidFile) -> str:
    if isinstance(pidfile, PidFile):
        return pidfile.path
    if not isinstance(pidfile, (str, bytes, os.PathLike)):
        raise TypeError(f"pidfile: a path or a PidFile, not {pidfile!r}")
    if not pidfile or "\0" in (path := os.fsdecode(pidfile)):
        raise ValueError(f"pidfile: {pidfile!r} is no path")
    return path


def _holder(path: str) -> Holder:
    holder = find_holder(path)
    if holder is None:
        raise NotRunningError(f"nothing holds {path}, so nothing of it runs", path=path)
    if not holder.ours:
        message = (
            f"{path} names process {holder.pid}, but nothing has locked it: another tool's process seems to run it, "
            "and whether it is that one nobody can prove; end it by that tool"
        )
        raise NotRunningError(message, path=path)
    if not holder.here:
        message = f"{path} is held in another PID namespace (a container), out of reach from here; stop it from there"
        raise NotRunningError(message, path=path)
    return holder
