"""An app's supervisor: it keeps the program running, and the state file true."""

from __future__ import annotations

import logging
import mmap
import os
import signal

from daemonkit._supervise import Backoff, supervise
from daemonkit._supervise.describe import BACKGROUND
from daemonkit._supervise.logs import log_at
from daemonkit._supervise.marks import end_sessions
from daemonkit._supervise.supervise import supervise_by
from daemonkit._supervise.wishes import REFUSED
from daemonkit._system.process import place, ticks
from daemonkit._system.record import field, record
from daemonkit._system.streams import open_log
from daemonkit.cli import _app, _say
from daemonkit.cli._hook import Hook
from daemonkit.cli._journal import Journal
from daemonkit.cli._mixed import MARK
from daemonkit.cli._options import OPTIONS, signal_number
from daemonkit.cli._settings import LOG_MAX_BYTES, environment_in_effect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import FrameType
    from typing import Any, Final

    from daemonkit._detach import DetachedContext
    from daemonkit._supervise import Event, Summary
    from daemonkit.cli._app import App, Settings

_logger = logging.getLogger("daemonkit")

_START_ENDS_WITHIN: Final = 60.0  # seconds, far more than that takes
_DEFAULTS: Final = {**(supervise.__kwdefaults__ or {}), "number": None}
_OWN: Final = frozenset({"log", "env", "on_event"})
"""Options that are not `supervise`'s."""


@record(frozen=True)
class _StartOnce(Backoff):
    """Starts nothing again before the app is up: a start that fails runs the program once."""

    is_up: mmap.mmap = field(default_factory=lambda: mmap.mmap(-1, 1))
    """One byte that this process shares with the worker, where the delay is asked for."""

    def delay(self, in_row: int) -> float:
        """Return the delay before a restart; until the app is up, one in which the failed start is ended."""
        return super().delay(in_row) if self.is_up[0] else _START_ENDS_WITHIN

    def __reduce__(self) -> tuple[type[Backoff], tuple[float, float, float]]:
        """Hand it over as an ordinary one: a reload comes after the start."""
        return Backoff, (self.initial, self.factor, self.maximum)


class Supervisor:
    """What the supervisor does: it supervises, and keeps the books."""

    def __init__(  # noqa: PLR0913 - what a supervisor is made of
        self,
        settings: Settings,
        context: DetachedContext,
        app: App | None,
        log: str | None,
        last_lines: Callable[[], list[str]],
        *,
        must_start: bool,
    ) -> None:
        """Take the app, None for one without a name, and its log.

        With `must_start` the start fails if an instance ends badly before all are up. The program's `last_lines` are
        taken then.
        """
        self._settings, self._context, self._app, self._log = settings, context, app, log
        self._last_lines, self._must_start = last_lines, must_start
        self._default_log = app.default_log if app and log else None
        self._journal = Journal(settings, self._logs_of(settings), foreground=not must_start)
        self._said: list[str] | None = None
        self._hook = self._make_hook()
        self._is_up = mmap.mmap(-1, 1)
        if not must_start:
            self._is_up[0] = 1
        self._proposed: Settings | None = None
        """Settings that come up now; they are kept once they have."""
        self._is_stopping = False
        self._handlers: dict[int, Any] = {}

    def run(self) -> Summary:
        """Supervise the app until it ends; return how, SystemExit with the reason for a failed start."""
        handler = LogHandler(self._log) if self._log else logging.StreamHandler()
        handler.addFilter(self._note)
        logging.basicConfig(level=logging.INFO, format=f"{_say.OWN}%(asctime)s %(message)s", handlers=[handler])
        journal = self._journal
        if self._app:
            self._app.take_proposal()  # one that the supervisor before was killed over
            self._end_what_was_left(self._app.last_state())
        options = self._options(self._settings)
        try:
            # The state is written once for all events that come together: with many instances that is most of the work.
            callbacks = {"on_event": self._on_event, "after_events": self._write_state, "on_reload": self._on_reload}
            summary = supervise_by({**_DEFAULTS, "target": self._settings["command"], **options, **callbacks})
        except BaseException:
            journal.end_badly()
            self._write_state()
            raise
        journal.close(summary)
        if self._said is not None:
            journal.end_badly()
        self._write_state()
        if self._said is not None:
            raise SystemExit("\n".join([*self._said, journal.failure or ""]))
        return summary

    def _end_what_was_left(self, state: Mapping[str, Any]) -> None:
        """End what a supervisor that was killed together with its worker had running, as far as the state proves it.

        Most of that bears a mark, and `supervise` ends it. sudo(8) and su(1) clear marks; they stay in their session.
        """
        here = place()
        if state.get("ended") or not here or state.get("place") != here or type(state.get("at")) is not int:
            return
        leaders = {pid for one in state["instances"] for pid in one["runs"]}
        for pid in end_sessions(leaders, state["at"]) if leaders else ():
            _logger.warning("process %d may have been left by a supervisor that was killed; it goes on", pid)

    def _make_hook(self) -> Hook | None:
        if "on_event" not in self._settings:
            return None
        settings, name = self._settings, self._app.name if self._app else ""
        environment, number = environment_in_effect(settings), self._number(settings)
        return Hook(settings["on_event"], name, environment, settings.get("cwd", "/"), self._log, number)

    def _note(self, record: logging.LogRecord) -> bool:
        """Keep what a waiting command is to tell its user; the record is logged in any case."""
        text = record.getMessage()
        if BACKGROUND in text:
            self._journal.note(text)
        elif record.msg == REFUSED and isinstance(record.args, tuple):
            (error,) = record.args
            self._journal.refusal = _say.in_one_line(error) if isinstance(error, Exception) else str(error)
        return True

    def _notice_stop(self) -> None:
        """See the signals that stop the app too: what ends then was wished to."""
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) != self._on_stop:
                self._handlers[number] = signal.signal(number, self._on_stop)  # that of supervise()

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        self._is_stopping = True
        self._handlers[number](number, frame)

    # --- reloads ----------------------------------------------------------------------------------------------------

    def _on_reload(self) -> dict[str, Any]:
        """Return the arguments of `supervise` that change at a SIGHUP: those that a proposal has."""
        taken = self._app.take_proposal() if self._app else None
        latest = self._proposed or self._settings  # what is on trial goes on, if this SIGHUP brings nothing else
        proposed = taken or self._proposed
        changes: dict[str, Any] = {}
        if taken:
            before, now = self._options(latest), self._options(taken)
            differing = [name for name in before | now if before.get(name) != now.get(name)]
            changes = {name: now.get(name, _DEFAULTS[name]) for name in differing}
            if taken["command"] != latest["command"]:
                changes["target"] = taken["command"]
        settings = proposed or self._settings
        self._proposed = proposed
        self._journal.follow(settings)
        self._journal.begin_reload(_app.count_of(settings), all_anew=changes.keys() != {"instances"})
        self._settle_reload()
        return changes

    def _settle_reload(self) -> None:
        """Keep the settings that came up; those that did not are forgotten."""
        if self._journal.is_reloading or not self._app:
            return
        proposed, self._proposed = self._proposed, None
        if proposed and not self._journal.is_refused:
            self._settings = proposed
            self._hook = self._make_hook()
            self._journal.state["logs"] = self._logs_of(proposed)
            try:
                self._app.save(proposed)
            except OSError as error:
                _logger.warning("the settings of %s can't be kept: %s", self._app.name, _say.in_one_line(error))
        elif proposed:
            self._journal.follow(self._settings)
            self._journal.forget_unwanted(_app.count_of(self._settings))

    def _number(self, settings: Settings) -> str | None:
        return None if self._must_start else _app.number_from_outside(settings)

    def _logs_of(self, settings: Settings) -> list[str]:
        return _app.log_paths(_app.numbered(settings, self._number(settings)), self._default_log)

    def _options(self, settings: Settings) -> dict[str, Any]:
        """Return the settings as arguments of `supervise`."""
        number = self._number(settings)
        settings = _app.numbered(settings, number)
        options = {o.name: settings[o.name] for o in OPTIONS if o.name in settings and o.name not in _OWN}
        options["number"] = number
        delays = Backoff(*options.get("backoff", ()))
        options["backoff"] = _StartOnce(delays.initial, delays.factor, delays.maximum, self._is_up)
        if stop_signal := options.get("stop_signal"):
            options["stop_signal"] = signal_number(stop_signal)
        options["env"] = environment_in_effect(settings)
        if self._app:
            options.setdefault("log_max_bytes", LOG_MAX_BYTES)
        options = {name: value for name, value in options.items() if value != "max"}  # no limit
        if settings.get("file") and not self._log:
            options.setdefault("log_format", MARK)
        _, out, error = _app.streams_of(settings, self._default_log)
        if out and options.get("log_max_bytes"):
            options |= {"stdout": out, "stderr": error}
        return options

    def _on_event(self, event: Event) -> None:
        journal = self._journal
        journal.take(event)
        self._settle_reload()
        if self._hook:
            if event.kind == "start" and not self._is_stopping:
                self._notice_stop()
            self._hook.tell(event, wished=self._is_stopping or journal.is_wished(event))
        if self._must_start and journal.failure:
            if self._said is None:
                self._said = self._last_lines()
                os.kill(os.getpid(), signal.SIGTERM)  # once: a second one would kill the others
        elif not journal.state["ready"] and journal.all_up:
            self._count_as_up()

    def _count_as_up(self) -> None:
        if self._app:
            try:
                self._app.save(self._settings)
            except OSError as error:
                self._journal.failure = f"the settings of {self._app.name} can't be kept: {_say.in_one_line(error)}"
                self._said = []
                os.kill(os.getpid(), signal.SIGTERM)
                return
            self._app.stay_stopped(False)
        self._journal.state["ready"] = True
        self._is_up[0] = 1
        self._write_state()  # before the waiting caller looks at it
        self._context.ready(f"{len(self._journal.instances)} up")

    def _write_state(self) -> None:
        if self._app:
            try:
                self._app.write_state({**self._journal.state, "at": ticks()})
            except OSError as error:  # such as a full disk: the app runs on
                _logger.warning("the state of %s can't be written: %s", self._app.name, error)


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
