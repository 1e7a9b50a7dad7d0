"""Daemons on Linux: become one, launch one, keep one alive.

Nothing is loaded until a name is used: importing daemonkit costs a fraction of a millisecond.
"""

TYPE_CHECKING = False  # type checkers take this name for typing's, which would have to be imported
if TYPE_CHECKING:
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

__version__ = "0.1.0"

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


if not TYPE_CHECKING:  # or every misspelt name would be an object to type checkers

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        home = _HOME.get(name, "errors")
        try:
            value: object = getattr(import_module(f"{__name__}.{home}"), name)
        except ImportError as error:
            import os

            if hasattr(os, "fork"):
                raise
            from daemonkit._system.elsewhere import unavailable

            value = unavailable(name, error)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
