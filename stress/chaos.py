"""A supervisor with 50 instances that misbehave, a worker process that is killed, and an account that comes out even."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import harness

import daemonkit

if TYPE_CHECKING:
    from common import Run

INSTANCES = 50

SUPERVISOR = f"""
    import logging; logging.disable()
    seen = open("events", "w", buffering=1)
    def tell(event):
        seen.write(json.dumps([event.instance, event.kind, event.pid, event.exitcode]) + "\\n")
    with daemonkit.PidFile("pid"):
        summary = daemonkit.supervise(
            [sys.executable, "-S", "misbehave.py"], instances={INSTANCES}, restart="always", min_uptime=0.5, steady_after=1.0,
            backoff=daemonkit.Backoff(initial=0.1, maximum=1.0), stop_timeout=1.0, watchdog=4.0,
            max_memory=60 << 20, stdout="log", log_max_bytes=1 << 18, log_backups=100_000, on_event=tell,
            kill_mode=sys.argv[1],
        )
    print(json.dumps([[one.starts, one.state] for one in summary.instances]))
"""

# What it sets free on purpose is to outlive it. Counts a line only once it is written: of a program that is killed in between there is one more than it counted.
MISBEHAVE = """
import os, random, signal, socket, sys, time
chance = random.Random()
ledger = os.open(f"ledger/{os.getpid()}", os.O_WRONLY | os.O_CREAT, 0o600)
lines = 0
def say():
    global lines
    os.write(1, b"%d line %d\\n" % (os.getpid(), lines))
    lines += 1
    os.pwrite(ledger, b"%d\\n" % lines, 0)
def feed():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        try:
            manager.sendto(b"WATCHDOG=1", "\\0" + os.environ["NOTIFY_SOCKET"][1:])
        except OSError:
            pass  # the worker was killed: this program is about to be
def stray(how):
    if os.fork() == 0:
        if how != "group": os.setsid()
        if how == "double" and os.fork() != 0: os._exit(0)
        open(f"strays/{os.getpid()}", "w").close()
        if how == "bare": os.execve("/bin/sleep", ["sleep", "1000"], {})
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True: time.sleep(1)
signal.signal(signal.SIGTERM, signal.SIG_IGN if chance.random() < 0.1 else signal.SIG_DFL)
if chance.random() < 0.05:
    sys.path += PATH
    import daemonkit
    open(f"free/{daemonkit.spawn_detached(['sleep', '1000']).pid}", "w").close()
if chance.random() < 0.4: stray(chance.choice(["group", "session", "double", "bare"]))
hoard = []
what = chance.choice(["exit", "crash", "hang", "leak", "work", "work", "work"])
end = time.monotonic() + chance.uniform(0, 8)
while True:
    for _ in range(chance.randrange(20)): say()
    if what != "hang": feed()
    if what == "leak": hoard.append(b"x" * (8 << 20))
    if time.monotonic() > end:
        if what == "exit": sys.exit(chance.randrange(3))
        if what == "crash": os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(0.1)
"""


def chaos(run: Run) -> None:
    """Let it run, with kills of the worker; then stop it and draw up the account."""
    folder = run.folder / "chaos"
    for name in ("", "ledger", "strays", "free"):
        (folder / name).mkdir()
    (folder / "misbehave.py").write_text(MISBEHAVE.replace("PATH", repr(sys.path)))
    program = harness.write(folder, SUPERVISOR)
    killed = 0
    with (folder / "summary").open("w+") as out:
        mode = run.chance.choice(["group", "main"])
        supervisor = subprocess.Popen([sys.executable, program, mode], cwd=folder, stdout=out)
        for _ in run.until(run.seconds):
            harness.select.select([], [], [], run.chance.uniform(5, 15))
            with suppress(IndexError, ProcessLookupError):
                os.kill(_workers(supervisor.pid)[0], signal.SIGKILL)
                killed += 1
        supervisor.terminate()
        status = supervisor.wait(60)
        out.seek(0)
        summary = json.loads(out.read())
    _draw_up(run, folder, summary, status, killed)


def _workers(supervisor: int) -> list[int]:
    """Return the worker process: what was set free comes to the supervisor too, once a worker was killed."""
    words = Path(f"/proc/{supervisor}/cmdline").read_bytes()
    return [pid for pid in harness.children(supervisor) if Path(f"/proc/{pid}/cmdline").read_bytes() == words]


def _draw_up(run: Run, folder: Path, summary: list[list[object]], status: int, killed: int) -> None:
    events = [json.loads(line) for line in (folder / "events").read_text().splitlines()]
    kinds = Counter(kind for _, kind, _, _ in events)
    account = run.account(f"chaos: starts, with {killed} kills of the worker")
    starts = [pid for _, kind, pid, _ in events if kind == "start"]
    exits = [pid for _, kind, pid, _ in events if kind == "exit"]
    account.tried, account.survived = len(starts), len(exits)
    account.lost = len(set(starts) ^ set(exits)) + abs(len(starts) - len(exits))
    if (told := sum(int(str(starts)) for starts, _ in summary)) != len(starts):
        account.notes.append(f"the summary tells of {told} starts, the events of {len(starts)}")
        account.lost += 1
    if status or {state for _, state in summary} != {"stopped"}:
        account.notes.append(f"status {status}, states {Counter(str(state) for _, state in summary)}")
        account.lost += 1
    account.notes.append(f"events: {dict(kinds)}")
    strays = run.account("chaos: strays")
    for path in (folder / "strays").iterdir():
        strays.count(None, left=int(_is_of(folder, int(path.name))))
    free = run.account("chaos: set free on purpose, and outlived all")
    for path in (folder / "free").iterdir():
        pid = int(path.name)
        free.count(None if _is_of(folder, pid) else f"process {pid} was ended")
        if _is_of(folder, pid):
            os.kill(pid, signal.SIGKILL)
    left = [pid for pid in starts if harness.alive(pid) and _is_of(folder, pid)]
    account.left = len(left)
    lines = run.account("chaos: log lines")
    found: Counter[int] = Counter()
    for log in sorted(folder.glob("log*")):
        for line in log.read_bytes().splitlines():
            match = re.fullmatch(rb"(\d+) line \d+", line)
            found[int(match[1])] += 1 if match else 0
            lines.lost += match is None
    for path in (folder / "ledger").iterdir():
        counted = int(path.read_text() or 0)
        lines.tried += counted
        lines.survived += min(found[int(path.name)], counted)
        lines.lost += max(counted - found[int(path.name)], found[int(path.name)] - counted - 1, 0)


def _is_of(folder: Path, pid: int) -> bool:
    """Tell whether it is one of these, and not a later process with its number."""
    with suppress(OSError):
        return os.readlink(f"/proc/{pid}/cwd") == str(folder) and harness.alive(pid)
    return False


def doubles(run: Run) -> None:
    """Kill the calling process, the worker, or both in one instant; nothing is left, and a new start has two again."""
    account = run.account("supervisors killed: caller, worker, both")
    body = """
        import logging; logging.disable()
        with daemonkit.PidFile("pid"):
            daemonkit.supervise(
                ["sh", "-c", "(setsid sleep 1000 &) ; env -i setsid sh -c 'sleep 1000 & sleep 1000' & exec sleep 1000"],
                instances=2,
            )
    """
    with run.scratch() as folder:
        program = harness.write(folder, body)
        for number in run.until(run.seconds):
            supervisor = subprocess.Popen([sys.executable, program], cwd=folder)
            harness.eventually(lambda supervisor=supervisor: len(_family(supervisor.pid)) >= 10)
            family = _family(supervisor.pid)
            worker = harness.children(supervisor.pid)[0]
            victims = ([supervisor.pid], [worker], [worker, supervisor.pid])[number % 3]
            for pid in victims:
                os.kill(pid, signal.SIGKILL)
            fault = None
            if supervisor.pid not in victims:
                try:
                    harness.eventually(lambda supervisor=supervisor: len(_family(supervisor.pid)) >= 10, patience=5)
                except AssertionError:
                    fault = "no fresh ones after the worker was killed"
                supervisor.terminate()
            supervisor.wait(30)
            if daemonkit.status(folder / "pid"):
                fault = "the pidfile is still held"
            if number % 3 == 2:  # what only a new start can end, it ends
                again = subprocess.Popen([sys.executable, program], cwd=folder)
                harness.eventually(lambda again=again: len(_family(again.pid)) >= 10)
                again.terminate()
                again.wait(30)
            with suppress(AssertionError):
                harness.eventually(lambda family=family: not any(map(harness.alive, family)), patience=3)
            left = [pid for pid in family if harness.alive(pid)]
            account.count(fault, len(left))
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _family(pid: int) -> list[int]:
    """Return all that descends from a supervisor, by the worker that adopts what leaves its parents."""
    found = harness.children(pid)
    for one in found:
        found += harness.children(one)
    return [one for one in found if harness.alive(one)]
