"""How an app is: the fields that `ls`, `status` and `top` show, and ``--json`` prints."""

from __future__ import annotations

import contextlib
import os
import time

from daemonkit._system.process import start_of, ticks
from daemonkit.cli import _app

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any, Final

    from daemonkit._pidfile.holder import Holder
    from daemonkit.cli._app import App, State

    Report = dict[str, Any]

INTERVAL: Final = 0.25  # seconds that cpu is measured over, where it is looked at once
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")

RUNNING: Final = "running"
STARTING: Final = "starting"
DEGRADED: Final = "degraded"


def report(app: App) -> Report:
    """Return what the plain table shows of an app, and the file that it belongs to; `cpu` and `memory` are None."""
    holder = app.holder()
    state = app.state_of(holder) if holder else app.last_state()
    pending = bool(holder and holder.locked_by_daemonkit and not state and app.state_is_pending())
    instances = state.get("instances", [])
    up = sum(bool(one["up"]) for one in instances)
    return {
        "name": app.name,
        "state": _running_state(state, pending=pending) if holder else _ended_state(app, state),
        "up": (up if instances else None) if holder and not pending else 0,
        "wanted": len(instances) if instances else _wanted(app),
        "pid": holder.pid if holder else None,
        "restarts": sum(max(one["starts"] - 1, 0) for one in instances),
        "uptime": age(holder.started) if holder else None,
        "cpu": None,
        "memory": None,
        "file": state.get("file"),
    }


def full_report(app: App) -> Report:
    """Return all fields of ``--json``; `cpu` and `memory` are None."""
    settings = app.readable_settings()
    holder = app.holder()
    return report(app) | {
        "command": settings.get("command", []),
        "cwd": settings.get("cwd", "/" if settings else None),
        "logs": app.logs(),
        "instances": _instances(app, holder),
    }


def _running_state(state: State, *, pending: bool) -> str:
    if not state:
        return STARTING if pending else RUNNING
    if not state.get("ready"):
        return STARTING
    return RUNNING if all(one["up"] or one["done"] for one in state["instances"]) else DEGRADED


def _ended_state(app: App, state: State) -> str:
    if app.is_to_stay_stopped or not state:
        return "stopped"
    return state.get("ended") or "failed"  # not recorded: the supervisor was killed


def _wanted(app: App) -> int | None:
    with contextlib.suppress(LookupError, ValueError, TypeError, OSError):
        return _app.count_of(app.settings())
    return None


def age(started: int | None) -> float | None:
    """Return the seconds since a process started; None where that can't be seen."""
    return round(max((ticks() - started) / _TICKS, 0.0), 2) if started else None


def _instances(app: App, holder: Holder | None) -> list[dict[str, Any]]:
    state = app.state_of(holder) if holder else app.last_state()
    ended = None if holder else _ended_state(app, state)
    return [_instance(index, one, ended) for index, one in enumerate(state.get("instances", []))]


def _instance(index: int, one: Mapping[str, Any], ended: str | None) -> dict[str, Any]:
    pids = (*one["up"][-1:], *one["runs"][-1:])
    pid = pids[0] if pids and not ended else None
    state = one.get("state", RUNNING if one["up"] else STARTING)
    return {
        "index": index,
        "pid": pid,
        "state": state if not ended or state in {"exited", "failed", "gave-up", "stopped"} else ended,
        "uptime": age(start_of(pid)) if pid else None,
        "starts": one["starts"],
        "exitcode": one.get("exitcode"),
        "exited_at": one.get("exited_at"),
        "cpu": None,
        "memory": None,
    }


def up_of(report: Mapping[str, Any]) -> str:
    """Return "up/wanted"."""
    up, wanted = (("?" if report[name] is None else str(report[name])) for name in ("up", "wanted"))
    return f"{up}/{wanted}"


# --- cpu and memory --------------------------------------------------------------------------------------------------


class Meter:
    """Measures the cpu that processes have used since it was asked last."""

    def __init__(self) -> None:
        """Nothing has been measured yet."""
        self._spent: dict[tuple[int, int], int] = {}
        self._at = 0.0

    def measure(self, reports: Iterable[Report]) -> None:
        """Fill in `cpu` (percent of one CPU since the last call; None at the first) and `memory` (bytes)."""
        before, begun = self._spent, self._at
        self._spent, self._at = {}, time.monotonic()
        elapsed = self._at - begun if before else 0.0
        for one in reports:
            if one["pid"]:
                own = [one["pid"], *descendants_of(one["pid"])]
                one["cpu"], one["memory"] = self._usage(own, before, elapsed)
                for instance in one.get("instances", ()):
                    if instance["pid"]:
                        own = [instance["pid"], *descendants_of(instance["pid"])]
                        instance["cpu"], instance["memory"] = self._usage(own, before, elapsed)

    def _usage(
        self, pids: list[int], before: Mapping[tuple[int, int], int], elapsed: float
    ) -> tuple[float | None, int]:
        spent, memory = 0, 0
        for pid in pids:
            if (found := _times(pid)) is None:
                continue
            started, used = found
            self._spent[pid, started] = used
            spent += max(used - before.get((pid, started), 0 if _is_new(started, elapsed) else used), 0)
            memory += _memory(pid)
        return (round(100 * spent / _TICKS / elapsed, 1) if elapsed else None), memory


def measure_once(reports: list[Report]) -> None:
    """Fill in `cpu`, over a short interval, and `memory`."""
    from daemonkit._system.wait import pause

    meter = Meter()
    meter.measure(reports)
    if any(one["pid"] for one in reports):
        pause(INTERVAL)
        meter.measure(reports)


def _is_new(started: int, elapsed: float) -> bool:
    return (ticks() - started) / _TICKS <= elapsed


def _times(pid: int) -> tuple[int, int] | None:
    """Return when a process started, and the cpu that it has used, in clock ticks: proc(5); None if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return int(fields[19]), int(fields[11]) + int(fields[12])


def _memory(pid: int) -> int:
    """Return the memory of a process in bytes: of shared pages its share, where the kernel tells it."""
    with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/smaps_rollup", "rb") as file:
        return int(file.read().partition(b"\nPss:")[2].split(None, 1)[0]) << 10
    with contextlib.suppress(OSError, IndexError), open(f"/proc/{pid}/statm", "rb") as file:
        return int(file.read().split()[1]) * _PAGE
    return 0


def descendants_of(pid: int) -> list[int]:
    """Return what a process has started, and what that has started; not what was set free, as another app."""
    from daemonkit._system.process import children_of
    from daemonkit._system.run_mark import FREE, mark_of

    found: list[int] = []
    todo = [pid]
    for one in todo:  # which grows meanwhile
        own = [child for child in children_of(one) if mark_of(child) != FREE]
        found += own
        todo += own
    return found
