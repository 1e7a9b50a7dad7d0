"""Who may call `detached`, and what of the caller will be missing in the daemon."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import sys
import threading
import warnings

from daemonkit._system.descriptors import open_descriptors
from daemonkit._system.process import children_of, start_of
from daemonkit._system.reaping import launched
from daemonkit._system.unpatched import drives_greenlets, in_main_thread, other_threads, running_loop
from daemonkit._system.wait import deadline_after, wait_readable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_LOOKS: Final = 10  # at threads, a millisecond apart: the kernel's thread outlives a Thread.join() by a moment


def refuse_callers(*, detach: bool, meant: bool) -> None:
    """Raise RuntimeError where a daemon would be a copy of something else, and say what to do instead.

    `detach` says that this process is about to fork away, `meant` that the program asked for it in so many words.
    """
    if not in_main_thread():
        raise RuntimeError(
            "detached() must be called in the main thread, which handles the signals and decides the exit status"
        )
    if _is_importing_main():
        raise RuntimeError(
            "a child of multiprocessing imports the main program again here, and would become a second daemon; "
            'put this under `if __name__ == "__main__":`'
        )
    if not detach:
        return
    if _in_kernel():
        raise RuntimeError(
            "a notebook's kernel can't become a daemon; spawn_detached() or supervise() a script instead"
        )
    if _has_running_loop():
        raise RuntimeError(
            "an event loop runs in this thread and can't be forked: call detached() first, and start the loop in its "
            "body; in a notebook, spawn_detached() or supervise() a script instead"
        )
    if not meant and _under_pytest():
        raise RuntimeError(
            "the daemon would be a copy of this test run, and the run itself would end here as passed; start the "
            "program as a process of its own, or test it with detach_process=False; "
            "detach_process=True says that it is meant"
        )


def _is_importing_main() -> bool:
    """Tell whether multiprocessing (spawn, forkserver) prepares a child: it notes this for a check of its own.

    `multiprocess` and `billiard` (of celery) are other people's copies of multiprocessing.
    """
    copies = (sys.modules.get(f"{name}.process") for name in ("multiprocessing", "multiprocess", "billiard"))
    return any(hasattr(copy.current_process(), "_inheriting") for copy in copies if copy)


def _in_kernel() -> bool:
    kernel = sys.modules.get("ipykernel.kernelapp")
    return kernel is not None and bool(kernel.IPKernelApp.initialized())


def _has_running_loop() -> bool:
    """Tell whether an event loop runs in this thread: asyncio's, trio's or Twisted's."""
    if (loop := running_loop()) and not drives_greenlets(loop):
        return True
    reactor, threads = (sys.modules.get(f"twisted.{name}") for name in ("internet.reactor", "python.threadable"))
    if reactor and threads and reactor.running and threads.isInIOThread():
        return True
    sniffio = sys.modules.get("sniffio")  # trio tells it that it runs
    if sniffio is None:
        return False
    try:
        return bool(sniffio.current_async_library() != "asyncio")
    except sniffio.AsyncLibraryNotFoundError:
        return False


def _under_pytest() -> bool:
    """Tell whether pytest has called this; a program that a test has started has no such frame."""
    if "_pytest" not in sys.modules:
        return False
    frame = sys._getframe()  # noqa: SLF001 - the documented way to look at one's callers
    while frame.f_back:
        frame = frame.f_back
        if str(frame.f_globals.get("__name__")).startswith("_pytest."):
            return True
    return False


def warn_of_losses() -> None:
    """Warn of what the daemon will not have: other threads, child processes, locks, timers, an end of the output."""
    if threads := _other_threads():
        _warn(f"these threads will not exist in the daemon: {', '.join(threads)}; start them in the body")
    tracker = _resource_tracker()
    children = [f"{name} (process {pid})" for pid, name in _children() if pid != tracker]
    if children:
        _warn(
            f"these processes will not be the daemon's children: {', '.join(children)}; start them in the body, or by "
            "spawn_detached()"
        )
    if tracker and any(_shares_channel(tracker, fd) for fd in (1, 2)):
        _warn(
            f"multiprocessing's resource tracker (process {tracker}) keeps this program's output open until the daemon "
            "ends, so whoever reads it waits that long; create locks, queues and shared memory in the body"
        )
    if locked := _locked_files():
        _warn(f"the daemon will not have the locks (fcntl, lockf) on {', '.join(locked)}; open these files in the body")
    if any(signal.getitimer(timer)[0] for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)):
        _warn("the daemon will not have the timer of signal.alarm() or signal.setitimer(); set it in the body")


def _warn(message: str) -> None:
    """Warn, at the line of the program that called daemonkit."""
    level, frame = 1, sys._getframe()  # noqa: SLF001 - as above
    while frame.f_back and str(frame.f_globals.get("__name__")).startswith("daemonkit."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, RuntimeWarning, stacklevel=level)


def _other_threads() -> list[str]:
    """Return the names of all other threads: Python's, and those of C libraries, which only the kernel knows."""
    if len(_numbers("self/task")) == 1:  # as in most programs, whose start need not take any longer
        return []
    python = other_threads()
    known = {threading.get_native_id(), *(thread.native_id for thread in python)}
    unnamed = _read("self/comm")  # as a thread is called that nobody has given a name
    for _ in range(_LOOKS):
        names = [_read(f"self/task/{tid}/comm") for tid in _numbers("self/task") if tid not in known]
        if unnamed not in names:
            break
        wait_readable((), deadline_after(0.001))
    count = names.count(unnamed)
    others = [name for name in names if name not in {unnamed, ""}]  # "": it has just ended
    return [thread.name for thread in python] + others + ([f"{count} of C libraries"] if count else [])


def _children() -> list[tuple[int, str]]:
    """Return pid and name of each living child process but those that `spawn_detached` launched."""
    pids = set(children_of("self")) - launched
    return [(pid, _read(f"{pid}/comm")) for pid in sorted(pids) if start_of(pid) is not None]


def _resource_tracker() -> int | None:
    """Return the pid of multiprocessing's resource tracker, if it is a child of this process."""
    tracker = getattr(sys.modules.get("multiprocessing.resource_tracker"), "_resource_tracker", None)
    pid = getattr(tracker, "_pid", None)
    return pid if isinstance(pid, int) and start_of(pid) is not None else None


def _shares_channel(pid: int, fd: int) -> bool:
    """Tell whether the process has the same pipe or socket as this one on that descriptor."""
    try:
        info, own = os.stat(f"/proc/{pid}/fd/{fd}"), os.fstat(fd)
    except OSError:
        return False
    return os.path.samestat(info, own) and (stat.S_ISFIFO(own.st_mode) or stat.S_ISSOCK(own.st_mode))


def _locked_files() -> list[str]:
    """Return the files on which this process has record locks, as LMDB and SQLite do: fork(2) does not pass those on.

    /proc/locks would tell with one look, but that takes milliseconds, in which nobody on the system gets a lock.
    """
    found = set()
    for fd in open_descriptors():
        with contextlib.suppress(OSError):
            # lock: 1: POSIX  ADVISORY  WRITE 4242 fe:01:99 0 EOF. Those of other processes are not there: proc(5).
            if stat.S_ISREG(os.fstat(fd).st_mode) and " POSIX " in _read(f"self/fdinfo/{fd}"):
                found.add(os.readlink(f"/proc/self/fd/{fd}"))
    return sorted(found)


def _numbers(path: str) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(name) for name in os.listdir(f"/proc/{path}")]
    return []


def _read(path: str) -> str:
    with contextlib.suppress(OSError), open(f"/proc/{path}", encoding="utf-8", errors="replace") as file:
        return file.read().strip()
    return ""
