"""Rows for control by pidfile: `status()` of a held file, and `stop()` until the process is known to be gone."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

from lockfile.pidlockfile import PIDLockFile
from table import Row, against, compile_helper, take_turns, timed

import daemonkit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_DAEMON = """
import signal, sys, daemonkit
with daemonkit.detached(pidfile=sys.argv[1], detach_process=True):
    signal.pause()
"""


def control_rows(folder: str) -> Iterator[Row]:
    """Measure both, on a daemon that this process, a subreaper, adopts and reaps late."""
    yield from _status_rows(os.path.join(folder, "status.pid"))
    yield from _stop_rows(folder)


def _start(path: str) -> int:
    subprocess.run([sys.executable, "-I", "-c", _DAEMON, path], check=True)
    pid = daemonkit.status(path).pid
    if pid is None:
        raise SystemExit(f"{path} has no holder")
    return pid


def _status_rows(path: str) -> Iterator[Row]:
    pid = _start(path)
    lock = PIDLockFile(path)
    actions: dict[str, Callable[[], object]] = {
        "ours": partial(daemonkit.status, path),
        "lockfile": lambda: os.kill(lock.read_pid(), 0),
    }
    if find_spec("psutil"):
        import psutil

        actions["psutil"] = lambda: psutil.Process(lock.read_pid()).is_running()
    results = take_turns(200, {name: partial(timed, action, 50) for name, action in actions.items()})
    what = "`status()` of a held pidfile"
    yield against(what, results["ours"], "`PIDLockFile` + `kill(0)`", results["lockfile"], 1.0)
    if "psutil" in results:
        yield against(what, results["ours"], "`psutil.Process(...).is_running()`", results["psutil"])
    daemonkit.stop(path)
    os.waitpid(pid, 0)


def _stop_rows(folder: str) -> Iterator[Row]:
    what = "`stop()` until it is known to be gone, reaped late"
    if no_c := compile_helper("watch", folder):
        yield Row(what, against=no_c)
        return
    path = os.path.join(folder, "stop.pid")
    library = ctypes.CDLL(os.path.join(folder, "watch.so"))

    def measure(stop: Callable[[int], object]) -> float:
        pid = _start(path)
        begin = time.perf_counter()
        stop(pid)
        elapsed = time.perf_counter() - begin
        os.waitpid(pid, 0)
        return elapsed

    contenders = {"ours": lambda _: daemonkit.stop(path), "C": library.stop}
    results = take_turns(40, {name: partial(measure, stop) for name, stop in contenders.items()})
    yield against(what, results["ours"], "C watcher on a pidfd", results["C"], 1.15)
