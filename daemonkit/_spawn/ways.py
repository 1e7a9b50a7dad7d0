"""The three ways to start a program."""

from __future__ import annotations

import contextlib
import errno
import marshal
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import partial

from daemonkit._spawn.blame import blamed
from daemonkit._spawn.ends import input_file
from daemonkit._system.descriptors import inherited_descriptors
from daemonkit._system.streams import STREAM_NAMES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any, Final

    from daemonkit._system.users import Owner

_RESET: Final = frozenset(map(int, signal.valid_signals())) - {signal.SIGKILL, signal.SIGSTOP}
# Python ignores SIGPIPE and SIGXFSZ, and Popen sets them back; 32 and 33 are the C library's own, which posix_spawn(3)
# leaves ignored in every program that it starts: all that make(1) runs, for one.
_NOT_ODD: Final = 1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1 | 1 << 32 - 1 | 1 << 33 - 1
_CLOSE_FROM: Final = getattr(os, "POSIX_SPAWN_CLOSEFROM", None)  # Python 3.13


@dataclass(frozen=True)
class Plan:
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
    owner: Owner | None


def start_program(plan: Plan, started: list[int], program: str | bytes) -> None:
    """Start the program, and put its pid in `started` in the same moment."""
    try:
        if plan.cwd is not None or plan.umask >= 0 or plan.owner or not _spawn(plan, started):
            (_popen_clean if _has_odd_signals() else _popen)(plan, started)
    except OSError as error:
        if error.filename is not None and error.filename in {plan.cwd, sys.executable}:
            raise
        raise blamed(error, plan, program) from None


def _spawn(plan: Plan, started: list[int]) -> bool:
    """Start it by posix_spawn(3); return False where that can't be told which descriptors to pass."""
    actions: list[tuple[int, ...]] = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(plan.streams)]
    actions += [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in plan.keep]  # which makes it inheritable, in the child alone
    if plan.keep or _CLOSE_FROM is None:
        handed = inherited_descriptors(copies=False) - plan.keep
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


def _popen(plan: Plan, started: list[int]) -> None:
    options: dict[str, Any] = {"executable": plan.path, "env": plan.env}
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
    process = subprocess.Popen.__new__(subprocess.Popen)
    try:
        process.__init__(  # type: ignore[misc]  # so that there is a name for it, whatever happens in there
            argv,
            **dict(zip(STREAM_NAMES, plan.streams, strict=True)),
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


def _popen_clean(plan: Plan, started: list[int]) -> None:
    """Start a Python that sets back what Popen passes on, and becomes the program."""
    if not sys.executable:
        raise RuntimeError("signals are ignored or blocked here; to set them back takes sys.executable, which is empty")
    owner = (plan.owner.uid, plan.owner.gid, plan.owner.groups) if plan.owner else None
    env = dict(os.environb) if plan.env is None else plan.env
    with contextlib.ExitStack() as stack:
        spec = input_file(marshal.dumps((plan.path, list(plan.argv), env, owner)))
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
    end_started(started)
    if not said:
        raise RuntimeError(f"{sys.executable}, which sets back the caller's ignored or blocked signals, did not start")
    raise OSError(int(said[1:]), os.strerror(int(said[1:])), plan.path)


def _has_odd_signals() -> bool:
    """Tell whether this thread's program would inherit signals that are ignored or blocked: proc(5)."""
    with open("/proc/thread-self/status", "rb", buffering=0) as file:
        text = file.read()  # of any length: there may be thousands of groups
    blocked, ignored = (int(text.partition(name)[2][:16], 16) for name in (b"\nSigBlk:\t", b"\nSigIgn:\t"))
    return bool(blocked or ignored & ~_NOT_ODD)


def end_started(started: list[int]) -> None:
    """End a program whose start failed after all, and whatever it has started."""
    for pid in started:
        with contextlib.suppress(ChildProcessError, ProcessLookupError):
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)  # not reaped, it keeps its number
            os.killpg(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED)
    started.clear()
