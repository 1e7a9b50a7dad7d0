"""Launch a detached program: `spawn_detached`.

There are three ways to start one; none of them costs more in a caller with much memory, and all of them return once
the program has been exec'ed. `os.posix_spawn` is the quick one, and resets signals in the child alone, but knows no
`cwd`, `umask` or `user`. `subprocess.Popen` knows those, but passes on ignored and blocked signals. Where there are
both, `Popen` starts a small Python program that resets the signals and becomes the one that was asked for.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import marshal
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from daemonkit import _command, _pidfile, _process, _stdio, _users
from daemonkit._constants import DEVNULL, INHERIT, PIPE, STDOUT
from daemonkit._handle import DetachedProcess
from daemonkit._lock import PidFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO, Any, Final

    from daemonkit._pidfile import Hold
    from daemonkit._stdio import Path, Source, StreamOption

_RESET: Final = frozenset(map(int, signal.valid_signals())) - {signal.SIGKILL, signal.SIGSTOP}
# Python ignores SIGPIPE and SIGXFSZ, and Popen sets them back; 32 and 33 are the C library's own, which posix_spawn(3)
# leaves ignored in every program that it starts: all that make(1) runs, for one.
_NOT_ODD: Final = 1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1 | 1 << 32 - 1 | 1 << 33 - 1
_CLOSE_FROM: Final = getattr(os, "POSIX_SPAWN_CLOSEFROM", None)  # Python 3.13
_SHEBANG: Final = 256  # bytes of a script's first line that the kernel reads: execve(2)


@dataclass(frozen=True)
class _Plan:
    """What is to be started, settled before it is."""

    path: bytes
    argv: tuple[bytes, ...]
    env: dict[bytes, bytes] | None
    streams: tuple[int, ...]
    """The caller's descriptors that become 0, 1, 2; all above 2."""
    keep: frozenset[int]
    cwd: str | None
    umask: int
    """-1: the caller's."""
    owner: _users.Owner | None


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

    `stdin`, `stdout`, `stderr`: None or `DEVNULL`, a path (read, or appended to; created 0o640 less the umask), an
    open file or descriptor, `INHERIT`, `PIPE`, ``stderr=STDOUT``. `input`: bytes for its stdin, complete even if the
    caller ends at once. `cwd`, `env`, `executable`, `shell`, `umask`, `pass_fds`: as in `subprocess`. `user`,
    `group`, `extra_groups`: numbers or names; a user alone brings its own primary and supplementary groups, and
    the caller's are never kept. `pidfile`: a path or a `PidFile`, locked before the program starts and held by it
    for life; on return it names the program.

    Raises in the caller, with nothing started and nothing left: OSError with its errno and, as `filename`, what is
    at fault (the program, the interpreter in its ``#!``, `cwd`, a log, the pidfile); AlreadyRunningError; TypeError,
    ValueError; LookupError for an unknown user or group; PermissionError without the right to change users. After
    Node's ``spawn(command, args, {detached: true})``, posix_spawn(3) and `subprocess.Popen`.

    >>> daemonkit.spawn_detached(["no-such-program"])
    Traceback (most recent call last):
    FileNotFoundError: [Errno 2] not found on PATH: 'no-such-program'
    """
    _process.reap()
    argv, program = _command.command(args, executable, shell=shell)
    options = {"stdin": stdin, "stdout": stdout, "stderr": stderr}
    _check_streams(options, input)
    keep = _check_pass_fds(pass_fds)
    variables = _command.environment(env)
    umask = None if umask == -1 else umask
    _process.check_number("umask", umask, 0o777)
    owner = None
    if user is not None or group is not None or extra_groups is not None:
        _check_groups(extra_groups)
        owner = _users.owner_of(user, group, extra_groups, names=("user", "group", "extra_groups"))
    folder = _command.directory(cwd)
    lock = _pidfile_of(pidfile)
    found = _command.find(program, variables, folder)
    started: list[int] = []
    try:
        with contextlib.ExitStack() as fill, contextlib.ExitStack() as always, contextlib.ExitStack() as undo:
            _stdio.fill_closed(fill)
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            always.callback(os.close, null)
            hold = None
            if lock:
                hold = _pidfile.Hold(lock.path)
                undo.callback(hold.release)
                _pidfile.take(hold, lock.timeout)
                hold.lend()
            streams, pipes = _open_streams(options, input, null, umask, owner, always, undo)
            undo.callback(_end, started)  # first of all that is undone
            plan = _Plan(
                path=found,
                argv=argv,
                env=variables,
                streams=streams,
                keep=keep | {hold.fd} if hold else keep,
                cwd=folder,
                umask=-1 if umask is None else umask,
                owner=owner,
            )
            before = _process.ticks()
            _start(plan, started, program)
            in_time = before == _process.ticks()
            always.close()  # which leaves room for a descriptor: one for a look at /proc, and then for the pidfd
            who = _identity(started[0], before if in_time else None) if hold else None
            handle = _handle(started[0], args, pipes)
            if hold:
                _hand_over(hold, handle, who)
            undo.pop_all()
    except BaseException:
        _end(started)  # a signal handler has raised after that
        raise
    return handle


# --- what was asked for -------------------------------------------------------------------------------------------


def _check_streams(options: Mapping[str, StreamOption], data: object) -> None:
    for name, value in options.items():
        if not (isinstance(value, int) and value in (PIPE, INHERIT)):
            _stdio.check(name, value)
    if data is None:
        return
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"input: bytes, not {data!r}")
    if options["stdin"] is not None:
        raise ValueError("input: goes to stdin, so stdin can't be given too")


def _check_pass_fds(pass_fds: object) -> frozenset[int]:
    if isinstance(pass_fds, (str, bytes)) or not isinstance(pass_fds, Iterable):
        raise TypeError(f"pass_fds: descriptors, not {pass_fds!r}")
    kept = frozenset(_stdio.descriptor_of("pass_fds", fd) for fd in pass_fds)
    for fd in kept:
        try:
            fcntl.fcntl(fd, fcntl.F_GETFD)
        except OSError as error:
            raise ValueError(f"pass_fds: descriptor {fd} is not open") from error
    return kept - {0, 1, 2}


def _check_groups(groups: object) -> None:
    if groups is not None and (isinstance(groups, (str, bytes)) or not isinstance(groups, Iterable)):
        raise TypeError(f"extra_groups: numbers and names of groups, not {groups!r}")


def _pidfile_of(pidfile: Path | PidFile | None) -> PidFile | None:
    if pidfile is None or isinstance(pidfile, PidFile):
        return pidfile
    if not isinstance(pidfile, (str, bytes, os.PathLike)):
        raise TypeError(f"pidfile: a path or a PidFile, not {pidfile!r}")
    return PidFile(os.fsdecode(pidfile))


# --- what went wrong ---------------------------------------------------------------------------------------------


def _blamed(error: OSError, plan: _Plan, program: str | bytes) -> OSError:
    """Return the error with what is at fault as its filename: the program, or the interpreter that it names."""
    number = error.errno or 0
    if number in {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}:
        return OSError(number, f"{os.strerror(number)}: {os.fsdecode(program)} was not started")
    path = plan.path if plan.cwd is None else os.path.join(os.fsencode(plan.cwd), plan.path)
    at_fault: str | bytes = program
    text = os.strerror(number)
    if number in {errno.ENOENT, errno.EACCES, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}:
        while interpreter := _interpreter(path):  # which may be a script too: execve(2)
            path = interpreter
            if not _is_runnable(path):
                at_fault = os.fsdecode(path)
                text = f"{os.strerror(number)}: the interpreter in the first line of {os.fsdecode(program)}"
        if at_fault == program and number == errno.ENOENT:
            text = f"{text}: the program is there, but not the loader that it needs"
    return OSError(number, text, at_fault)


def _is_runnable(path: bytes) -> bool:
    try:
        return _command.is_program(path)
    except OSError:
        return False


def _interpreter(path: bytes) -> bytes | None:
    try:
        with open(path, "rb") as script:
            line = script.read(_SHEBANG).partition(b"\n")[0]
    except OSError:
        return None
    # Blanks and tabs separate; the carriage return of a line that was written elsewhere is part of the name.
    return line[2:].replace(b"\t", b" ").strip(b" ").split(b" ")[0] if line.startswith(b"#!") else None


# --- its streams --------------------------------------------------------------------------------------------------


def _open_streams(  # noqa: PLR0913, PLR0917 - what it takes, and the two stacks that undo it
    options: Mapping[str, StreamOption],
    data: bytes | bytearray | memoryview | None,
    null: int,
    umask: int | None,
    owner: _users.Owner | None,
    always: contextlib.ExitStack,
    undo: contextlib.ExitStack,
) -> tuple[tuple[int, ...], dict[str, IO[bytes]]]:
    """Open what 0, 1 and 2 become, and the caller's ends of the pipes."""
    fds: list[int] = []
    pipes: dict[str, IO[bytes]] = {}
    for name, value in options.items():
        if name == "stdin" and data is not None:
            fd = _input_file(data)
        elif value is None or value == DEVNULL:
            fds.append(null)
            continue
        elif value == STDOUT and name == "stderr":
            fds.append(fds[1])
            continue
        elif value == PIPE:
            fd, pipes[name] = _pipe(name)
            undo.callback(pipes[name].close)
        else:
            source = _stdio.open_source(name, _stdio.NAMES.index(name) if value == INHERIT else value, umask)
            fd = source.fd
            _own_log(source, owner, undo)
        fds.append(fd)
        always.callback(os.close, fd)
    return tuple(fds), pipes


def _own_log(source: Source, owner: _users.Owner | None, undo: contextlib.ExitStack) -> None:
    if source.created and source.path:
        undo.callback(_stdio.remove_if_empty, source.path, _stdio.inode(source.fd))
        if owner:
            os.fchown(source.fd, owner.uid, owner.gid)


def _input_file(data: bytes | bytearray | memoryview) -> int:
    """Return a file in memory with the data, open for reading: unlike a pipe it needs nobody to fill it."""
    fd = os.memfd_create("daemonkit-input")
    try:
        with memoryview(data).cast("B") as rest:
            done = 0
            while done < len(rest):
                done += os.write(fd, rest[done:])
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(fd)


def _pipe(name: str) -> tuple[int, IO[bytes]]:
    reader, writer = os.pipe()
    if name == "stdin":
        return reader, open(writer, "wb")
    return writer, open(reader, "rb")


# --- starting it --------------------------------------------------------------------------------------------------


def _start(plan: _Plan, started: list[int], program: str | bytes) -> None:
    """Start the program, and put its pid in `started` in the same moment."""
    try:
        if plan.cwd is not None or plan.umask >= 0 or plan.owner or not _spawn(plan, started):
            (_popen_clean if _has_odd_signals() else _popen)(plan, started)
    except OSError as error:
        if error.filename is not None and error.filename in {plan.cwd, sys.executable}:
            raise
        raise _blamed(error, plan, program) from None


def _spawn(plan: _Plan, started: list[int]) -> bool:
    """Start it by posix_spawn(3); return False where that can't be told which descriptors to pass."""
    actions: list[tuple[int, ...]] = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(plan.streams)]
    actions += [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in plan.keep]  # which makes it inheritable, in the child alone
    if plan.keep or _CLOSE_FROM is None:
        handed = _stdio.inherited_descriptors(copies=False) - plan.keep
        actions += [(os.POSIX_SPAWN_CLOSE, fd) for fd in handed]
    if _CLOSE_FROM is not None:  # also what another thread has opened since
        actions.append((_CLOSE_FROM, max(plan.keep, default=2) + 1))
    start = partial(
        os.posix_spawn,
        file_actions=actions,
        setsid=True,
        setsigmask=(),
        setsigdef=_RESET,
    )
    env = os.environb.copy() if plan.env is None else plan.env
    try:
        # One step for the interpreter: no signal handler can come in between, and lose the pid.
        started.extend(map(start, [plan.path], [plan.argv], [env]))
    except OSError as error:
        if error.errno == errno.EBADF:  # a number at or above a lowered RLIMIT_NOFILE
            return False
        raise
    return True


def _popen(plan: _Plan, started: list[int]) -> None:
    options: dict[str, Any] = {"executable": plan.path, "env": plan.env}
    if plan.owner:
        options |= {"user": plan.owner.uid, "group": plan.owner.gid, "extra_groups": plan.owner.groups}
    _run(plan, started, plan.argv, **options)


def _run(
    plan: _Plan,
    started: list[int],
    argv: Sequence[str | bytes],
    keep: Iterable[int] = (),
    **options: Any,  # noqa: ANN401 - Popen's
) -> None:
    process = subprocess.Popen.__new__(subprocess.Popen)
    try:
        process.__init__(  # type: ignore[misc]  # so that there is a name for it, whatever happens in there
            argv,
            **dict(zip(_stdio.NAMES, plan.streams, strict=True)),
            pass_fds=(*plan.keep, *keep),
            cwd=plan.cwd,
            umask=plan.umask,
            start_new_session=True,
            **options,
        )
        started.append(process.pid)
    finally:
        process.returncode = 0  # so that it neither reaps nor warns: that is left to the handle


_BECOME: Final = """
import marshal, os, signal, sys
spec, report = map(int, sys.argv[1:])
os.set_inheritable(spec, False)
os.set_inheritable(report, False)
with open(spec, "rb") as file:
    path, argv, env, owner = marshal.load(file)
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_SETMASK, ())
os.write(report, b"+")
try:
    if owner:
        uid, gid, groups = owner
        if groups is not None:
            os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    os.execve(path, argv, env)
except OSError as error:
    os.write(report, b"%d" % error.errno)
os._exit(127)
"""


def _popen_clean(plan: _Plan, started: list[int]) -> None:
    """Start a Python that sets back what Popen passes on, and becomes the program."""
    if not sys.executable:
        raise RuntimeError("signals are ignored or blocked here; to set them back takes sys.executable, which is empty")
    owner = (plan.owner.uid, plan.owner.gid, plan.owner.groups) if plan.owner else None
    env = dict(os.environb) if plan.env is None else plan.env
    with contextlib.ExitStack() as stack:
        spec = _input_file(marshal.dumps((plan.path, list(plan.argv), env, owner)))
        stack.callback(os.close, spec)
        reader, writer = (stack.enter_context(open(fd, mode)) for fd, mode in zip(os.pipe(), ("rb", "wb"), strict=True))
        command = [sys.executable, "-I", "-S", "-c", _BECOME, str(spec), str(writer.fileno())]
        try:
            _run(plan, started, command, (spec, writer.fileno()))
        except OSError as error:
            if error.filename == sys.executable:
                text = f"{error.strerror}: it is needed to set back the signals that are ignored or blocked here"
                raise OSError(error.errno, text, sys.executable) from error
            raise
        writer.close()
        said = reader.read()  # up to the exec, which closes the other end
    if said == b"+":
        return
    _end(started)
    if not said:
        raise RuntimeError(f"{sys.executable}, which sets back the caller's ignored or blocked signals, did not start")
    raise OSError(int(said[1:]), os.strerror(int(said[1:])), plan.path)


def _has_odd_signals() -> bool:
    """Tell whether this thread's program would inherit signals that are ignored or blocked: proc(5)."""
    with open("/proc/thread-self/status", "rb", buffering=0) as file:
        text = file.read()  # of any length: there may be thousands of groups
    blocked, ignored = (int(text.partition(name)[2][:16], 16) for name in (b"\nSigBlk:\t", b"\nSigIgn:\t"))
    return bool(blocked or ignored & ~_NOT_ODD)


# --- once it runs -------------------------------------------------------------------------------------------------


def _handle(pid: int, args: object, pipes: Mapping[str, IO[bytes]]) -> DetachedProcess:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:  # it has ended, and was reaped by somebody else or by the kernel (SIGCHLD ignored)
        pidfd, ended = _readable(), True
    else:
        ended = not _process.is_child(pidfd)
        if ended and not _process.has_ended(pidfd):  # the same, and the number has been given out again
            os.close(pidfd)
            pidfd = _readable()
    stdin, stdout, stderr = map(pipes.get, _stdio.NAMES)
    return DetachedProcess(pid, pidfd, args, stdin=stdin, stdout=stdout, stderr=stderr, ended=ended)


def _readable() -> int:
    return os.eventfd(1, os.EFD_CLOEXEC)


def _identity(pid: int, ticks: int | None) -> _process.Identity | None:
    """Return the program's identity; a look at /proc/PID/stat, which waits for the exec to end, if `ticks` is None."""
    return _process.identity_of(pid) if ticks is None else _process.Identity(pid, ticks)


def _hand_over(hold: Hold, handle: DetachedProcess, who: _process.Identity | None) -> None:
    """Make the program the holder of its pidfile; it has the lock's descriptor, and the caller needs none."""
    if who and _process.is_child(handle.fileno()):  # so that the number was the program's while it was looked up
        hold.name_holder(who)
        hold.close()
    else:
        hold.release()


def _end(started: list[int]) -> None:
    """End a program whose start failed after all, and whatever it has started."""
    for pid in started:
        with contextlib.suppress(ChildProcessError, ProcessLookupError):
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)  # not reaped, it keeps its number
            os.killpg(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED)
    started.clear()
