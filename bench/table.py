"""Measuring in turns, and the rows of the table."""

from __future__ import annotations

import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = os.path.dirname(os.path.abspath(__file__))
SMALL = 20
"""Megabytes of an ordinary caller: an interpreter and a few modules."""
MISSED = "**missed**"
_limit = {"rounds": 1 << 30}


def be_quick() -> None:
    """Measure everything a few times only."""
    _limit["rounds"] = 3


def take_turns(rounds: int, contenders: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Run each of them once per round, in an order drawn anew each time, so that none always follows the same one.

    A first round does not count: it fills caches.
    """
    results: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(min(rounds, _limit["rounds"]) + 1):
        for name, measure in random.sample(list(contenders.items()), len(contenders)):
            seconds = measure()
            if number:
                results[name].append(seconds)
    return results


def timed(action: Callable[[], object], repeat: int) -> float:
    """Return the mean time of one `action` out of several in a row."""
    begin = time.perf_counter()
    for _ in range(repeat):
        action()
    return (time.perf_counter() - begin) / repeat


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    ours: str = ""
    against: str = ""
    ratio: str = ""
    goal: str = ""
    met: str = ""
    peer: str = ""
    medians: tuple[float, float] | None = None
    """Ours and the peer's, in seconds."""


def against(what: str, ours: list[float], peer: str, theirs: list[float], goal: float | None = None) -> Row:
    """Compare with a peer, pair by pair."""
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    ratio = statistics.median(ratios)
    return Row(
        what,
        _times(ours),
        f"{peer}: {_times(theirs)}",
        f"**{_ratio(ratio)}** ({_ratio(min(ratios))} to {_ratio(max(ratios))})",
        f"<= {_ratio(goal, 'g')} x" if goal else "",
        met(ratio <= goal) if goal else "",
        peer,
        (statistics.median(ours), statistics.median(theirs)),
    )


def alone(what: str, values: list[float], goal: float, unit: str) -> Row:
    """Compare with a fixed goal."""
    middle = statistics.median(values)
    text = f"{middle:.2f} {unit} ({min(values):.2f} to {max(values):.2f})"
    return Row(what, text, goal=f"<= {goal} {unit}", met=met(middle <= goal))


@dataclass(frozen=True)
class Line:
    """One line of a table with a column per contender, whose cells are values, or a text as it is."""

    what: str
    results: dict[str, Any] = field(default_factory=dict)
    unit: str = ""
    goal: str = ""
    holds: bool | None = None
    notes: list[str] = field(default_factory=list)
    """What is to be said below the table."""

    def cell(self, name: str) -> str:
        """Return the median and the range of one contender."""
        found = self.results.get(name, "")
        if isinstance(found, str):
            return found
        texts = [_number(value) for value in (statistics.median(found), min(found), max(found))]
        return texts[0] if len(found) == 1 or texts[1] == texts[2] else "{} ({} to {})".format(*texts)


def middle_of(found: Any) -> float:
    """Return the median of a contender's values; not a number if it has none."""
    return math.nan if found is None or isinstance(found, str) else statistics.median(found)


def _number(value: float) -> str:
    if value == int(value) or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def log(text: str) -> None:
    """Tell whoever waits how far it is."""
    print(text, file=sys.stderr, flush=True)


def met(holds: bool) -> str:  # noqa: FBT001 - a value, not a switch
    """Say whether a goal was met."""
    return "yes" if holds else MISSED


def _ratio(value: float, form: str = ".2f") -> str:
    return f"{value:{form}}" if value >= 0.1 else f"1/{1 / value:.0f}"


def _times(values: list[float]) -> str:
    middle = statistics.median(values)
    factor, unit = (1e3, "ms") if middle >= 1e-3 else (1e6, "us")
    low, high = min(values) * factor, max(values) * factor
    digits = 2 if middle * factor < 10 else 1 if middle * factor < 100 else 0
    return f"{middle * factor:.{digits}f} {unit} ({low:.{digits}f} to {high:.{digits}f})"


# --- what the machine has -----------------------------------------------------------------------------------------


def compile_helper(name: str, folder: str) -> str | None:
    """Compile NAME.c to a shared library in `folder`; return why not, if so."""
    compiler = shutil.which("cc")
    if compiler is None:
        return "skipped: no C compiler (cc)"
    target, source = os.path.join(folder, f"{name}.so"), os.path.join(HERE, f"{name}.c")
    done = subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", target, source], check=False, capture_output=True)
    return f"skipped: cc failed: {done.stderr.decode().splitlines()[0]}" if done.returncode else None


def free_gigabytes() -> float:
    """Return how much memory can be had without swapping."""
    with open("/proc/meminfo", encoding="ascii") as meminfo:
        return next(int(line.split()[1]) for line in meminfo if line.startswith("MemAvailable")) / (1 << 20)


def compile_program(name: str, folder: str) -> str | None:
    """Compile NAME.c to a program in `folder`; return why not, if so."""
    compiler = shutil.which("cc")
    if compiler is None:
        return "skipped: no C compiler (cc)"
    command = [compiler, "-O2", "-o", os.path.join(folder, name), os.path.join(HERE, f"{name}.c")]
    done = subprocess.run(command, check=False, capture_output=True)
    return f"skipped: cc failed: {done.stderr.decode().splitlines()[0]}" if done.returncode else None
