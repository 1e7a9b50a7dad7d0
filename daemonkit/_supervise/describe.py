"""Events in words, for the log."""

from __future__ import annotations

from daemonkit._system.signals import signal_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from daemonkit._supervise.policy import Run
    from daemonkit._supervise.records import Kind

_WORDS: Final = {
    "ready": "is up",
    "memory": "uses more memory than it may, so it is replaced",
    "unhealthy": "has failed its health checks, so it is stopped and started again",
    "reload-failed": "did not come up, so the old run stays, and the rolling restart ends",
}
_CAUSES: Final = {
    "start-timeout": ", as it was not up in time,",
    "watchdog": ", as its watchdog was silent,",
    "unhealthy": ", as it was unhealthy,",
}


def describe(kind: Kind, run: Run, now: float) -> str:
    """Return what happened, why, and what comes next."""
    instance = run.instance
    match kind:
        case "exit":
            words = f"{_ending(run)} after {now - run.born:.1f} s; {instance.outlook(run, now)}"
        case "start":
            words = f"has started (start {instance.starts})"
        case "watchdog":
            words = f"has not sent WATCHDOG=1 for {instance.rules.watchdog:g} s, so it is killed"
        case "gave-up":
            words = (
                f"is given up after {instance.rules.max_restarts} restarts in a row, which is the limit (max_restarts)"
            )
        case _:
            words = _WORDS[kind]
    return f"instance {instance.index} (pid {run.pid}) {words}"


BACKGROUND: Final = "put itself into the background"


def describe_left(run: Run, count: int) -> str:
    """Return what a program has done that ended with status 0 and left processes, as one that makes itself a daemon."""
    left = f"{count} process{'' if count == 1 else 'es'}, ended with it"
    return f"instance {run.instance.index} (pid {run.pid}) {BACKGROUND} ({left}); have it run in the foreground"


def is_wished(kind: Kind, run: Run) -> bool:
    """Tell whether the event is one that nobody has to look into."""
    if kind == "exit":
        return run.reason in {"stop", "replaced"} or run.exitcode in run.instance.rules.success_codes
    return kind in {"start", "ready"}


def _ending(run: Run) -> str:
    code = run.exitcode or 0
    how = f"ended with status {code}" if code >= 0 else f"was ended by {signal_name(-code)}"
    return how + _CAUSES.get(run.reason or "", "")
