"""A launches B, first as an ordinary child, then detached.

It shows the process table at each step, and what becomes of B.

Run without arguments it plays the shell. It runs itself as A, and A runs it as
B. Its status is 0 only if each effect was observed.
"""

from __future__ import annotations

import itertools
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import daemonkit

if TYPE_CHECKING:
    from collections.abc import Iterator

SELF = [sys.executable, str(Path(__file__).resolve())]
PATIENCE = 20.0  # seconds
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def b() -> None:
    """Work as long as the log exists: so an interrupted run leaves no B."""
    for n in itertools.count(1):
        print("B has done job", n, flush=True)
        select.select([], [], [], 0.05)
        if os.fstat(1).st_nlink == 0:
            break


def a(how: str) -> None:
    """Launch B, tell its pid, and end when told to."""
    with ExitStack() as at_the_end:
        if how == "detached":
            child = daemonkit.spawn_detached(
                [*SELF, "B"], stdout="detached.log"
            )
        else:
            log = at_the_end.enter_context(open("attached.log", "ab"))
            child = at_the_end.enter_context(
                subprocess.Popen([*SELF, "B"], stdout=log)
            )
            at_the_end.callback(child.terminate)
        print(child.pid, flush=True)
        sys.stdin.read()


class Process(NamedTuple):
    """A line of the process table."""

    pid: int
    ppid: int
    pgid: int
    sid: int
    tty: str
    command: str


def look(pid: int) -> Process:
    """Read a process's line from /proc: not every machine has ps."""
    ppid, pgid, sid, tty = map(
        int,
        Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1:5],
    )
    major, minor = os.major(tty), os.minor(tty)
    name = (
        "none"
        if not tty
        else f"pts/{minor}"
        if major == 136
        else f"{major}:{minor}"
    )
    words = Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")
    return Process(
        pid, ppid, pgid, sid, name, " ".join(Path(word).name for word in words)
    )


def table(*pids: int) -> list[Process]:
    """Print the process table, and return it."""
    rows = [look(pid) for pid in pids]
    print(
        f"  {'PID':>7} {'PPID':>7} {'PGID':>7} {'SID':>7} {'TTY':>6}  COMMAND"
    )
    for row in rows:
        print("  {:>7} {:>7} {:>7} {:>7} {:>6}  {}".format(*row))
    return rows


def observe(sentence: str, holds: object) -> None:
    """Say what was observed; end with status 1 if it was not."""
    if not holds:
        sys.exit(f"not observed: {sentence}")
    print(sentence, end="\n\n", flush=True)


def lines(log: str, least: int) -> list[str]:
    """Wait until the log has that many lines, and return them."""
    deadline = time.monotonic() + PATIENCE
    while (
        len(found := Path(log).read_text().splitlines()) < least
        and time.monotonic() < deadline
    ):
        select.select([], [], [], 0.02)
    return found


@contextmanager
def launcher(how: str) -> Iterator[tuple[int, int]]:
    """Run A, and yield its pid and B's once B works; then end A."""
    with subprocess.Popen(
        [*SELF, "A", how], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        child = int(process.stdout.readline() if process.stdout else "")
        lines(f"{how}.log", 1)
        yield process.pid, child


def walk() -> None:
    """Play the shell."""
    shell = os.getpid()
    print("1. A launches B as an ordinary child")
    with launcher("attached") as pids:
        _, parent, child = table(shell, *pids)
        same = (child.pgid, child.sid, child.tty) == (
            parent.pgid,
            parent.sid,
            parent.tty,
        )
        observe(
            "B's parent is A. B is in A's process group and session.",
            child.ppid == parent.pid and same,
        )

    print("2. A launches B detached")
    with launcher("detached") as pids:
        _, parent, child = table(shell, *pids)
        alone = child.pid == child.pgid == child.sid and child.tty == "none"
        observe(
            "B's parent is A. B leads its own process group and session,"
            " without a terminal.",
            child.ppid == parent.pid and alone,
        )

    print("3. A ends")
    _, orphan = table(shell, child.pid)
    observe(
        f"A is gone. B was adopted by process {orphan.ppid} and goes on.",
        orphan.ppid != parent.pid and orphan[2:] == child[2:],
    )

    print("4. B works on")
    seen = len(lines("detached.log", 1))
    more = lines("detached.log", seen + 3)
    print(*more[seen:][:3], sep="\n")
    observe("Its log grows.", len(more) >= seen + 3)

    print("5. SIGTERM ends B")
    pidfd = os.pidfd_open(child.pid)
    os.kill(child.pid, signal.SIGTERM)
    ended = select.select([pidfd], [], [], PATIENCE)[0]
    os.close(pidfd)
    observe("Nothing is left running.", ended)


def main() -> None:
    """Play the part that the arguments name."""
    match sys.argv[1:]:
        case ["B"]:
            b()
        case ["A", how]:
            a(how)
        case _:
            for number in ENDINGS:
                signal.signal(number, lambda number, _: sys.exit(128 + number))
            with tempfile.TemporaryDirectory() as directory:
                os.chdir(directory)
                try:
                    walk()
                finally:
                    for number in ENDINGS:
                        signal.signal(
                            number, signal.SIG_IGN
                        )  # or the directory might stay
                    os.chdir("/")


if __name__ == "__main__":
    main()
