"""Contended starts and stops, with holders that die and a reader that hammers the pidfile."""

from __future__ import annotations

import mmap
import os
import random
import re
import signal
import struct
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import harness

import daemonkit

if TYPE_CHECKING:
    from pathlib import Path

    from common import Run

STARTERS = 4
_CELL = struct.Struct("q")


def churn(run: Run) -> None:
    """Run starters and a reader until 10,000 starts were tried, or the time is over."""
    account = run.account("contended starts")
    reads = run.account("reads of the pidfile meanwhile")
    path = run.folder / "churn.pid"
    shared = mmap.mmap(-1, 64)  # who holds it, by the holder's own words; faults; starts; reads
    starters = [_fork(_start, path, shared, run.chance.random()) for _ in range(STARTERS)]
    reader = _fork(_read, path, shared)
    for _ in run.until(run.seconds):
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid in starters:  # it was killed while it held, as it wished; another takes its place
            assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
            starters[starters.index(pid)] = _fork(_start, path, shared, run.chance.random())
        elif pid == 0:
            harness.select.select([], [], [], 0.002)
        if _get(shared, 2) >= 10_000:
            break
    for pid in (*starters, reader):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    account.tried, account.lost = _get(shared, 2), _get(shared, 1)
    account.survived = account.tried - account.lost
    reads.tried, reads.lost = _get(shared, 3), _get(shared, 4)
    reads.survived = reads.tried - reads.lost
    with daemonkit.PidFile(path):  # after all that it can be had
        pass


def _fork(what: object, *arguments: object) -> int:
    pid = os.fork()  # noqa: TID251 - many of them, in no time
    if pid == 0:
        try:
            what(*arguments)  # type: ignore[operator]
        finally:
            os._exit(3)
    return pid


def _get(shared: mmap.mmap, cell: int) -> int:
    return int(_CELL.unpack_from(shared, 8 * cell)[0])


def _put(shared: mmap.mmap, cell: int, value: int) -> None:
    _CELL.pack_into(shared, 8 * cell, value)


def _start(path: Path, shared: mmap.mmap, seed: float) -> None:
    chance = random.Random(seed)
    me = os.getpid()
    lock = daemonkit.PidFile(path)
    while True:
        try:
            lock.acquire()
        except daemonkit.AlreadyRunningError as error:
            if not error.pid:
                _put(shared, 1, _get(shared, 1) + 1)
            continue
        before = _get(shared, 0)
        second = before not in {0, me} and harness.alive(before)
        _put(shared, 0, me)
        if second or path.read_text() != f"{me}\n":
            _put(shared, 1, _get(shared, 1) + 1)
        _put(shared, 2, _get(shared, 2) + 1)
        if chance.random() < 0.05:
            os.kill(me, signal.SIGKILL)
        if _get(shared, 0) != me:
            _put(shared, 1, _get(shared, 1) + 1)
        _put(shared, 0, 0)
        lock.release()


def _read(path: Path, shared: mmap.mmap) -> None:
    while True:
        text = "1\n"
        with suppress(FileNotFoundError):
            text = path.read_text()
        pid = daemonkit.status(path).pid
        _put(shared, 3, _get(shared, 3) + 1)
        if not re.fullmatch(r"\d+\n", text) or pid == os.getpid():
            _put(shared, 4, _get(shared, 4) + 1)


SERVICE = """
    try:
        with daemonkit.detached(pidfile="pid", stdout="log"):
            wait()
    except daemonkit.AlreadyRunningError:
        sys.exit(7)
"""


def daemons(run: Run) -> None:
    """Start real daemons, four at a time; the winner is killed or stopped."""
    import subprocess

    account = run.account("contended starts of real daemons")
    program = harness.write(run.folder, SERVICE)
    for number in run.until(run.seconds):
        callers = [subprocess.Popen([sys.executable, program], cwd=run.folder) for _ in range(4)]
        statuses = sorted(caller.wait(harness.PATIENCE) for caller in callers)
        holder = daemonkit.status(run.folder / "pid").pid
        fault = None if statuses == [0, 7, 7, 7] and holder else f"statuses {statuses}, held by {holder}"
        if holder:
            if number % 2:
                os.kill(holder, signal.SIGKILL)
            else:
                daemonkit.stop(run.folder / "pid")
            harness.ended(holder)
        account.count(fault)
