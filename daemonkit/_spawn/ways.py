"""The ways to start a program.

None of them costs more in a caller with much memory, except a change of user, and each returns once the program has
been exec'ed. posix_spawn(3) is the quickest; it resets signals in the child alone, but has no `umask` and no `user`.
`subprocess.Popen` has those, but passes on the signals that are ignored or blocked. For a caller that ignores or blocks
signals, as one under nohup(1), and wants another umask or user, there are two more:

- A small Python program (become.py) resets the signals and becomes the program.
- A frozen or embedded program has no `sys.executable` that would run become.py. There /bin/sh sets the umask, and where
  another user is wanted an error says how to reset the signals first.

The shell would do for every umask. But it drops variables whose names it can't spell and sets some of its own, it
can't give a program another name than its path, it runs a file without a first line as a script, and its caller does
not learn why a program could not be run.
"""

from __future__ import annotations

import contextlib
import errno
import marshal
import os
import signal
import sys
from functools import partial

from daemonkit._spawn import posix_spawn
from daemonkit._spawn.blame import blamed, check_executable
from daemonkit._spawn.ends import input_file
from daemonkit._spawn.popen import popen
from daemonkit._system.descriptors import append_result, inheritable_descriptors
from daemonkit._system.pidfd import wait_for_end
from daemonkit._system.program import own_environment
from daemonkit._system.signals import ALL_SIGNALS
from daemonkit._system.streams import STREAM_NAMES
from daemonkit._system.unpatched import close, genuine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any, Final

    from daemonkit._system.users import Owner

_RESET: Final = ALL_SIGNALS - {signal.SIGKILL, signal.SIGSTOP}
# Python ignores SIGPIPE and SIGXFSZ, and Popen sets them back. The C library keeps 32 and 33 for itself, and its
# posix_spawn(3) leaves both ignored in the programs that it starts, such as those that make(1) runs.
HARMLESS_IGNORED: Final = 1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1 | 1 << 32 - 1 | 1 << 33 - 1
_STATUS: Final = 4096  # bytes; only a process that is in hundreds of groups takes a second read
_FEW: Final = 64  # descriptors; it takes less time to close so many numbers than to list what is open


class Plan:  # not a dataclass: importing dataclasses takes as long as all the rest
    """What is to be started, and how; None means as the caller has it."""

    __slots__ = ("argv", "cwd", "env", "keep", "owner", "path", "streams", "umask")

    def __init__(  # noqa: PLR0913, PLR0917 - the fields
        self,
        path: bytes,
        argv: tuple[bytes, ...],
        env: dict[bytes, bytes] | None,
        keep: frozenset[int],
        cwd: str | None,
        umask: int | None,
        owner: Owner | None,
        streams: tuple[int, ...] = (),
    ) -> None:
        """Take the fields."""
        self.path, self.argv, self.env = path, argv, env
        self.keep = keep
        """The descriptors above 2 that the program has."""
        self.cwd, self.umask, self.owner = cwd, umask, owner
        self.streams = streams
        """The caller's descriptors that become 0, 1, 2; all above 2."""


def start_program(plan: Plan, started: list[int], program: str | bytes) -> None:
    """Start the program, and put its pid in `started` in the same moment; `program` is its name, for errors."""
    try:
        if plan.umask is None and not plan.owner and _can_enter(plan) and _spawn(plan, started):
            return
        if _has_odd_signals():
            _start_for_odd_signals(plan, started)
        else:
            _popen(plan, started)
    except OSError as error:
        if error.filename is not None and error.filename in {plan.cwd, sys.executable}:
            raise
        raise blamed(error, plan, program) from None


def _can_enter(plan: Plan) -> bool:
    return plan.cwd is None or posix_spawn.CAN_ENTER


def _start_for_odd_signals(plan: Plan, started: list[int]) -> None:
    if is_python():
        _become(plan, started)
    elif _shell_will_do(plan) and _spawn(by_shell := _by_shell(plan), started):
        _await_exec(started[0], by_shell.argv)
    else:
        raise RuntimeError(
            "signals are ignored or blocked here, and only a Python could reset them for the program, which "
            f"sys.executable ({sys.executable!r}) is not; reset them yourself before this call: "
            "signal.signal(N, signal.SIG_DFL) for each ignored one, and signal.pthread_sigmask(signal.SIG_SETMASK, ())"
        )


def _spawn(plan: Plan, started: list[int]) -> bool:
    """Start it by posix_spawn(3); return False if that refuses a descriptor's number."""
    try:
        if posix_spawn.CAN_ENTER:
            posix_spawn.spawn(plan.path, plan.argv, plan.env, _file_actions(plan), started)
            return True
        kinds = {"dup2": os.POSIX_SPAWN_DUP2, "close": os.POSIX_SPAWN_CLOSE}
        files = [(kinds[kind], fd, to)[: 3 if kind == "dup2" else 2] for kind, fd, to in _actions(plan)]
        start = partial(genuine(os.posix_spawn), file_actions=files, setsid=True, setsigmask=(), setsigdef=_RESET)
        env = own_environment() if plan.env is None else plan.env
        append_result(started, partial(start, plan.path, plan.argv, env))
    except OSError as error:
        if error.errno == errno.EBADF:  # a number at or above a lowered RLIMIT_NOFILE
            return False
        raise
    return True


_ready: dict[tuple[object, ...], posix_spawn.FileActions] = {}
"""Those that do not depend on what is open. Most launches of a program have the same, and they take a while to make."""


def _file_actions(plan: Plan) -> posix_spawn.FileActions:
    key = (plan.streams, plan.keep, plan.cwd)
    if (ready := _ready.get(key)) is not None:
        return ready
    made = posix_spawn.FileActions(_actions(plan), None if plan.cwd is None else os.fsencode(plan.cwd))
    if _closes_all(plan):
        if len(_ready) >= _FEW:
            _ready.clear()
        _ready[key] = made
    return made


def _closes_all(plan: Plan) -> bool:
    """Tell whether the C library can close whatever is open, so that nobody has to look."""
    return posix_spawn.CAN_CLOSE_ALL and max(plan.keep, default=2) < _FEW


def _actions(plan: Plan) -> list[tuple[str, int, int]]:
    """Return what the child does with its descriptors before the exec."""
    actions = [("dup2", fd, number) for number, fd in enumerate(plan.streams)]
    actions += [("dup2", fd, fd) for fd in plan.keep]  # which makes it inheritable, in the child alone
    last = max(plan.keep, default=2)
    # To close a number that is not open does no harm.
    unwanted: Iterable[int] = range(3, last) if _closes_all(plan) else inheritable_descriptors()
    actions += [("close", fd, fd) for fd in unwanted if fd not in plan.keep]
    if posix_spawn.CAN_CLOSE_ALL:
        actions.append(("closefrom", last + 1, 0))
    return actions


def _popen(plan: Plan, started: list[int]) -> None:
    options: dict[str, Any] = {"executable": plan.path, "env": plan.env, "cwd": plan.cwd}
    if plan.umask is not None:
        options["umask"] = plan.umask
    if plan.owner:
        options |= {"user": plan.owner.uid, "group": plan.owner.gid, "extra_groups": plan.owner.groups}
    _run(plan, started, plan.argv, **options)


def _run(
    plan: Plan,
    started: list[int],
    argv: Sequence[str | bytes],
    keep: Iterable[int] = (),
    **options: Any,  # noqa: ANN401 - Popen's
) -> None:
    kind = popen()
    process = kind.__new__(kind)
    try:
        process.__init__(  # type: ignore[misc]  # a second step, so that `finally` has the object if this one fails
            argv,
            **dict(zip(STREAM_NAMES, plan.streams, strict=True)),
            pass_fds=(*plan.keep, *keep),
            start_new_session=True,
            **options,
        )
        started.append(process.pid)
    finally:
        process.returncode = 0  # so that Popen neither reaps nor warns: the handle reaps


def _load_become() -> str | None:
    """Return the source of become.py, read early: root's own folder or a deleted one can't be read later."""
    with contextlib.suppress(OSError):  # a frozen program, where there are no files
        path = os.path.join(os.path.dirname(__file__), "become.py")
        source: bytes = __loader__.get_data(path)  # type: ignore[name-defined]  # also from a zip file
        return source.decode()
    return None


_BECOME: Final = _load_become()


def is_python() -> bool:
    """Tell whether `sys.executable` is a Python that runs what it is told.

    In a frozen program it is the program itself, which would start itself without end. Where Python is embedded it is
    the program around it (uWSGI, a web server), or some other Python on PATH. So both this process's executable and
    `sys.executable` must be files whose names begin with python.
    """
    if not sys.executable or _BECOME is None or getattr(sys, "frozen", False):
        return False
    executables = (os.path.realpath("/proc/self/exe"), os.path.realpath(sys.executable))
    return all(os.path.basename(path).startswith("python") for path in executables)


def _become(plan: Plan, started: list[int]) -> None:
    """Start a Python that resets the signals and becomes the program."""
    owner = (plan.owner.uid, plan.owner.gid, plan.owner.groups) if plan.owner else None
    env = own_environment() if plan.env is None else plan.env
    with contextlib.ExitStack() as stack:
        spec = input_file(marshal.dumps((plan.path, list(plan.argv), env, plan.umask, owner)))
        stack.callback(close, spec)
        reader, writer = (stack.enter_context(open(fd, mode)) for fd, mode in zip(os.pipe(), ("rb", "wb"), strict=True))
        command = [sys.executable, "-I", "-S", "-c", _BECOME or "", str(spec), str(writer.fileno())]
        try:
            _run(plan, started, command, (spec, writer.fileno()), cwd=plan.cwd)
        except OSError as error:
            if error.filename == sys.executable:
                text = f"{error.strerror}: it is needed to reset the signals that are ignored or blocked here"
                raise OSError(error.errno, text, sys.executable) from error
            raise
        writer.close()
        report = reader.read()  # up to the exec, which closes the other end
    if report == b"+":
        return
    end_started(started)
    if not report:
        raise RuntimeError(
            f"{sys.executable} did not start; it is needed to reset the signals that are ignored or blocked here"
        )
    raise OSError(int(report[1:]), os.strerror(int(report[1:])), plan.path)


_SHELL: Final = b"/bin/sh"
_ENV: Final = b"/usr/bin/env"
_PROGRAM: Final = 4  # the place in the shell's arguments where the program begins
_OF_SHELLS: Final = (b"PWD", b"OLDPWD", b"SHLVL", b"_", b"IFS", b"OPTIND", b"PPID", b"LINENO")


def _shell_will_do(plan: Plan) -> bool:
    if plan.umask is None or plan.owner or not _can_enter(plan):
        return False
    return all(os.access(path, os.X_OK) for path in (_SHELL, _ENV))


def _by_shell(plan: Plan) -> Plan:
    """Return the plan of a shell that sets the umask and becomes the program, whose argv[0] is its path then.

    A shell drops the variables whose names it can't spell, and sets some of its own: env(1) mends both.
    """
    check_executable(plan)
    env = own_environment() if plan.env is None else plan.env
    mended = [b"-u" + name for name in _OF_SHELLS if name not in env]
    mended += [name + b"=" + env[name] for name in env if name in _OF_SHELLS or not _is_word(name)]
    script = b'umask "$0" && exec "$@"'
    program = (_ENV, *mended, plan.path, *plan.argv[1:])
    if b"=" in plan.path:  # which env(1) would take for a variable
        program = (plan.path, *plan.argv[1:])
    argv = (b"sh", b"-c", script, b"%o" % (plan.umask or 0), *program)
    return Plan(_SHELL, argv, env, plan.keep, plan.cwd, None, None, plan.streams)


def _await_exec(pid: int, argv: Sequence[bytes]) -> None:
    """Return once that process, first the shell and then perhaps env(1), has become the program, or has ended."""
    helpers = [argv, argv[_PROGRAM:]] if argv[_PROGRAM] == _ENV else [argv]
    lines = [b"", *(b"\0".join((*helper, b"")) for helper in helpers)]  # b"" is read in the midst of an exec
    with contextlib.suppress(OSError):  # it is gone, or there is no /proc
        while _command_line(pid) in lines and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            wait_for_end(pid, 0.001)


def _command_line(pid: int) -> bytes:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read()


def _is_word(name: bytes) -> bool:
    return name.isascii() and name.decode().isidentifier()


def _has_odd_signals() -> bool:
    """Tell whether a program that this thread starts would inherit signals that are ignored or blocked: proc(5)."""
    try:
        fd = os.open("/proc/thread-self/status", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):  # without /proc nobody knows
        return True
    text = b""
    try:
        while (end := text.find(b"\nSigCgt:")) < 0 and (more := os.read(fd, _STATUS)):
            text += more
    finally:
        close(fd)
    # Before that line come SigBlk and SigIgn, each with a tab and 16 digits.
    return end < 0 or bool(int(text[end - 41 : end - 25], 16) or int(text[end - 16 : end], 16) & ~HARMLESS_IGNORED)


def end_started(started: list[int]) -> None:
    """End a program whose start failed after it was executed, and everything that it has started."""
    for pid in started:
        with contextlib.suppress(ChildProcessError, ProcessLookupError):
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)  # not reaped, it keeps its number
            os.killpg(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED)
    started.clear()
