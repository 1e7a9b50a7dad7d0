"""What happens next to an instance: decisions alone. Nothing is done here, and the time is an argument.

An instance is one of the n copies of the supervised program; a run is one life of it. Times are monotonic seconds.
Each method takes what has happened and returns what is to be done, as a list of actions:

- ``("start", instance)``: start a run, and tell `Instance.started`;
- ``("stop", run)``: send the stop signal to all that belongs to the run; ``("kill", run)``: SIGKILL;
- ``("emit", kind, run)``: tell the world.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final, Literal

    Action = tuple[Any, ...]
    State = Literal["running", "backoff", "exited", "stopped", "failed", "gave-up"]

FINAL: Final = frozenset({"exited", "stopped", "failed", "gave-up"})
_LONGEST: Final = 1e12  # seconds: for ever, and yet a time that can be added to another
_SETTLED: Final = 1.0  # seconds after which a run without readiness counts as up, if min_uptime is not shorter


@dataclass(frozen=True)
class Backoff:
    """The delay before each restart in a row after the first, which has none; in seconds.

    >>> [daemonkit.Backoff(initial=1.0, maximum=5.0).delay(n) for n in range(6)]
    [0.0, 1.0, 2.0, 4.0, 5.0, 5.0]
    """

    initial: float = 0.1
    """The second restart's delay."""
    factor: float = 2.0
    """Each one after that is this many times as long."""
    maximum: float = 30.0
    """The longest."""

    def __post_init__(self) -> None:
        """Refuse what is no delay, or would make a loop run hotter: TypeError, ValueError."""
        for name, least in (("initial", 0.0), ("factor", 1.0), ("maximum", 0.0)):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool):
                raise TypeError(f"Backoff: {name}: a number, not {value!r}")
            if not least <= value <= _LONGEST:
                raise ValueError(f"Backoff: {name}: from {least:g} to {_LONGEST:g}, not {value!r}")

    def delay(self, in_row: int) -> float:
        """Return the delay before a restart that follows `in_row` others without a good run in between."""
        if in_row == 0:
            return 0.0
        try:
            return min(self.initial * self.factor ** (in_row - 1), self.maximum)
        except OverflowError:
            return self.maximum


@dataclass(frozen=True)
class Rules:
    """What `supervise` was asked for, as far as decisions need it."""

    restart: str = "on-failure"
    success_codes: frozenset[int] = frozenset({0})
    backoff: Backoff = Backoff()
    min_uptime: float = 1.0
    max_restarts: int | None = None
    stop_timeout: float = 10.0
    wait_ready: bool = False
    start_timeout: float = 30.0
    watchdog: float | None = None


@dataclass(eq=False)
class Run:
    """One life of an instance."""

    instance: Instance
    number: int
    pid: int
    born: float
    up: bool = False
    fed: float = 0.0
    """When the watchdog was last heard of."""
    stop_by: float | None = None
    """When it is killed; None while it is not to end, infinity once it was killed."""
    reason: str | None = None
    """Why it is being ended."""
    exitcode: int | None = None
    """Of its main process; None while that lives."""


@dataclass(eq=False)
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
        return self.spare is not None or bool(self.old)

    # --- orders -----------------------------------------------------------------------------------------------------

    def begin(self) -> list[Action]:
        """Start its first run, or its next one without delay."""
        self.due, self.state = None, "running"
        return [("start", self)]

    def started(self, run: Run) -> None:
        """Take note of the run that was asked for."""
        self.starts += 1
        run.fed = run.born
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

    def replace(self) -> list[Action]:
        """Start a run that is to replace the current one; one that waits or gave up starts at once."""
        if self.stopping or self.replacing or self.state in {"exited", "stopped"}:
            return []
        if self.current is None:
            self.in_row = 0
            return self.begin()
        return [("start", self)]

    # --- what has happened ------------------------------------------------------------------------------------------

    def ready(self, run: Run, now: float) -> list[Action]:
        """Take note that the run is up; what it replaces can go."""
        if run.stop_by is not None or run.exitcode is not None:
            return []
        run.fed = now
        if run.up:
            return []
        run.up = True
        actions: list[Action] = [("emit", "ready", run)]
        if run is self.spare and self.current:
            before, self.current, self.spare = self.current, run, None
            self.old.append(before)
            actions += self._end(before, "replaced", now)
        return actions

    def fed(self, run: Run, now: float) -> None:
        """Take note that the run's watchdog was heard of."""
        run.fed = now

    def exited(self, run: Run, exitcode: int) -> list[Action]:
        """Take note that its main process has ended; what it leaves is killed, unless it is given time already."""
        run.exitcode = exitcode
        actions: list[Action] = [("emit", "exit", run)]
        if run.stop_by is None:
            actions += self._kill(run, "ended")
        return actions

    def emptied(self, run: Run, now: float) -> list[Action]:
        """Decide what comes next, now that nothing is left of the run."""
        if run in self.old:
            self.old.remove(run)
            return []
        if run is self.spare:
            self.spare = None
            return [] if self.stopping else [("emit", "reload-failed", run)]
        self.current, self.exitcode = None, run.exitcode
        if self.stopping:
            self.state = "stopped"
            return []
        if self.spare:  # its successor need not wait any longer
            self.current, self.spare = self.spare, None
            return []
        return self._after(run, now)

    def _after(self, run: Run, now: float) -> list[Action]:
        state, delay = self._verdict(run, now)
        if state in FINAL:
            self.state = state
            return [("emit", "gave-up", run)] if state == "gave-up" else []
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
        return (run.up or not self.rules.wait_ready) and now - run.born >= self.rules.min_uptime

    def outlook(self, run: Run, now: float) -> str:
        """Say what comes next, now that the run's main process has ended."""
        if run in self.old:
            return "its successor runs"
        if run is self.spare:
            return "the old run stays"
        if self.stopping:
            return "it is stopped"
        if self.spare:
            return "its successor takes over"
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
        if run.stop_by is not None:
            return run.stop_by
        if not run.up and self.rules.wait_ready:
            return run.born + self.rules.start_timeout
        starved = math.inf if self.rules.watchdog is None else run.fed + self.rules.watchdog
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
        if not run.up and self.rules.wait_ready:
            return self._kill(run, "start-timeout")
        if self.rules.watchdog is not None and now >= run.fed + self.rules.watchdog:
            return [("emit", "watchdog", run), *self._kill(run, "watchdog")]
        fed = run.fed
        actions = self.ready(run, now)
        run.fed = fed  # a watchdog without readiness counts from the start
        return actions

    def _end(self, run: Run, reason: str, now: float) -> list[Action]:
        if run.stop_by is not None:
            return []
        run.stop_by, run.reason = now + self.rules.stop_timeout, reason
        return [("stop", run)]

    def _kill(self, run: Run, reason: str) -> list[Action]:
        if run.stop_by != math.inf:
            run.stop_by, run.reason = math.inf, run.reason or reason
        return [("kill", run)]
