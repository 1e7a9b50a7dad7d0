"""An app that starts, restarts and reloads other apps while its processes are killed, and logs with the default rotation."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import common
import harness
import ups

if TYPE_CHECKING:
    from collections.abc import Iterator

    from common import Run

WEBS = 3
AGENT = """
import os, random, subprocess, sys
chance = random.Random()
lines = 0
while True:
    for _ in range(2000):  # a megabyte
        os.write(1, b"%d line %d %s\\n" % (os.getpid(), lines, b"x" * 480))
        lines += 1
    number = chance.randrange(WEBS)
    verb = chance.choice(["start", "restart", "reload"])
    program = ["--min-uptime", "0.05", "--", "sleep", str(9100 + number)] if verb == "start" else []
    subprocess.run([sys.executable, "-m", "daemonkit", verb, f"web{number}", *program], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
"""
ROTATED = 10 << 20
KEPT = 5


def agents(run: Run) -> None:
    """Kill the agent's main process, worker or supervisor again and again; then look at its apps and its log."""
    account = run.account("agents: SIGKILL to an app that starts apps")
    before = set(harness.children())
    with run.scratch() as folder:
        environment = {**os.environ, "DAEMONKIT_HOME": str(folder / "home")}
        (folder / "agent.py").write_text(AGENT.replace("WEBS", str(WEBS)))

        def typed(*arguments: str) -> int:
            return subprocess.run(
                [sys.executable, "-m", "daemonkit", *arguments], cwd=folder, env=environment, check=False,
                stdin=subprocess.DEVNULL, capture_output=True,
            ).returncode  # fmt: skip

        mode = run.chance.choice(["group", "main"])
        program = ("--restart", "always", "--kill-mode", mode, "--", sys.executable, "agent.py")
        try:
            account.count(None if typed("start", "agent", *program) == 0 else "the agent did not start")
            for _ in run.until(run.seconds):
                harness.select.select([], [], [], run.chance.uniform(0.5, 3))
                kill_one_of_the_agent(run, folder)
                typed("start", "agent")  # if it was the supervisor
                common.reap()
                account.count(None if typed("status", "agent") in {0, 4} else "the agent does not run")
            typed("stop", "agent")
            account.count(what_is_wrong(folder, typed))
            lines = run.account("agents: log lines, rotated at 10 MB")
            for fault in read_log(folder, lines):
                lines.lost += 1
                lines.notes.append(fault)
        finally:
            typed("delete", "--all")
        left = common.strays(before)
        account.left += len(left)
        common.end(left)


def kill_one_of_the_agent(run: Run, folder: Path) -> None:
    """Kill its supervisor, its worker process or its main process."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        supervisor = harness.pid_in(folder / "home" / "agent.pid")
        words = Path(f"/proc/{supervisor}/cmdline").read_bytes()
        worker = [pid for pid in harness.children(supervisor) if Path(f"/proc/{pid}/cmdline").read_bytes() == words]
        main = [pid for one in worker for pid in harness.children(one)]
        os.kill(run.chance.choice([supervisor, *worker, *main]), signal.SIGKILL)


def what_is_wrong(folder: Path, typed: common.Callable[..., int]) -> str | None:
    """Return which app runs twice, or not though its state says so; what the agent's commands began outlives it."""
    known = [number for number in range(WEBS) if (folder / "home" / f"web{number}.json").exists()]
    running = sorted(str(9100 + number) for number in known if typed("status", f"web{number}") == 0)
    return ups.differs(folder, running) or (None if known else "the agent started nothing")


def read_log(folder: Path, account: common.Account) -> Iterator[str]:
    """Count the lines that are there; yield what is wrong: a log too long, or too many, a line cut, doubled or missing."""
    logs = [
        *(folder / "home" / f"agent.log.{number}" for number in range(KEPT + 1, 0, -1)),
        folder / "home" / "agent.log",
    ]
    last: dict[bytes, int] = {}
    for log in filter(Path.exists, logs):
        if log.name == f"agent.log.{KEPT + 1}":
            yield f"{log.name} was kept"
        data = log.read_bytes()
        if len(data) > ROTATED:
            yield f"{log.name} has {len(data)} bytes"
        for line in data.splitlines():
            match = re.fullmatch(rb"(\d+) line (\d+) x{480}", line)
            if match:
                account.tried += 1
                account.survived += 1
                number, before = int(match[2]), last.get(match[1])
                if before is not None and number != before + 1:
                    yield f"line {number} of {match[1].decode()} comes after {before}"
                last[match[1]] = number
            elif not line.startswith(b"daemonkit: ") and len(line) > 500:
                yield f"not a line: {line[:60]!r}"
