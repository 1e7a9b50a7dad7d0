"""What the parts share: an account of what was tried, and looks at the promises from outside."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import harness

if TYPE_CHECKING:
    import random


@dataclass
class Account:
    """One part's figures."""

    what: str
    tried: int = 0
    survived: int = 0
    lost: int = 0
    """Promises broken: a status that is not true, a line or an exit that is missing, a second holder."""
    left: int = 0
    """Processes or held locks that outlived what they belong to."""
    notes: list[str] = field(default_factory=list)

    def count(self, fault: str | None, left: int = 0) -> None:
        """Take note of one attempt."""
        self.tried += 1
        self.left += left
        if fault or left:
            self.lost += bool(fault)
            self.notes.append(fault or f"{left} processes left")
        else:
            self.survived += 1

    def row(self) -> str:
        """Return a row of the table."""
        return f"| {self.what} | {self.tried:,} | {self.survived:,} | {self.lost} | {self.left} |"


@dataclass
class Run:
    """What a part gets: a time limit, chance with a seed that is printed, and a directory."""

    seconds: float
    chance: random.Random
    folder: Path
    accounts: list[Account] = field(default_factory=list)

    def account(self, what: str) -> Account:
        """Open an account."""
        self.accounts.append(Account(what))
        return self.accounts[-1]

    def until(self, seconds: float) -> Iterator[int]:
        """Count attempts until the time is over."""
        end, number = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            yield number
            number += 1

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Make an empty directory for one attempt."""
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            yield Path(name)


def held_by(directory: Path) -> int | None:
    """Return the pid of the process that holds the pidfile there."""
    import daemonkit

    return daemonkit.status(directory / "pid").pid


def strays(before: set[int], belongs: Callable[[int], bool] = lambda _: False) -> list[int]:
    """Return this process's living children (it is a subreaper) that should not be there; wait for what is ending."""

    def found() -> list[int]:
        return [pid for pid in set(harness.children()) - before if harness.alive(pid) and not belongs(pid)]

    with suppress(AssertionError):
        harness.eventually(lambda: not found(), patience=10)
    return found()


def end(pids: list[int]) -> None:
    """End children of this process, by their pids."""
    for pid in pids:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, 9)
            os.waitpid(pid, 0)


def reap() -> None:
    """Reap what has ended."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


Part = Callable[[Run], None]
