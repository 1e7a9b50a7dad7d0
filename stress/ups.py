"""Kill anything at any moment of a `daemonkit up`: the next one makes it so, with no app twice and none lost."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import common
import harness

if TYPE_CHECKING:
    from common import Run

FILE = """
[defaults]
min_uptime = 0.05
[apps.db]
command = "sleep 9001"
[apps.web]
command = "sleep {web}"
instances = {instances}
after = ["db"]
[apps.mail]
command = "sleep 9003"
after = ["db"]
[apps.cron]
command = "sleep 9004"
after = ["web", "mail"]
"""
UP = [sys.executable, "-m", "daemonkit", "up"]


def ups(run: Run) -> None:
    """Kill and type again, until the time is over."""
    account = run.account("up: SIGKILL of anything at any moment, then up")
    before = set(harness.children())
    with run.scratch() as folder:
        environment = {**os.environ, "DAEMONKIT_HOME": str(folder / "home")}

        def typed(*arguments: str) -> subprocess.Popen[str]:
            return subprocess.Popen(
                [*UP[:-1], *arguments], cwd=folder, env=environment, text=True, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip

        try:
            for number in run.until(run.seconds):
                instances, web = 1 + number % 3, 9002 + 1000 * (number % 2)
                (folder / "daemonkit.toml").write_text(FILE.format(instances=instances, web=web))
                up = typed("up")
                time.sleep(run.chance.uniform(0.0, 0.6))  # noqa: TID251 - the moment is what varies
                victim = run.chance.choice([up.pid, *all_of(folder)])
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, 9)
                up.communicate()
                again = typed("up")
                said = again.communicate()[1]
                common.reap()
                expected = sorted(["9001", *[str(web)] * instances, "9003", "9004"])
                account.count(said.strip() if again.returncode else differs(folder, expected))
                if run.chance.random() < 0.2:
                    typed("down").communicate()
        finally:
            typed("delete", "--all").communicate()
        left = common.strays(before)
        account.left += len(left)
        common.end(left)


def differs(folder: Path, expected: list[str]) -> str | None:
    """Return what runs, if that is not what should."""
    with contextlib.suppress(AssertionError):
        harness.eventually(lambda: sleeps(folder) == expected, patience=10)
        return None
    return f"{sleeps(folder)} run, not {expected}"


def sleeps(folder: Path) -> list[str]:
    """Return how long each `sleep` in the folder sleeps."""
    found = []
    for pid in all_of(folder):
        with contextlib.suppress(OSError, IndexError):
            if Path(f"/proc/{pid}/comm").read_text() == "sleep\n":
                found.append(Path(f"/proc/{pid}/cmdline").read_text().split("\0")[1])
    return sorted(found)


def all_of(folder: Path) -> list[int]:
    """Return all processes that belong to the folder: by their directory, or their home for apps."""
    found = []
    mark = f"DAEMONKIT_HOME={folder}/home".encode()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found
