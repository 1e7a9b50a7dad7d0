"""Any daemon with a pidfile, such as what `daemonkit spawn` has launched: `status --pidfile F`, `stop --pidfile F`."""

from __future__ import annotations

import os

from daemonkit.cli import _json, _say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_NOT_RUNNING: Final = 3


def print_status(path: str, *, as_json: bool) -> int:
    """Print whether the pidfile is held, and by whom; return the exit status."""
    from daemonkit._pidfile.holder import find_holder
    from daemonkit.cli._report import age

    holder = find_holder(os.path.abspath(path))
    uptime = age(holder.started) if holder else None
    if as_json:
        report = {"pidfile": path, "state": "running" if holder else "stopped", "pid": holder.pid if holder else None}
        print(_json.written(report | {"uptime": uptime}))
    elif holder:
        since = f" for {uptime:.0f} s" if uptime is not None else ""
        print(f"{path}: process {holder.pid} runs{since}")
    else:
        print(f"{path}: nothing runs")
    return 0 if holder else _NOT_RUNNING


def stop_daemon(path: str) -> None:
    """Stop the daemon, and what is left of its process group; nothing is done if it does not run, and it is said."""
    from daemonkit import NotRunningError, stop
    from daemonkit._pidfile.holder import find_holder

    try:
        with _say.progress(f"stopping {path}"):
            in_time = stop(path, group=True)
    except NotRunningError:
        if find_holder(os.path.abspath(path)):  # another tool's process, or one in another PID namespace
            raise
        print(f"{path}: nothing runs")
        return
    except KeyboardInterrupt:
        raise _say.Interrupted(f"{path} is being stopped") from None
    if not in_time:
        _say.say(f"not all of {path} ended within 10 s, and the rest was killed (SIGKILL)")
