"""Too few descriptors, processes, too little memory and disk: an honest error each time, and nothing left."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import common
import harness

import daemonkit

if TYPE_CHECKING:
    from common import Account, Run

ACTIONS = {
    "start": """
        with daemonkit.detached(pidfile="pid", stdout="log", stderr=daemonkit.STDOUT): wait()
    """,
    "spawn": """daemonkit.spawn_detached(["sleep", "1000"], pidfile="pid", stdout="log")""",
    "spawn with cwd": """daemonkit.spawn_detached(["sleep", "1000"], pidfile="pid", cwd=".")""",
    "supervise": """
        import logging; logging.disable()
        with daemonkit.PidFile("pid"):
            summary = daemonkit.supervise(["true"], instances=3, max_restarts=2, stdout="log", log_max_bytes=1000)
        sys.exit(summary.exitcode)
    """,
}
LOADED = "daemonkit.detached, daemonkit.spawn_detached, daemonkit.supervise, daemonkit.StartError, daemonkit.stop\n"
LIMIT = """
import resource
def limit(which, number):
    resource.setrlimit(which, (number, resource.getrlimit(which)[1]))
"""


def attempt(run: Run, account: Account, what: str, limit: str) -> None:
    """Do it under a limit, in a program of its own."""
    with run.scratch() as folder:
        folder.chmod(0o777)
        before = set(harness.children())
        program = harness.write(folder, LOADED + LIMIT + limit + "\n" + harness.textwrap.dedent(ACTIONS[what]))
        with (folder / "said").open("w+") as said:
            try:
                done = subprocess.run(
                    [sys.executable, program], cwd=folder, stdout=said, stderr=said, timeout=40, check=False
                )
            except subprocess.TimeoutExpired:
                account.count(f"{what}, {limit}: it hangs")
                return
            said.seek(0)
            text = said.read()
        holder = common.held_by(folder)
        fault = None
        if done.returncode == 0 and what != "supervise" and not holder:
            fault = "status 0, and nothing runs"
        elif done.returncode != 0 and holder:
            fault = f"status {done.returncode}, and it runs"
        elif done.returncode not in {0, 1}:
            fault = f"status {done.returncode}"
        elif done.returncode == 1 and "Error" not in text and what != "supervise":
            fault = f"status 1, and it says {text[-200:]!r}"
        if holder:
            daemonkit.stop(folder / "pid")
        left = common.strays(before)
        common.end(left)
        account.count(fault and f"{what}, {limit}: {fault}", len(left))


def limits(run: Run) -> None:
    """Tighten each limit step by step."""
    cases = [(what, f"limit(resource.RLIMIT_NOFILE, {n})") for what in ACTIONS for n in range(4, 26)]
    drop = "os.setgroups([]); os.setresgid(61235, 61235, 61235); os.setresuid(61235, 61235, 61235)"
    cases += [(what, f"limit(resource.RLIMIT_NPROC, {n}); {drop}") for what in ACTIONS for n in range(6) if _is_root()]
    cases += [
        (what, f"limit(resource.RLIMIT_AS, int(open('/proc/self/statm').read().split()[0]) * 4096 + {n})")
        for what in ACTIONS
        for n in (0, 1 << 14, 1 << 18, 1 << 20, 1 << 23)
    ]
    run.chance.shuffle(cases)
    account = run.account(f"limits ({len(cases)} are possible)")
    for number in run.until(run.seconds):
        if number == len(cases):
            break
        attempt(run, account, *cases[number])
    if _is_root():
        _full_disk(run)


FULL = """
mount -t tmpfs -o size=16k,mode=777 tmpfs full || exit 77
cp program.py full; cd full
cat /dev/zero >filler 2>/dev/null
"$@"; echo "status $?"
rm filler; "$@"; echo "status $?"
"$1" -c 'import daemonkit; daemonkit.stop("pid")'
"""


def _full_disk(run: Run) -> None:
    account = run.account("a full disk, and the same with room")
    for what in ("start", "spawn"):
        with run.scratch() as folder:
            (folder / "full").mkdir()
            harness.write(folder, ACTIONS[what])
            command = ["unshare", "-m", "sh", "-c", FULL, "sh", sys.executable, "program.py"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
            if done.returncode == 77:
                account.notes.append("no tmpfs can be mounted here")
                return
            statuses = [line for line in done.stdout.splitlines() if line.startswith("status")]
            honest = statuses == ["status 1", "status 0"] and "No space left" in done.stderr
            account.count(None if honest else f"{what}: {statuses} {done.stderr[-300:]}")


def _is_root() -> bool:
    return os.geteuid() == 0
