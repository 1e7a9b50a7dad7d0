"""Why a goal is missed, by the beginning of the row's name; the longest that fits counts."""

from __future__ import annotations

_REASONS = {
    "`PidFile` acquire + release": "14 system calls, lockfile's 18; what is left is Python's: the file appears whole or not at all (`O_TMPFILE`, `linkat` through /proc), is locked, and is compared with its name before it goes",
    "`PidFile.read_pid()`": "4 of its 10 us are one read of /proc/PID/stat, which the kernel composes anew: it alone tells the holder from a process with the same number later, and a zombie from a living one; opening the file and asking for its lock take 4 more",
    "`daemonkit.status`": "`collections` and `contextlib` are 2.5 ms of it, the modules of the pidfile the rest",
    "`detached()`": "idle machine, until the caller knows: 0.6 ms in the caller before it forks, 1.0 and 0.9 ms from each fork to the first statement in its child (0.4 for the page tables, the rest until it runs, and Python's own hooks), 1.0 in the daemon, 0.4 for the report through two processes. 1,300 page faults in three living processes, each a copy; `DaemonContext` has 400, as its callers end at once and their pages are the daemon's: it reports to nobody",
    "... with a pidfile": "as without it, and the lock: taken, lent or handed over, and named in the file, by 22 system calls in a launch and 80 in the three processes of a start",
    "... at `RLIMIT_NOFILE`": "as without the limit: the pages that are copied",
    "`spawn_detached()`": "13 system calls of the caller and 62 `sigaction`s of the child, which `Popen` and C make too. Called by ctypes with all ready, posix_spawn(3) takes 1.01 x C's; the look at the program (7 us), the null device (5), the pidfd (8) and the handle (3) make that 1.3, and checking 16 arguments, in Python that is cold after each launch, the rest",
    "... with `umask`": "posix_spawn(3) has no umask, so `Popen` launches, whose whole time comes first; on top a read of /proc/thread-self/status for ignored signals (13 us), and what every launch takes",
    "... with `env`": "as without; the variables are encoded and joined twice, 15 us",
    "... with": "as `spawn_detached()` without it; quicker through `_posixsubprocess.fork_exec` alone, which is private",
    "... SIG": "a look at the program, the pidfd and the handle",
    "... both": "a look at the program, the pidfd and the handle",
    "... 1,000 in a row": "the launched programs fill the processors: C's own figure rises more",
    "`status()`": "as `PidFile.read_pid()`: a read of /proc/PID/stat; and the `Status` object, half a microsecond",
    "`stop()`": "a Python call where C has a system call",
    "`daemonkit ": "`argparse` and what it imports take about as long as Python itself",
    "`daemonkit start": "Python starts, forks the daemon, and that its worker: three processes, and the imports of all of them",
    "memory": "two Python processes, the calling one and the worker that it watches over: what they import is 8 MiB, and each writes to its own copy of some of it",
    "a crash until it runs again": "a fork of a Python process: its hooks and the pages that they touch take a millisecond, and what the dead run left is ended first",
    "start": "each instance is a fork of a Python process, whose hooks and pages take a millisecond before the program's own exec does; quicker only in a process that has imported nothing, or in C",
    "stop": "each instance is looked after until nothing of it is left, also outside its process group",
    "log with rotation": "one Python process reads, looks for the line's end and writes; without rotation there is no pump",
    "a crash loop": "each start is a fork of a Python process",
}


def reason_for(what: str) -> str:
    """Return why the goal of this row is missed, as far as it is known."""
    fitting = [key for key in _REASONS if what.startswith(key)]
    return _REASONS[max(fitting, key=len)] if fitting else "not looked into yet"
