"""One run of an instance: what lies between the worker's fork and the program.

Each page of memory that is written to here is copied first, also by a reference to an object or a call of a function.
These copies are half the time of a start, so the shorter way is taken where there are two.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import resource
import signal
import sys
import traceback

from daemonkit._system.fork import exit_status_of
from daemonkit._system.prctl import die_with_parent
from daemonkit._system.program import find_program
from daemonkit._system.streams import STREAM_NAMES, open_source, rebind
from daemonkit._system.unpatched import close, genuine, pthread_sigmask, renew_hubs
from daemonkit._system.users import change_owner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Final, NoReturn

    from daemonkit._supervise.checks import CheckKind
    from daemonkit._supervise.settings import Settings

_LISTEN_START: Final = 3  # sd_listen_fds(3)
_SIG_SETMASK: Final = int(signal.SIG_SETMASK)


def become(settings: Settings, index: int, address: bytes | str, parent: int, own: Iterable[int]) -> NoReturn:
    """Become a run of an instance, unless the parent is gone; `own` is what the worker has open for itself."""
    try:
        os.setsid()
        _open_streams(settings, index)
        environment = _environment(settings, index, address)
        if settings.cpus:
            os.sched_setaffinity(0, {settings.cpus[index % len(settings.cpus)]})
        if settings.target:
            _undo_own(own)
        if settings.listen:
            _pass_sockets(settings.listen, settings.bound if settings.target else frozenset())
        _enter_directory(settings)
        if settings.target:
            _become_user(settings, parent)
            _call(settings.target, environment)
        argv = settings.argv
        program = argv[0] if b"/" in argv[0] else find_program(settings.program, settings.env, None)
        _become_user(settings, parent)
        try:
            os.execve(program, argv, environment)  # noqa: S606 - no shell is what is wanted
        except OSError:
            find_program(settings.program, settings.env, None)  # which tells more exactly what is wrong
            raise
    except BaseException as error:  # noqa: BLE001 - the last thing this process does
        text = f"daemonkit: instance {index} was not started: {''.join(traceback.format_exception_only(error))}"
        genuine(os.write)(2, text.encode(errors="backslashreplace"))
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


def become_check(settings: Settings, index: int, kind: CheckKind, output: int, parent: int) -> NoReturn:
    """Become a check of an instance, in its environment, directory and user; what it prints goes to `output`."""
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        for fd, number in ((null, 0), (output, 1), (output, 2)):
            os.dup2(fd, number)
        if settings.owner:
            os.fchown(output, settings.owner.uid, settings.owner.gid)
        assert settings.checks  # noqa: S101 - there is one, as it is run
        program, argv = settings.checks.health if kind == "health_check" else settings.checks.ready
        _enter_directory(settings)
        path = find_program(program, settings.env, None)
        _become_user(settings, parent)
        os.execve(path, argv, {**settings.env, b"DAEMONKIT_INSTANCE": settings.number_of(index)})  # noqa: S606 - no shell
    except BaseException as error:  # noqa: BLE001 - the last thing this process does
        text = "".join(traceback.format_exception_only(error))
        genuine(os.write)(2, text.encode(errors="backslashreplace"))
        os._exit(127)


def _become_user(settings: Settings, parent: int) -> None:
    """Take on mask, limits and user; end if the parent is gone."""
    if settings.umask is not None:
        os.umask(settings.umask)
    resource.setrlimit(resource.RLIMIT_NOFILE, settings.nofile)
    if settings.owner:
        change_owner(settings.owner)
    die_with_parent()  # after the change of user, which would undo it: prctl(2)
    if os.getppid() != parent:
        os._exit(1)
    pthread_sigmask(_SIG_SETMASK, ())


def _open_streams(settings: Settings, index: int) -> None:
    pipes, before = settings.plumbing.pipes, -1
    for number, stream in enumerate(settings.plumbing.streams):
        if pipe := pipes.get((number, index)):
            if pipe.writer == before:
                os.dup2(1, 2)
            else:
                _move(_open_pipe(pipe.writer), number)
            before = pipe.writer
        elif path := stream.path_of(index):
            _move(open_source(STREAM_NAMES[number], path, settings.umask, settings.owner).fd, number)
        elif stream.fd is not None:
            os.dup2(stream.fd, number)
            os.set_blocking(number, stream.blocking)  # an earlier run may have left it otherwise
        if settings.owner and _is_pipe(number):
            os.fchown(number, settings.owner.uid, settings.owner.gid)  # or /dev/stdout could not be opened


def _move(fd: int, number: int) -> None:
    os.dup2(fd, number)
    close(fd)


def _open_pipe(writer: int) -> int:
    """Open a pipe anew: so an O_NONBLOCK that a run sets is its own, and not that of all later runs."""
    try:
        return os.open(f"/proc/self/fd/{writer}", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:  # no /proc here
        os.set_blocking(writer, True)
        return os.dup(writer)


def _is_pipe(number: int) -> bool:
    """Tell whether a descriptor is a pipe that has no name, so that nobody else's file changes hands."""
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/self/fd/{number}").startswith("pipe:")
    return False


def _enter_directory(settings: Settings) -> None:
    if settings.cwd is not None:
        os.chdir(settings.cwd)
    elif settings.inherited_cwd is not None:
        try:  # contextlib.suppress() would touch 15 pages
            os.chdir(settings.inherited_cwd)
        except OSError:  # it has no path any more, but is still there
            pass


def _environment(settings: Settings, index: int, address: bytes | str) -> dict[bytes, bytes]:
    environment = {**settings.env, b"DAEMONKIT_INSTANCE": settings.number_of(index)}
    if settings.listen:
        environment[b"LISTEN_FDS"] = b"%d" % len(settings.listen)
        environment[b"LISTEN_PID"] = b"%d" % os.getpid()
    if address:
        environment[b"NOTIFY_SOCKET"] = b"@" + os.fsencode(address)[1:]
    if settings.rules.watchdog is not None:
        environment[b"WATCHDOG_USEC"] = b"%d" % math.ceil(settings.rules.watchdog * 1e6)
    return environment


def _undo_own(own: Iterable[int]) -> None:
    """Undo what is the worker's, as an exec would: a callable has what the caller had open, and no more."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for fd in own:
        close(fd)


def _pass_sockets(fds: tuple[int, ...], own: frozenset[int]) -> None:
    """Have them as 3 and up; those that are the caller's `own` and no longer needed are closed."""
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _LISTEN_START + len(fds)) for fd in fds]
    for number, fd in enumerate(high, _LISTEN_START):
        os.dup2(fd, number)
        close(fd)
    for fd in own.difference(range(_LISTEN_START, _LISTEN_START + len(fds))):
        close(fd)


def _call(target: Callable[[], object], environment: dict[bytes, bytes]) -> NoReturn:
    """Run a Python callable as a program: its return is status 0, an exception status 1."""
    os.environb.clear()
    os.environb.update(environment)
    rebind()
    renew_hubs()
    status = 1
    try:
        target()
        status = 0
    except BaseException as error:  # noqa: BLE001 - as an interpreter would end
        status = exit_status_of(error)
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        elif error.code is not None and not isinstance(error.code, int):
            sys.stderr.write(f"{error.code}\n")
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)
