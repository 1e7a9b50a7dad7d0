"""A program that supervises, driven and seen from outside: what the tests of `supervise` share."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness
from harness import PATIENCE, alive, children, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator


# Each line of "events" is one event; "summary" is what supervise() returned.
SUPERVISE = """
import dataclasses
def supervise(*args, **options):
    log = open("events", "a", 1)
    def on_event(event):
        log.write(json.dumps(dataclasses.asdict(event)) + "\\n")
    summary = daemonkit.supervise(*args, on_event=on_event, **options)
    with open("summary.new", "w") as file:
        json.dump(dataclasses.asdict(summary), file)
    os.rename("summary.new", "summary")
    return summary
"""


# A program that appends its pid to a file named for its instance, and goes on.
BEAT = "echo $$ >> started.$DAEMONKIT_INSTANCE; exec sleep 1000"


GRACEFUL = "trap 'sleep 0.2; echo $$ >> finished; exit 0' TERM; echo $$ >> up; while :; do sleep 0.02; done"


READY = """
import os, socket, sys, signal
def say(text):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.connect("\\0" + os.environ["NOTIFY_SOCKET"][1:])
        s.send(text)
"""


FIRST = 1_000_000 + 20 * os.getpid()  # suites that run side by side tell their sleeps apart


class Supervisor:
    """A program that supervises, as a child of this process."""

    def __init__(self, directory: Path, body: str, **options: Any) -> None:
        """Start it."""
        self.directory = directory
        program = harness.write(directory, SUPERVISE + body)
        self.errors = directory / "errors"
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(program)], cwd=directory, stdin=subprocess.DEVNULL, stderr=errors, **options
            )
        self.pid = self.process.pid

    def events(self, kind: str = "", instance: int | None = None) -> list[dict[str, Any]]:
        """Return the events so far."""
        path = self.directory / "events"
        lines = path.read_text().splitlines() if path.exists() else []
        return [
            event
            for event in map(json.loads, lines)
            if kind in {"", event["kind"]} and instance in {None, event["instance"]}
        ]

    def until(self, kind: str, count: int = 1, instance: int | None = None) -> list[dict[str, Any]]:
        """Wait for that many events of a kind."""
        return eventually(
            lambda: (found := self.events(kind, instance)) and len(found) >= count and found, f"{count} x {kind}"
        )

    @property
    def worker(self) -> int:
        """The worker's pid."""
        return next(pid for pid in children(self.pid) if os.getsid(pid) == pid)

    def stop(self, number: int = signal.SIGTERM) -> dict[str, Any]:
        """End it, and return its summary."""
        self.process.send_signal(number)
        assert self.process.wait(PATIENCE) == 0, self.errors.read_text()
        return self.summary()

    def summary(self) -> dict[str, Any]:
        """Return what supervise() returned."""
        found: dict[str, Any] = json.loads((self.directory / "summary").read_text())
        return found


@contextlib.contextmanager
def supervising(directory: Path, body: str, **options: Any) -> Iterator[Supervisor]:
    """Run a supervisor, and end it whatever happens."""
    supervisor = Supervisor(directory, body, **options)
    try:
        yield supervisor
    finally:
        if supervisor.process.poll() is None:
            supervisor.process.kill()
            supervisor.process.wait()


def pids(directory: Path, name: str) -> list[int]:
    """Return the pids in a file."""
    return [int(line) for line in (directory / name).read_text().split()]


def tree(numbers: range = range(FIRST, FIRST + 6)) -> set[int]:
    """Return the pids of the sleeps of TREE that live."""
    found = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, IndexError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if (
                words[0].endswith(b"sleep")
                and words[1].isdigit()
                and int(words[1]) in numbers
                and alive(int(entry.name))
            ):
                found.add(int(entry.name))
    return found
