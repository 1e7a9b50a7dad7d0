"""Daemons on Linux: become one, launch one, keep one alive.

Nothing is loaded until a name is used: importing daemonkit costs a fraction of a millisecond.
"""

import atexit as _atexit
import os as _os

TYPE_CHECKING = False  # type checkers take this name for typing's, which would have to be imported
if TYPE_CHECKING:
    from collections.abc import Callable

    from daemonkit._constants import DEVNULL, INHERIT, PIPE, STDOUT
    from daemonkit._control import attach, send_signal, stop
    from daemonkit._detach import DetachedContext, detached
    from daemonkit._pidfile.pidfile import PidFile
    from daemonkit._service import Service
    from daemonkit._spawn import spawn_detached
    from daemonkit._status import Status, status
    from daemonkit._supervise import Backoff, Event, InstanceRecord, Summary, supervise
    from daemonkit._system.handle import DetachedProcess
    from daemonkit.errors import (
        AlreadyRunningError,
        DaemonkitError,
        NotRunningError,
        StartError,
        StartTimeoutError,
        StopTimeoutError,
    )

__version__ = "0.2.0"

__all__ = [
    "DEVNULL",
    "INHERIT",
    "PIPE",
    "STDOUT",
    "AlreadyRunningError",
    "Backoff",
    "DaemonkitError",
    "DetachedContext",
    "DetachedProcess",
    "Event",
    "InstanceRecord",
    "NotRunningError",
    "PidFile",
    "Service",
    "StartError",
    "StartTimeoutError",
    "Status",
    "StopTimeoutError",
    "Summary",
    "attach",
    "detached",
    "send_signal",
    "spawn_detached",
    "status",
    "stop",
    "supervise",
]

_HOME = {
    "DetachedContext": "_detach",
    "detached": "_detach",
    "DetachedProcess": "_system.handle",
    "PidFile": "_pidfile.pidfile",
    "Service": "_service",
    "Backoff": "_supervise",
    "Event": "_supervise",
    "InstanceRecord": "_supervise",
    "Status": "_status",
    "Summary": "_supervise",
    "supervise": "_supervise",
    "attach": "_control",
    "send_signal": "_control",
    "status": "_status",
    "stop": "_control",
    "spawn_detached": "_spawn",
    "DEVNULL": "_constants",
    "INHERIT": "_constants",
    "PIPE": "_constants",
    "STDOUT": "_constants",
}


# Two things have to be done at this very moment, before the program opens files and registers exit handlers of its
# own. Both take microseconds, and nothing is loaded for them but modules that every interpreter has built in.


def _open_files() -> dict[int, tuple[int, int, int]]:
    """Return what this program was handed: 0, 1, 2 and every inheritable descriptor, with device, inode and mode."""
    try:
        numbers = [int(name) for name in _os.listdir("/proc/self/fd")]
    except OSError:  # no /proc, or no Linux
        numbers = list(range(64))
    found = {}
    for fd in numbers:
        try:
            if fd <= 2 or _os.get_inheritable(fd):
                info = _os.fstat(fd)
                found[fd] = info.st_dev, info.st_ino, info.st_mode
        except OSError:  # the listing's own descriptor, which is closed again
            pass
    return found


_OPEN_AT_IMPORT = _open_files()
_AT_EXIT: "list[Callable[[], object]]" = []
"""Called without arguments, last one first, after all exit handlers that were registered after this moment."""


@_atexit.register
def _run_at_exit(functions: "list[Callable[[], object]]" = _AT_EXIT) -> None:  # this very list, also after a reload
    try:
        while functions:
            functions.pop()()
    finally:
        if functions:  # one of them has raised, or a signal handler: the others count all the same
            _run_at_exit(functions)


def _is_available() -> bool:
    """Tell whether this system has what every door needs: pidfds, and locks that belong to an open file."""
    try:
        import fcntl
    except ImportError:
        return False
    return hasattr(_os, "pidfd_open") and hasattr(fcntl, "F_OFD_SETLK")


if not TYPE_CHECKING:  # or every misspelt name would be an object to type checkers

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = _HOME.get(name, "errors")
        value: object
        if home in {"errors", "_constants"} or _is_available():
            value = getattr(__import__(f"{__name__}.{home}", fromlist=[name]), name)  # importlib would be loaded for it
        else:
            value = __import__(f"{__name__}._system.elsewhere", fromlist=[name]).stand_in(name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
