"""Show the main job on a real program, examples/heartbeat.py.

It becomes a daemon, is killed, starts again, and ends.

Every line below a `$` is what the command really printed. The status is 0 only
if each effect was observed.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

HEARTBEAT = Path(__file__).with_name("heartbeat.py")
PATIENCE = 20.0  # seconds


class NotObservedError(Exception):
    """What the demo promises did not happen."""


def say(text: str) -> None:
    """Tell what comes next."""
    print(
        f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}",
        flush=True,
    )


def expect(look: Callable[[], object], what: str) -> None:
    """Wait until `look` returns something true."""
    deadline = time.monotonic() + PATIENCE
    while not look():
        if time.monotonic() > deadline:
            raise NotObservedError(what)
        select.select([], [], [], 0.02)


def process_table(*pids: int) -> None:
    """Print pid ppid pgid sid tty of this program and of what it started.

    They are read from /proc, as not every machine has ps.
    """
    print(
        f"  {'PID':>7} {'PPID':>7} {'PGID':>7} {'SID':>7} {'TTY':>6}  COMMAND"
    )
    for pid in pids:
        with suppress(FileNotFoundError):
            fields = (
                Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            )
            command = (
                Path(f"/proc/{pid}/cmdline")
                .read_bytes()
                .replace(b"\0", b" ")
                .decode()
            )
            ppid, pgid, sid, tty = fields[1:5]
            print(
                f"  {pid:>7} {ppid:>7} {pgid:>7} {sid:>7}"
                f" {terminal_name(int(tty)):>6}  {command}"
            )


def terminal_name(number: int) -> str:
    """Return the usual name of a device number from /proc/PID/stat."""
    major, minor = os.major(number), os.minor(number)
    return (
        "none"
        if not number
        else f"pts/{minor}"
        if major == 136
        else f"{major}:{minor}"
    )


def start() -> int:
    """Run `python heartbeat.py` as a user would; return its status."""
    print("$ python heartbeat.py", flush=True)
    begun = time.monotonic()
    with subprocess.Popen(
        [sys.executable, str(HEARTBEAT)], stderr=subprocess.PIPE, text=True
    ) as caller:
        # Left early, the `with` waits for the caller: a daemon that it starts
        # meanwhile can be found, and ended.
        error = caller.stderr.read() if caller.stderr else ""
    if error:
        print(error.strip().splitlines()[-1])
    print(f"status {caller.returncode}, after {time.monotonic() - begun:.2f} s")
    return caller.returncode


def daemon_pid() -> int:
    """Return the pid in the pidfile."""
    pid = int(Path("heartbeat.pid").read_text())
    print(f"$ cat heartbeat.pid\n{pid}")
    return pid


def is_gone(pid: int) -> bool:
    """Tell whether the process has ended."""
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            in "ZX"
        )
    except (FileNotFoundError, ProcessLookupError):
        return True


def show_log(lines: int) -> None:
    """Wait for the log to have that many lines, and show the last two."""
    log = Path("heartbeat.log")
    expect(
        lambda: log.exists() and log.read_text().count("\n") >= lines,
        "a growing log",
    )
    print(
        "$ tail -n 2 heartbeat.log",
        *log.read_text().splitlines()[-2:],
        sep="\n",
    )


def demo() -> None:
    """Go through the life of a daemon."""
    say("Before: this program, and no daemon")
    process_table(os.getpid())

    say("1. heartbeat.py becomes a daemon; the shell has its prompt back")
    if start() != 0:
        raise NotObservedError("the first start")
    pid = daemon_pid()
    say("   It is in a session of its own, not its leader, and has no terminal")
    process_table(os.getpid(), pid)

    say("2. Its log grows, line by line")
    show_log(2)
    show_log(4)

    say("3. A second start is refused, and told by whom")
    if start() != 1 or is_gone(pid):
        raise NotObservedError("a second start refused")

    say("4. kill -9 leaves no stale pidfile: the next start works at once")
    print(f"$ kill -9 {pid}")
    os.kill(pid, signal.SIGKILL)
    expect(lambda: is_gone(pid), "the end of the killed daemon")
    if start() != 0:
        raise NotObservedError("a start after kill -9")
    pid = daemon_pid()
    process_table(os.getpid(), pid)

    say("5. SIGTERM ends it cleanly")
    print(f"$ kill {pid}")
    os.kill(pid, signal.SIGTERM)
    expect(
        lambda: is_gone(pid) and not Path("heartbeat.pid").exists(),
        "a clean end",
    )
    print("$ ls\n" + "\n".join(sorted(os.listdir("."))))
    say("Nothing is left running, and the pidfile is gone.")


def main() -> int:
    """Run the demo in a directory of its own, and leave nothing behind."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        try:
            demo()
        except NotObservedError as error:
            print(f"not observed: {error}", file=sys.stderr)
            return 1
        finally:
            import daemonkit

            if pid := daemonkit.PidFile("heartbeat.pid").read_pid():
                os.kill(pid, signal.SIGKILL)
            os.chdir("/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
