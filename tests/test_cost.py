"""What each operation costs: system calls, page faults and bytes are counted, as no clock can be trusted in a test.

A ceiling is the highest count on CPython 3.11, 3.12 and 3.13, with a tenth more and a little; of a start, which
depends on what is open and loaded, with a fifth. Who exceeds it has made
every user's program slower; who is far below it may lower it. The calls of a program that is launched do not count.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


class Cost(NamedTuple):
    """What one operation takes, or may take at most."""

    calls: int
    """System calls of the caller; of a start, those of all three processes."""
    faults: int
    """Minor page faults, of the same processes: pages that were touched first, or copied."""
    size: int
    """Bytes allocated at the peak."""


CEILINGS = {
    "spawn_detached()": Cost(15, 4, 2300),
    "spawn_detached(cwd=)": Cost(17, 4, 2200),
    "spawn_detached(env=)": Cost(15, 4, 12700),
    "spawn_detached(stdout=, stderr=)": Cost(20, 4, 2800),
    "spawn_detached(umask=)": Cost(20, 4, 58000),
    "spawn_detached(pidfile=)": Cost(43, 4, 7400),  # a look at /proc more when the clock ticks meanwhile
    "PidFile: acquire, release": Cost(16, 4, 1200),
    "PidFile.read_pid()": Cost(8, 4, 5000),
    "status()": Cost(9, 4, 5050),
    "attach()": Cost(18, 4, 5200),
}
STARTS = {"detached()": Cost(190, 1250, 21000), "detached(pidfile=)": Cost(285, 1350, 23500)}

PROGRAM = """
import json, os, resource, sys, tracemalloc
import daemonkit
from daemonkit import PidFile, attach, detached, spawn_detached, status

TRUE = ["/bin/true"]
lock, held = PidFile("own.pid"), PidFile("held.pid")

def acquire_and_release():
    lock.acquire()
    lock.release()

ENV = {f"VARIABLE_{n}": "value" * 8 for n in range(32)}
OPERATIONS = {
    "spawn_detached()": lambda: spawn_detached(TRUE),
    "spawn_detached(cwd=)": lambda: spawn_detached(TRUE, cwd="/"),
    "spawn_detached(env=)": lambda: spawn_detached(TRUE, env=ENV),
    "spawn_detached(stdout=, stderr=)": lambda: spawn_detached(TRUE, stdout="log", stderr=daemonkit.STDOUT),
    "spawn_detached(umask=)": lambda: spawn_detached(TRUE, umask=0o27),
    "spawn_detached(pidfile=)": lambda: spawn_detached(TRUE, pidfile="true.pid"),
    "PidFile: acquire, release": acquire_and_release,
    "PidFile.read_pid()": held.read_pid,
    "status()": lambda: status("held.pid"),
    "attach()": lambda: attach("held.pid"),
}
TIMES = 5

def mark(text):
    try:
        os.write(-1, text.encode())  # strace shows it
    except OSError:
        pass

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def tidy(result):
    if isinstance(result, daemonkit.DetachedProcess):
        result.wait() if result.args == TRUE else None
    if os.path.exists("true.pid"):
        os.unlink("true.pid")

def measure(name, run):
    for _ in range(3):
        tidy(run())
    found = []
    for _ in range(TIMES):
        before = faults()
        mark("begin " + name)
        result = run()
        mark("end")
        found.append(faults() - before)
        tidy(result)
        del result
    tracemalloc.start()
    tidy(run())
    sizes = []
    for _ in range(TIMES):
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        result = run()
        sizes.append(tracemalloc.get_traced_memory()[1] - before)
        tidy(result)
        del result
    tracemalloc.stop()
    return min(found), min(sizes)

def start(name, counting):
    options = {"pidfile": os.path.abspath("daemon.pid")} if "pidfile" in name else {}
    out = os.open("result", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    if counting == "size":
        tracemalloc.start()
    mark("begin " + name)
    if counting != "nothing":
        with detached(detach_process=True, working_directory=os.getcwd(), **options):
            if counting == "size":
                os.write(out, b"%d" % tracemalloc.get_traced_memory()[1])
            os._exit(0)
    os._exit(0)

if sys.argv[1] == "operations":
    child = spawn_detached(["/bin/sleep", "1000"], pidfile="held.pid")
    results = {name: measure(name, run) for name, run in OPERATIONS.items()}
    child.kill()
    child.wait()
    print(json.dumps(results))
else:
    start(*sys.argv[1:])
"""


@pytest.fixture(autouse=True)
def _place(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in memory, as another file system may take more steps for a pidfile."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        Path(folder, "cost.py").write_text(PROGRAM)
        monkeypatch.chdir(folder)
        yield


@cache
def why_no_strace() -> str:
    if not (strace := shutil.which("strace")):
        return "takes strace"
    done = subprocess.run([strace, "-f", "-o", os.devnull, "/bin/true"], check=False, capture_output=True, text=True)
    return f"strace can't trace here: {done.stderr.strip()}" if done.returncode else ""


def python(*arguments: str, traced: bool = False) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "cost.py", *arguments]
    if traced:
        command = ["strace", "-f", "-s", "100", "-o", "trace", *command]
    environment = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=60, env=environment)


def calls_between_marks() -> dict[str, int]:
    """Count the lines of the trace that are the caller's own system calls; the least of several times."""
    found: dict[str, list[int]] = {}
    name = caller = None
    for line in Path("trace").read_text().splitlines():
        pid, _, call = line.partition(" ")
        call = call.strip()
        if begin := re.match(r'write\(-1, "begin ([^"]*)"', call):
            name, caller = begin[1], pid
            found.setdefault(name, []).append(0)
        elif call.startswith('write(-1, "end"'):
            name = None
        elif name and pid == caller and re.match(r"[a-z]\w*\(", call):  # no "resumed", no signal, no end
            found[name][-1] += 1
    return {name: min(counts) for name, counts in found.items()}


def over(found: dict[str, dict[str, int]], ceilings: dict[str, Cost]) -> dict[str, str]:
    """Return what exceeds its ceiling, in words."""
    return {
        f"{name}, {kind}": f"{count}, at most {getattr(ceilings[name], kind)}"
        for name, counts in found.items()
        for kind, count in counts.items()
        if count > getattr(ceilings[name], kind)
    }


def test_page_faults_and_bytes_of_each_operation_stay_below_their_ceilings() -> None:
    results = json.loads(python("operations").stdout)
    found = {name: {"faults": faults, "size": size} for name, (faults, size) in results.items()}
    assert set(found) == set(CEILINGS)
    assert over(found, CEILINGS) == {}, found


def test_system_calls_of_each_operation_stay_below_their_ceilings() -> None:
    if reason := why_no_strace():
        pytest.skip(reason)
    python("operations", traced=True)
    found = {name: {"calls": count} for name, count in calls_between_marks().items()}
    assert set(found) == set(CEILINGS)
    assert over(found, CEILINGS) == {}, found


def faults_of(*arguments: str) -> int:
    """Run it as a child, and return the page faults of all processes that it becomes, once all have ended."""
    process = subprocess.Popen([sys.executable, "cost.py", *arguments])
    process.returncode = 0  # so that it is not waited for twice
    total = 0
    with contextlib.suppress(ChildProcessError):
        while True:  # until there is no child left: the others become this process's, as it is a subreaper
            total += os.wait4(-1, 0)[2].ru_minflt
    return total


def calls_of(name: str) -> int:
    """Start a daemon, and return the system calls of all three processes but those that only get memory."""
    python(name, "all", traced=True)
    lines = Path("trace").read_text().partition('"begin ')[2].splitlines()[1:]
    return sum(bool(re.match(r"\d+ +(?!brk|mmap|munmap|mremap|madvise)[a-z]\w*\(", line)) for line in lines)


@pytest.mark.parametrize("name", STARTS)
def test_a_start_stays_below_its_ceilings(name: str) -> None:
    faults_of(name, "size")
    found = {"size": int(Path("result").read_text())}
    found["faults"] = min(faults_of(name, "all") for _ in range(3)) - min(faults_of(name, "nothing") for _ in range(3))
    if not why_no_strace():
        found["calls"] = min(calls_of(name) for _ in range(3))
    assert over({name: found}, STARTS) == {}, found


def test_a_supervisor_waits_for_its_workers_end_without_asking_again_and_again(tmp_path: Path) -> None:
    if reason := why_no_strace():
        pytest.skip(reason)
    program = "import daemonkit; daemonkit.supervise(['true'])"
    command = ["strace", "-f", "-o", "trace", sys.executable, "-c", program]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "trace").read_text().count("shutdown(") == 1
