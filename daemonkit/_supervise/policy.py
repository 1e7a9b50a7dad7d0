"""What happens next to an instance: decisions alone. Nothing is done here, and the time is an argument.

An instance is one of the n copies of the supervised program; a run is one life of it. Times are monotonic seconds.
Each method takes an event and returns the actions that follow from it, for the worker to carry out.
"""

from __future__ import annotations

import math

from daemonkit._system.record import field, record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, Literal

    from daemonkit._supervise.records import Kind
    from daemonkit._supervise.rules import Rules, Sign

    State = Literal["running", "backoff", "exited", "stopped", "failed", "gave-up"]
    Reason = Literal["stop", "replaced", "ended", "start-timeout", "watchdog", "unhealthy", "not started"]

FINAL: Final = frozenset({"exited", "stopped", "failed", "gave-up"})
_SETTLED: Final = 1.0  # seconds after which a run without readiness counts as up, if min_uptime is not shorter


@record(frozen=True)
class Start:
    """Start a run, and tell `Instance.started`."""

    instance: Instance


@record(frozen=True)
class Stop:
    """Send the stop signal to the run."""

    run: Run


@record(frozen=True)
class Kill:
    """Send SIGKILL to everything that belongs to the run."""

    run: Run


@record(frozen=True)
class Emit:
    """Tell the calling process of an event."""

    kind: Kind
    run: Run


Action = Start | Stop | Kill | Emit


@record(eq=False)
class Run:
    """One life of an instance."""

    instance: Instance
    number: int
    pid: int
    born: float
    up: bool = False
    signs: set[Sign] = field(default_factory=set)
    """What has said by now that it is up."""
    failed_checks: int = 0
    """Health checks in a row."""
    last_heartbeat: float = 0.0
    """When its last WATCHDOG=1 came, or whatever else its watchdog counts from."""
    stop_by: float | None = None
    """When it is killed if it still runs; None while it is not to end."""
    killed: bool = False
    """Whether it has been sent SIGKILL, so that nothing is left to decide."""
    reason: Reason | None = None
    """Why it is being ended."""
    exitcode: int | None = None
    """Of its main process; None while that lives."""

    @property
    def ending(self) -> bool:
        """Whether it was asked to end, or killed."""
        return self.killed or self.stop_by is not None


@record(eq=False)
class Instance:
    """One of the copies: its runs, and what is decided about them."""

    index: int
    rules: Rules
    state: State = "backoff"
    current: Run | None = None
    spare: Run | None = None
    """A run that is to replace the current one, once it is up."""
    old: list[Run] = field(default_factory=list)
    """Runs that were replaced and are ending."""
    due: float | None = None
    """When the next run starts, in backoff."""
    in_row: int = 0
    """Restarts without a good run in between."""
    starts: int = 0
    exitcode: int | None = None
    stopping: bool = False
    must_go: bool = False
    """Whether the current run has to be replaced even if its successor can't come up beside it."""
    restarting: bool = False
    """Whether a successor starts once the current run has ended."""

    def runs(self) -> list[Run]:
        """Return all that there is of it."""
        return [run for run in (self.current, self.spare, *self.old) if run]

    @property
    def done(self) -> bool:
        """Whether nothing is left, and nothing is to come."""
        return self.state in FINAL and not self.runs()

    @property
    def replacing(self) -> bool:
        """Whether a replacement is under way."""
        return self.spare is not None or bool(self.old) or self.restarting

    # --- orders -----------------------------------------------------------------------------------------------------

    def begin(self) -> list[Action]:
        """Start its first run, or its next one without delay."""
        self.due, self.state = None, "running"
        return [Start(self)]

    def started(self, run: Run) -> None:
        """Take note of the run that was asked for."""
        self.starts += 1
        run.last_heartbeat = run.born
        if self.current:
            self.spare = run
        else:
            self.current, self.state = run, "running"

    def stop(self, now: float) -> list[Action]:
        """End it for good."""
        self.stopping = True
        if self.state == "backoff":
            self.state, self.due = "stopped", None
        return [action for run in self.runs() for action in self._end(run, "stop", now)]

    def kill(self) -> list[Action]:
        """End it for good, at once."""
        self.stopping = True
        if self.state == "backoff":
            self.state, self.due = "stopped", None
        return [action for run in self.runs() for action in self._kill(run, "stop")]

    def replace(self, *, must_go: bool = False) -> list[Action]:
        """Start a run that is to replace the current one; one that waits or gave up starts at once.

        If the new run does not come up the old one stays; with `must_go` it is stopped, and then another one starts.
        """
        if self.stopping or self.replacing or self.state in {"exited", "stopped"}:
            return []
        self.must_go = must_go
        if self.current is None:
            self.in_row = 0
            return self.begin()
        return [Start(self)]

    # --- what has happened ------------------------------------------------------------------------------------------

    def ready(self, run: Run, now: float, sign: Sign = "notify") -> list[Action]:
        """Take note of a sign that the run is up. Once all are there that are asked for, what it replaces can go."""
        if run.ending or run.exitcode is not None:
            return []
        if sign == "notify":
            run.last_heartbeat = now
        run.signs.add(sign)
        if run.up or not self.rules.signs <= run.signs:
            return []
        run.up = True
        actions: list[Action] = [Emit("ready", run)]
        if run is self.spare and self.current:
            before, self.current, self.spare = self.current, run, None
            self.old.append(before)
            actions += self._end(before, "replaced", now)
        return actions

    def heartbeat(self, run: Run, now: float) -> None:
        """Take note of a WATCHDOG=1."""
        run.last_heartbeat = now

    def checked(self, run: Run, now: float, *, good: bool) -> list[Action]:
        """Take note of a health check; after too many bad ones in a row the run is ended, and another one starts."""
        if run.ending or not run.up or run.exitcode is not None:
            return []
        run.failed_checks = 0 if good else run.failed_checks + 1
        if run.failed_checks < self.rules.health_failures:
            return []
        return [Emit("unhealthy", run), *self._end(run, "unhealthy", now)]

    def exited(self, run: Run, exitcode: int) -> list[Action]:
        """Take note that its main process has ended; kill what it leaves, unless that was asked to end too."""
        run.exitcode = exitcode
        actions: list[Action] = [Emit("exit", run)]
        if not run.ending or self.rules.kill_mode == "main":
            actions += self._kill(run, "ended")
        return actions

    def emptied(self, run: Run, now: float) -> list[Action]:
        """Decide what comes next, now that nothing is left of the run."""
        if run in self.old:
            self.old.remove(run)
            return []
        if run is self.spare:
            self.spare = None
            return [] if self.stopping else self._did_not_come_up(run, now)
        self.current, self.exitcode = None, run.exitcode
        if self.stopping:
            self.state = "stopped"
            return []
        if self.spare:  # its successor need not wait any longer
            self.current, self.spare = self.spare, None
            return []
        if self.restarting:
            self.restarting = False
            return self.begin()
        return self._after(run, now)

    def _did_not_come_up(self, spare: Run, now: float) -> list[Action]:
        if self.must_go and self.current and not self.current.ending:
            self.restarting = True
            return self._end(self.current, "replaced", now)
        return [Emit("reload-failed", spare)]

    def _after(self, run: Run, now: float) -> list[Action]:
        state, delay = self._verdict(run, now)
        if state in FINAL:
            self.state = state
            return [Emit("gave-up", run)] if state == "gave-up" else []
        if self._was_good(run, now):
            self.in_row = 0
        self.in_row += 1
        if delay == 0:
            return self.begin()
        self.state, self.due = "backoff", now + delay
        return []

    def _verdict(self, run: Run, now: float) -> tuple[State, float]:
        """Return what becomes of the instance after this run, and the delay before the next one."""
        rules = self.rules
        wished = run.reason == "ended" and run.exitcode in rules.success_codes
        if rules.restart == "never" or (rules.restart == "on-failure" and wished):
            return ("exited" if wished else "failed"), 0.0
        in_row = 0 if self._was_good(run, now) else self.in_row
        if rules.max_restarts is not None and in_row >= rules.max_restarts:
            return "gave-up", 0.0
        return "backoff", rules.backoff.delay(in_row)

    def _was_good(self, run: Run, now: float) -> bool:
        # Without readiness its age alone counts, though it was not looked at in time.
        return (run.up or not self.rules.signs) and now - run.born >= self.rules.steady_after

    def outlook(self, run: Run, now: float) -> str:  # noqa: PLR0911 - one for each case
        """Say what comes next, now that the run's main process has ended."""
        if run in self.old:
            return "its successor runs"
        if run is self.spare:
            return "so the old run is stopped first" if self.must_go else "the old run stays"
        if self.stopping:
            return "it is stopped"
        if self.spare:
            return "its successor takes over"
        if self.restarting:
            return "its successor starts now"
        state, delay = self._verdict(run, now)
        if state in FINAL:
            return {"exited": "it is done", "failed": "it is not restarted"}.get(state, "it is given up")
        return f"it restarts in {delay:.3g} s" if delay else "it restarts at once"

    # --- time -------------------------------------------------------------------------------------------------------

    def next_time(self) -> float:
        """Return when `tick` is next to be called; infinity if only an event can change anything."""
        times = [self._deadline(run) for run in self.runs()]
        if self.due is not None:
            times.append(self.due)
        return min(times, default=math.inf)

    def _deadline(self, run: Run) -> float:
        if run.killed:
            return math.inf
        if run.stop_by is not None:
            return run.stop_by
        if not run.up and self.rules.signs:
            return run.born + self.rules.start_timeout
        starved = math.inf if self.rules.watchdog is None else run.last_heartbeat + self.rules.watchdog
        return starved if run.up else min(self._settled(run), starved)

    def _settled(self, run: Run) -> float:
        return run.born + min(self.rules.min_uptime, _SETTLED)

    def tick(self, now: float) -> list[Action]:
        """Do what is due."""
        actions: list[Action] = []
        if self.due is not None and now >= self.due:
            actions += self.begin()
        for run in self.runs():
            if now >= self._deadline(run):
                actions += self._overdue(run, now)
        return actions

    def _overdue(self, run: Run, now: float) -> list[Action]:
        if run.stop_by is not None:
            return self._kill(run, run.reason or "stop")
        if not run.up and self.rules.signs:
            return self._kill(run, "start-timeout")
        if self.rules.watchdog is not None and now >= run.last_heartbeat + self.rules.watchdog:
            return [Emit("watchdog", run), *self._kill(run, "watchdog")]
        heartbeat = run.last_heartbeat
        actions = self.ready(run, now)
        run.last_heartbeat = heartbeat  # a watchdog without readiness counts from the start
        return actions

    def _end(self, run: Run, reason: Reason, now: float) -> list[Action]:
        if run.ending:
            return []
        run.stop_by, run.reason = now + self.rules.stop_timeout, reason
        return [Stop(run)]

    def _kill(self, run: Run, reason: Reason) -> list[Action]:
        if not run.killed:
            run.killed = True
            run.reason = run.reason or reason
        return [Kill(run)]
