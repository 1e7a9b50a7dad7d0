"""Why a goal is missed, by the beginning of the row's name; the longest that fits counts."""

from __future__ import annotations

_REASONS = {
    "`PidFile` acquire + release": "14 system calls, lockfile's 18; what is left is Python's: the file appears whole or not at all (`O_TMPFILE`, `linkat` through /proc), is locked, and is compared with its name before it goes",
    "`PidFile.read_pid()`": "4 of its 10 us are one read of /proc/PID/stat, which the kernel composes anew: it alone tells the holder from a process with the same number later, and a zombie from a living one; opening the file and asking for its lock take 4 more",
    "`daemonkit.status`": "`collections` and `contextlib` are 2.5 ms of it, the modules of the pidfile the rest",
    "`detached()`": "a page that a forked process writes to takes 2.7 us while another process still has it, as it is copied, and 1.1 us where no other has it any more (measured by a C program). `DaemonContext` forks as often, but each parent ends at once and reports to nobody; here the caller and the middle process live until the daemon has started. So 612 pages are copied on the way to the report: 227 in the middle process and 385 in the daemon. That takes 1.7 of the 4.2 ms. `DaemonContext` touches 489 pages and copies only those that a living parent shares. That takes 0.5 to 1.3 of its 2.2 ms. Of these pages, 124 in each child are touched by the hook of `threading`, which `lockfile` loads, with either. Before the first fork come 98 system calls in 0.5 ms beside 28 in 0.15: a look at threads, children, record locks and descriptors that were handed in, of which `DaemonContext` takes none. The report through the middle process takes 0.25 ms. On a busy processor each of the five changes of process may wait for its turn, beside two",
    "... with a pidfile": "as without it, and the lock: taken, lent or handed over, and named in the file, by 22 system calls in a launch and 78 in the three processes of a start. The daemon takes over the lock that the caller took, and copies 130 pages more for that, which is 0.35 ms; `PIDLockFile` writes its file once, in the daemon",
    "... at `RLIMIT_NOFILE`": "as without the limit: the pages that are copied",
    "`spawn_detached()`": "13 system calls of the caller and 62 `sigaction`s of the child, which `Popen` and C make too. Called by ctypes with all ready, posix_spawn(3) takes 1.01 x C's; the look at the program (11 us), the null device (5), the pidfd and the handle (9) make that 1.3, and checking 16 arguments (25), in Python that is cold after each launch, the rest",
    "... with `umask`": "posix_spawn(3) has no umask, so `Popen` launches: 101 of 204 us, where `Popen` alone takes 117 as it opens the null device itself. On top come a read of /proc/thread-self/status for signals that are ignored or blocked, which the kernel composes anew each time (23 us), the arguments (25), the look at the program (11), the pidfd and the handle (9), and the null device (5)",
    "... with `env`": "as without; the variables are encoded and joined twice, 15 us",
    "... with": "as `spawn_detached()` without it; quicker through `_posixsubprocess.fork_exec` alone, which is private",
    "... SIG": "a look at the program, the pidfd and the handle",
    "... both": "a look at the program, the pidfd and the handle",
    "... 1,000 in a row": "the launched programs fill the processors: C's own figure rises more",
    "`status()`": "as `PidFile.read_pid()`: of 11.4 us, opening the file and asking for its lock take 1.5 in the kernel and a read of /proc/PID/stat 3.4, which together is two thirds of the 7.9 us that lockfile takes for all; the rest is Python, the `Status` object 0.8 of it. lockfile does not find out whether the number means the same process still",
    "`stop()`": "a Python call where C has a system call",
    "`daemonkit ": "63 million instructions for `status`, 68 for `ls` with 20 apps, 41 for `python -c pass`, whose last 7 take the interpreter apart, which the command leaves out. Of what comes on top `collections`, `functools` and `contextlib` are 12, the look at 20 apps is 5, and daemonkit's own modules are most of the rest; `argparse`, `json`, `re` and `enum`, another 22, are not loaded",
    "`daemonkit start": "of 78 ms Python's own start takes 12, and three processes in a row 18 each, nearly all of it imports that the one before does not need: the command (`re`, `enum`, `traceback`, the options), the caller of `detached()` (`lockfile` with `socket` and `threading`, `logging`), and the daemon (the supervisor, `ctypes`, `_pickle`). Four forks take 4; the worker, the program's own start, READY=1 and the report through three processes are the rest. All of it is processor time in a row, which a second processor can't shorten; `pm2 start` is Node's start and a request to a daemon that has everything loaded",
    "memory": "two Python processes, the calling one and the worker that it watches over. Each has 7.1 MB of its own: 3.0 are Python's, 1.4 those of `logging` and of what that imports, 2.5 daemonkit's and of the rest. 2.0 of them are written to after the fork, and so are there twice; the others are shared. With each instance come 4 KB: its pipe, its run, its records",
    "a crash until it runs again": "the least of 40 times: 0.15 ms until the worker wakes up, 0.4 until it has ended what the dead run left and forks, 0.6 to 0.8 for the fork of its 7 MB, 0.5 in the child, 1.3 until the program reports, where C takes about 0.5 less as no copy of a process has to end at the exec. C's posix_spawn(3) copies no memory: 58 page faults in all, the program's own, and 1.1 ms of a processor; here there are 220 more in the child and 310 in the worker, and 4.4 ms in both. vfork(2) would save both, but PR_SET_PDEATHSIG has to be set in the child, and Python can do that after a fork alone",
    "start": "each instance is a fork of a Python process with 7 MB of its own, of which the child copies 220 pages before the program's exec; see `a crash until it runs again`. With 2,000 instances the worker has 6,000 descriptors, which each fork copies and each exec closes: half a millisecond more",
    "stop": "each instance is looked after until nothing of it is left, also outside its process group",
    "log with rotation": "one Python process reads, looks for the line's end and writes; without rotation there is no pump",
    "a crash loop": "each start is a fork of a Python process",
}


def reason_for(what: str) -> str:
    """Return why the goal of this row is missed, as far as it is known."""
    fitting = [key for key in _REASONS if what.startswith(key)]
    return _REASONS[max(fitting, key=len)] if fitting else "not looked into yet"
