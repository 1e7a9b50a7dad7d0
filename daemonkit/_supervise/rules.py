"""When an instance is restarted, and how long everything may take."""

from __future__ import annotations

import math
from collections.abc import Iterable

from daemonkit._system.check import check_boolean, check_number, check_seconds
from daemonkit._system.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, Literal

    Sign = Literal["notify", "ready_check", "ready_tcp"]
    """What can say that a run is up."""

_LONGEST: Final = 1e12  # seconds: for ever, and yet a time that can be added to another


@record(frozen=True)
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
                raise TypeError(f"Backoff: {name} must be a number, not {value!r}")
            if not least <= value <= _LONGEST:
                raise ValueError(f"Backoff: {name} must be from {least:g} to {_LONGEST:g}, not {value!r}")

    def delay(self, in_row: int) -> float:
        """Return the delay before a restart that follows `in_row` others without a good run in between."""
        if in_row == 0:
            return 0.0
        try:
            return min(self.initial * self.factor ** (in_row - 1), self.maximum)
        except OverflowError:
            return self.maximum


@record(frozen=True)
class Rules:
    """The options of `supervise` that decisions depend on; each is as there."""

    restart: str = "on-failure"
    success_codes: frozenset[int] = frozenset({0})
    backoff: Backoff = Backoff()
    min_uptime: float = 1.0
    steady_after: float = 10.0
    max_restarts: int | None = None
    stop_timeout: float = 10.0
    kill_mode: str = "group"
    wait_ready: bool = False
    start_timeout: float = 30.0
    watchdog: float | None = None
    ready_check: bool = False
    """Whether there is one."""
    ready_tcp: bool = False
    health_failures: int = 3

    @property
    def signs(self) -> frozenset[Sign]:
        """What a run waits for until it is up; nothing means that its age alone counts."""
        asked: dict[Sign, bool] = {
            "notify": self.wait_ready,
            "ready_check": self.ready_check,
            "ready_tcp": self.ready_tcp,
        }
        return frozenset(sign for sign, is_asked in asked.items() if is_asked)

    def __post_init__(self) -> None:
        """Refuse bad values: TypeError, ValueError."""
        if not isinstance(self.restart, str) or self.restart not in {"always", "on-failure", "never"}:
            raise ValueError(f'restart must be "always", "on-failure" or "never", not {self.restart!r}')
        if not isinstance(self.kill_mode, str) or self.kill_mode not in {"group", "main"}:
            raise ValueError(f'kill_mode must be "group" or "main", not {self.kill_mode!r}')
        if not isinstance(self.backoff, Backoff):
            raise TypeError(f"backoff must be a daemonkit.Backoff, not {self.backoff!r}")
        check_boolean("wait_ready", self.wait_ready)
        check_number("max_restarts", self.max_restarts, 1 << 62)
        check_number("health_failures", self.health_failures, 1 << 62)
        if not self.health_failures:
            raise ValueError(f"health_failures must be at least 1, not {self.health_failures!r}")
        self._set("success_codes", _statuses(self.success_codes))
        for name in ("min_uptime", "steady_after", "start_timeout"):
            self._set(name, seconds(name, getattr(self, name)))
        self._set("stop_timeout", seconds("stop_timeout", self.stop_timeout, least=0.0))
        if self.watchdog is not None:
            self._set("watchdog", seconds("watchdog", self.watchdog))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # the checked value of a field; from here on it is frozen


def _statuses(codes: object) -> frozenset[int]:
    error = TypeError(f"success_codes must be exit statuses, not {codes!r}")
    if isinstance(codes, (str, bytes)) or not isinstance(codes, Iterable):
        raise error
    found = frozenset(codes)
    if not all(isinstance(code, int) and not isinstance(code, bool) for code in found):
        raise error
    return found


def seconds(name: str, value: object, least: float = math.ulp(0.0)) -> float:
    """Return a number of seconds that is at least so much; TypeError, ValueError."""
    check_seconds(name, value)
    if value is None or value < least:  # type: ignore[operator]
        raise ValueError(f"{name} must be {'more than' if least else 'at least'} 0 seconds, not {value!r}")
    return min(float(value), _LONGEST)  # type: ignore[arg-type]
