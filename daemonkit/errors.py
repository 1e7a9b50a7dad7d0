"""Every exception of daemonkit.

Each one derives from `DaemonkitError` and from the built-in (or the `lockfile` class) that it is, so that code
written for those catches it too. The fields live in ``__dict__``, which is what lets them survive `pickle`.
"""

from __future__ import annotations

from lockfile import AlreadyLocked


class DaemonkitError(Exception):
    """Base of every exception that daemonkit defines."""


class AlreadyRunningError(DaemonkitError, AlreadyLocked):
    """A live process holds the pidfile, so nothing was started and the file was left as it was.

    >>> error = AlreadyRunningError("app.pid is held by process 4242", path="app.pid", pid=4242)
    >>> error.path, error.pid
    ('app.pid', 4242)
    """

    def __init__(self, message: str = "", *, path: str | None = None, pid: int | None = None) -> None:
        """Say what is held; `path` is the pidfile and `pid` its holder."""
        super().__init__(message)
        self.path = path
        self.pid = pid


class NotRunningError(DaemonkitError, ProcessLookupError):
    """The pidfile is not held, or not by a process that daemonkit can prove to be the holder.

    >>> NotRunningError("app.pid is not held: nothing is running", path="app.pid").path
    'app.pid'
    """

    def __init__(self, message: str = "", *, path: str | None = None) -> None:
        """Say what is not running; `path` is the pidfile."""
        super().__init__(message)
        self.path = path


class StartError(DaemonkitError):
    """The daemon failed before it counted as started; raised in the caller, with nothing left behind.

    `traceback` is the daemon's own traceback as text ('' where there is none, as after a signal), `reason` the
    exception in one line (or the text that ``sys.exit`` was given), `exitcode` the daemon's exit status: negative for
    a signal, None where nobody can tell.

    >>> StartError("the daemon ended before it was ready", exitcode=-9).exitcode
    -9
    """

    def __init__(
        self, message: str = "", *, traceback: str = "", exitcode: int | None = None, reason: str = ""
    ) -> None:
        """Say why; the daemon's traceback is also shown below this exception's own (PEP 678)."""
        super().__init__(message)
        self.traceback = traceback
        self.reason = reason
        self.exitcode = exitcode
        if traceback:
            self.add_note(f"The daemon's own traceback:\n{traceback.rstrip()}")


class StartTimeoutError(StartError, TimeoutError):
    """The daemon did not count as started within `start_timeout` seconds, and was ended."""


class StopTimeoutError(DaemonkitError, TimeoutError):
    """A process did not end in time: it was not to be killed, or SIGKILL has not ended it.

    >>> StopTimeoutError("process 4242 did not end within 10 s", pid=4242).pid
    4242
    """

    def __init__(self, message: str = "", *, pid: int | None = None) -> None:
        """Say what goes on running; `pid` is that process."""
        super().__init__(message)
        self.pid = pid
