"""What an app's supervisor does: it keeps the program running, and its state file true."""

from __future__ import annotations

import itertools
import logging
import math
import os
import signal

from daemonkit._supervise import supervise
from daemonkit._supervise.policy import Backoff
from daemonkit._supervise.pump import log_at
from daemonkit._system.process import identity
from daemonkit._system.signals import signal_name
from daemonkit._system.streams import open_log
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
    """Follows the events of a supervisor: who is up, and whether the start has failed."""

    def __init__(self, settings: Settings) -> None:
        """Nothing has happened yet."""
        me = identity()
        self.instances: list[dict[str, Any]] = [
            {"runs": [], "up": [], "starts": 0, "failed": 0, "done": False} for _ in range(_app.count_of(settings))
        ]
        """Of each: the pids of its runs, and of those that are up; how many ended before that; is its work done."""
        self.state: dict[str, Any] = {
            "supervisor": [me.pid, me.started],
            "ready": False,
            "instances": self.instances,
            "reloads_failed": 0,
        }
        self._wished = frozenset(() if settings.get("restart") == "always" else settings.get("success_codes", (0,)))
        self._must_say_so = bool(settings.get("wait_ready"))
        self._timeout = settings.get("start_timeout", 30.0) if self._must_say_so else math.inf
        self._begun: dict[int, float] = {}
        self._silent: set[int] = set()
        self.failure: str | None = None
        """What went wrong before all were up."""

    def take(self, event: Event) -> None:
        """Take note of an event."""
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
        self._silent.discard(event.pid)  # the number may be given out again
        one["runs"] = [pid for pid in one["runs"] if pid != event.pid]
        good = event.pid in one["up"] or (event.exitcode in self._wished and not self._must_say_so)
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
        """Whether each instance is up, or has done what it was to do."""
        return all(one["up"] or one["done"] for one in self.instances)

    def close(self, summary: Summary) -> None:
        """Take note of the end."""
        self.state["exitcode"] = summary.exitcode
        for one, record in zip(self.instances, summary.instances, strict=True):
            one["runs"], one["up"], one["starts"] = [], [], record.starts


class LogHandler(logging.Handler):
    """Writes to the log that `supervise` rotates meanwhile, so that what it says itself is rotated too."""

    def __init__(self, path: str) -> None:
        """Open nothing yet."""
        super().__init__()
        self._path = path
        self._pending = b""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, or keep it for later, where a full disk has cut short what another has to write."""
        self._pending += f"{self.format(record)}\n".encode(errors="backslashreplace")
        log = log_at(self._path)
        if log and log.held_by:
            return
        data, self._pending = self._pending, b""
        try:
            if log:
                while data:
                    data = data[log.write(data, self) :]
            else:  # before and after
                with open(open_log(self._path, None)[0], "wb", buffering=0) as file:
                    file.write(data)
        except OSError:
            self.handleError(record)
            if log:
                log.held_by = None  # the rest of this line is lost, and nobody is to wait for it


def run(
    settings: Settings,
    streams: Settings,
    context: DetachedContext,
    app: App | None,
    last_lines: Callable[[], list[str]],
) -> int:
    """Supervise what the settings say, in the process that is to do so; return its exit status.

    `streams` are settings too, which are not the app's own and not to be kept.

    With `app` the start counts as failed if an instance ends badly before all are up: SystemExit, with the program's
    `last_lines`, taken before it is restarted, and the reason.
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
            _count_as_up(journal, settings, context, app)
        _write_state(journal, app)

    os.environ.update(settings.get("env", {}))
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
    _write_state(journal, app)  # before whoever waits for the start looks at it
    context.ready(f"{len(journal.instances)} up")


def _write_state(journal: Journal, app: App | None) -> None:
    if app:
        try:
            app.write_state(journal.state)
        except OSError as error:  # a full disk, for one: the app runs on, and what is told of it is old
            _logger.warning("the state of %s can't be written: %s", app.name, error)


_NOT_OPTIONS: Final = frozenset({"command", "env", "log", "cwd"})


def _options(settings: Settings) -> dict[str, Any]:
    """Return the settings as `supervise` takes them."""
    options = {name: value for name, value in settings.items() if name not in _NOT_OPTIONS}
    if backoff := options.get("backoff"):
        options["backoff"] = Backoff(*backoff)
    if stop_signal := options.get("stop_signal"):
        options["stop_signal"] = signal_number(stop_signal)
    return options
