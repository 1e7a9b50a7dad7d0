"""Keep a program running: `supervise`.

Two processes take part. The calling process, which a pidfile names, keeps watch (`guardian`); a worker process does the
supervising (`worker`). Each watches the other by pidfd: if the worker is killed, the caller ends what it left and
starts another; if the caller is killed, the worker ends everything. If both are, the kernel kills the instances.
"""

from __future__ import annotations

import contextlib
import signal

from daemonkit._supervise.guardian import Guardian, recorded_signals
from daemonkit._supervise.rules import Backoff
from daemonkit._supervise.wishes import Wishes
from daemonkit._system.pidfd import require_pidfds
from daemonkit._system.reaping import reap
from daemonkit._system.unpatched import in_main_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any, Literal

    from daemonkit._supervise.listen import Listen
    from daemonkit._supervise.records import Event, Summary
    from daemonkit._system.streams import Path, StreamOption


def supervise(  # noqa: PLR0913 - each is an option of its own, and keyword-only
    target: Sequence[Path] | Callable[[], object],
    *,
    instances: int | Literal["auto"] = 1,
    restart: Literal["always", "on-failure", "never"] = "on-failure",
    success_codes: Iterable[int] = (0,),
    backoff: Backoff = Backoff(),  # noqa: B008 - frozen
    min_uptime: float = 1.0,
    steady_after: float = 10.0,
    max_restarts: int | None = None,
    stop_signal: int = signal.SIGTERM,
    stop_timeout: float = 10.0,
    kill_mode: Literal["group", "main"] = "group",
    wait_ready: bool = False,
    start_timeout: float = 30.0,
    ready_check: Sequence[Path] | None = None,
    ready_tcp: str | None = None,
    health_check: Sequence[Path] | None = None,
    health_interval: float = 10.0,
    health_failures: int = 3,
    watchdog: float | None = None,
    max_memory: int | None = None,
    cpu_affinity: Literal["spread"] | None = None,
    listen: Listen | Iterable[Listen] = (),
    listen_nonblocking: bool = False,
    cwd: Path | None = None,
    env: Mapping[str, str] | Mapping[bytes, bytes] | None = None,
    user: int | str | None = None,
    group: int | str | None = None,
    umask: int | None = None,
    stdin: StreamOption = None,
    stdout: StreamOption = None,
    stderr: StreamOption = None,
    log_max_bytes: int | None = None,
    log_backups: int = 5,
    log_format: str | None = None,
    on_event: Callable[[Event], object] | None = None,
    on_reload: Callable[[], Mapping[str, Any]] | None = None,
) -> Summary:
    """Run a program n times and keep it running; return once nothing is left to run.

    ::

        with daemonkit.detached(pidfile="web.pid", stdout="web.log", stderr=daemonkit.STDOUT):
            daemonkit.supervise(["python", "worker.py"], instances=4, restart="always")

    Runs in the foreground, in the main thread, until SIGTERM or SIGINT (a second one kills at once), or until all
    instances have ended for good. SIGHUP restarts them one at a time: each new run is up before the old one is stopped.
    Each instance has ``DAEMONKIT_INSTANCE`` (from 0 on), a session of its own, default signal dispositions and an empty
    mask. What it starts is ended with it. Times are in seconds, sizes in bytes.

    - `target`: a command as in `spawn_detached`, or a callable without arguments, which runs in a forked child.
    - `instances`: a number, or "auto": one per usable CPU.
    - `restart`: "always", "on-failure" (a status that is not in `success_codes`), "never".
    - `backoff`: the delay before each restart in a row after the first. `steady_after`: a run that lived this long
      starts the row afresh. `max_restarts`: after so many in a row the instance is given up.
    - `stop_signal`: sent to the instance's process group and descendants, `stop_timeout` before SIGKILL. `kill_mode`:
      with "main" the main process alone gets it, and SIGKILL still goes to everything that is left.
    - `min_uptime`: when a run counts as up that has no sign of readiness, one second at most.
    - `wait_ready`: a run is up when it sends READY=1 to its ``NOTIFY_SOCKET``, as sd_notify(3) does. `ready_check`: a
      run is up when this command ends with 0; it is run every 0.5 s. `ready_tcp`: a run is up when this "host:port"
      accepts a connection; not together with `listen`. `start_timeout`: a run that is not up by then is killed.
    - `health_check`: a command that is run every `health_interval` while the instance is up; after `health_failures`
      bad ones in a row the instance is stopped and started again.
    - `watchdog`: the longest time between two WATCHDOG=1 that an instance sends.
    - `max_memory`: resident, of all that belongs to an instance; above it the instance is replaced.
    - `cpu_affinity`: "spread" gives each instance one CPU.
    - `listen`: "host:port", "unix:path" or sockets, bound once and handed over as sd_listen_fds(3) describes; a
      callable has them as 3 and up. `listen_nonblocking`: they are handed over non-blocking.
    - `cwd`, `env`, `user`, `group`, `umask`, `stdin`, `stdout`, `stderr`: as in `spawn_detached`, but stdout and stderr
      are by default the caller's; ``{instance}`` in a path is the instance's number.
    - `log_max_bytes`, `log_backups`: rotate stdout and stderr by size, as ``log.1`` and so on. `log_format`: text
      before each line, of ``{time}`` and ``{instance}``.
    - `on_event`: called in the calling process with each `Event`; an exception there is logged, and the work goes on.
    - `on_reload`: called in the calling process at SIGHUP; returns a mapping of the arguments that change. They are
      rolled in; if what they start does not come up, the old ones stay in force.

    Raises before anything is started: TypeError, ValueError, LookupError; OSError with its path; RuntimeError outside
    the main thread. When it returns, signal handlers and the caller's own children are as before.

    >>> daemonkit.supervise(["true"], instances=2).exitcode
    0
    """
    return supervise_by({**locals(), "number": None})  # the arguments, by their names


def supervise_by(options: dict[str, Any]) -> Summary:
    """Do what `supervise` does, with its arguments by their names.

    There are two more: `number` is what a single instance has as its number, instead of 0; `after_events` is called
    once all events that have come by now were told.
    """
    on_event, on_reload = options.pop("on_event"), options.pop("on_reload")
    after_events = options.pop("after_events", None)
    if not in_main_thread():
        raise RuntimeError("supervise() must be called in the main thread, which handles the signals")
    for name, callback in (("on_event", on_event), ("on_reload", on_reload)):
        if callback is not None and not callable(callback):
            raise TypeError(f"{name} must be a callable or None, not {callback!r}")
    require_pidfds()
    reap()
    with contextlib.ExitStack() as stack:
        wishes = Wishes(options, on_reload, stack)
        guardian = Guardian(wishes, on_event, after_events)
        with recorded_signals(guardian):
            return guardian.watch()
