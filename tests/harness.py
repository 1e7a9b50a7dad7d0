"""What the tests share: fresh interpreters, facts from /proc, waiting with a deadline."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

os.environ.pop("PYTHONUNBUFFERED", None)  # programs under test buffer as they do for a user

PR_SET_CHILD_SUBREAPER = 36
DEAD = 4194303  # the highest pid there can be: nobody's here
PATIENCE = 30.0  # seconds; guards against a hang and says nothing about speed

# Programs under test start with this. `report` writes facts about the process to a file, complete or not at all.
PRELUDE = """
import contextlib, json, logging, os, signal, socket, sys, threading, time, traceback
import daemonkit

def read(path):
    with open(path) as file:
        return file.read()

def facts():
    def fd(n):
        try:
            return {"path": os.readlink(f"/proc/self/fd/{n}"), "inheritable": os.get_inheritable(n)}
        except OSError:
            return None
    status = dict(line.split(":", 1) for line in read("/proc/self/status").splitlines())
    stat = read("/proc/self/stat").rpartition(")")[2].split()
    umask = os.umask(0); os.umask(umask)
    return {
        "pid": os.getpid(), "ppid": os.getppid(), "pgid": os.getpgid(0), "sid": os.getsid(0), "tty": int(stat[4]),
        "cwd": os.getcwd(), "root": os.path.realpath("/proc/self/root"), "umask": umask,
        "uid": os.getresuid(), "gid": os.getresgid(), "groups": sorted(os.getgroups()),
        "mask": int(status["SigBlk"], 16), "ignored": int(status["SigIgn"], 16), "caught": int(status["SigCgt"], 16),
        "core": __import__("resource").getrlimit(__import__("resource").RLIMIT_CORE),
        "fds": {n: fd(n) for n in map(int, os.listdir("/proc/self/fd")) if fd(n)},
        "threads": threading.active_count(),
    }

def report(path="report", **more):
    with open(path + ".new", "w") as file:
        json.dump({**facts(), **more}, file)
    os.rename(path + ".new", path)

def become_ordinary():
    # An ordinary user may not be able to read the package, so all of it is loaded before.
    if os.geteuid() == 0:
        for name in daemonkit.__all__:
            getattr(daemonkit, name)
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)

def attempt(call, *args, **options):
    # What it returns, or which error it raises and what that names.
    try:
        return call(*args, **options)
    except OSError as error:
        return type(error).__name__, os.path.basename(error.filename or "")
    except daemonkit.AlreadyRunningError as error:
        return type(error).__name__, error.pid

def wait():
    while True:
        time.sleep(0.1)  # not for ever: a signal that comes just before a pause() is handled only after it
"""


def become_subreaper() -> None:
    """Have the daemons of this process's programs become its own children, so that it can wait for them."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def eventually(look: Callable[[], Any], what: str = "", patience: float = PATIENCE) -> Any:
    """Return the first true value that `look` returns; an OSError or ValueError counts as not yet."""
    deadline = time.monotonic() + patience
    while True:
        with contextlib.suppress(OSError, ValueError):
            if value := look():
                return value
        assert time.monotonic() < deadline, f"never came true: {what or look}"
        select.select([], [], [], 0.005)


def write(directory: Path, body: str, name: str = "program.py") -> Path:
    """Write a program that starts with the prelude."""
    path = directory / name
    path.write_text(PRELUDE + textwrap.dedent(body))
    return path


def run(
    directory: Path,
    body: str,
    *args: object,
    timeout: float = PATIENCE,
    wrapper: tuple[object, ...] = (),
    flags: tuple[str, ...] = (),
    **options: Any,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, in `directory`; stdout and stderr are pipes read to their end, so a leak hangs."""
    program = write(directory, body)
    command = [*map(str, wrapper), sys.executable, *flags, str(program), *map(str, args)]
    options.setdefault("stdin", subprocess.DEVNULL)
    options.setdefault("cwd", directory)
    if "stdout" not in options:
        options["capture_output"] = True
    return subprocess.run(command, text=True, timeout=timeout, check=False, **options)


def reported(directory: Path, name: str = "report") -> dict[str, Any]:
    """Wait for a program's report and return it."""
    path = directory / name
    eventually(path.exists, f"a report at {path}")
    facts: dict[str, Any] = json.loads(path.read_text())
    facts["fds"] = {int(number): entry for number, entry in facts["fds"].items()}
    return facts


def pid_in(path: Path) -> int:
    """Return the pid that a pidfile names: the exact text or a ValueError."""
    text = path.read_text()
    if text != f"{int(text)}\n":
        raise ValueError(f"not a pid and a newline: {text!r}")
    return int(text)


def start_holder(directory: Path, body: str = "wait()") -> int:
    """Start a program that holds the pidfile `pid` there; return its pid once it does."""
    program = write(directory, f"lock = daemonkit.PidFile('pid')\nlock.acquire()\nreport('holding')\n{body}")
    (directory / "holding").unlink(missing_ok=True)
    started = subprocess.Popen([sys.executable, str(program)], cwd=directory)
    started.returncode = 0  # the test reaps it by number: Popen need not care
    eventually((directory / "holding").exists)
    return started.pid


def state(pid: int) -> str:
    """Return the state letter of /proc/PID/stat, '' if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0].decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def alive(pid: int) -> bool:
    """Tell whether a process lives; a zombie does not."""
    return state(pid) not in {"", "Z", "X"}


def let_everybody_in(directory: Path) -> None:
    """Let other users into a test's directory, and write there."""
    for parent in [directory, *directory.parents][:4]:
        parent.chmod(parent.stat().st_mode | 0o055)
    directory.chmod(0o777)


def open_copy(directory: Path, *packages: str) -> None:
    """Copy packages to a directory where every user can read them, whatever the modes of the checkout are."""
    for name in packages:
        (place,) = importlib.util.find_spec(name).submodule_search_locations  # type: ignore[union-attr, misc]
        shutil.copytree(place, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in [directory, *directory.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


def python_for_everybody() -> str | None:
    """Return a Python that other users can execute too: this one, or the system's; None if there is none."""
    for python in (sys.executable, "/usr/bin/python3"):
        look = "import os, sys; os.setgroups([]); os.setresgid(1, 1, 1); os.setresuid(1, 1, 1); os.execv(sys.argv[1], sys.argv[1:])"
        new_enough = "import sys, ctypes, select; sys.exit(sys.version_info < (3, 11))"
        done = subprocess.run([sys.executable, "-c", look, python, "-c", new_enough], capture_output=True, check=False)
        if done.returncode == 0:
            return python
    return None


def children(pid: int | None = None) -> list[int]:
    """Return the children of a process, zombies too."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, IndexError):
            if entry.name.isdigit():
                fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
                if int(fields[1]) == (pid or os.getpid()):
                    found.append(int(entry.name))
    return found


def ended(pid: int) -> int:
    """Wait for a child (a daemon: this process is the subreaper) and return its exit status as Popen would."""
    deadline = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(ChildProcessError):  # not ours yet: its parent is about to end
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
        assert time.monotonic() < deadline, f"process {pid} did not end"
        select.select([], [], [], 0.005)


def stop(pid: int, number: int = signal.SIGTERM) -> int:
    """Signal a daemon, wait for it, return its exit status."""
    os.kill(pid, number)
    return ended(pid)


def own_children() -> Iterator[tuple[int, str]]:
    """Yield this process's living children and what they run."""
    for pid in children():
        if alive(pid):
            with contextlib.suppress(OSError):
                yield pid, Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")


class Terminal:
    """A program as the leader of a session on a pseudo-terminal."""

    def __init__(self, command: list[object], cwd: Path) -> None:
        """Start it."""
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            try:
                os.chdir(cwd)
                os.execvp(str(command[0]), [str(part) for part in command])
            finally:
                os._exit(127)

    def read(self, until: str = "", patience: float = PATIENCE) -> str:
        """Return what the program shows, up to `until`, or to the end."""
        seen = b""
        deadline = time.monotonic() + patience
        while not (until and until.encode() in seen):
            assert time.monotonic() < deadline, f"{until!r} did not appear, only {seen!r}"
            if not select.select([self.master], [], [], 0.1)[0]:
                continue
            try:
                part = os.read(self.master, 4096)
            except OSError:  # EIO: nobody has the terminal open any more
                break
            if not part:
                break
            seen += part
        return seen.decode(errors="replace")

    def type(self, text: str) -> None:
        """Type."""
        os.write(self.master, text.encode())

    def insist(self, text: str, until: str) -> str:
        """Type again and again until the answer comes: a Ctrl-C throws away what was typed and not yet read."""
        for _ in range(20):
            self.type(text)
            with contextlib.suppress(AssertionError):
                return self.read(until, patience=PATIENCE / 20)
        raise AssertionError(f"{until!r} did not appear")

    def hang_up(self) -> None:
        """Close the line."""
        if self.master >= 0:
            os.close(self.master)
            self.master = -1
