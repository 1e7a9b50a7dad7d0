"""Look after a daemon by its pidfile: `attach`, `send_signal`, `stop`.

The process that holds the lock counts, not the process that the text names. A signal goes through a pidfd. It is opened
before the last look at the lock, so it never reaches a process that was given the same number later.
"""

from __future__ import annotations

import contextlib
import os
import signal as _signal

from daemonkit._pidfile.holder import find_holder, pidfile_path
from daemonkit._system.check import check_boolean, check_seconds
from daemonkit._system.group import ProcessGroup
from daemonkit._system.handle import DetachedProcess
from daemonkit._system.pidfd import open_pidfd
from daemonkit._system.unpatched import close
from daemonkit._system.wait import deadline_after
from daemonkit.errors import NotRunningError, StopTimeoutError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from daemonkit._pidfile.holder import Holder
    from daemonkit._pidfile.pidfile import PidFile
    from daemonkit._system.streams import Path

_AFTER_KILL: Final = 10.0  # seconds; only a process that hangs in the kernel takes longer to die


def attach(pidfile: Path | PidFile) -> DetachedProcess:
    """Return a handle on the process that holds the pidfile.

    The handle works like that of `spawn_detached`, but takes the exit status from nobody. If the process is not a
    child of this one, the handle knows the status only where the kernel still tells it after the parent has taken it
    (Linux 6.15). Raises NotRunningError if nothing holds the pidfile, or if daemonkit can't prove who does.
    """
    path = pidfile_path(pidfile)
    while True:
        holder = _provable_holder(path)
        try:
            pidfd = open_pidfd(holder.pid)
        except ProcessLookupError:  # it ended in between
            continue
        # If the same process still holds it, it has lived all the while, and the number was its own.
        if find_holder(path) == holder:
            return DetachedProcess(holder.pid, pidfd, path, child=False, daemon=holder.daemon)
        close(pidfd)


def send_signal(pidfile: Path | PidFile, sig: int) -> None:
    """Send a signal to the process that holds the pidfile, and to no other: kill(2).

    Raises NotRunningError if there is none, PermissionError if it belongs to another user.
    """
    attach(pidfile).send_signal(sig)


def stop(
    pidfile: Path | PidFile,
    timeout: float | None = 10.0,
    *,
    signal: int = _signal.SIGTERM,
    kill: bool = True,
    group: bool = False,
) -> bool:
    """End the process that holds the pidfile; return once it is gone and the file is free.

    The process is sent `signal`, and after `timeout` seconds (None: never) SIGKILL. SIGKILL goes to its whole process
    group if that is its own: if it leads the group, or was detached by `detached`. Returns True if the process ended
    on request, False if it was killed. Raises NotRunningError if nothing ran, PermissionError if the process belongs to
    another user, and with `kill=False` StopTimeoutError if it goes on running.

    With `group`, what is left of its own process group once it has ended (the rest of a pipeline, a daemon's children)
    is sent `signal` too, waited for within the same `timeout`, and killed after that. True then means that everything
    ended on request. A caller that is in the group itself is spared.

    >>> daemonkit.spawn_detached(["sleep", "60"], pidfile="b.pid").running
    True
    >>> daemonkit.stop("b.pid")
    True
    """
    check_seconds("timeout", timeout)
    check_boolean("kill", kill)
    check_boolean("group", group)
    process = attach(pidfile)
    with contextlib.ExitStack() as stack:
        rest = ProcessGroup(process) if group else None
        if rest:
            stack.callback(rest.close)
        left = _ask(process, rest, signal, timeout)
        if left is None:
            return True
        if not kill:
            message = f"process {left} ({process.args}) did not end within {timeout:g} s; wait longer, or kill it"
            raise StopTimeoutError(message, pid=left)
        left = _kill(process, rest)
        if left is not None:
            message = f"process {left} ({process.args}) hangs in the kernel: SIGKILL has not ended it"
            raise StopTimeoutError(message, pid=left)
    return False


def _ask(process: DetachedProcess, rest: ProcessGroup | None, sig: int, timeout: float | None) -> int | None:
    """Ask the process, and then what it has left behind; return the pid of one that has not ended in time."""
    deadline = deadline_after(timeout)
    process.send_signal(sig)
    if not process.wait_for_end(timeout):
        return process.pid
    return rest.end(sig, deadline) if rest else None


def _kill(process: DetachedProcess, rest: ProcessGroup | None) -> int | None:
    """Do the same by SIGKILL, with the whole group at once."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it has ended; all others are another user's
        if os.getpgid(process.pid) != os.getpgid(0):  # a child of the daemon may be the one that stops it
            process.send_signal(_signal.SIGKILL, group=True)
    return _ask(process, rest, _signal.SIGKILL, _AFTER_KILL)


def _provable_holder(path: str) -> Holder:
    holder = find_holder(path)
    if holder is None:
        raise NotRunningError(f"{path} is not held: nothing is running", path=path)
    if not holder.locked_by_daemonkit:
        message = (
            f"{path} names process {holder.pid}, but is not locked: another tool's process seems to run it, so "
            f"daemonkit sends it no signal; stop it with that tool, or with kill {holder.pid}"
        )
        raise NotRunningError(message, path=path)
    if not holder.same_namespace:
        message = f"{path} is held in another PID namespace (a container), out of reach from here; stop it there"
        raise NotRunningError(message, path=path)
    return holder
