"""A caller that launches on request: `spawner.py MEGABYTES FOLDER [DESCRIPTORS]`.

It grows to that size, opens so many descriptors, and then answers each line on its stdin, `CONTENDER OPTIONS REPEAT`, with a time in
nanoseconds: the median of that many launches, from the call until it returns. The program ends at once, and is waited
for before the next one, outside what is timed; so is the removal of the pidfile that it leaves. With `ended` the wait is
timed too. With `dropped` all are launched in a row, nothing is waited for, and the answer is the mean. `facts` counts
what this process has.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from caller import grow
from lockfile.pidlockfile import PIDLockFile

import daemonkit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Start = Callable[[], Any]

_PROGRAM = "/bin/true"
_SIGNALS = tuple(map(int, signal.valid_signals()))
_PAGE_KB = os.sysconf("SC_PAGE_SIZE") >> 10


# --- the contenders: each returns what launches one program, and that returns a pid or a handle -------------------


def _keywords(options: set[str]) -> dict[str, Any]:
    """Return the options that Popen has in the same words."""
    values = {
        "cwd": "/",
        "umask": 0o027,
        "env": {**os.environ, "LAUNCHED_BY": "bench"},
        "pass_fds": (HANDED,),
    }
    return {name: value for name, value in values.items() if name in options}


def _daemonkit(options: set[str]) -> Start:
    keywords = _keywords(options)
    if "logs" in options:
        keywords |= {"stdout": LOG, "stderr": daemonkit.STDOUT}
    if "pidfile" in options:
        keywords["pidfile"] = PIDFILE
    return lambda: daemonkit.spawn_detached([_PROGRAM], **keywords)


def _popen(options: set[str]) -> Start:
    null = subprocess.DEVNULL
    keywords = {"start_new_session": True, "stdin": null, "stdout": null, "stderr": null, **_keywords(options)}

    def start() -> subprocess.Popen[bytes]:
        if "pidfile" in options:
            PIDLockFile(PIDFILE).acquire()
        if "logs" not in options:
            return subprocess.Popen([_PROGRAM], **keywords)
        with open(LOG, "ab") as log:
            return subprocess.Popen([_PROGRAM], **keywords | {"stdout": log, "stderr": subprocess.STDOUT})

    return start


def _posix_spawn(options: set[str]) -> Start:
    null = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
        (os.POSIX_SPAWN_DUP2, 0, 1),
        (os.POSIX_SPAWN_DUP2, 0, 2),
    ]
    # Which signals are ignored nobody tells it, so all of them are set back.
    signals = {"setsigmask": (), "setsigdef": _SIGNALS} if options & {"ignored", "blocked"} else {}
    return lambda: os.posix_spawn(_PROGRAM, [_PROGRAM], os.environ, file_actions=null, setsid=True, **signals)


def _c(_: set[str]) -> Start:
    library = ctypes.CDLL(os.path.join(FOLDER, "spawn.so"))
    program = ctypes.create_string_buffer(_PROGRAM.encode())
    return lambda: library.spawn_detached(program)


def _tool(*command: str) -> Callable[[set[str]], Start]:
    """Run a tool that launches and ends; whoever adopts the program reaps it."""
    program = shutil.which(command[0])

    def start() -> None:
        pid = os.posix_spawn(program, command, os.environ)
        if os.waitpid(pid, 0)[1]:
            raise SystemExit(f"{command[0]} failed")

    return lambda _: start


_CONTENDERS = {
    "daemonkit": _daemonkit,
    "popen": _popen,
    "posix_spawn": _posix_spawn,
    "c": _c,
    "setsid": _tool("setsid", "-f", _PROGRAM),
    # The pidfile that is not there saves it a look at every process.
    "start-stop-daemon": _tool("start-stop-daemon", "-S", "-b", "-a", _PROGRAM, "-p", "/nonexistent/pid"),
}


# --- measuring ----------------------------------------------------------------------------------------------------


@contextmanager
def _signals(options: set[str]) -> Iterator[None]:
    """Ignore SIGHUP as under nohup(1), or block SIGTERM, as the options say."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if "ignored" in options else signal.SIG_DFL)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM} if "blocked" in options else ())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGHUP, before)


def _one_by_one(start: Start, repeat: int, *, ended: bool = False) -> float:
    times = []
    for _ in range(repeat):
        begin = time.perf_counter_ns()
        started = start()
        returned = time.perf_counter_ns()
        status = os.waitpid(started, 0)[1] if isinstance(started, int) else started.wait() if started else 0
        times.append((time.perf_counter_ns() if ended else returned) - begin)
        if status:
            raise SystemExit(f"{_PROGRAM} ended with status {status}")
        del started  # or the next one's time would include the end of this handle
        with suppress(FileNotFoundError):
            os.unlink(PIDFILE)
    return statistics.median(times)


def _in_a_row(start: Start, repeat: int) -> float:
    begin = time.perf_counter_ns()
    for _ in range(repeat):
        if isinstance(start(), int):
            _reap_ended()
    elapsed = time.perf_counter_ns() - begin
    _wait_for_ends()
    last = start()  # the next call reaps
    if isinstance(last, int):
        os.waitpid(last, 0)
        _reap_ended()
    return elapsed / repeat


def _reap_ended() -> None:
    """Do for the contenders that return a pid what daemonkit and subprocess do at their next call."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


# --- facts --------------------------------------------------------------------------------------------------------


def _children() -> list[str]:
    """Return the states of this process's children, as in proc(5): Z is a zombie."""
    states = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{name}/stat", "rb") as stat:
            state, parent = stat.read().rpartition(b")")[2].split()[:2]
            if int(parent) == os.getpid():
                states.append(state.decode())
    return states


def _wait_for_ends() -> None:
    while any(state != "Z" for state in _children()):
        select.select((), (), (), 0.005)


def _facts() -> str:
    """Count descriptors, threads, zombies and resident KB, after one more call, which reaps whatever has ended."""
    import daemonkit

    _wait_for_ends()
    daemonkit.status(PIDFILE)
    with open("/proc/self/statm", "rb") as statm:
        resident = int(statm.read().split()[1]) * _PAGE_KB
    return (
        f"{len(os.listdir('/proc/self/fd'))} {len(os.listdir('/proc/self/task'))} {_children().count('Z')} {resident}"
    )


def _answer(contender: str, words: str, repeat: int) -> float:
    options = set(words.split("+"))
    start = _CONTENDERS[contender](options)
    with _signals(options):
        return (
            _in_a_row(start, repeat) if "dropped" in options else _one_by_one(start, repeat, ended="ended" in options)
        )


if __name__ == "__main__":
    FOLDER = sys.argv[2]
    LOG, PIDFILE = os.path.join(FOLDER, f"{os.getpid()}.log"), os.path.join(FOLDER, f"{os.getpid()}.pid")
    HANDED = os.open(os.devnull, os.O_RDONLY)
    ballast = grow(int(sys.argv[1]))
    more = [os.open(os.devnull, os.O_RDONLY) for _ in range(int(sys.argv[3]) if len(sys.argv) > 3 else 0)]
    for line in sys.stdin:
        contender, *words = line.split()
        print(_facts() if contender == "facts" else _answer(contender, words[0], int(words[1])), flush=True)
