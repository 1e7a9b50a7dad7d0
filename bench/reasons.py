"""Why a goal is missed, by the beginning of the row's name; the longest that fits counts."""

from __future__ import annotations

_REASONS = {
    "`PidFile` acquire + release": "the file appears whole or not at all (`O_TMPFILE`, `linkat`), which alone costs 1.3 x the bare steps; `O_EXCL` would be quicker, but shows readers an empty file and leaves debris after a `kill -9`",
    "`detached()`": "the pages that Python touches are copied in three live processes; `DaemonContext` forks as often, but reports to nobody",
    "... at `RLIMIT_NOFILE`": "as without the limit: the pages that are copied",
    "`spawn_detached()`": "`os.posix_spawn` itself takes two thirds of the time; the rest is a look whether the program is there, the pidfd and the handle",
    "... with": "a look at the signals in /proc, a look before starting, and the pidfd: 15 to 20 us; quicker through private interfaces alone",
    "... SIG": "a look at the signals in /proc, and the pidfd",
    "... both": "a look at the signals in /proc, and the pidfd",
    "... 1,000 in a row": "the launched programs fill the processors: C's own figure rises more",
    "`status()`": "building the `Status` object, half a microsecond",
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
