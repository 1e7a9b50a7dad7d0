"""What the tests of launched programs share: how callers begin, what /proc tells, and what a failed start left."""

from __future__ import annotations

import inspect
import json
import os
import select
import signal
import textwrap
from pathlib import Path
from typing import Any

import pytest
from harness import run, stop

ROOT = os.geteuid() == 0


root_only = pytest.mark.skipif(not ROOT, reason="only root can change the user or lay out what a user may not touch")


ORDINARY = """
os.setgroups([])
os.setresgid(61234, 61234, 61234)
os.setresuid(61234, 61234, 61234)
"""


def seen(pid: int | str) -> dict[str, Any]:
    """Return what /proc tells of a process, once it sleeps; run in the test and, by its source, in callers.

    Whoever waits for an exec is woken in its midst: arguments and environment are not there yet.
    """
    for _ in range(3000):
        with open(f"/proc/{pid}/stat") as file:
            if not str(pid).isdigit() or file.read().rpartition(")")[2].split()[0] in "STZ":
                break
        select.select([], [], [], 0.001)
    with open(f"/proc/{pid}/status") as file:
        status = dict(line.rstrip("\n").split(":", 1) for line in file)
    with open(f"/proc/{pid}/stat") as file:
        stat = file.read().rpartition(")")[2].split()
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        cmdline = file.read()
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            environ = file.read()
    except PermissionError:  # its own, after it has changed its user: prctl(2), PR_SET_DUMPABLE
        environ = b""
    fds, flags = {}, {}
    for fd in sorted(os.listdir(f"/proc/{pid}/fd"), key=int):
        try:
            fds[fd] = os.readlink(f"/proc/{pid}/fd/{fd}")
            with open(f"/proc/{pid}/fdinfo/{fd}") as file:
                flags[fd] = int(
                    dict(line.split(":", 1) for line in file.read().splitlines() if ":" in line)["flags"], 8
                )
        except FileNotFoundError:
            fds.pop(fd, None)  # the listing's own
    return {
        "ppid": int(stat[1]),
        "pgid": int(stat[2]),
        "sid": int(stat[3]),
        "tty": int(stat[4]),
        "mask": int(status["SigBlk"], 16),
        "ignored": int(status["SigIgn"], 16) & ~(1 << 31 | 1 << 32),
        "caught": int(status["SigCgt"], 16),
        "pending": int(status["SigPnd"], 16) | int(status["ShdPnd"], 16),
        "umask": int(status["Umask"], 8),
        "uid": list(map(int, status["Uid"].split())),
        "gid": list(map(int, status["Gid"].split())),
        "groups": sorted(map(int, status["Groups"].split())),
        "cwd": os.readlink(f"/proc/{pid}/cwd"),
        "exe": os.path.basename(os.readlink(f"/proc/{pid}/exe")),
        "args": [part.decode("latin-1") for part in cmdline.split(b"\0")[:-1]],
        "env": sorted(part.decode("latin-1") for part in environ.split(b"\0")[:-1]),
        "fds": fds,
        "flags": flags,
    }


# Callers start with this, after the harness's prelude.
CALLER = (
    """
import fcntl, gc, resource, select, subprocess, warnings
from typing import Any
from daemonkit import DEVNULL, INHERIT, PIPE, STDOUT
spawn = daemonkit.spawn_detached
SLEEP = ["sleep", "1000"]
NEVER = 30.0  # seconds; for waits that are to end long before

"""
    + inspect.getsource(seen)
    + """
def tell(**more):
    print(json.dumps(more), flush=True)

def own():
    return {n: path for n, path in seen("self")["fds"].items() if not path.endswith("/fd")}

def any_child():
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) or "living"
    except ChildProcessError:
        return None

def exits(code):
    return ["sh", "-c", f"exit {code}"]

def state(pid):
    try:
        return read(f"/proc/{pid}/stat").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""

def children():
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                fields = read(f"/proc/{name}/stat").rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[1]) == os.getpid():
                found[int(name)] = fields[0]
    return found

def members(pgid):
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                fields = read(f"/proc/{name}/stat").rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[2]) == pgid and fields[0] not in "ZX":
                found.append(int(name))
    return found

def zombies():
    return [pid for pid, letter in children().items() if letter == "Z"]

def descriptors():
    return len(os.listdir("/proc/self/fd"))

def until(look):
    deadline = time.monotonic() + NEVER
    while not look():
        assert time.monotonic() < deadline, "never came true"
        select.select([], [], [], 0.002)

def end_of(p):
    assert select.select([p], [], [], NEVER)[0] == [p]
"""
)


def caller(body: str) -> str:
    return CALLER + textwrap.dedent(body)


def call(directory: Path, body: str, **options: Any) -> dict[str, Any]:
    """Run a caller to its end; warnings are errors, it ends well and quietly. Return what it told."""
    options.setdefault("flags", ("-W", "error"))
    done = run(directory, caller(body), **options)
    assert (done.returncode, done.stderr) == (0, ""), done
    told: dict[str, Any] = json.loads(done.stdout) if done.stdout else {}
    return told


def spawned(directory: Path, call_text: str = "SLEEP", before: str = "", **options: Any) -> int:
    """Run a caller that spawns once and ends; return the program's pid."""
    body = textwrap.dedent(before) + f"\np = spawn({call_text})\ntell(pid=p.pid)\n"
    pid: int = call(directory, body, **options)["pid"]
    return pid


def kill(*pids: int) -> None:
    for pid in pids:
        assert stop(pid, signal.SIGKILL) == -signal.SIGKILL


def is_file(pid: int, fd: str, path: Path) -> bool:
    """Tell whether a descriptor is that file; the link text would not do for one that got its name afterwards."""
    return Path(f"/proc/{pid}/fd/{fd}").samefile(path)


def script(path: Path, text: str | bytes, mode: int = 0o755) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(mode)
    return path


BLOCK = "signal.pthread_sigmask(signal.SIG_BLOCK, {})\n"


IGNORE = "for n in {}: signal.signal(n, signal.SIG_IGN)\n"


EVERY = "signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}"


REAL_TIME = "range(signal.SIGRTMIN, signal.SIGRTMAX + 1)"


SLOW = ", cwd='.', umask=0o22"


WAYS = {
    "": "",
    "cwd, umask": SLOW,
    "pidfile": ", pidfile='pid'",
    "all": SLOW + ", pidfile='pid', input=b'x', env=os.environ",
}


# Each case in turn: what was raised, and everything that it left.
TRY = """
def attempt(text, more):
    options = text + "".join(f", {key}={value}" for key, value in more.items() if f" {key}=" not in text and not ("input=" in text and key == "stdin"))
    files = lambda: {name: (os.lstat(name).st_mtime_ns, os.lstat(name).st_size, os.lstat(name).st_mode) for name in os.listdir(".")}
    before, mine = files(), own()
    state = [seen("self")[key] for key in ("mask", "ignored", "caught", "umask", "cwd")]
    try:
        p = eval(f"spawn({options})")
    except BaseException as error:
        name = getattr(error, "filename", None)
        said = [type(error).__name__, getattr(error, "errno", None), name and os.path.basename(os.fsdecode(name)), str(error)]
    else:
        said = ["started", None, None, ""]
        p.kill(); p.wait()
    left = []
    if files() != before: left.append(f"files: {before} {files()}")
    if own() != mine: left.append(f"descriptors: {own()} {mine}")
    if any_child(): left.append(f"children: {any_child()}")
    if state != [seen("self")[key] for key in ("mask", "ignored", "caught", "umask", "cwd")]: left.append("state")
    if not "pidfile=" in text and daemonkit.PidFile("pid").read_pid(): left.append("a held pidfile")
    if threading.active_count() != threads: left.append("a thread")
    return [*said, left]
threads = threading.active_count()
"""


MODES = {
    "plain": ("", {}),
    "blocked": (BLOCK.format("[signal.SIGTERM]"), {"stdout": "'log'", "pidfile": "'pid'"}),
    "log, pidfile": ("", {"stdout": "'log'", "pidfile": "'pid'"}),
    "cwd, umask": ("", {"cwd": "'.'", "umask": "0o22", "stdout": "'log'", "stderr": "'err'"}),
    "all": (
        BLOCK.format("[signal.SIGTERM]") + IGNORE.format("[signal.SIGUSR1]"),
        {"cwd": "'.'", "umask": "0o22", "pidfile": "'pid'", "stdin": "PIPE", "stdout": "'log'", "stderr": "'kept'"},
    ),
    "SIGCHLD ignored": (IGNORE.format("[signal.SIGCHLD]"), {"pidfile": "'pid'", "umask": "0o22"}),
}


if ROOT:
    MODES["user"] = ("", {"user": "'daemon'", "pidfile": "'pid'", "stdout": "'log'"})


def judged(directory: Path, cases: dict[str, str], mode: str, check: str = "", **options: Any) -> dict[str, Any]:
    before, more = MODES[mode]
    (directory / "kept").write_text("kept\n")
    told = call(
        directory,
        before + check + TRY + f"tell(results={{text: attempt(text, {more!r}) for text in {list(cases)!r}}})\n",
        timeout=60,
        **options,
    )
    assert (directory / "kept").read_text() == "kept\n"
    results: dict[str, Any] = told["results"]
    assert {text: result[4] for text, result in results.items() if result[4]} == {}  # nothing is left of any
    return results
