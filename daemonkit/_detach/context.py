"""Become a daemon: `DetachedContext`, whose short name is `detached`.

`_prepare` checks and opens everything in the caller, before any fork. `_become` is the list of steps that are left
for the daemon.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager

from daemon import daemon as _base
from daemon.daemon import DaemonContext

from daemonkit._constants import DEVNULL, STDOUT, stands_for
from daemonkit._detach import handshake
from daemonkit._detach.callers import refuse_callers, warn_of_losses
from daemonkit._detach.crash import (
    hide_exit_from_shutdown,
    is_exit_in_a_group,
    log_crash,
    logger,
    reason_of,
    show_crash,
)
from daemonkit._detach.load_ahead import load_ahead
from daemonkit._detach.notify import connect_manager, refusals_told, tell_manager
from daemonkit._detach.options import (
    Action,
    SignalKey,
    check_options,
    current_umask,
    directories,
    full_signal_map,
    handed_streams,
    handlers_to_set,
    inside_root,
)
from daemonkit._detach.where import listen_fds, must_stay
from daemonkit._pidfile.hold import adopt_locks, lock_descriptors
from daemonkit._pidfile.pidfile import PidFile
from daemonkit._system.at_exit import AT_EXIT
from daemonkit._system.descriptors import close_all, descriptor_of, give_up, handed_descriptors, inode, open_descriptors
from daemonkit._system.fork import exit_status_of
from daemonkit._system.pidfd import require_pidfds
from daemonkit._system.reaping import reap
from daemonkit._system.record import record
from daemonkit._system.run_mark import own_mark, set_free
from daemonkit._system.signals import ALL_SIGNALS
from daemonkit._system.streams import (
    STREAM_NAMES,
    Source,
    fill_closed,
    flush_streams,
    open_source,
    rebind,
    redirect,
    remove_if_empty,
    reopen_log,
)
from daemonkit._system.unpatched import close, get_handler, pthread_sigmask, renew_hubs, set_handler
from daemonkit._system.users import Owner, change_owner, is_own, owner_of
from daemonkit.errors import StartError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from types import FrameType, TracebackType
    from typing import Literal, NoReturn, Self

    from daemonkit._system.descriptors import HasFileno
    from daemonkit._system.streams import Path, StreamOption


@record(frozen=True)
class _Plan:
    """What the daemon is to do to itself, as the caller has prepared it."""

    owner: Owner
    changes_owner: bool
    supervised: bool
    """Whether this program was started in an instance, which the daemon is set free of."""
    umask: int
    directory: str
    chroot: str | None
    handlers: dict[int, Callable[[int, FrameType | None], object] | int]
    sources: tuple[Source | None, ...]
    keep: frozenset[int]
    handed: frozenset[int]
    """Descriptors that this program was handed, to be given up."""
    null: int
    notify: socket.socket | None


class DetachedContext(DaemonContext):
    """Turn this program into a daemon for the body of a ``with``.

    ::

        with daemonkit.detached(pidfile="app.pid", stdout="app.log", stderr=daemonkit.STDOUT):
            main()

    The body runs in the daemon. The caller waits until the daemon counts as started (the body begins; with
    `wait_ready`, it calls `ready()`) and then ends with status 0. It runs no ``finally`` block and no exit handler:
    those are the daemon's now. What fails before that is raised in the caller, with nothing left behind.

    The program does not fork, and stays in the foreground, where it is a daemon already: as process 1, with
    ``NOTIFY_SOCKET`` set, executed by systemd or by `supervise` itself, or with parent 1 (or 0) and no terminal.
    Everything else is done to it there. The daemon holds its pidfile until the process ends, a program in the
    foreground until the ``with`` ends.

    Every option of `daemon.DaemonContext` keeps its name and meaning; these are new, or differ:

    - `pidfile`: a path, a `PidFile`, or any context manager (entered in the daemon).
    - `stdin`, `stdout`, `stderr`: None or `DEVNULL`; a path, read or appended to (created 0o640 less the umask); an
      open file or descriptor; ``stderr=STDOUT``.
    - `umask`: None adds 0o022 to the caller's.
    - `uid`, `gid`: numbers or names. A change of user brings that user's primary and supplementary groups (with
      `initgroups=False` not the latter), and HOME, USER, LOGNAME and SHELL.
    - `close_fds`: "inherited" gives up what this program was handed by whoever started it: what was open and
      inheritable when daemonkit was imported, except regular files. "all" closes everything but `files_preserve`.
    - `detach_process`: True or False instead of the rule above.
    - `wait_ready`: the start ends with `ready()`. `start_timeout`: how many seconds the caller waits for it.
    - `signal_map`: signals or their names, laid over DaemonContext's map and SIGHUP, which reopens the logs. A handler
      that the program itself had set stays where its signal is not named.

    On entry it raises in the caller: TypeError, ValueError; OSError with the path; LookupError for an unknown
    user or group; AlreadyRunningError; RuntimeError inside a running event loop, outside the main thread, in a test
    of pytest's own process, and in a child of multiprocessing that only imports the main program again;
    StartError with the daemon's traceback; StartTimeoutError. After daemon(7), PEP 3143 and `DaemonContext`.

    >>> daemonkit.detached(stdout="app.log", umask="0o22")
    Traceback (most recent call last):
    TypeError: umask must be a number from 0 to 0o777 or None, not '0o22'
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
        self._meant = detach_process is True
        if detach_process is None:
            detach_process = not must_stay()
        if isinstance(pidfile, (str, bytes, os.PathLike)):
            pidfile = PidFile(pidfile)
        if files_preserve is not None and not isinstance(files_preserve, Iterable):
            raise TypeError(f"files_preserve must be a list of descriptors and open files, not {files_preserve!r}")
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
            signal_map=full_signal_map(signal_map),
        )
        self.uid, self.gid = uid, gid  # not yet DaemonContext's numbers: `uid` alone brings its own group
        self.close_fds = close_fds
        self.wait_ready = wait_ready
        self.start_timeout = start_timeout
        self.pid: int | None = None
        """The daemon's pid, once open."""
        self.detached = False
        """Whether it forked off, once open; False in the foreground."""
        self._started = False
        self._reporter: handshake.Reporter | None = None
        self._notify: socket.socket | None = None
        self._logs: dict[int, str | None] = {}
        self._umask = 0o022
        with refusals_told():
            check_options(self)

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
        """Leave the body: in the foreground close it, in the daemon hold the pidfile until the process ends.

        An exception goes on its way, to whoever catches it outside or to `sys.excepthook`. If the program's logging
        goes anywhere else than stderr, it is told too. A SystemExit that comes in the group of a task group goes on
        its way alone.
        """
        if not self.is_open or os.getpid() != self.pid:
            return  # a child that the body forked ends as it likes
        grouped = is_exit_in_a_group(exc_value)
        if grouped:
            exc_value = SystemExit(0)
        crash = None if isinstance(exc_value, self._normal_exits()) else exc_value
        if crash:
            log_crash(crash)
        if not self.detached:
            self.close()
        if not self._started:
            self._fail_start(exc_value)
        if grouped and exc_value:
            raise exc_value from None

    def _normal_exits(self) -> tuple[type[BaseException], ...]:
        """Return what leaves the body without being an accident: in the foreground, also a Ctrl-C."""
        return (SystemExit, GeneratorExit) if self.detached else (SystemExit, GeneratorExit, KeyboardInterrupt)

    # --- DaemonContext's own methods ----------------------------------------------------------------------------

    def open(self) -> None:
        """Become a daemon; return in the daemon, or in the foreground process. What `with` does on entry."""
        if self.is_open:
            return
        reap()
        with refusals_told(), contextlib.ExitStack() as always, contextlib.ExitStack() as undo:
            check_options(self)
            plan = self._prepare(always, undo)
            if self.detach_process:
                self._reporter = handshake.detach(self.start_timeout)
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
        """Release the pidfile at once, in the process that opened the context; anywhere else it does nothing."""
        if self.pid == os.getpid():
            super().close()

    def terminate(self, signal_number: int, stack_frame: FrameType | None) -> NoReturn:  # noqa: ARG002 - a handler's arguments
        """Handle SIGTERM: raise SystemExit(0) in the main thread, so that ``finally`` blocks and exit handlers run."""
        hide_exit_from_shutdown(stack_frame)
        raise SystemExit(0)

    # --- what the body calls --------------------------------------------------------------------------------------

    def ready(self, status: str | None = None) -> None:
        """Count as started: the caller ends with status 0, and a service manager is told ``READY=1``.

        `status` is a line for the service manager (``STATUS=``); a later call only updates it. Call it in the
        daemon, from any thread; RuntimeError elsewhere. See sd_notify(3).
        """
        if not self.is_open or os.getpid() != self.pid:
            raise RuntimeError(
                "ready() must be called by the daemon itself, in the body: not before, and not in a child of it"
            )
        if status is not None and not isinstance(status, str):
            raise TypeError(f"status must be a string or None, not {status!r}")
        if self._started:
            tell_manager(self._notify, STATUS=status)
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
                    raise FileNotFoundError(errno.ENOENT, text, str(getattr(self, STREAM_NAMES[fd])))
                reopen_log(fd, path, self._umask)
        except OSError as error:
            if signal_number is None:
                raise
            logger().warning("the log was not reopened, and the old file stays in use: %s", error)
        else:
            if stands_for(self.stderr, STDOUT) and self._logs:
                os.dup2(1, 2)

    # --- in the caller --------------------------------------------------------------------------------------------

    def _prepare(self, always: contextlib.ExitStack, undo: contextlib.ExitStack) -> _Plan:
        """Check and open everything in the caller. `undo` takes it back if anything is refused, or the start fails."""
        refuse_callers(detach=bool(self.detach_process), meant=self._meant)
        if self.detach_process:
            warn_of_losses()
        require_pidfds()
        owner = owner_of(self.uid, self.gid, initgroups=self.initgroups)
        if owner.login is not None or self.chroot_directory is not None:
            load_ahead()
        chroot, directory = directories(self.chroot_directory, self.working_directory)
        umask = current_umask() | 0o022 if self.umask is None else self.umask
        handlers = {number: self._handler(action) for number, action in handlers_to_set(self.signal_map).items()}
        preserved = {descriptor_of("files_preserve", item) for item in self.files_preserve or () if item is not None}
        fill_closed(undo)
        notify = None if self.detach_process else connect_manager()
        if notify:
            undo.callback(notify.close)
        if isinstance(self.pidfile, PidFile):
            if not self.pidfile.i_am_locking():  # else acquire() refuses, and it stays as it is
                undo.push(self.pidfile)  # before it is acquired: a signal handler may raise at once
            self.pidfile.acquire()
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        always.callback(close, null)
        sources = self._open_sources(null, umask, owner, always, undo)
        self._logs = {
            fd: inside_root(source.path, chroot) for fd, source in enumerate(sources) if fd and source and source.path
        }
        own = {null} | {source.fd for source in sources if source} | ({notify.fileno()} if notify else set())
        keep = preserved | own | lock_descriptors() | handed_streams(self) | listen_fds()
        # Before the fork: every page that is touched afterwards is copied.
        handed = set() if self.close_fds == "all" else handed_descriptors(copies=bool(self.detach_process))
        flush_streams()
        return _Plan(
            owner=owner,
            changes_owner=not is_own(owner),
            supervised=own_mark() is not None,
            umask=umask,
            directory=directory,
            chroot=chroot,
            handlers=handlers,
            sources=sources,
            keep=frozenset(keep),
            handed=frozenset(handed - keep),
            null=null,
            notify=notify,
        )

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
        self, null: int, umask: int, owner: Owner, always: contextlib.ExitStack, undo: contextlib.ExitStack
    ) -> tuple[Source | None, ...]:
        """Open what 0, 1 and 2 become. In the foreground those stay that are not given."""
        sources: list[Source | None] = []
        heir = owner if owner.groups is not None else None  # whoever it becomes must be able to reopen a new log
        for name in STREAM_NAMES:
            value = getattr(self, name)
            if value is None or stands_for(value, DEVNULL):
                sources.append(Source(null) if self.detach_process or value is not None else None)
                continue
            if stands_for(value, STDOUT) and name == "stderr":
                value = sources[1].fd if sources[1] else 1
            source = open_source(name, value, umask, heir)
            sources.append(source)
            always.callback(close, source.fd)
            if source.created and source.path:
                undo.callback(remove_if_empty, source.path, inode(source.fd))
        return tuple(sources)

    # --- in the daemon, or in the foreground ------------------------------------------------------------------------

    def _become(self, plan: _Plan) -> None:
        """Do what makes a process a daemon, in `DaemonContext`'s order but for the descriptors.

        Those are closed before a chroot or a change of user may hide /proc/self/fd.
        """
        if self.detached:
            adopt_locks()
            if plan.supervised:
                set_free()
        self._close_descriptors(plan)
        if self.detached:
            renew_hubs(closed=self.close_fds == "all")
        if plan.chroot is not None:
            _base.change_root_directory(plan.chroot)
        if self.prevent_core:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.umask(plan.umask)
        os.chdir(plan.directory)
        if plan.changes_owner:
            change_owner(plan.owner)
        self.uid, self.gid, self._umask = plan.owner.uid, plan.owner.gid, plan.umask
        redirect(plan.sources)
        rebind(stdin=plan.sources[0] is not None)
        _base.set_signal_handlers(plan.handlers)
        pthread_sigmask(signal.SIG_SETMASK, ())
        if self.pidfile is not None and not isinstance(self.pidfile, PidFile):
            self.pidfile.__enter__()
        self._notify = plan.notify
        self._is_open = True
        AT_EXIT.extend((self.close, self._ignore_signals))  # the last one is called first
        if not self.wait_ready:
            self._announce(None)

    def _close_descriptors(self, plan: _Plan) -> None:
        if self.close_fds == "all":  # looked up here: the caller's other threads may have opened more
            ours = self._reporter.descriptors() if self._reporter else set()
            close_all(set(open_descriptors()) - plan.keep - ours)
        elif plan.handed:
            give_up(plan.handed, plan.null)

    def _ignore_signals(self) -> None:
        """Ignore the signals that this context handles, as the process already ends.

        The interpreter takes its handlers away some time before the process is gone. A second SIGTERM would kill it
        then, and whoever waits for it would see a crash.
        """
        handled = ALL_SIGNALS if self.pid == os.getpid() else ()
        while True:
            try:
                for number in handled:
                    if getattr(get_handler(number), "__self__", None) is self:
                        set_handler(number, signal.SIG_IGN)
            except SystemExit:  # a SIGTERM came just now
                continue
            break

    def _announce(self, status: str | None) -> None:
        if self._reporter is not None:
            self._reporter.started()
        self._started = True
        tell_manager(self._notify, READY="1", STATUS=status)

    def _fail_start(self, error: BaseException | None) -> None:
        """Report a start that failed: in the daemon to the caller, and end; in the foreground raise it."""
        reason = "the body ended without calling ready()" if error is None else reason_of(error)
        if self._reporter is None:
            tell_manager(self._notify, STATUS=f"failed to start: {reason}")
            if error is None:
                raise StartError(reason, reason=reason)
            return
        text = "" if error is None else "".join(traceback.format_exception(error))
        if self.is_open and not isinstance(error, SystemExit):
            show_crash(text)
        with contextlib.suppress(OSError):  # the caller frees what this process can't
            if self.is_open:
                self.close()
            elif isinstance(self.pidfile, PidFile):
                self.pidfile.__exit__()
        self._reporter.failed(reason, text, exit_status_of(error))


detached = DetachedContext
