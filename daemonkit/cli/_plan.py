"""What `daemonkit up` has to do: decided from what a file wishes and what there is, without doing anything.

`plan` returns a step for each app; `Schedule` says which steps may begin now. Neither looks at a process, a file or the
clock.
"""

from __future__ import annotations

import graphlib
from collections import namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any, Final

    from daemonkit.cli._app import Settings
    from daemonkit.cli._appfile import AppFile

KEEP: Final = "keep"
START: Final = "start"
CHANGE: Final = "change"
GONE: Final = "gone"
FORGET: Final = "forget"

NOT_COMPARED: Final = frozenset({"file", "after", "environment"})
"""Settings that the file's words do not decide: whose it is, its place in the order, the shell it was started in."""
_RUNS: Final = frozenset({"running", "starting", "degraded"})
_AS_WISHED: Final = _RUNS | {"done"}


class Found(namedtuple("Found", ("settings", "state"))):
    """An app that there is."""

    __slots__ = ()
    settings: Settings
    """As they are kept; `file` is the one that it belongs to, missing where `daemonkit start` made it."""
    state: str


class Step(namedtuple("Step", ("do", "why", "after"), defaults=((), ()))):
    """What is to be done to one app."""

    __slots__ = ()
    do: str
    why: tuple[str, ...]
    """The settings that differ."""
    after: tuple[str, ...]
    """The apps whose steps must be done before."""


def plan(
    file: AppFile,
    found: Mapping[str, Found],
    *,
    names: Iterable[str] = (),
    prune: bool = False,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Step]:
    """Return what to do to each app, in an order that `after` allows; LookupError for a name that is refused.

    `names` limits it to these apps and what they come after. `environment` is the one that all are to have from now
    on, None to leave each the one it has.
    """
    chosen = with_what_they_come_after(file, names)
    for name in chosen:
        if name in found:
            refuse_foreign(name, found[name].settings, file.path)
    gone = [] if names else [name for name in found if name not in file.apps and _is_of(found[name], file.path)]
    steps = {name: Step(FORGET if prune else GONE) for name in gone}
    before = tuple(gone) if prune else ()  # they may hold a port that one of the others is to have
    for name in chosen:
        wish = file.apps[name]
        do, why = decide(wish.settings, found.get(name), environment)
        steps[name] = Step(do, why, () if do == KEEP else (*before, *wish.after))
    return steps


def with_what_they_come_after(file: AppFile, names: Iterable[str]) -> list[str]:
    """Return these apps and all that they come after, those first that others come after; no names: all apps."""
    if unknown := next((name for name in names if name not in file.apps), None):
        raise LookupError(f"{file.path}: there is no app {unknown} in it; it has {', '.join(file.apps)}")
    order = order_of(file)
    chosen = set(names) or set(order)
    for name in reversed(order):
        if name in chosen:
            chosen.update(file.apps[name].after)
    return [name for name in order if name in chosen]


def order_of(file: AppFile) -> list[str]:
    """Return a file's apps, each after those that it comes after."""
    return in_order({name: wish.after for name, wish in file.apps.items()})


def in_order(after: Mapping[str, Iterable[str]]) -> list[str]:
    """Return all names, each after those that it comes after."""
    return [*graphlib.TopologicalSorter({name: sorted(others) for name, others in after.items()}).static_order()]


def _is_of(found: Found, path: str) -> bool:
    return bool(found.settings.get("file") == path)


def refuse_foreign(name: str, settings: Settings, path: str) -> None:
    """Raise LookupError if an app is not the file's own."""
    owner = settings.get("file")
    if owner is None:
        raise LookupError(
            f"{name} was made by daemonkit start, not by {path}; rename it there, or first: daemonkit delete {name}"
        )
    if owner != path:
        raise LookupError(f"{name} belongs to {owner}, not to {path}; rename one, or first: daemonkit delete {name}")


def decide(wished: Settings, found: Found | None, environment: Mapping[str, str] | None) -> tuple[str, tuple[str, ...]]:
    """Return what to do to an app, and the settings that differ."""
    if found is None:
        return START, ()
    why = differences(wished, found.settings)
    if environment is not None and found.settings.get("environment") != environment:
        why = (*why, "environment")
    if found.state not in _RUNS and (why or found.state not in _AS_WISHED):
        return START, why
    return (CHANGE, why) if why else (KEEP, ())


def differences(wished: Mapping[str, Any], kept: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the settings that differ."""
    names = (wished.keys() | kept.keys()) - NOT_COMPARED
    return tuple(sorted(name for name in names if wished.get(name) != kept.get(name)))


class Schedule:
    """Which steps may begin: those that come after nothing that is not done yet."""

    def __init__(self, after: Mapping[str, Iterable[str]]) -> None:
        """Take, for each step, those that it comes after; names of no step are left out."""
        self._after = {name: {other for other in others if other in after} for name, others in after.items()}
        self._sorter = graphlib.TopologicalSorter(self._after)
        self._sorter.prepare()
        self._failed: set[str] = set()
        self.left = set(after)
        """Those that are not done, failed or left out."""

    def begin(self) -> tuple[list[str], dict[str, str]]:
        """Return those that may begin now and have not begun, and those that never will, each with the one at fault."""
        ready: list[str] = []
        never: dict[str, str] = {}
        while found := self._sorter.get_ready():
            for name in found:
                if at_fault := sorted(self._after[name] & self._failed):
                    never[name] = at_fault[0]
                    self.done(name, well=False)
                else:
                    ready.append(name)
        return ready, never

    def done(self, name: str, *, well: bool) -> None:
        """Take note of the end of a step."""
        self.left.discard(name)
        if not well:
            self._failed.add(name)
        self._sorter.done(name)
