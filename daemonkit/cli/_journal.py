"""An app's state, as its supervisor keeps it: made from the events of `supervise`."""

from __future__ import annotations

import copy
import math

from daemonkit._system.process import identity, place
from daemonkit._system.signals import signal_name
from daemonkit.cli import _app

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Final

    from daemonkit._supervise import Event, Summary
    from daemonkit.cli._app import Settings


UNDER_WAY: Final = "under way"
DONE: Final = "done"
FAILED: Final = "failed"


class Journal:
    """Turns events into the app's state, and notices a start that fails."""

    def __init__(self, settings: Settings, logs: Sequence[str] = (), *, foreground: bool = False) -> None:
        """Begin with instances that have not started."""
        me = identity()
        self.instances: list[dict[str, Any]] = [_new_instance() for _ in range(_app.count_of(settings))]
        self.state: dict[str, Any] = {
            "supervisor": [me.pid, me.started],
            "place": place(),
            "foreground": foreground,
            "file": settings.get("file"),
            "ready": False,
            "ended": None,
            "instances": self.instances,
            "reload": {"number": 0, "outcome": DONE},
            "logs": [*logs],
        }
        self._begun: dict[int, float] = {}
        self._silent: set[int] = set()
        self.failure: str | None = None
        """Why the start failed; None unless it did."""
        self._before: list[dict[str, Any]] | None = None
        """The instances as they were when a reload began; None where only their number changes."""
        self._failed_before: list[int] = []
        self._replaced = 0
        """So many instances were found to be replaced, from the first one on."""
        self.is_refused = False
        """Whether what the last reload brought did not come up, so that the old is still in force."""
        self.refusal = ""
        """Why `supervise` refused the settings that were proposed last."""
        self._wanted = len(self.instances)
        self.follow(settings)

    def follow(self, settings: Settings) -> None:
        """Judge by these settings from now on."""
        self._restart = settings.get("restart", "on-failure")
        self._wished = frozenset(() if self._restart == "always" else settings.get("success_codes", (0,)))
        self._wait_ready = any(settings.get(name) for name in ("wait_ready", "ready_check", "ready_tcp"))
        self._timeout = settings.get("start_timeout", 30.0) if self._wait_ready else math.inf

    def take(self, event: Event) -> None:
        """Record an event."""
        if event.instance < 0:  # the settings were refused, or the worker that had them on trial was killed
            self.is_refused = True
            self._decide_reload(FAILED, self.refusal or "the worker process was killed, so the old settings stay")
            self.refusal = ""
            return
        while event.instance >= len(self.instances):
            self.instances.append(_new_instance())
        one = self.instances[event.instance]
        match event.kind:
            case "start":
                one["starts"] += 1
                one["runs"].append(event.pid)
                one["state"] = "running" if one["up"] else "starting"
                self._begun[event.pid] = event.time
            case "ready":
                one["up"].append(event.pid)
                one["state"] = "running"
            case "watchdog":
                self._silent.add(event.pid)
            case "exit":
                self._ended(one, event)
            case "gave-up":
                one["state"] = "gave-up"
            case "reload-failed":
                self.is_refused = True
                self._decide_reload(FAILED, "a new run did not come up, so the old ones stay")
        if self.is_reloading:
            self._look_at_reload(event.instance)

    def _ended(self, one: dict[str, Any], event: Event) -> None:
        lived = event.time - self._begun.pop(event.pid, event.time)
        silent = event.pid in self._silent
        self._silent.discard(event.pid)  # the kernel may give the number to another process
        one["runs"] = [pid for pid in one["runs"] if pid != event.pid]
        one["exitcode"], one["exited_at"] = event.exitcode, round(event.time, 3)
        was_up = event.pid in one["up"]
        good = was_up or (event.exitcode in self._wished and not self._wait_ready)
        if was_up:
            one["up"].remove(event.pid)
        one["done"] = good and event.exitcode in self._wished and not one["runs"]
        if not one["up"]:
            one["state"] = "starting" if one["runs"] else self._state_after(one)
        if was_up and self.is_reloading and event.instance < self._wanted and not one["done"] and not one["up"]:
            self._decide_reload(FAILED, "a new run came up, and did not stay up")
        if good:
            return
        one["failed"] += 1
        if not self.state["ready"] and not self.failure:
            self.failure = f"instance {event.instance} {_ending(event.exitcode or 0)} before it was up"
            if note := self.state.get("note"):
                self.failure = note
            if silent:
                self.failure = f"instance {event.instance} did not send WATCHDOG=1 in time"
            elif lived >= self._timeout:
                self.failure = f"instance {event.instance} was not ready within {self._timeout:g} s"

    def _state_after(self, one: dict[str, Any]) -> str:
        if one["done"]:
            return "exited"
        return "failed" if self._restart == "never" else "backoff"

    def note(self, text: str) -> None:
        """Record what whoever starts it is to be told."""
        self.state["note"] = text

    def is_wished(self, event: Event) -> bool:
        """Tell whether an exit was wished: the work is done, or a successor has taken over."""
        return event.exitcode in self._wished or bool(self.instances[event.instance]["up"])

    # --- reloads ----------------------------------------------------------------------------------------------------

    @property
    def is_reloading(self) -> bool:
        """Whether a reload is under way."""
        return bool(self.state["reload"]["outcome"] == UNDER_WAY)

    def begin_reload(self, wanted: int, *, all_anew: bool) -> None:
        """Record that a reload begins: all runs are replaced, or only their number changes."""
        self.state["reload"] = {"number": self.state["reload"]["number"] + 1, "outcome": UNDER_WAY}
        self._before = copy.deepcopy(self.instances) if all_anew else None
        self._failed_before = [one["failed"] for one in self.instances]
        self._wanted = wanted
        self.is_refused, self._replaced = False, 0
        self._look_at_reload()

    def _decide_reload(self, outcome: str, why: str = "") -> None:
        """Record how the reload has ended."""
        self.state["reload"] |= {"outcome": outcome, "why": why}

    def forget_unwanted(self, wanted: int) -> None:
        """Have so many instances: those beyond are forgotten once they have ended."""
        self._wanted = wanted
        while len(self.instances) > wanted and not self.instances[-1]["runs"]:
            self.instances.pop()

    def _look_at_reload(self, changed: int = -1) -> None:
        """See whether the reload has ended, now that something has happened to an instance."""
        self.forget_unwanted(self._wanted)
        if 0 <= changed < len(self.instances) and self._has_failed(changed):
            self._decide_reload(FAILED, "a new run did not come up")
        elif len(self.instances) == self._wanted and self._all_replaced():
            self._decide_reload(DONE)

    def _all_replaced(self) -> bool:
        """Tell so. They are replaced one after the other, so a look at the next one is enough until the last one."""
        while self._replaced < self._wanted:
            if not self._is_replaced(self._replaced):
                return False
            self._replaced += 1
        self._replaced = 0  # an earlier one may have ended since
        return all(map(self._is_replaced, range(self._wanted)))

    def _has_failed(self, index: int) -> bool:
        """Tell whether an instance has failed to come up that had no run before, so that none stays in its place."""
        is_new = index >= len(self._failed_before)
        had_run = not is_new and (self._before is None or bool(self._before[index]["runs"]))
        return not had_run and self.instances[index]["failed"] > (0 if is_new else self._failed_before[index])

    def _is_replaced(self, index: int) -> bool:
        """Tell whether a new run is up and no old one is left, or the instance is done."""
        one = self.instances[index]
        old = self._before[index]["runs"] if self._before and index < len(self._before) else ()
        return bool(one["done"] or (one["up"] and set(old).isdisjoint(one["runs"])))

    @property
    def all_up(self) -> bool:
        """Whether each instance is up or done."""
        return all(one["up"] or one["done"] for one in self.instances)

    def close(self, summary: Summary) -> None:
        """Record the end: "stopped" on request, "done" or "failed" by itself."""
        stopped = any(record.state == "stopped" for record in summary.instances)
        self.state["ended"] = "stopped" if stopped else "failed" if summary.exitcode else "done"
        for one, record in zip(self.instances, summary.instances, strict=True):
            one["runs"], one["up"], one["starts"], one["state"] = [], [], record.starts, record.state

    def end_badly(self) -> None:
        """Record the end of a start that failed."""
        self.state["ended"] = "failed"


def _new_instance() -> dict[str, Any]:
    """Return an instance of which nothing is known yet.

    `runs` are the pids of its runs, `up` of those that are up; `failed` says how many ended before that; `done`,
    whether its work is done; `exitcode` and `exited_at` are of the run that ended last.
    """
    return {
        "state": "starting",
        "runs": [],
        "up": [],
        "starts": 0,
        "failed": 0,
        "done": False,
        "exitcode": None,
        "exited_at": None,
    }


def _ending(code: int) -> str:
    return f"ended with status {code}" if code >= 0 else f"was ended by {signal_name(-code)}"
