"""Ends and exit statuses by pidfd, as a pid may be given out again and a pidfd never means another process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from functools import cache

from daemonkit._system.unpatched import close
from daemonkit._system.wait import deadline_after, wait_among_greenlets, wait_readable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_INFO = struct.Struct("QQ12I")  # struct pidfd_info of linux/pidfd.h: a mask first, the wait status last
_INFO_EXIT: Final = 1 << 3
_GET_INFO: Final = 3 << 30 | _INFO.size << 16 | 0xFF << 8 | 11  # PIDFD_GET_INFO, Linux 6.15


def open_pidfd(pid: int) -> int:
    """Return a pidfd: pidfd_open(2). The error says so where the system refuses all of them."""
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno not in {errno.ENOSYS, errno.EPERM}:
            raise
        text = (
            "pidfd_open(2) is refused here, by an old container sandbox (seccomp) or a kernel before Linux 5.3; "
            "update it, or allow this system call"
        )
        raise OSError(error.errno, text) from error


@cache
def require_pidfds() -> None:
    """Refuse to begin what needs pidfds where there are none: OSError."""
    close(open_pidfd(os.getpid()))


def wait_for_end(pid: int | None, seconds: float, *, among_greenlets: bool = False) -> None:
    """Return when process `pid` ends, or after that many seconds, whichever is first."""
    with contextlib.ExitStack() as stack:
        watched = []
        with contextlib.suppress(OSError):  # it has ended, or can't be watched: then the time limit remains
            watched.append(os.pidfd_open(pid or 0))  # 0, for None, is no process: EINVAL
            stack.callback(close, watched[0])
        wait = wait_among_greenlets if among_greenlets else wait_readable
        wait(watched, deadline_after(seconds))


def has_ended(pidfd: int) -> bool:
    """Tell whether the process is a zombie or gone."""
    return bool(wait_readable([pidfd], 0))


def is_child(pidfd: int) -> bool:
    """Tell whether it is a child of this process that nobody has reaped; until then its pid means no other process."""
    try:
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    except OSError:
        return False
    return True


def exit_status(pidfd: int, *, reap: bool) -> int | None:
    """Return a child's exit status (negative: the signal), None while it runs.

    Without `reap` the status stays there for its parent. Raises ChildProcessError for a process that is not a child of
    this one, or was reaped.
    """
    result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | (0 if reap else os.WNOWAIT))
    if result is None:
        return None
    return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status


def status_after_reaping(pidfd: int) -> int | None:
    """Return the exit status of a process that was reaped elsewhere; None before Linux 6.15, which keeps no status."""
    info = bytearray(_INFO.pack(_INFO_EXIT, *[0] * 13))
    try:
        fcntl.ioctl(pidfd, _GET_INFO, info)
    except OSError:
        return None
    known, *_, status = _INFO.unpack(info)
    return os.waitstatus_to_exitcode(status) if known & _INFO_EXIT else None
