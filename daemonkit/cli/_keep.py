"""An app's supervisor: it keeps the program running, and the state file true."""

from __future__ import annotations

import itertools
import logging
import math
import os
import signal

from daemonkit._supervise import supervise
from daemonkit._supervise.pump import log_at
from daemonkit._supervise.rules import Backoff
from daemonkit._system.process import identity
from daemonkit._system.signals import signal_name
from daemonkit._system.streams import open_log
from daemonkit._system.users import owner_of
from daemonkit.cli import _app, _say
from daemonkit.cli._options import signal_number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

    from daemonkit._detach import DetachedContext
    from daemonkit._supervise import Event, Summary
    from daemonkit.cli._app import App, Settings

_logger = logging.getLogger("daemonkit")


class Journal:
    """Turns events into the app's state, and notices a start that fails."""

    def __init__(self, settings: Settings) -> None:
        """Begin with instances that have not started."""
        me = identity()
        self.instances: list[dict[str, Any]] = [
            {"runs": [], "up": [], "starts": 0, "failed": 0, "done": False} for _ in range(_app.count_of(settings))
        ]
        """Of each: the pids of its runs and of those that are up; how many ended before that; whether it is done."""
        self.state: dict[str, Any] = {
            "supervisor": [me.pid, me.started],
            "ready": False,
            "instances": self.instances,
            "reloads_failed": 0,
        }
        self._wished = frozenset(() if settings.get("restart") == "always" else settings.get("success_codes", (0,)))
        self._wait_ready = bool(settings.get("wait_ready"))
        self._timeout = settings.get("start_timeout", 30.0) if self._wait_ready else math.inf
        self._begun: dict[int, float] = {}
        self._silent: set[int] = set()
        self.failure: str | None = None
        """Why the start failed; None unless it did."""

    def take(self, event: Event) -> None:
        """Record an event."""
        one = self.instances[event.instance]
        match event.kind:
            case "start":
                one["starts"] += 1
                one["runs"].append(event.pid)
                self._begun[event.pid] = event.time
            case "ready":
                one["up"].append(event.pid)
            case "watchdog":
                self._silent.add(event.pid)
            case "exit":
                self._ended(one, event)
            case "reload-failed":
                self.state["reloads_failed"] += 1

    def _ended(self, one: dict[str, Any], event: Event) -> None:
        lived = event.time - self._begun.pop(event.pid, event.time)
        silent = event.pid in self._silent
        self._silent.discard(event.pid)  # the kernel may give the number to another process
        one["runs"] = [pid for pid in one["runs"] if pid != event.pid]
        good = event.pid in one["up"] or (event.exitcode in self._wished and not self._wait_ready)
        if event.pid in one["up"]:
            one["up"].remove(event.pid)
        one["done"] = good and event.exitcode in self._wished and not one["runs"]
        if good:
            return
        one["failed"] += 1
        if not self.state["ready"] and not self.failure:
            code = event.exitcode or 0
            how = f"with status {code}" if code >= 0 else f"by {signal_name(-code)}"
            self.failure = f"instance {event.instance} ended {how} before it was up"
            if silent:
                self.failure = f"instance {event.instance} did not send WATCHDOG=1 in time"
            elif lived >= self._timeout:
                self.failure = f"instance {event.instance} was not ready within {self._timeout:g} s"

    @property
    def all_up(self) -> bool:
        """Whether each instance is up or done."""
        return all(one["up"] or one["done"] for one in self.instances)

    def close(self, summary: Summary) -> None:
        """Record the end."""
        self.state["exitcode"] = summary.exitcode
        for one, record in zip(self.instances, summary.instances, strict=True):
            one["runs"], one["up"], one["starts"] = [], [], record.starts


class LogHandler(logging.Handler):
    """Writes the supervisor's own lines to the log that `supervise` rotates."""

    def __init__(self, path: str) -> None:
        """Take the path; the log is opened for each line."""
        super().__init__()
        self._path = path
        self._pending = b""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line; keep it for later while somebody's line is incomplete, as on a full disk."""
        self._pending += f"{self.format(record)}\n".encode(errors="backslashreplace")
        log = log_at(self._path)
        if log and log.held_by:
            return
        data, self._pending = self._pending, b""
        try:
            if log:
                while data:
                    data = data[log.write(data, self) :]
            else:  # supervise() has not opened it yet, or has closed it
                with open(open_log(self._path, None)[0], "wb", buffering=0) as file:
                    file.write(data)
        except OSError:
            self.handleError(record)
            if log:
                log.held_by = None  # the rest of this line is lost, so nobody may wait for it


def run(
    settings: Settings,
    streams: Settings,
    context: DetachedContext,
    app: App | None,
    last_lines: Callable[[], list[str]],
) -> int:
    """Supervise the app in this process; return the exit status.

    `streams` are laid over the settings, and not kept. With `app`, the start fails if an instance ends badly before
    all are up: SystemExit, with the program's `last_lines`, taken before it is restarted, and the reason.
    """
    options = _options({**settings, **streams})
    journal = Journal(settings)
    said: list[list[str]] = []

    def on_event(event: Event) -> None:
        journal.take(event)
        if app and journal.failure:
            if not said:
                said.append(last_lines())
                os.kill(os.getpid(), signal.SIGTERM)  # once: a second one would kill the others
        elif journal.all_up and not journal.state["ready"]:
            return _count_as_up(journal, settings, context, app)
        return _write_state(journal, app)

    given = settings.get("env", {})
    os.environ.update(given)
    if options.get("user") is not None:  # that user's HOME, unless --env has one
        environment = owner_of(options["user"], options.get("group")).environment(os.environb)
        options["env"] = environment | {os.fsencode(name): os.fsencode(value) for name, value in given.items()}
    summary = supervise(settings["command"], on_event=on_event, **options)
    journal.close(summary)
    _write_state(journal, app)
    if app and journal.failure:
        app.forget_state()
        raise SystemExit("\n".join([*itertools.chain(*said), journal.failure]))
    return summary.exitcode


def _count_as_up(journal: Journal, settings: Settings, context: DetachedContext, app: App | None) -> None:
    if app:
        try:
            app.save(settings)
        except OSError as error:
            journal.failure = f"the settings of {app.name} can't be kept: {_say.in_one_line(error)}"
            os.kill(os.getpid(), signal.SIGTERM)
            return
    journal.state["ready"] = True
    _write_state(journal, app)  # before the waiting caller looks at it
    context.ready(f"{len(journal.instances)} up")


def _write_state(journal: Journal, app: App | None) -> None:
    if app:
        try:
            app.write_state(journal.state)
        except OSError as error:  # such as a full disk: the app runs on
            _logger.warning("the state of %s can't be written: %s", app.name, error)


_NOT_OPTIONS: Final = frozenset({"command", "env", "log", "cwd", "file", "after"})


def _options(settings: Settings) -> dict[str, Any]:
    """Return the settings as arguments of `supervise`."""
    options = {name: value for name, value in settings.items() if name not in _NOT_OPTIONS}
    if backoff := options.get("backoff"):
        options["backoff"] = Backoff(*backoff)
    if stop_signal := options.get("stop_signal"):
        options["stop_signal"] = signal_number(stop_signal)
    return options
