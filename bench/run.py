"""Daemonkit beside its peers: prints each part as it is measured, and writes docs/benchmarks.md and its pictures.

The contenders take turns, and a ratio is the median of the ratios of neighbours, so that a machine that
drifts or works at something else slows both. A range is from the fastest to the slowest.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import pages
import report
from commands import command_rows
from control import control_rows
from growth import growth_plots
from lockfile.pidlockfile import PIDLockFile
from spawns import spawn_rows
from supervisors import supervisor_lines
from table import HERE, SMALL, Row, against, alone, be_quick, compile_helper, free_gigabytes, take_turns, timed

from daemonkit import PidFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PR_SET_CHILD_SUBREAPER = 36
_HIGH_NOFILE = 1_000_000

# --- import -------------------------------------------------------------------------------------------------------

_TIME_IMPORT = """
from time import perf_counter
begin = perf_counter()
import daemonkit
print(perf_counter() - begin)
"""
_TIME_STATUS = """
from time import perf_counter
import daemonkit
begin = perf_counter()
daemonkit.status
print(perf_counter() - begin)
"""
# The peak of what the interpreter allocates: the resident size, which grows by whole pages, mostly does not change.
_WEIGH_IMPORT = """
import tracemalloc
tracemalloc.start()
import daemonkit
print(tracemalloc.get_traced_memory()[1] / 1024)
"""


def _ask_python(program: str) -> float:
    return float(subprocess.run([sys.executable, "-I", "-c", program], check=True, stdout=subprocess.PIPE).stdout)


def _run_python(program: str) -> float:
    command = [sys.executable, "-I", "-c", program]
    begin = time.perf_counter()
    _, status = os.waitpid(os.posix_spawn(command[0], command, os.environ), 0)
    elapsed = time.perf_counter() - begin
    if status:
        raise SystemExit(f"{program!r} ended with status {os.waitstatus_to_exitcode(status)}")
    return elapsed


def import_rows() -> Iterator[Row]:
    """Measure `import daemonkit`, each time in a fresh interpreter."""
    inside = take_turns(60, {"time": partial(_ask_python, _TIME_IMPORT), "memory": partial(_ask_python, _WEIGH_IMPORT)})
    yield alone("`import daemonkit`, in-process", [1e3 * seconds for seconds in inside["time"]], 0.5, "ms")
    yield alone("... its memory, at the peak", inside["memory"], 100, "KB")
    status = take_turns(60, {"status": partial(_ask_python, _TIME_STATUS)})["status"]
    yield alone("`daemonkit.status`, first use, in-process", [1e3 * seconds for seconds in status], 6, "ms")
    whole = take_turns(250, {code: partial(_run_python, code) for code in ("import daemonkit", "pass")})
    yield against("`python -c 'import daemonkit'`", whole["import daemonkit"], "`python -c pass`", whole["pass"], 1.05)


# --- starts -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Starts:
    """Daemons started by fresh callers; see caller.py for what is timed."""

    folder: str

    def measure(self, contender: str, megabytes: int, nofile: int = 1024, *, pidfile: bool = False) -> float:
        """Start one daemon; return the seconds it took, once the caller, the middle process and the daemon are gone."""
        result, errors = os.path.join(self.folder, "result"), os.path.join(self.folder, "errors")
        command = [sys.executable, os.path.join(HERE, "caller.py"), contender, str(megabytes), str(nofile), result]
        if pidfile:
            command.append(os.path.join(self.folder, "daemon.pid"))
        with open(errors, "wb") as stderr:
            subprocess.run(command, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr)
        _reap_orphans()
        try:
            with open(result, encoding="ascii") as file:
                return int(file.read()) / 1e9
        except FileNotFoundError:
            with open(errors, encoding="utf-8", errors="replace") as file:
                raise SystemExit(f"{contender} started no daemon:\n{file.read()}") from None
        finally:
            for name in os.listdir(self.folder):
                if not name.endswith(".so"):
                    os.unlink(os.path.join(self.folder, name))


def _reap_orphans() -> None:
    """Wait for every daemon to end: they are this process's since it is a subreaper."""
    try:
        while True:
            os.wait()
    except ChildProcessError:
        return


def small_start_rows(starts: Starts, no_c: str | None) -> Iterator[Row]:
    """Compare starts from an ordinary caller."""
    what = f"`detached()`, {SMALL} MB caller"
    names = ["daemonkit", "python_daemon", *_installed("daemonize", "daemonocle"), *([] if no_c else ["double_fork"])]
    results = take_turns(25, {name: partial(starts.measure, name, SMALL) for name in names})
    labels = {"python_daemon": "`DaemonContext`", "double_fork": "C double fork"}
    for name in names[1:]:
        goal = 1.25 if name == "python_daemon" else None
        yield against(what, results["daemonkit"], labels.get(name, name), results[name], goal)

    names = ["daemonkit", "python_daemon"]
    results = take_turns(25, {name: partial(starts.measure, name, SMALL, pidfile=True) for name in names})
    yield against(
        "... with a pidfile", results["daemonkit"], "`DaemonContext` with `PIDLockFile`", results["python_daemon"], 1.4
    )


def limit_rows(starts: Starts) -> Iterator[Row]:
    """Compare starts at a low and a high RLIMIT_NOFILE."""
    high = _highest_nofile()
    contenders = {
        "high": partial(starts.measure, "daemonkit", SMALL, high),
        "low": partial(starts.measure, "daemonkit", SMALL, 1024),
        "peer": partial(starts.measure, "python_daemon", SMALL, high),
    }
    results = take_turns(25, contenders)
    what = f"... at `RLIMIT_NOFILE` {high:,}"
    yield against(what, results["high"], "`DaemonContext`, same limit", results["peer"], 1.25)
    yield against(what, results["high"], "itself at 1,024", results["low"], 1.1)


def large_start_rows(starts: Starts, no_c: str | None, gigabytes: int, rounds: int) -> Iterator[Row]:
    """Compare starts from a caller with much memory, where the copies of the page tables are what it costs."""
    what = f"`detached()`, {gigabytes} GB caller"
    if no_c or free_gigabytes() < 1.2 * gigabytes:
        yield Row(what, against=no_c or f"skipped: {free_gigabytes():.1f} GB of memory are free")
        return
    names = ["daemonkit", "double_fork", "python_daemon"]
    results = take_turns(rounds, {name: partial(starts.measure, name, gigabytes << 10) for name in names})
    yield against(what, results["daemonkit"], "C double fork", results["double_fork"], 1.1)
    yield against(what, results["daemonkit"], "`DaemonContext`", results["python_daemon"])


def _installed(*names: str) -> list[str]:
    from importlib.util import find_spec

    return [name for name in names if find_spec(name)]


def _highest_nofile() -> int:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, max(hard, _HIGH_NOFILE)))
    except (ValueError, OSError):
        return hard
    return _HIGH_NOFILE


# --- the pidfile --------------------------------------------------------------------------------------------------


def _bare(path: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    os.write(fd, b"%d\n" % os.getpid())
    os.close(fd)
    os.unlink(path)


def _acquire_and_release(lock: PIDLockFile) -> None:
    lock.acquire()
    lock.release()


def pidfile_rows(folder: str, where: str) -> Iterator[Row]:
    """Compare the pidfile with lockfile's, and with the least that makes and removes a file."""
    path = os.path.join(folder, "app.pid")
    actions = {
        "ours": partial(_acquire_and_release, PidFile(path)),
        "bare": partial(_bare, path),
        "peer": partial(_acquire_and_release, PIDLockFile(path)),
    }
    results = take_turns(200, {name: partial(timed, action, 10) for name, action in actions.items()})
    what = f"`PidFile` acquire + release, {where}"
    yield against(what, results["ours"], "bare create, write, unlink", results["bare"])
    yield against(what, results["ours"], "`PIDLockFile`", results["peer"], 0.9)
    yield from _asking_rows(path, where)


_HOLD = "import sys, daemonkit\nwith daemonkit.PidFile(sys.argv[1]):\n    print(flush=True)\n    sys.stdin.read()"


def _asking_rows(path: str, where: str) -> Iterator[Row]:
    holder = subprocess.Popen([sys.executable, "-I", "-c", _HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with holder:
        holder.stdout.readline()
        ours, theirs = PidFile(path), PIDLockFile(path)
        if not ours.read_pid() == theirs.read_pid() == holder.pid:
            raise SystemExit(f"{path} does not name its holder, process {holder.pid}")
        actions = {"ours": ours.read_pid, "peer": lambda: os.kill(theirs.read_pid(), 0)}
        results = take_turns(200, {name: partial(timed, action, 50) for name, action in actions.items()})
        holder.stdin.close()
    yield against(
        f"`PidFile.read_pid()` of a held file, {where}",
        results["ours"],
        "`PIDLockFile` + `kill(0)`",
        results["peer"],
        1.0,
    )


# --- the table ----------------------------------------------------------------------------------------------------


def _all_pidfile_rows(folder: str) -> Iterator[Row]:
    yield from pidfile_rows(folder, "on disk")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        yield from pidfile_rows(memory, "/dev/shm")


def _all_start_rows(folder: str) -> Iterator[Row]:
    starts, no_c = Starts(folder), compile_helper("double_fork", folder)
    yield from small_start_rows(starts, no_c)
    yield from limit_rows(starts)
    yield from large_start_rows(starts, no_c, 1, 9)
    yield from large_start_rows(starts, no_c, 4, 7)


_GROUPS: dict[str, tuple[str, Callable[[str], Iterator[Row]]]] = {
    "import": ("Import", lambda _: import_rows()),
    "pidfile": ("The pidfile", _all_pidfile_rows),
    "detach": ("Becoming a daemon", _all_start_rows),
    "spawn": ("Launching a detached program", spawn_rows),
    "control": ("Control by pidfile", control_rows),
    "commands": ("The command", command_rows),
}
_SUPERVISORS, _GROWTH = "supervisors", "growth"


def main() -> None:
    """Measure part by part; print each, and put what was measured in full into the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", nargs="+", choices=[*_GROUPS, _SUPERVISORS, _GROWTH], help="the parts to measure; else all"
    )
    parser.add_argument("--quick", action="store_true", help="a look whether it works: nothing is put into the report")
    arguments = parser.parse_args()
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what is being measured is ended too
    for name in ("NOTIFY_SOCKET", "SYSTEMD_EXEC_PID"):
        os.environ.pop(name, None)  # the daemons that are measured are not this service
    if arguments.quick:
        be_quick()
    for name in arguments.only or [*_GROUPS, _SUPERVISORS, _GROWTH]:
        # /var/tmp is on a disk also where /tmp is in memory: file-hierarchy(7).
        with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
            part = _measure(name, folder, quick=arguments.quick)
        print(pages.render(name, part, hidden=()), flush=True)
        if not arguments.quick:
            report.keep(name, part)
        _reap_ended()


def _measure(name: str, folder: str, *, quick: bool) -> report.Part:
    if name == _SUPERVISORS:
        return report.part_of_lines("Keeping programs running", supervisor_lines(folder, quick=quick))
    if name == _GROWTH:
        return report.part_of_plots("How costs grow", *growth_plots(folder, quick=quick))
    title, measure = _GROUPS[name]
    return report.part_of_rows(title, measure(folder))


def _reap_ended() -> None:
    """Take the statuses of what lost its parent meanwhile."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


if __name__ == "__main__":
    main()
