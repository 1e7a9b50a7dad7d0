"""Launch a detached program: `spawn_detached`.

Everything that can be refused is looked up first. Then what the program takes is opened, the program is started by
one of the ways in ways.py, and its handle is made; a failure undoes what was done before it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable, Mapping, Sequence

import daemonkit.errors  # noqa: F401 - loaded now, as a change of user or an upgrade may put it out of reach
from daemonkit._pidfile.hold import Hold, take
from daemonkit._pidfile.holder import pidfile_path
from daemonkit._pidfile.pidfile import PidFile
from daemonkit._pidfile.ranges import State
from daemonkit._spawn.ends import check_streams, open_streams
from daemonkit._spawn.ways import Plan, end_started, start_program
from daemonkit._system.check import check_number
from daemonkit._system.descriptors import descriptor_of
from daemonkit._system.handle import DetachedProcess
from daemonkit._system.pidfd import has_ended, is_child, open_pidfd, require_pidfds
from daemonkit._system.process import Identity, identity_of, ticks
from daemonkit._system.program import command_of, directory_of, environment_of, find_program
from daemonkit._system.reaping import reap
from daemonkit._system.run_mark import set_free
from daemonkit._system.streams import STREAM_NAMES
from daemonkit._system.unpatched import close
from daemonkit._system.users import owner_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO

    from daemonkit._spawn.ends import Streams
    from daemonkit._system.streams import Path, StreamOption


def spawn_detached(  # noqa: PLR0913 - each is an option of its own, and keyword-only
    args: str | bytes | os.PathLike[str] | os.PathLike[bytes] | Sequence[Path],
    *,
    stdin: StreamOption = None,
    stdout: StreamOption = None,
    stderr: StreamOption = None,
    input: bytes | bytearray | memoryview | None = None,  # noqa: A002 - subprocess's word
    cwd: Path | None = None,
    env: Mapping[str, str] | Mapping[bytes, bytes] | None = None,
    executable: Path | None = None,
    shell: bool = False,
    umask: int | None = None,
    pass_fds: Iterable[int] = (),
    user: int | str | None = None,
    group: int | str | None = None,
    extra_groups: Iterable[int | str] | None = None,
    pidfile: Path | PidFile | None = None,
) -> DetachedProcess:
    """Launch a program that outlives the caller, its terminal and a Ctrl-C there, and return its handle.

    ::

        p = daemonkit.spawn_detached(["python", "b.py"], stdout="b.log")
        print(p.pid)

    On return the program has been exec'ed. It leads a session and a process group of its own, has no terminal,
    default signal dispositions, an empty signal mask, and no descriptors but 0, 1, 2, `pass_fds` and, with
    `pidfile`, one for the lock. It stays an ordinary child of the caller as long as that lives.

    - `stdin`, `stdout`, `stderr`: None or `DEVNULL`, a path (read, or appended to; created 0o640 less the umask), an
      open file or descriptor, `INHERIT`, `PIPE`, ``stderr=STDOUT``.
    - `input`: bytes for its stdin, complete even if the caller ends at once.
    - `cwd`, `env`, `executable`, `shell`, `umask`, `pass_fds`: as in `subprocess`.
    - `user`, `group`, `extra_groups`: numbers or names. A user alone brings its own primary and supplementary groups;
      the caller's are never kept. Where `env` is not given, HOME, USER, LOGNAME and SHELL become that user's.
    - `pidfile`: a path or a `PidFile`. It is locked before the program starts, and the program holds it for life; on
      return it names the program.

    Raises in the caller, with nothing started and nothing left: OSError with its errno and, as `filename`, what is
    at fault (the program, the interpreter in its ``#!``, `cwd`, a log, the pidfile); AlreadyRunningError; TypeError,
    ValueError; LookupError for an unknown user or group; PermissionError without the right to change users. After
    Node's ``spawn(command, args, {detached: true})``, posix_spawn(3) and `subprocess.Popen`.

    >>> daemonkit.spawn_detached(["no-such-program"])
    Traceback (most recent call last):
    FileNotFoundError: [Errno 2] not found on PATH: 'no-such-program'
    """
    reap()
    argv, program = command_of(args, executable, shell=shell)
    options = (stdin, stdout, stderr)
    check_streams(options, input)
    keep = _check_pass_fds(pass_fds)
    variables = environment_of(env)
    umask = None if umask == -1 else umask
    check_number("umask", umask, 0o777)
    owner = None
    if user is not None or group is not None or extra_groups is not None:
        _check_groups(extra_groups)
        owner = owner_of(user, group, extra_groups, names=("user", "group", "extra_groups"))
        if variables is None and owner.login:
            variables = owner.environment(os.environb)
    folder = directory_of(cwd)
    hold = None if pidfile is None else Hold(pidfile_path(pidfile), State.LENT)
    timeout = pidfile.timeout if isinstance(pidfile, PidFile) else 0
    path = find_program(program, variables, folder)
    require_pidfds()
    plan = Plan(path, argv, variables, keep, folder, umask, owner)
    return _launch(plan, program, args, options, input, hold, timeout)


def _launch(  # noqa: PLR0913, PLR0917 - the plan, and what is still to be opened for it
    plan: Plan,
    program: str | bytes,
    args: object,
    options: Streams,
    data: bytes | bytearray | memoryview | None,
    hold: Hold | None,
    timeout: float | None,
) -> DetachedProcess:
    """Open what the program takes, start it and return its handle; a failure undoes what was done before it."""
    started: list[int] = []
    low: list[int] = []
    opened: list[int] = []
    undo = contextlib.ExitStack()
    try:
        try:
            while (null := os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)) < 3:
                low.append(null)  # 0, 1 or 2 is closed here: nothing else may land on it
            opened.append(null)
            if hold:
                undo.callback(hold.release)
                take(hold, timeout)
                plan.keep |= {hold.fd}
            plan.streams, pipes = open_streams(options, data, null, plan.umask, plan.owner, opened, undo)
            before = ticks()
            start_program(plan, started, program)
            set_free(started[0])  # of the instance that this process may be part of
            in_time = before == ticks()
            _close(opened)  # so that there is a descriptor for a look at /proc, and then for the pidfd
            who = _identity(started[0], before if in_time else None) if hold else None
            handle = _handle(started[0], args, pipes)
            if hold:
                _hand_over(hold, handle, who)
        finally:
            _close(opened)
            _close(low)
    except BaseException:  # also one that a signal handler raises
        with undo:  # the last step first
            end_started(started)
            raise
    return handle


def _close(descriptors: list[int]) -> None:
    while descriptors:
        close(descriptors.pop())


def _check_pass_fds(pass_fds: object) -> frozenset[int]:
    if isinstance(pass_fds, tuple) and not pass_fds:
        return frozenset()
    if isinstance(pass_fds, (str, bytes)) or not isinstance(pass_fds, Iterable):
        raise TypeError(f"pass_fds must be descriptors, not {pass_fds!r}")
    kept = frozenset(descriptor_of("pass_fds", fd) for fd in pass_fds)
    for fd in kept:
        try:
            fcntl.fcntl(fd, fcntl.F_GETFD)
        except OSError as error:
            raise ValueError(f"pass_fds: descriptor {fd} is not open") from error
    return kept - {0, 1, 2}


def _check_groups(groups: object) -> None:
    if groups is not None and (isinstance(groups, (str, bytes)) or not isinstance(groups, Iterable)):
        raise TypeError(f"extra_groups must be numbers and names of groups, not {groups!r}")


def _handle(pid: int, args: object, pipes: Mapping[str, IO[bytes]]) -> DetachedProcess:
    try:
        pidfd = open_pidfd(pid)
    except ProcessLookupError:  # it has ended and was reaped, by another thread or the kernel (SIGCHLD ignored)
        pidfd, ended = _readable(), True
    else:
        ended = not is_child(pidfd)
        if ended and not has_ended(pidfd):  # it was reaped, and its number now means another process
            close(pidfd)
            pidfd = _readable()
    if not pipes:
        return DetachedProcess(pid, pidfd, args, ended=ended)
    stdin, stdout, stderr = map(pipes.get, STREAM_NAMES)
    return DetachedProcess(pid, pidfd, args, stdin=stdin, stdout=stdout, stderr=stderr, ended=ended)


def _readable() -> int:
    """Return a descriptor that is readable for ever, as the pidfd of a process that has ended."""
    return os.eventfd(1, os.EFD_CLOEXEC)


def _identity(pid: int, ticks: int | None) -> Identity | None:
    """Return the program's identity. Without `ticks` it takes a look at /proc/PID/stat, which waits for the exec."""
    return identity_of(pid) if ticks is None else Identity(pid, ticks)


def _hand_over(hold: Hold, handle: DetachedProcess, who: Identity | None) -> None:
    """Make the program the holder of its pidfile; it has the lock's descriptor, and the caller needs none."""
    if who and is_child(handle.fileno()):  # not reaped: the pid was the program's when its start time was looked up
        hold.name_holder(who)
        hold.close()
    else:
        hold.release()
