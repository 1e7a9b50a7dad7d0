"""Holding a pidfile: take it, hand it over, release it.

**Publishing.** A file gets its name only once it is complete: an unnamed file (``O_TMPFILE``, open(2)) is given its
text and its lock, and then a name (linkat(2)), which fails if the name is taken. So no reader ever finds an empty or
partial file, and ``kill -9`` at any point leaves no debris. The obvious way, to open the file by its name and lock it,
has a moment at which the file is there and nobody holds it.

**Removing a stale file.** Between a look at a file and its removal another starter may have replaced it. So whoever
removes a file holds its mutex (`ranges`), looks again, and makes sure that the name still leads to this very file: by
device and inode, as FreeBSD's pidfile_verify does.

**Handing over.** A forked daemon has the same open file as its parent, and so the same lock. It makes the lock and the
text name itself; the parent only closes its descriptors. A program that was launched cannot do this itself, so the
launcher does it for the program. Before the launch it marks the lock as lent (`State.LENT`).

What has to be undone is registered before it is done: a signal handler may raise between any two steps.

This module loads `lockfile` and `daemonkit.errors` at once. After a change of user or root it may be too late for that,
as their files may not be readable any more.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import threading
import time
from functools import partial

from lockfile import LockFailed, LockTimeout

from daemonkit._pidfile.holder import already_running, examine, explained, find_holder
from daemonkit._pidfile.ranges import FLOCK, PID_MAX, State, end_of_lock, find_lock
from daemonkit._system.descriptors import append_result
from daemonkit._system.pidfd import wait_for_end
from daemonkit._system.process import Identity, identity
from daemonkit._system.reaping import reap
from daemonkit._system.wait import pause
from daemonkit.errors import AlreadyRunningError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from typing import Final

_MODE: Final = 0o644
_WRITE = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_MUTEX_PATIENCE: Final = 2.0  # seconds; a process needs the mutex for a few system calls
_BETTER_PLACE: Final = "put the pidfile on a local one, such as in /run or $XDG_RUNTIME_DIR"
_SLICE: Final = 0.05  # seconds between looks at a file whose holder may release it without ending


def _lock(fd: int, kind: int, start: int, length: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, FLOCK.pack(kind, os.SEEK_SET, start, length, 0))


@contextlib.contextmanager
def _mutex(fd: int, path: str) -> Iterator[None]:
    deadline = time.monotonic() + _MUTEX_PATIENCE
    while True:
        try:
            _lock(fd, fcntl.F_WRLCK, 0, 1)
        except (BlockingIOError, PermissionError):
            if time.monotonic() > deadline:
                msg = (
                    f"{path} is locked by a process that does not hold it; find that process with lslocks, and stop it"
                )
                raise LockFailed(msg) from None
            pause(0.001)
        else:
            break
    try:
        yield
    finally:
        _lock(fd, fcntl.F_UNLCK, 0, 1)


class Hold:  # not a dataclass: importing dataclasses takes as long as all the rest
    """A lock that this process has or is about to take: the open file, and its directory and name to find it by."""

    __slots__ = ("_state", "fds", "folder", "inode", "name", "owner", "path")

    def __init__(self, path: str, state: int = State.TAKEN) -> None:
        """Name the file, for `take`. `release` undoes whatever was done since.

        With State.LENT a program is about to get the lock's descriptor, and `name_holder` has to follow.
        """
        self.path = path
        folder, _, self.name = path.rpartition("/")  # quicker than os.path.split(), and the path is a clean one
        self.folder = folder or "/"
        self.fds: list[int] = []
        """First the directory's (O_PATH: through it the file can be found even after a chroot), then the file's."""
        self.inode = (0, 0)
        self.owner = Identity(0, 0)
        self._state = state

    @property
    def directory(self) -> int:
        """The directory's descriptor."""
        return self.fds[0]

    @property
    def fd(self) -> int:
        """The file's descriptor. The lock belongs to it."""
        return self.fds[1]

    def open(self, path: str, flags: int) -> None:
        """Open one more of its descriptors."""
        directory = self.fds[0] if self.fds else None
        append_result(self.fds, partial(os.open, path, flags | os.O_CLOEXEC, _MODE, dir_fd=directory))

    def fill(self) -> None:
        """Make the new file name this process, and lock it."""
        info = os.fstat(self.fd)
        self.inode = info.st_dev, info.st_ino
        if info.st_mode & 0o7777 != _MODE:
            os.fchmod(self.fd, _MODE)  # the umask has taken bits away
        self.owner = identity()
        os.write(self.fd, b"%d\n" % self.owner.pid)
        self._lock_range()

    def is_current(self) -> bool:
        """Tell whether the name still leads to this very file."""
        try:
            found = os.stat(self.name, dir_fd=self.directory, follow_symlinks=False)
        except (OSError, IndexError):  # the file is gone, or this hold was closed
            return False
        return self.inode == (found.st_dev, found.st_ino)

    def claim(self) -> None:
        """Make the lock and the file name this process, which shares the open file with the process that took it."""
        me = identity()
        # Not through the hold's own descriptor: a descendant that shares it could keep the mutex after this process.
        own = os.open(self.name, _WRITE, dir_fd=self.directory)
        try:
            with _mutex(own, self.path):
                if not self.is_current():
                    text = "removed or replaced while the daemon was starting"
                    raise FileNotFoundError(errno.ENOENT, text, self.path)
                if lock := find_lock(own):
                    self._state = lock.state  # a daemon that has ended meanwhile may have changed it
                self.name_holder(me, State.DAEMON if _is_daemon() else State.HANDED_OVER)
        finally:
            os.close(own)

    def keep(self) -> None:
        """Let this process hold it until it is released, or the process ends."""
        if _is_daemon():
            self._set_state(State.DAEMON)

    def name_holder(self, who: Identity, state: int = State.HANDED_OVER) -> None:
        """Make the lock and the text name `who`. Only the present holder may call this, or a process with the mutex.

        There is no moment at which the lock or the text names nobody. The locked range first takes in the new token.
        Then what lies before that token is unlocked, and the state, in the range's end, changes last. The text is
        written in one piece, padded to its old length, and only then shortened.
        """
        text, length = b"%d\n" % who.pid, os.fstat(self.fd).st_size
        os.pwrite(self.fd, text.ljust(length, b"\n"), 0)
        if length > len(text):
            os.ftruncate(self.fd, len(text))
        if self._state == State.LENT:
            self._set_state(State.NAMED)
        self.owner = who
        self._lock_range()
        _lock(self.fd, fcntl.F_UNLCK, PID_MAX, who.token - PID_MAX)
        self._set_state(state)

    def _set_state(self, state: int) -> None:
        before, self._state = self._state, state
        if state > before:
            try:
                self._lock_range()
            except BlockingIOError:  # after a failed start the range grows, and a reader may have locked what is there
                self._state = before
        _lock(self.fd, fcntl.F_UNLCK, end_of_lock(self._state), 0)

    def _lock_range(self) -> None:
        _lock(self.fd, fcntl.F_WRLCK, self.owner.token, end_of_lock(self._state) - self.owner.token)

    def release(self) -> None:
        """Free the pidfile: remove it, or empty it where this process may not remove it any more."""
        if self.is_current():
            try:
                os.unlink(self.name, dir_fd=self.directory)
            except OSError:
                # Unlocked first: while the file is held no reader may find it empty.
                _lock(self.fd, fcntl.F_UNLCK, 0, 0)
                os.ftruncate(self.fd, 0)
        self.close()

    def close(self) -> None:
        """Close this process's descriptors. The lock goes with the last one in any process."""
        _holds.discard(self)
        while self.fds:
            try:  # not suppress(), which takes as long as the system call
                os.close(self.fds.pop())
            except OSError:  # the program has closed all descriptors, for example
                pass


# --- every hold of this process, and forks --------------------------------------------------------------------------


class _Passing(threading.local):
    """Whether this thread's forks pass the locks on; it is `locks_inherited`'s block."""

    now = False

    def __enter__(self) -> None:
        self.now = True

    def __exit__(self, *_exc: object) -> None:
        self.now = False


_holds: set[Hold] = set()
_passing = _Passing()
_hooked = False
_daemon_pid = 0


def keep(hold: Hold) -> None:
    """Let this process hold it until it is released, or the process ends."""
    hold.keep()
    _hook_fork()
    _holds.add(hold)


def own_hold(path: str, likely: Hold | None) -> Hold | None:
    """Return the hold that this process has on a pidfile: `likely` if it is one still, else any other."""
    if likely in _holds:
        return likely
    return next((hold for hold in tuple(_holds) if hold.path == path), None)


def lock_descriptors() -> set[int]:
    """Return the descriptors that the locks need."""
    return {fd for hold in tuple(_holds) for fd in hold.fds}


def _hook_fork() -> None:
    global _hooked  # noqa: PLW0603 - a fork hook cannot be taken back: set it once, and only when there is a lock
    if not _hooked:
        os.register_at_fork(after_in_child=_forget)
        _hooked = True


def _forget() -> None:
    """Close a forked child's copies of the locks, which must not outlive the holder. To unlock would free its file."""
    if not _passing.now:
        for hold in tuple(_holds):
            hold.close()


def locks_inherited() -> AbstractContextManager[None]:
    """Let a fork in this block, by this thread, pass every lock on. The child calls `adopt_locks`."""
    return _passing


def _is_daemon() -> bool:
    """Tell whether this process is a detached daemon, and not a fork of one."""
    return _daemon_pid == os.getpid()


def adopt_locks() -> None:
    """Make this detached daemon the holder of every lock that the caller passed on; OSError if a file has gone."""
    global _daemon_pid  # noqa: PLW0603 - a fact about this process
    _daemon_pid = os.getpid()
    for hold in tuple(_holds):
        hold.claim()


def take_back_locks() -> None:
    """Hold again the locks that this process passed on to one that has ended, as far as the files are still there."""
    for hold in tuple(_holds):
        try:
            hold.claim()
        except (OSError, LockFailed):
            hold.close()


# --- taking a file --------------------------------------------------------------------------------------------------


def take(hold: Hold, timeout: float | None) -> None:
    """Publish the file, locked and naming the caller; `keep` it or hand it on afterwards.

    The caller has to release it also if this raises, as a signal handler may do at any moment.
    """
    reap()
    identity()  # for its error where /proc is missing, before an error could seem to be about the pidfile
    deadline = time.monotonic() + (math.inf if timeout is None else timeout)
    while True:
        try:
            _take_now(hold)
        except AlreadyRunningError as error:
            if timeout is not None and timeout <= 0:
                raise
            left = deadline - time.monotonic()
            if left <= 0:
                raise LockTimeout(f"{error} (waited {timeout:g} s)") from error
            wait_for_end(error.pid, min(left, _SLICE), among_greenlets=True)
        else:
            return


def _take_now(hold: Hold) -> None:
    try:
        while not _publish(hold):
            _remove_stale(hold.path)
    except OSError as error:
        raise _answer(error, hold.path) from error


def _answer(error: OSError, path: str) -> Exception:
    """Return what to raise. A live holder is named first: the error may only mean that this user can't write there."""
    with contextlib.suppress(OSError):
        if holder := find_holder(path):
            return already_running(path, holder)
    return explained(error, path)


def _publish(hold: Hold) -> bool:
    """Give its path a new file, complete and locked; return False if the name is taken."""
    if not hold.name:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), hold.path)
    hold.open(hold.folder, os.O_PATH | os.O_DIRECTORY)
    source = _open_new(hold)
    try:
        hold.fill()
        linked = _link(source, hold.name, hold.directory)
    finally:
        if source[0] != "/":
            os.unlink(source, dir_fd=hold.directory)
    if not linked:
        hold.close()
    elif source[0] != "/":
        _check_lock(hold)
    return linked


def _open_new(hold: Hold) -> str:
    """Open a new file, and return the path to link it by."""
    try:
        hold.open(".", os.O_TMPFILE | os.O_RDWR)
    except OSError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.EISDIR}:
            raise
        # NFS and FUSE lack O_TMPFILE. A temporary name instead is left behind only by a crash before the link.
        source = f".{hold.name}.{os.getpid()}.{threading.get_ident()}"
        hold.open(source, _WRITE | os.O_CREAT | os.O_EXCL)
        return source
    return f"/proc/self/fd/{hold.fd}"


def _link(source: str, name: str, directory: int) -> bool:
    try:
        os.link(source, name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=source[0] == "/")
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}:
            raise
        raise OSError(errno.EOPNOTSUPP, f"its file system has no hard links; {_BETTER_PLACE}") from error
    return True


def _check_lock(hold: Hold) -> None:
    """Refuse a file system on which those who open the file by its name do not see the lock.

    On many FUSE file systems (bindfs, sshfs, mergerfs) two links to a file are two files, each with locks of its own.
    A file system with unnamed files (O_TMPFILE) is not checked: it can't tell its files apart by their paths alone.
    """
    fd = os.open(hold.name, _WRITE, dir_fd=hold.directory)
    try:
        lock = find_lock(fd)
    finally:
        os.close(fd)
    if lock is None or lock.owner != hold.owner:
        os.unlink(hold.name, dir_fd=hold.directory)
        raise OSError(errno.EOPNOTSUPP, f"locks do not follow the name on its file system; {_BETTER_PLACE}")


def remove_stale(path: str) -> None:
    """Remove the file if nobody holds it; AlreadyRunningError against a live holder."""
    reap()
    try:
        _remove_stale(path)
    except OSError as error:
        raise _answer(error, path) from error


def _remove_stale(path: str) -> None:
    try:
        fd = os.open(path, _WRITE)
    except FileNotFoundError:
        return
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, fd)
        if holder := examine(fd, path):
            raise already_running(path, holder)
        stack.enter_context(_mutex(fd, path))
        # Another starter or the holder's daemon may have been here. Nobody else can come now, so look again.
        if holder := examine(fd, path):
            raise already_running(path, holder)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.lstat(path), os.fstat(fd)):
                os.unlink(path)
