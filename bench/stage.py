"""Where a supervisor is looked at: what its children report, what it costs, what is left of it, and nothing after that."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import tempfile
import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from peers import App, Peer

ROLES = ("main", "group", "setsid", "orphan")
_PATIENCE = 60.0
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Report:
    """What a child wrote as it began; `time` is CLOCK_MONOTONIC, in seconds."""

    role: str
    pid: int
    time: float


class Stage:
    """A supervisor and what it runs."""

    def __init__(self, peer: Peer) -> None:
        """Make the FIFO that its children report to."""
        self.peer = peer
        os.mkfifo(peer.fifo)
        self._fifo = os.open(peer.fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._rest = b""
        self.reports: list[Report] = []
        self._pidfds: dict[Report, int] = {}

    # --- reports

    def look(self, seconds: float) -> None:
        """Take in what was reported; wait that long at most for the first of it."""
        if not select.select([self._fifo], (), (), max(seconds, 0))[0]:
            return
        with suppress(BlockingIOError):
            while True:
                *lines, self._rest = (self._rest + os.read(self._fifo, _CHUNK)).split(b"\n")
                for line in lines:
                    role, pid, nanoseconds = line.decode().split()
                    self._note(Report(role, int(pid), int(nanoseconds) / 1e9))

    def _note(self, report: Report) -> None:
        self.reports.append(report)
        if report.role in ROLES:
            with suppress(ProcessLookupError):
                self._pidfds[report] = os.pidfd_open(report.pid)

    def watch(self, seconds: float) -> None:
        """Take in what is reported for that long."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.look(left)

    def wait_for(self, count: int, role: str = "main", since: int = 0, patience: float = _PATIENCE) -> list[Report]:
        """Return the first `count` reports of that role past number `since`, once they are there."""
        end = time.monotonic() + patience
        while len(found := [report for report in self.reports[since:] if report.role == role]) < count:
            if time.monotonic() > end:
                raise TimeoutError(f"{self.peer.name}: {len(found)} of {count} reports of {role!r} in {patience:.0f} s")
            self.look(end - time.monotonic())
        return found[:count]

    # --- what runs

    def alive(self) -> list[Report]:
        """Return who of those that have reported still lives; a zombie does not."""
        poll = select.poll()
        for fd in self._pidfds.values():
            poll.register(fd, select.POLLIN)
        ended = {fd for fd, _ in poll.poll(0)}
        return [report for report, fd in self._pidfds.items() if fd not in ended]

    def wait_gone(self, reports: list[Report], patience: float = _PATIENCE) -> bool:
        """Wait until all of them have ended."""
        poll = select.poll()
        fds = {self._pidfds[report] for report in reports if report in self._pidfds}
        for fd in fds:
            poll.register(fd, select.POLLIN)
        end = time.monotonic() + patience
        while fds and (left := end - time.monotonic()) > 0:
            for fd, _ in poll.poll(left * 1000):
                poll.unregister(fd)
                fds.discard(fd)
        return not fds

    def left(self) -> str:
        """Count the living, by role."""
        living = Counter(report.role for report in self.alive())
        return "/".join(str(living[role]) for role in ROLES)

    def kill(self, report: Report) -> None:
        """End one of them as a crash does."""
        signal.pidfd_send_signal(self._pidfds[report], signal.SIGKILL)

    # --- what the supervisor costs

    def supervisors(self) -> list[int]:
        """Return its processes: from its main one down, without what it runs."""
        children = {report.pid for report in self.reports if report.role in ROLES}
        found, ahead = [], [self.peer.root]
        while ahead:
            pid = ahead.pop()
            if pid in children:
                continue
            with suppress(FileNotFoundError, ProcessLookupError):
                for task in os.listdir(f"/proc/{pid}/task"):
                    ahead += map(int, _read(f"/proc/{pid}/task/{task}/children").split())
                found.append(pid)
        return found

    def memory(self) -> float:
        """Return its PSS in MiB: what it has alone, and its share of the rest."""
        lines = (line for pid in self.supervisors() for line in _read(f"/proc/{pid}/smaps_rollup").splitlines())
        return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024

    def effort(self) -> dict[tuple[int, str], tuple[float, int]]:
        """Return each of its threads' CPU milliseconds and voluntary context switches."""
        result = {}
        for pid in self.supervisors():
            with suppress(FileNotFoundError, ProcessLookupError):
                for task in os.listdir(f"/proc/{pid}/task"):
                    path = f"/proc/{pid}/task/{task}"
                    switches = _read(f"{path}/status").partition("\nvoluntary_ctxt_switches:")[2].split()[0]
                    result[pid, task] = int(_read(f"{path}/schedstat").split()[0]) / 1e6, int(switches)
        return result

    # --- the end

    def close(self) -> None:
        """End the supervisor, then whatever it has left, and remove its folder."""
        errors = []
        with suppress(Exception):
            self.peer.stop()
        try:
            self.peer.close()
        except Exception as error:
            errors.append(error)
        self.look(0)
        for _ in range(3):  # what restarted what
            for report in self.alive():
                with suppress(ProcessLookupError):
                    self.kill(report)
            self.watch(0.05)
        self.wait_gone(self.alive(), 5)
        for fd in (*self._pidfds.values(), self._fifo):
            os.close(fd)
        shutil.rmtree(self.peer.folder, ignore_errors=True)
        if errors:
            raise errors[0]


def spent(
    before: dict[tuple[int, str], tuple[float, int]], after: dict[tuple[int, str], tuple[float, int]]
) -> tuple[float, int]:
    """Return what was used between two looks at effort()."""
    both = [(before.get(thread, (0.0, 0)), now) for thread, now in after.items()]
    return sum(now[0] - then[0] for then, now in both), sum(now[1] - then[1] for then, now in both)


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


@contextmanager
def staged(kind: Callable[[str, str], Peer], tools: str) -> Iterator[Stage]:
    """Set up one supervisor in a folder of its own; leave nothing of it."""
    # A log is to be on a disk, as everyone's is; a socket's path must be short: unix(7).
    peer = kind(tools, tempfile.mkdtemp(prefix="b", dir="/var/tmp"))
    stage = Stage(peer)
    try:
        peer.prepare()
        yield stage
    finally:
        stage.close()


def running(stage: Stage, app: App) -> list[Report]:
    """Start the app; return its reports once all of it runs."""
    stage.peer.start(app)
    return stage.wait_for(app.count)


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
