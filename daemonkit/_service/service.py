"""`Service`: a program's own start, stop, restart, reload, status and run.

Each call loads what it needs and no more: `python app.py status` is typed by people and polled by monitors.
"""

from __future__ import annotations

import _signal  # the numbers alone: `signal` takes 4 ms to load
import os

from daemonkit._constants import STDOUT, stands_for
from daemonkit._pidfile.holder import pidfile_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
    from types import FrameType
    from typing import Final, Literal, TypedDict, Unpack

    from daemonkit._detach import DetachedContext
    from daemonkit._pidfile.pidfile import PidFile
    from daemonkit._service.words import Words
    from daemonkit._status import Status
    from daemonkit._system.descriptors import HasFileno
    from daemonkit._system.streams import Path, StreamOption

    Target = Callable[[], object] | Callable[[DetachedContext], object]
    Handler = Callable[[int, FrameType | None], object] | Callable[[], Coroutine[object, object, object]]

    class Options(TypedDict, total=False):
        """The options of `detached` but for `pidfile`; handlers may be coroutine functions here."""

        stdin: StreamOption
        stdout: StreamOption
        stderr: StreamOption
        working_directory: Path
        chroot_directory: Path | None
        umask: int | None
        uid: int | str | None
        gid: int | str | None
        initgroups: bool
        prevent_core: bool
        close_fds: Literal["inherited", "all"]
        files_preserve: Iterable[int | HasFileno | None] | None
        detach_process: bool | None
        wait_ready: bool
        start_timeout: float | None
        signal_map: Mapping[int | str, str | Handler | int | None] | None


INTERRUPTED: Final = 130  # the exit status after a Ctrl-C, as a shell has it: 128 + SIGINT
_STREAMS: Final = ("stdin", "stdout", "stderr")
_PATHS: Final = (*_STREAMS, "working_directory", "chroot_directory")
_SWITCHES: Final = ("initgroups", "prevent_core", "detach_process", "wait_ready")
_OTHERS: Final = ("umask", "uid", "gid", "close_fds", "files_preserve", "start_timeout", "signal_map")
_NAMES: Final = {*_PATHS, *_SWITCHES, *_OTHERS}
_STOPS: Final = ("SIGKILL", "SIGSTOP")  # which no program can handle


class Service:
    """Give a program its own commands: start, stop, restart, reload, status, and run in the foreground.

    ::

        service = daemonkit.Service(main, pidfile="app.pid", stdout="app.log", stderr=daemonkit.STDOUT)
        if __name__ == "__main__":
            sys.exit(service.main())  # python app.py start | stop | restart | reload | status | run

    `target` is what the daemon does: a function that is called with the `DetachedContext`, if it takes an argument,
    or a coroutine function, which `asyncio.run` runs and SIGTERM cancels. `options` are those of `detached`, checked
    at once; handlers in `signal_map` may be coroutine functions. `pidfile`, a path or a `PidFile`, is required, and a
    relative path means the caller's present directory. `name` stands before messages; by default it is the program's
    own. `stop_timeout`: how many seconds `stop` and `restart` wait for the daemon's end before SIGKILL; None: for ever.

    >>> def work(daemon):
    ...     daemon.ready()
    ...     signal.pause()
    >>> service = daemonkit.Service(work, pidfile="work.pid", wait_ready=True)
    >>> service.start() == service.status().pid
    True
    >>> service.stop()
    True
    """

    def __init__(
        self,
        target: Target,
        *,
        pidfile: Path | PidFile,
        name: str | None = None,
        stop_timeout: float | None = 10.0,
        **options: Unpack[Options],
    ) -> None:
        """Take the options, and refuse bad ones; nothing is started or opened yet."""
        if not callable(target):
            raise TypeError(f"target must be a function or a coroutine function, not {target!r}")
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be a string or None, not {name!r}")
        if stop_timeout is None or type(stop_timeout) not in {int, float} or not stop_timeout > 0:
            from daemonkit._system.check import check_seconds  # noqa: PLC0415 - what is plainly right needs no look

            check_seconds("stop_timeout", stop_timeout)
        if unknown := set(options) - _NAMES:
            raise TypeError(f"Service() and detached() have no option {min(unknown)!r}")
        self.target = target
        self.name = name
        self.stop_timeout = stop_timeout
        self.options = options
        self.path = pidfile_path(pidfile)
        """The pidfile's path, absolute."""
        self.pidfile = self.path if isinstance(pidfile, (str, bytes, os.PathLike)) else pidfile
        if not all(_is_plain(*option) for option in options.items()):
            _check(self)

    def start(self) -> int:
        """Start the daemon; return its pid in the caller, which goes on, once it has started.

        The daemon's side never comes back: neither ``finally`` blocks nor exit handlers of the caller run there.
        Raises what `detached` raises: AlreadyRunningError, StartError, StartTimeoutError, OSError... If another start
        is under way, it waits until that one ends, and then raises AlreadyRunningError or StartError. Ctrl-C, or any
        exception in the waiting caller, ends the daemon too. Where `detached` stays in the foreground (systemd, a
        container, ``detach_process=False``) it does the same as `run`, and returns this process's own pid at the end.
        """
        return start(self, Report())

    def run(self) -> None:
        """Do the daemon's work in the foreground, on this terminal, with the same pidfile; return when it ends.

        stdin, stdout and stderr stay as they are, whatever the options say. Exceptions arrive as themselves, those
        of a Ctrl-C (KeyboardInterrupt) and of SIGTERM (SystemExit) too. The process keeps the working directory, the
        umask, the user and the signal handlers that it was given, as after `detached`.
        """
        run(self, Report())

    def stop(self) -> bool:
        """End the daemon, as `daemonkit.stop` does; return True if it ended on request, False if it was killed.

        On return it is gone and the pidfile is free. Raises NotRunningError, PermissionError.
        """
        from daemonkit._control import stop  # noqa: PLC0415 - see above

        return stop(self.pidfile, self.stop_timeout)

    def restart(self) -> int:
        """Stop the daemon if it runs, and start it; return the new one's pid, as `start`."""
        from daemonkit.errors import NotRunningError  # noqa: PLC0415 - see above

        if self.status():
            try:
                self.stop()
            except NotRunningError:
                if self.status():  # another tool's, or out of reach
                    raise
        return self.start()

    def reload(self) -> None:
        """Send the daemon SIGHUP: by default it opens its logs anew. Raises NotRunningError, PermissionError."""
        import signal  # noqa: PLC0415 - see above

        from daemonkit._control import send_signal  # noqa: PLC0415 - see above

        send_signal(self.pidfile, signal.SIGHUP)

    def status(self) -> Status:
        """Tell whether the daemon runs, as `daemonkit.status` does; only reads."""
        from daemonkit._status import status  # noqa: PLC0415 - see above

        return status(self.pidfile)

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Run the command line, by default this program's arguments; return the exit status.

        0 done (also `start` of what runs and `stop` of what does not), 1 failed, 2 usage, 3 not running (`status`,
        `reload`), 130 Ctrl-C; of a daemon that ended by ``sys.exit(n)`` before it had started: n. What fails is one
        line on stderr, and a traceback with ``--debug``.
        """
        try:
            from daemonkit._service.command import main  # noqa: PLC0415 - see above

            return main(self, argv)
        except KeyboardInterrupt:  # one that came before or after the work, which tells of its own
            return INTERRUPTED

    @property
    def commands(self) -> dict[str, Callable[[], None]]:
        """The commands by name, as functions without arguments, to be put into argparse, click or typer.

        Each prints what `main` prints, and raises SystemExit where the exit status is not 0. ::

            for name, command in service.commands.items():
                cli.command(name)(command)
        """
        from daemonkit._service.command import commands_of  # noqa: PLC0415 - see above

        return commands_of(self)


class Report:
    """What a start, or a run in the foreground, reports to a command line beside its exception."""

    started = False
    words: Words | None = None
    is_program = False
    """Whether the caller is the program itself, which ends then; what it will miss in the daemon is named."""


def start(service: Service, report: Report) -> int:
    """Do what `Service.start` says."""
    if not _check(service):
        run(service, report)
        return os.getpid()
    if report.is_program:
        from daemonkit._detach import warn_of_losses  # noqa: PLC0415 - see above

        warn_of_losses()
    from daemonkit._service.start import start_daemon  # noqa: PLC0415 - see above

    return start_daemon(service, report)


def run(service: Service, report: Report) -> None:
    """Do what `Service.run` says."""
    from daemonkit._service.body import run_here  # noqa: PLC0415 - see above

    run_here(service, report)


def _check(service: Service) -> bool:
    """Refuse bad options; return whether the daemon is to be in the background."""
    from daemonkit._detach import DetachedContext  # noqa: PLC0415 - see above

    return bool(DetachedContext(pidfile=service.pidfile, **service.options).detach_process)  # type: ignore[arg-type]  # handlers may be coroutine functions


def _is_plain(name: str, value: object) -> bool:
    """Tell whether an option is certainly right. All else is left to `detached()`, which takes 40 ms to load."""
    if value is None:
        return name in {*_STREAMS, "umask", "start_timeout", "detach_process", "signal_map"}
    if name in _PATHS:
        is_path = isinstance(value, (str, os.PathLike)) and os.fspath(value) and "\0" not in os.fsdecode(value)
        return bool(is_path) or (name == "stderr" and stands_for(value, STDOUT))
    if name in _SWITCHES:
        return isinstance(value, bool)
    if name == "signal_map":
        return isinstance(value, dict) and all(_is_signal(key) and callable(does) for key, does in value.items())
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return (name == "umask" and value in range(0o1000)) or (name == "start_timeout" and 0 < value < 1 << 31)
    return False


def _is_signal(key: object) -> bool:
    return (
        isinstance(key, str) and key.startswith("SIG") and key not in _STOPS and type(getattr(_signal, key, 0)) is int
    )
