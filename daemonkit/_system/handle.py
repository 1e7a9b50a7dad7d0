"""`DetachedProcess`: a process seen through its pidfd, which never comes to mean another one."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys

from daemonkit._system.check import check_seconds
from daemonkit._system.pidfd import exit_status, has_ended, is_child, status_after_reaping
from daemonkit._system.process import start_of
from daemonkit._system.reaping import drop, launched, reap
from daemonkit._system.unpatched import RLock, close
from daemonkit._system.wait import deadline_after, wait_among_greenlets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO, Final

_SIGNAL_GROUP: Final = 1 << 2  # PIDFD_SIGNAL_PROCESS_GROUP of linux/pidfd.h, Linux 6.9


def signal_process(pid: int, pidfd: int, sig: int) -> None:
    """Send a process a signal unless it has ended; PermissionError, with a way out, if it belongs to another user."""
    try:
        signal.pidfd_send_signal(pidfd, sig)
    except ProcessLookupError:
        pass
    except PermissionError as error:
        text = f"process {pid} belongs to another user; signal it as root, or as that user"
        raise PermissionError(error.errno, text) from error


class DetachedProcess:
    """A program that `spawn_detached` launched, or the holder of a pidfile that `attach` found.

    `pid`, `args`, `stdin`, `stdout`, `stderr` and `returncode` are as in `subprocess.Popen`. It works through a
    pidfd (pidfd_open(2)), so it never means a process that was given the same number later. The handle may be dropped
    at any time: the process goes on, and is reaped at daemonkit's next call after its end. Any thread may call the
    methods. A copy of the handle in a forked process sees the end too, but never gets the exit status.

    >>> p = daemonkit.spawn_detached(["sh", "-c", "exit 3"])
    >>> p.wait(), p.running
    (3, False)
    """

    _pidfd = -1  # for __del__, if __init__ is interrupted

    def __init__(  # noqa: PLR0913 - the fields
        self,
        pid: int,
        pidfd: int,
        args: object,
        *,
        stdin: IO[bytes] | None = None,
        stdout: IO[bytes] | None = None,
        stderr: IO[bytes] | None = None,
        child: bool = True,
        ended: bool = False,
        daemon: bool = False,
    ) -> None:
        """Take over the pidfd; for `spawn_detached` and `attach`, not for users."""
        self.pid = pid
        self.args = args
        self.stdin, self.stdout, self.stderr = stdin, stdout, stderr
        self.returncode: int | None = None
        """As Popen's: None until a call finds that it has ended, and for good where nobody can tell the status."""
        self._parent = os.getpid() if child else None
        if child:
            launched.add(pid)
        self._ended = ended
        self._daemon = daemon
        self._pidfd = pidfd
        self._lock = RLock()  # a signal handler may ask while this thread does

    def __repr__(self) -> str:
        """Show the program and what is known of it."""
        if self.returncode is not None:
            state = f"returncode {self.returncode}"
        else:
            state = "ended" if self._ended else "running when last asked"
        return f"<DetachedProcess {self.pid}: {self.args!r}, {state}>"

    def __del__(self) -> None:
        """Close the pidfd, or keep it until the process has ended and can be reaped."""
        if self._pidfd < 0 or sys is None or sys.is_finalizing():  # the process ends, and so do its descriptors
            return
        if self._ended or self._parent != os.getpid():
            close(self._pidfd)
        else:
            drop(self._pidfd, self.pid)

    def fileno(self) -> int:
        """Return the pidfd: readable once the process has ended, for `select`, `selectors` and `asyncio`.

        The handle owns it, and closes it in the end.
        """
        return self._pidfd

    @property
    def running(self) -> bool:
        """Whether the process has not ended yet. A zombie has ended."""
        self.poll()
        return not self._ended

    def poll(self) -> int | None:
        """Reap the process if it has ended; return its exit status, negative for a signal, or None.

        The status is also None if another part of the program took it (before Linux 6.15). Then `running` tells that
        the process has ended.
        """
        reap()
        with self._lock:
            if self.returncode is None:
                self._look()
            return self.returncode

    def _look(self) -> None:
        if not self._ended:
            if not has_ended(self._pidfd):
                return
            # Only after the certain end, as the status may come between two looks and would be lost to this one.
            with contextlib.suppress(ChildProcessError):  # not a child, or reaped elsewhere, or SIGCHLD is ignored
                self.returncode = exit_status(self._pidfd, reap=self._parent == os.getpid())
            self._ended = True
            launched.discard(self.pid)
        if self.returncode is None:
            self.returncode = status_after_reaping(self._pidfd)

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait until the process has ended, at most `timeout` seconds; return what `poll` returns then.

        Raises `subprocess.TimeoutExpired`. It waits for the event, without polling.
        """
        check_seconds("timeout", timeout)
        if not self.wait_for_end(timeout):
            import subprocess  # noqa: PLC0415 - 12 ms, for its exception alone

            raise subprocess.TimeoutExpired(self.args, timeout or 0)  # type: ignore[arg-type]  # as Popen does
        return self.returncode

    def wait_for_end(self, timeout: float | None) -> bool:
        """Wait as `wait` does, and return whether it has ended."""
        deadline = deadline_after(timeout)
        while self.running:
            if not wait_among_greenlets([self._pidfd], deadline):
                return False
        return True

    def send_signal(self, sig: int, *, group: bool = False) -> None:
        """Send the process a signal; do nothing if it has ended. Raises PermissionError if another user owns it.

        With `group` the signal goes to its whole process group, also to what is left of the group after its leader:
        from Linux 6.9 on always, before that while the leader is not reaped. See pidfd_send_signal(2). If the group
        is not the process's own, as in a shell's job, the signal goes to the process alone.
        """
        reap()
        if group and self._signal_group(sig):
            return
        if self.running:
            signal_process(self.pid, self._pidfd, sig)

    def _signal_group(self, sig: int) -> bool:
        """Signal its own group; return False if it has none, or it cannot be proven any more."""
        try:
            signal.pidfd_send_signal(self._pidfd, sig, None, _SIGNAL_GROUP)
        except ProcessLookupError:
            pass  # it never led one, or nothing is left of it
        except OSError as error:
            if error.errno != errno.EINVAL:  # an older kernel
                raise
        else:
            return True
        with self._lock, contextlib.suppress(ProcessLookupError):
            if group := self.own_group():
                os.killpg(group, sig)
                return True
        return False

    def own_group(self) -> int | None:
        """Return the number of its own group: one that it leads, or a detached daemon's, whose leader is gone.

        None if it has none, or if it was reaped: then the number may have been given out again.
        """
        with contextlib.suppress(ProcessLookupError):
            group = os.getpgid(self.pid)
            own = group == self.pid or (self._daemon and start_of(group) is None)
            # What lives or is not reaped keeps its number, and its group's, from being given out again. 0 is the
            # group of somebody outside of this PID namespace, and would mean the caller's own.
            still = is_child(self._pidfd) or not has_ended(self._pidfd)
            if own and still and group != 0:
                return group
        return None

    def leads_a_group(self) -> bool:
        """Tell whether the group that it leads or led has members, as far as the kernel can tell (Linux 6.9)."""
        try:
            signal.pidfd_send_signal(self._pidfd, 0, None, _SIGNAL_GROUP)
        except PermissionError:
            return True
        except OSError:
            return False
        return True

    def terminate(self) -> None:
        """Send SIGTERM: `send_signal`."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL: `send_signal`."""
        self.send_signal(signal.SIGKILL)
