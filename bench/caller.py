"""One start of one daemon, by one of the contenders: `caller.py CONTENDER MEGABYTES NOFILE RESULT [PIDFILE]`.

A start needs a caller of its own, because it ends. The time goes to the file RESULT, in nanoseconds; the daemon
ends at once.

It runs from just before the context is made (or the function called) until somebody knows that the body runs:
- `detached` and the C double fork: the caller itself, by the report it waits for. The C function returns then;
  daemonkit reaps and exits, which is why what comes before that is wrapped here.
- DaemonContext, daemonize, daemonocle: their callers learn nothing, so nobody but the body, in its first statement.
Imports come before; CLOCK_MONOTONIC is the same in both processes.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_PAGE = mmap.PAGESIZE
_START = 0


def _begin() -> None:
    global _START  # noqa: PLW0603 - the daemon, a copy of this process, subtracts it
    _START = time.monotonic_ns()


def _done() -> None:
    elapsed = time.monotonic_ns() - _START
    fd = os.open(RESULT, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    os.write(fd, b"%d\n" % elapsed)
    os.close(fd)


def _daemonkit() -> Callable[[], None]:
    from daemonkit import detached
    from daemonkit._detach import handshake

    middle = handshake._Middle  # noqa: SLF001 - when its wait returns the caller knows
    wait = middle.wait

    def wait_and_tell(*arguments: Any) -> bool:
        in_time = wait(*arguments)
        _done()
        return in_time

    middle.wait = wait_and_tell

    def start() -> None:
        with detached(detach_process=True, pidfile=PIDFILE):
            pass

    return start


def _python_daemon() -> Callable[[], None]:
    from daemon import DaemonContext
    from lockfile.pidlockfile import PIDLockFile

    def start() -> None:
        with DaemonContext(detach_process=True, pidfile=PIDLockFile(PIDFILE) if PIDFILE else None):
            _done()

    return start


def _daemonize() -> Callable[[], None]:
    from daemonize import Daemonize

    return lambda: Daemonize(app="bench", pid=f"{RESULT}.pid", action=_done).start()


def _daemonocle() -> Callable[[], None]:
    from daemonocle import Daemon

    return lambda: Daemon(worker=_done, detach=True, pid_file=PIDFILE).do_action("start")


def _double_fork() -> Callable[[], None]:
    library = ctypes.CDLL(os.path.join(os.path.dirname(RESULT), "double_fork.so"))

    def start() -> None:
        if library.double_fork() != 0:
            raise SystemExit("the double fork failed")
        _done()

    return start


def grow(megabytes: int) -> mmap.mmap | None:
    """Grow to that much resident memory, in small pages: huge ones would make any fork cheap."""
    with open("/proc/self/statm", "rb") as statm:
        missing = (megabytes << 20) - int(statm.read().split()[1]) * _PAGE
    if missing < _PAGE:
        return None
    block = mmap.mmap(-1, missing - missing % _PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block.madvise(mmap.MADV_NOHUGEPAGE)
    block[::_PAGE] = bytes(len(block) // _PAGE)
    return block


if __name__ == "__main__":
    contender, size, nofile, RESULT = sys.argv[1:5]
    PIDFILE = sys.argv[5] if len(sys.argv) > 5 else None
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(nofile), resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    start = globals()[f"_{contender}"]()
    ballast = grow(int(size))
    _begin()
    start()
