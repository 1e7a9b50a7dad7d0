"""What `make demo` shows: heartbeat.py becomes a daemon, resists a second start, survives `kill -9`, ends cleanly.

Every command is really run and its real output shown. The exit status is 0 if each effect was seen, else 1.
"""

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import daemonkit

PATIENCE = 20.0  # seconds; guards against a hang
PYTHON = os.path.basename(sys.executable)
START = f"{PYTHON} heartbeat.py beat"
COLUMNS = ("pid", "ppid", "pgid", "sid", "tty", "args")
ENVIRONMENT = {**os.environ, "PATH": os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", "")}
ENVIRONMENT.pop("NOTIFY_SOCKET", None)  # a service manager's: with it the program would stay in the foreground
ENVIRONMENT.pop("PYTHONUNBUFFERED", None)  # that lines reach the log at once is daemonkit's doing


class NotSeenError(Exception):
    """An effect that was to be shown did not come about."""


def expect(seen: object, what: str) -> None:
    """Go on only if it was seen."""
    if not seen:
        raise NotSeenError(what)


def shell(command: str) -> str:
    """Run a command as a user would, show it and its output, and return that."""
    print(f"$ {command}", flush=True)
    # The last line keeps the shell from becoming the command: where this program is process 1 (a container), the
    # command would have parent 1 and no terminal, and stay in the foreground there.
    script = ["sh", "-c", f"{command}\nexit $?"]
    out = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(script, env=ENVIRONMENT, text=True, process_group=0, **out) as process:
        try:
            output, _ = process.communicate(timeout=PATIENCE)
        except BaseException as error:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGINT)  # a start that is interrupted takes its daemon back
            process.communicate()
            expect(not isinstance(error, subprocess.TimeoutExpired), f"an end of: {command}")
            raise
    print(output, end="", flush=True)
    return output


def table(*pids: int) -> None:
    """Show processes: with ps, or from /proc where there is none (Debian's slim images)."""
    if shutil.which("ps", path=ENVIRONMENT["PATH"]):
        shell(f"ps -o {','.join(COLUMNS)} -p {','.join(map(str, pids))}")
        return
    print("(there is no ps here, so from /proc:)")
    print(*(f"{name.upper():>7}" for name in COLUMNS[:5]), COLUMNS[5].upper())
    for pid in pids:
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            print(*(f"{field:>7}" for field in (pid, *facts(pid))), command)


def facts(pid: int) -> tuple[int, int, int, str]:
    """Return a process's parent, process group, session and terminal; see proc(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    device = int(fields[4])
    terminal = f"{os.major(device)}:{os.minor(device)}" if device else "?"
    return int(fields[1]), int(fields[2]), int(fields[3]), terminal


def eventually(look: Callable[[], object], patience: float = PATIENCE) -> bool:
    """Wait until something can be seen; tell whether it was."""
    pause, deadline = threading.Event(), time.monotonic() + patience
    while not (seen := bool(look())) and time.monotonic() < deadline:
        pause.wait(0.02)
    return seen


def holder() -> int:
    """Return the pid of the daemon, by the pidfile and its lock."""
    pid = daemonkit.PidFile("beat.pid").read_pid()
    expect(pid, "a pidfile that a live process holds")
    return pid or 0


def end(command: str, pid: int) -> None:
    """Run a command that ends the daemon, and wait for that end."""
    pidfd = os.pidfd_open(pid)
    try:
        shell(command)
        expect(select.select([pidfd], [], [], PATIENCE)[0], f"an end of process {pid}")
    finally:
        os.close(pidfd)
    eventually(lambda: reaped(pid), 5)  # some programs that run as process 1 take their time, or never do it


def reaped(pid: int) -> bool:
    """Tell whether an ended process is gone from the process table, too."""
    with contextlib.suppress(ChildProcessError):  # it is this program's child only where this is process 1
        os.waitpid(pid, os.WNOHANG)
    return not os.path.exists(f"/proc/{pid}")


def step(title: str) -> None:
    """Announce."""
    print(f"\n# {title}")


def show() -> None:
    """Show it all, in the current directory."""
    step("Before: this demo, in your shell's session")
    table(os.getpid())

    step("A start. The prompt is back once the daemon runs")
    expect("status 0" in shell(f'{START}; echo "status $?"'), "a start with exit status 0")
    first = holder()
    expect(shell("cat beat.pid") == f"{first}\n", "the daemon's pid in the pidfile")

    step("After: the daemon has another session, which it does not lead, and no terminal")
    table(os.getpid(), first)
    parent, _, session, terminal = facts(first)
    expect(parent != os.getpid() or parent == 1, "a daemon that is nobody's child here")
    expect(session not in (first, os.getsid(0)), "a daemon in a session that it does not lead")
    expect(terminal == "?", "a daemon without a terminal")

    step("Its output goes to the log, line by line")
    log = Path("beat.log")
    expect(eventually(lambda: log.read_text().count("\n") >= 2), "lines in the log")
    before = shell("tail -n 2 beat.log")
    expect(eventually(lambda: log.read_text().count("\n") >= 4), "a log that grows")
    expect(shell("tail -n 2 beat.log") != before, "a log that grows")

    step("A second start is refused, and told by whom")
    refusal = shell(f'{START} 2> error; echo "status $?"; tail -n 1 error')
    expect("status 1" in refusal, "a second start with exit status 1")
    expect(f"held by process {first}" in refusal, "the holder's pid in the refusal")
    expect(holder() == first, "a first daemon that is untouched by the second start")

    step("kill -9: the pidfile stays, with a dead number in it, and the next start works at once")
    end("kill -9 $(cat beat.pid)", first)
    expect(shell("cat beat.pid") == f"{first}\n", "the dead daemon's pid in the pidfile")
    expect("status 0" in shell(f'{START}; echo "status $?"'), "a start after kill -9")
    second = holder()
    expect(shell("cat beat.pid") == f"{second}\n" != f"{first}\n", "the new daemon's pid in the pidfile")

    step("SIGTERM: it ends, and takes its pidfile along")
    end("kill $(cat beat.pid)", second)
    expect("beat.pid" not in shell("ls"), "a directory without the pidfile")
    table(first, second)
    expect(not any(os.path.exists(f"/proc/{pid}/exe") for pid in (first, second)), "no process left")


def clean() -> None:
    """End what still runs, whatever happened."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while pid := daemonkit.PidFile("beat.pid").read_pid():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        threading.Event().wait(0.01)


def main() -> int:
    """Run the demo in a directory of its own."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    program = Path(__file__).resolve().with_name("heartbeat.py")
    with tempfile.TemporaryDirectory(prefix="daemonkit-demo-") as directory, contextlib.chdir(directory):
        shutil.copy(program, directory)
        try:
            show()
        except (NotSeenError, OSError, daemonkit.DaemonkitError) as error:
            print(f"demo: this was not seen: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
        finally:
            clean()
    print("\n# Everything was as it should be, and nothing is left")
    return 0


if __name__ == "__main__":
    sys.exit(main())
