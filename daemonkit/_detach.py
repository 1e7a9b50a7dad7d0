"""Become a daemon: `DetachedContext`, whose short name is `detached`.

All that can be refused is settled in the caller, before any fork: `_prepare`. What is left for the daemon to do
is a list of steps: `_become`.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import FrameType, ModuleType, TracebackType

from daemon import daemon as _base
from daemon.daemon import DaemonContext

from daemonkit import _fork, _notify, _pidfile, _process, _stdio, _users
from daemonkit._constants import STDOUT
from daemonkit._lock import PidFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Final, Literal, NoReturn, Self

    from daemonkit._stdio import HasFileno, Path, Source, StreamOption

_logger = logging.getLogger("daemonkit")

SignalKey = int | str
Action = str | Callable[[int, FrameType | None], object] | int | None
"""What a signal does: None ignores it, a string names a method, else as in `signal.signal`."""

_CAP_SYS_CHROOT: Final = 18  # capabilities(7), linux/capability.h


@dataclass(frozen=True)
class _Plan:
    """What the daemon does to itself, settled in the caller."""

    owner: _users.Owner
    umask: int
    directory: str
    chroot: str | None
    handlers: dict[int, Callable[[int, FrameType | None], object] | int]
    sources: tuple[Source | None, ...]
    keep: frozenset[int]
    handed: frozenset[int]
    """Descriptors that this program was handed, to be closed."""
    notify: socket.socket | None


class DetachedContext(DaemonContext):
    """Turn this program into a daemon for the body of a ``with``.

    ::

        with daemonkit.detached(pidfile="app.pid", stdout="app.log", stderr=daemonkit.STDOUT):
            main()

    The body runs in the daemon. The caller waits until the daemon counts as started (the body begins; with
    `wait_ready`, it calls `ready()`) and then ends with status 0, running no ``finally`` and no exit handler of
    its own: those are the daemon's now. What fails before that is raised in the caller, with nothing left behind.
    As process 1, with ``NOTIFY_SOCKET`` set, executed by systemd, or with parent 1 and no terminal, the same
    program stays in the foreground instead, and all but the fork is done to it there.

    Every option of `daemon.DaemonContext` keeps its name and meaning; these are new, or differ:

    `pidfile`: a path, a `PidFile`, or any context manager (entered in the daemon). `stdin`, `stdout`, `stderr`:
    None or `DEVNULL`; a path, read or appended to (created 0o640 less the umask); an open file or descriptor;
    ``stderr=STDOUT``. `umask`: None adds 0o022 to the caller's. `uid`, `gid`: numbers or names; a change of user
    takes that user's primary and supplementary groups (`initgroups=False`: none of the latter). `close_fds`:
    "inherited" closes what this program was handed by whoever started it, "all" everything but `files_preserve`.
    `detach_process`: True or False instead of the rule above. `wait_ready`, `start_timeout`: see above, seconds.
    `signal_map`: signals or their names; by default DaemonContext's, and SIGHUP reopens the logs.

    On entry it raises in the caller: TypeError, ValueError; OSError with the path; LookupError for an unknown
    user or group; AlreadyRunningError; RuntimeError inside a running event loop or outside the main thread;
    StartError with the daemon's traceback; StartTimeoutError. After daemon(7), PEP 3143 and `DaemonContext`.

    >>> daemonkit.detached(stdout="app.log", umask="0o22")
    Traceback (most recent call last):
    TypeError: umask: a number from 0 to 0o777 or None, not '0o22'
    """

    def __init__(  # noqa: PLR0913 - each is an option of its own, and keyword-only
        self,
        *,
        pidfile: Path | AbstractContextManager[object] | None = None,
        stdin: StreamOption = None,
        stdout: StreamOption = None,
        stderr: StreamOption = None,
        working_directory: Path = "/",
        chroot_directory: Path | None = None,
        umask: int | None = None,
        uid: int | str | None = None,
        gid: int | str | None = None,
        initgroups: bool = True,
        prevent_core: bool = True,
        close_fds: Literal["inherited", "all"] = "inherited",
        files_preserve: Iterable[int | HasFileno | None] | None = None,
        detach_process: bool | None = None,
        wait_ready: bool = False,
        start_timeout: float | None = None,
        signal_map: Mapping[SignalKey, Action] | None = None,
    ) -> None:
        """Take the options, and refuse bad ones; nothing happens to the process yet."""
        if detach_process is None:
            detach_process = not must_stay()
        if isinstance(pidfile, (str, bytes, os.PathLike)):
            pidfile = PidFile(os.fsdecode(pidfile))
        if files_preserve is not None and not isinstance(files_preserve, Iterable):
            raise TypeError(f"files_preserve: descriptors and open files, not {files_preserve!r}")
        super().__init__(
            chroot_directory=chroot_directory,
            working_directory=working_directory,
            umask=umask,
            initgroups=initgroups,
            prevent_core=prevent_core,
            detach_process=detach_process,
            files_preserve=None if files_preserve is None else list(files_preserve),
            pidfile=pidfile,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            signal_map=dict(signal_map) if isinstance(signal_map, Mapping) else signal_map,
        )
        self.uid, self.gid = uid, gid  # not yet DaemonContext's numbers: `uid` alone brings its own group
        if signal_map is None:
            self.signal_map[signal.SIGHUP] = "reopen"
        self.close_fds = close_fds
        self.wait_ready = wait_ready
        self.start_timeout = start_timeout
        self.pid: int | None = None
        """The daemon's pid, once open."""
        self.detached = False
        """Whether it forked off, once open; False in the foreground."""
        self._started = False
        self._reporter: _fork.Reporter | None = None
        self._notify: socket.socket | None = None
        self._logs: dict[int, str | None] = {}
        self._umask = 0o022
        with _notify.refusals():
            _check(self)

    def __enter__(self) -> Self:
        """Open it."""
        self.open()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it. An exception is logged with its traceback, and the process ends with status 1."""
        if not self.is_open or os.getpid() != self.pid:
            return  # a child that the body forked ends as it likes
        crash = None if isinstance(exc_value, self._quiet()) else exc_value
        try:
            if crash:
                _log_crash(crash)
        finally:
            self.close()
            if not self._started:
                self._fail_start(exc_value)
        if crash:
            raise SystemExit(1) from crash

    def _quiet(self) -> tuple[type[BaseException], ...]:
        """Return what leaves the body without being an accident: in the foreground, also a Ctrl-C."""
        return (SystemExit, GeneratorExit) if self.detached else (SystemExit, GeneratorExit, KeyboardInterrupt)

    # --- DaemonContext's own methods ----------------------------------------------------------------------------

    def open(self) -> None:
        """Become a daemon; return in the daemon, or in the foreground process. What `with` does on entry."""
        if self.is_open:
            return
        with _notify.refusals(), contextlib.ExitStack() as always, contextlib.ExitStack() as undo:
            _check(self)
            plan = self._prepare(always, undo)
            if self.detach_process:
                self._reporter = _fork.detach(self.start_timeout)
                undo.pop_all()  # from here on this is the daemon; to undo is the caller's
            self.pid, self.detached = os.getpid(), bool(self.detach_process)
            try:
                self._become(plan)
            except BaseException as error:
                if self._reporter is None:
                    raise
                self._fail_start(error)
            undo.pop_all()

    def close(self) -> None:
        """Release the pidfile, in the process that opened the context; anywhere else it does nothing."""
        if self.pid == os.getpid():
            super().close()

    def terminate(self, signal_number: int, stack_frame: FrameType | None) -> NoReturn:  # noqa: ARG002 - a handler's arguments
        """Handle SIGTERM: raise SystemExit(0) in the main thread, so that ``finally`` blocks and exit handlers run."""
        raise SystemExit(0)

    # --- what the body calls --------------------------------------------------------------------------------------

    def ready(self, status: str | None = None) -> None:
        """Count as started: the caller ends with status 0, and a service manager is told ``READY=1``.

        `status` is a line for the service manager (``STATUS=``); a later call only updates it. Call it in the
        daemon, from any thread; RuntimeError elsewhere. See sd_notify(3).
        """
        if not self.is_open or os.getpid() != self.pid:
            raise RuntimeError(
                "ready() is for the daemon itself, within the body: not before, and not in a child it forked"
            )
        if self._started:
            _notify.send(self._notify, STATUS=status)
        else:
            self._announce(status)

    def reopen(self, signal_number: int | None = None, stack_frame: FrameType | None = None) -> None:  # noqa: ARG002 - see below
        """Open the stdout and stderr paths anew, after log rotation; where files were handed in, nothing happens.

        Also SIGHUP's handler, hence the arguments. Raises OSError, with the path, and goes on writing to the old
        file; called for a signal it logs that instead.
        """
        try:
            for fd, path in self._logs.items():
                if path is None:
                    text = "outside the new root directory, so it can't be opened anew"
                    raise FileNotFoundError(errno.ENOENT, text, str(getattr(self, _stdio.NAMES[fd])))
                _stdio.reopen(fd, path, self._umask)
        except OSError as error:
            if signal_number is None:
                raise
            _logger.warning("the log was not reopened, so the old file is written on: %s", error)
        else:
            if self.stderr == STDOUT and self._logs:
                os.dup2(1, 2)

    # --- in the caller --------------------------------------------------------------------------------------------

    def _prepare(self, always: contextlib.ExitStack, undo: contextlib.ExitStack) -> _Plan:
        """Settle all that can be refused; `undo` takes back what was done if anything is, or if the start fails."""
        self._refuse_odd_callers()
        owner = _users.owner_of(self.uid, self.gid, initgroups=self.initgroups)
        chroot, directory = _directories(self.chroot_directory, self.working_directory)
        umask = _current_umask() | 0o022 if self.umask is None else self.umask
        handlers = {_signal(key): self._handler(action) for key, action in self.signal_map.items()}
        preserved = {
            _stdio.descriptor_of("files_preserve", item) for item in self.files_preserve or () if item is not None
        }
        _stdio.fill_closed(undo)
        notify = None if self.detach_process else _notify.connect()
        if notify:
            undo.callback(notify.close)
        if isinstance(self.pidfile, PidFile):
            if not self.pidfile.i_am_locking():  # else acquire() refuses, and it stays as it is
                undo.push(self.pidfile)  # before it is acquired: a signal handler may raise at once
            self.pidfile.acquire()
        sources = self._open_sources(umask, owner, always, undo)
        self._logs = {
            fd: _inside(source.path, chroot) for fd, source in enumerate(sources) if fd and source and source.path
        }
        own = {source.fd for source in sources if source} | ({notify.fileno()} if notify else set())
        keep = preserved | own | _pidfile.descriptors() | _handed_streams(self) | _listen_fds()
        # Here and not in the daemon, where each page that is touched is copied first.
        handed = set() if self.close_fds == "all" else _stdio.inherited_descriptors(copies=bool(self.detach_process))
        _stdio.flush()
        return _Plan(
            owner=owner,
            umask=umask,
            directory=directory,
            chroot=chroot,
            handlers=handlers,
            sources=sources,
            keep=frozenset(keep),
            handed=frozenset(handed - keep),
            notify=notify,
        )

    def _refuse_odd_callers(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError(
                "detached() must be called in the main thread: signal handlers and the exit status are its own"
            )
        if not self.detach_process:
            return
        if (asyncio := sys.modules.get("asyncio")) and _has_running_loop(asyncio):
            raise RuntimeError(
                "an event loop runs in this thread and can't be forked: call detached() first, asyncio.run() in it"
            )
        if others := [thread.name for thread in threading.enumerate() if thread is not threading.current_thread()]:
            message = f"these threads will not exist in the daemon: {', '.join(others)}; start them in the body"
            warnings.warn(message, RuntimeWarning, stacklevel=5)

    def _handler(self, action: Action) -> Callable[[int, FrameType | None], object] | int:
        match action:
            case None:
                return signal.SIG_IGN
            case str():
                handler: Callable[[int, FrameType | None], object] = getattr(self, action)
                return handler
            case _:
                return action

    def _open_sources(
        self, umask: int, owner: _users.Owner, always: contextlib.ExitStack, undo: contextlib.ExitStack
    ) -> tuple[Source | None, ...]:
        """Open what 0, 1 and 2 become. In the foreground stdout and stderr stay unless they are given."""
        sources: list[Source | None] = []
        for name in _stdio.NAMES:
            value = getattr(self, name)
            if value is None and name != "stdin" and not self.detach_process:
                sources.append(None)
                continue
            if value == STDOUT and name == "stderr":
                value = sources[1].fd if sources[1] else 1
            source = _stdio.open_source(name, value, umask)
            sources.append(source)
            always.callback(os.close, source.fd)
            if source.created and source.path:
                undo.callback(_stdio.remove_if_empty, source.path, _stdio.inode(source.fd))
                if owner.groups is not None:
                    os.fchown(source.fd, owner.uid, owner.gid)  # or it could not be reopened
        return tuple(sources)

    # --- in the daemon, or in the foreground ------------------------------------------------------------------------

    def _become(self, plan: _Plan) -> None:
        """Do what makes a process a daemon, in `DaemonContext`'s order but for the descriptors.

        Those are closed before a chroot or a change of user may hide /proc/self/fd.
        """
        if self.detached:
            _pidfile.adopt()
        self._close_descriptors(plan)
        if plan.chroot is not None:
            _base.change_root_directory(plan.chroot)
        if self.prevent_core:
            _base.prevent_core_dump()
        _base.change_file_creation_mask(plan.umask)
        _base.change_working_directory(plan.directory)
        _users.change_owner(plan.owner)
        self.uid, self.gid, self._umask = plan.owner.uid, plan.owner.gid, plan.umask
        _stdio.redirect(plan.sources)
        _stdio.rebind()
        _base.set_signal_handlers(plan.handlers)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if self.pidfile is not None and not isinstance(self.pidfile, PidFile):
            self.pidfile.__enter__()
        self._notify = plan.notify
        self._is_open = True
        atexit.register(self.close)
        if not self.wait_ready:
            self._announce(None)

    def _close_descriptors(self, plan: _Plan) -> None:
        if self.close_fds == "all":  # looked up here: the caller's other threads may have opened more
            ours = self._reporter.descriptors() if self._reporter else set()
            _stdio.close(set(_stdio.open_descriptors()) - plan.keep - ours)
        else:
            _stdio.close(plan.handed)

    def _announce(self, status: str | None) -> None:
        if self._reporter is not None:
            self._reporter.started()
        self._started = True
        _notify.send(self._notify, READY="1", STATUS=status)

    def _fail_start(self, error: BaseException | None) -> None:
        """Tell whoever waits that it did not start; the daemon ends here, the foreground goes on ending."""
        cause = (
            "it ended before it called ready()" if error is None else "".join(traceback.format_exception_only(error))
        )
        if self._reporter is None:
            _notify.send(self._notify, STATUS=f"failed to start: {cause}")
            if error is None:
                _logger.critical("the start failed: %s", cause)
                raise SystemExit(1)
            return
        with contextlib.suppress(OSError):  # the caller frees what this process can't
            if self.is_open:
                self.close()
            elif isinstance(self.pidfile, PidFile):
                self.pidfile.__exit__()
        text = "" if error is None else "".join(traceback.format_exception(error))
        self._reporter.failed(text, _exit_status(error))


detached = DetachedContext

# --- checks -----------------------------------------------------------------------------------------------------


def must_stay() -> bool:
    """Tell whether this process already is where a daemon should be, so that it must not fork away from there."""
    pid = os.getpid()
    return (
        pid == 1
        or bool(os.environ.get("NOTIFY_SOCKET"))
        or os.environ.get("SYSTEMD_EXEC_PID") == str(pid)
        or (os.getppid() == 1 and not _has_terminal())
    )


def _has_terminal() -> bool:
    try:
        fd = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOMEM}:
            raise  # that says nothing about a terminal
        return False
    os.close(fd)
    return True


def _check(context: DetachedContext) -> None:
    """Refuse bad arguments, as far as that takes no look at the file system."""
    for name in _stdio.NAMES:
        _stdio.check(name, getattr(context, name))
    for name in ("initgroups", "prevent_core", "wait_ready", "detach_process"):
        if not isinstance(getattr(context, name), bool):
            raise TypeError(f"{name}: True or False, not {getattr(context, name)!r}")
    if context.close_fds not in ("inherited", "all"):
        raise ValueError(f'close_fds: "inherited" or "all", not {context.close_fds!r}')
    for item in context.files_preserve or ():
        if item is not None:
            _stdio.descriptor_of("files_preserve", item)
    _process.check_number("umask", context.umask, 0o777)
    _process.check_seconds("start_timeout", context.start_timeout)
    if context.start_timeout is not None and context.start_timeout <= 0:
        raise ValueError(f"start_timeout: more than 0 seconds, or None, not {context.start_timeout!r}")
    _check_paths(context)
    _check_signals(context)
    _users.owner_of(context.uid, context.gid, initgroups=context.initgroups)


def _check_paths(context: DetachedContext) -> None:
    for name in ("working_directory", "chroot_directory"):
        value = getattr(context, name)
        if value is None and name == "chroot_directory":
            continue
        if not isinstance(value, (str, bytes, os.PathLike)):
            raise TypeError(f"{name}: a path, not {value!r}")
        _stdio.check_path(name, value)
    if isinstance(context.pidfile, (str, bytes, os.PathLike)):
        context.pidfile = PidFile(os.fsdecode(context.pidfile))  # assigned since
    if context.pidfile is not None and not isinstance(context.pidfile, AbstractContextManager):
        raise TypeError(f"pidfile: a path, a PidFile or another context manager, not {context.pidfile!r}")


def _check_signals(context: DetachedContext) -> None:
    if not isinstance(context.signal_map, Mapping):
        raise TypeError(f"signal_map: a mapping of signals to actions, not {context.signal_map!r}")
    for key, action in context.signal_map.items():
        number = _signal(key)
        if number in (signal.SIGKILL, signal.SIGSTOP):
            raise ValueError(f"signal_map: {key!r} can be neither handled nor ignored")
        if isinstance(action, str):
            if not callable(getattr(context, action, None)):
                raise ValueError(f'signal_map: no method {action!r} here; "terminate" and "reopen" are')  # noqa: TRY004 - its type is right
        elif not (action is None or callable(action) or action in (signal.SIG_DFL, signal.SIG_IGN)):
            raise TypeError(f"signal_map: None, a method's name or a handler for {key!r}, not {action!r}")


def _signal(key: object) -> int:
    if isinstance(key, str) and key in signal.Signals.__members__:
        return signal.Signals[key]
    if isinstance(key, bool) or not isinstance(key, (int, str)):
        raise TypeError(f'signal_map: keys are signals or their names, as "SIGHUP", not {key!r}')
    if key not in _fork.SIGNALS:  # real-time signals are there too, which have no names
        raise ValueError(f'signal_map: no signal {key!r} here; use signal.SIGHUP or "SIGHUP"')
    return int(key)


def _has_running_loop(asyncio: ModuleType) -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


# --- users and directories ----------------------------------------------------------------------------------------


def _directories(chroot: Path | None, working: Path) -> tuple[str | None, str]:
    """Return both as absolute paths, the second as seen from within the first; OSError if they can't be entered."""
    directory = os.fsdecode(working)
    if chroot is None:
        directory = os.path.abspath(directory)
        _stdio.check_enterable(directory)
        return None, directory
    root = os.path.abspath(os.fsdecode(chroot))
    directory = os.path.normpath("/" + directory)
    _stdio.check_enterable(root)
    _stdio.check_enterable(root + directory)
    if not _users.has_capability(_CAP_SYS_CHROOT):
        raise PermissionError(
            errno.EPERM, "chroot_directory: only root (CAP_SYS_CHROOT) can change the root; start as root", root
        )
    return root, directory


def _inside(path: str, root: str | None) -> str | None:
    """Return the path by which a log is found again after the chroot, None if it is not in there."""
    if root is None:
        return path
    prefix = root.rstrip("/") + "/"
    return path[len(prefix) - 1 :] if path.startswith(prefix) else None


def _current_umask() -> int:
    mask = os.umask(0o077)  # there is no call that only asks; should a thread create a file now, it is private
    os.umask(mask)
    return mask


# --- descriptors ----------------------------------------------------------------------------------------------------


def _handed_streams(context: DetachedContext) -> set[int]:
    """Return the descriptors of open files given as streams: as with `DaemonContext`, the objects stay usable."""
    values = ((name, getattr(context, name)) for name in _stdio.NAMES)
    return {_stdio.descriptor_of(name, value) for name, value in values if hasattr(value, "fileno")}


def _listen_fds() -> set[int]:
    """Return the sockets that systemd passed to this very process: sd_listen_fds(3)."""
    count = os.environ.get("LISTEN_FDS", "")
    ours = os.environ.get("LISTEN_PID") == str(os.getpid()) and count.isdigit()
    return set(range(3, 3 + int(count))) if ours else set()


# --- ends -----------------------------------------------------------------------------------------------------------


def _exit_status(error: BaseException | None) -> int:
    """Return the status that Python ends with after this exception."""
    if error is None:
        return 0
    if not isinstance(error, SystemExit):
        return 1
    if not isinstance(error.code, int):
        return int(error.code is not None)
    return error.code & 0xFF if -sys.maxsize - 1 <= error.code <= sys.maxsize else 0xFF  # -1: no C long holds it


def _log_crash(error: BaseException) -> None:
    """Log the exception, and see to it that its traceback is on stderr, once."""
    message = f"process {os.getpid()} ends: {''.join(traceback.format_exception_only(error)).strip()}"
    _logger.critical("%s", message, exc_info=error)
    if not _on_stderr():
        with contextlib.suppress(OSError, ValueError):
            traceback.print_exception(error)


def _on_stderr() -> bool:
    """Tell whether a critical record reached the file that is descriptor 2, whichever handler took it there."""
    if not _logger.isEnabledFor(logging.CRITICAL) or _logger.filters:
        return False
    if not _logger.hasHandlers():
        return logging.lastResort is not None
    logger: logging.Logger | None = _logger
    while logger:
        if any(_writes_stderr(handler) for handler in logger.handlers):
            return True
        logger = logger.parent if logger.propagate else None
    return False


def _writes_stderr(handler: logging.Handler) -> bool:
    stream = getattr(handler, "stream", None)
    try:
        takes_it = handler.level <= logging.CRITICAL and not handler.filters
        return takes_it and stream is not None and os.path.sameopenfile(stream.fileno(), 2)
    except (AttributeError, OSError, ValueError):
        return False
