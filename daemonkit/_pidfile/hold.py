"""Holding a pidfile: take it, hand it over, release it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import threading
import time
from functools import partial

from daemonkit._pidfile.holder import already_running, examine, explained, find_holder
from daemonkit._pidfile.ranges import DAEMON, END, FLOCK, LENT, NAMED, NAMESPACE_SHIFT, NEW, PID_MAX, PLAIN, locked_by
from daemonkit._system.pidfd import reap, wait_for_end
from daemonkit._system.process import Identity, identity, namespace_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final


_MODE: Final = 0o644
_WRITE = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_MUTEX_PATIENCE: Final = 2.0  # seconds; who holds the mutex makes a few system calls and is gone
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
                from lockfile import LockFailed  # noqa: PLC0415 - see above

                msg = f"{path}: another process keeps it locked, but does not hold it; end that one (see lslocks)"
                raise LockFailed(msg) from None
            wait_for_end(None, 0.001)
        else:
            break
    try:
        yield
    finally:
        _lock(fd, fcntl.F_UNLCK, 0, 1)


class Hold:  # no dataclass: to import those takes as long as all the rest, and `daemonkit ls` is to be quick
    """A lock that this process has or is about to get: the open file, and its directory and name to find it by."""

    __slots__ = ("_kind", "fds", "folder", "inode", "name", "owner", "path")

    def __init__(self, path: str) -> None:
        """Name the file, for `take`. Whatever comes of that, `release` undoes it."""
        self.path = path
        self.folder, self.name = os.path.split(path)
        self.fds: list[int] = []
        """The directory's, O_PATH, which finds the file also after a chroot; the file's."""
        self.inode = (0, 0)
        self.owner = Identity(0, 0)
        self._kind = NEW

    @property
    def directory(self) -> int:
        """The directory's descriptor."""
        return self.fds[0]

    @property
    def fd(self) -> int:
        """The file's descriptor, which has the lock."""
        return self.fds[1]

    def open(self, path: str, flags: int) -> None:
        """Open one more of its descriptors: in one step for the interpreter, so that no signal handler loses it."""
        directory = self.fds[0] if self.fds else None
        self.fds += map(partial(os.open, dir_fd=directory), [path], [flags | os.O_CLOEXEC], [_MODE])

    def fill(self) -> None:
        """Lock the new file and name this process in it."""
        info = os.fstat(self.fd)
        self.inode = info.st_dev, info.st_ino
        if info.st_mode & 0o7777 != _MODE:
            os.fchmod(self.fd, _MODE)  # the umask had its say
        self.owner, self._kind = identity(), NEW
        os.write(self.fd, b"%d\n" % self.owner.pid)
        self._lock_range()

    def is_current(self) -> bool:
        """Tell whether the name still leads to this very file."""
        try:
            there = os.stat(self.name, dir_fd=self.directory, follow_symlinks=False)
        except (OSError, IndexError):  # gone, or given up
            return False
        return self.inode == (there.st_dev, there.st_ino)

    def claim(self) -> None:
        """Make the calling process the one that the lock and the file name."""
        me = identity()
        # The mutex is taken on a descriptor of its own: one that descendants share could outlive this process.
        with contextlib.ExitStack() as stack:
            own = os.open(self.name, _WRITE, dir_fd=self.directory)
            stack.callback(os.close, own)
            stack.enter_context(_mutex(own, self.path))
            if not self.is_current():
                raise FileNotFoundError(errno.ENOENT, "removed or replaced while the daemon was starting", self.path)
            if lock := locked_by(own):
                self._kind = lock[1] & (1 << NAMESPACE_SHIFT) - 1  # a daemon that has ended since may have said another
            self.name_holder(me, DAEMON if _is_daemon() else PLAIN)

    def keep(self) -> None:
        """Let this process hold it until it is released, or the process ends."""
        if _is_daemon():
            self._tell(DAEMON)

    def name_holder(self, who: Identity, kind: int = PLAIN) -> None:
        """Make `who` the one that the lock and the file name; for whoever has the mutex, or is the holder so far.

        There is no moment at which either names nobody: the lock's range is widened or kept before it is cut, its
        end last, and the text is written in one piece, padded to its old length and only then shortened.
        """
        text, length = b"%d\n" % who.pid, os.fstat(self.fd).st_size
        os.pwrite(self.fd, text.ljust(length, b"\n"), 0)
        if length > len(text):
            os.ftruncate(self.fd, len(text))
        if self._kind == LENT:
            self._tell(NAMED)
        self.owner = who
        self._lock_range()
        _lock(self.fd, fcntl.F_UNLCK, PID_MAX, who.token - PID_MAX)
        self._tell(kind)

    def lend(self) -> None:
        """Say that a program is about to get the lock's descriptor; `name_holder` is to follow."""
        self._tell(LENT)

    def _tell(self, kind: int) -> None:
        before, self._kind = self._kind, kind
        try:
            self._lock_range()
        except BlockingIOError:  # it would grow, after a start that failed, into what a reader has locked
            self._kind = before
        _lock(self.fd, fcntl.F_UNLCK, self._end(), 0)

    def _lock_range(self) -> None:
        _lock(self.fd, fcntl.F_WRLCK, self.owner.token, self._end() - self.owner.token)

    def _end(self) -> int:
        return END + (namespace_id() << NAMESPACE_SHIFT | self._kind)

    def release(self) -> None:
        """Free the pidfile: removed, or emptied where this process may not remove it any more."""
        if self.is_current():
            try:
                os.unlink(self.name, dir_fd=self.directory)
            except OSError:
                # Unlocked first: while the file is held no reader may find it empty.
                _lock(self.fd, fcntl.F_UNLCK, 0, 0)
                os.ftruncate(self.fd, 0)
        self.close()

    def close(self) -> None:
        """Give up this process's descriptors, and the lock if they are the last."""
        _holds.discard(self)
        while self.fds:
            with contextlib.suppress(OSError):  # somebody closed all there was
                os.close(self.fds.pop())


_holds: set[Hold] = set()
_adopting = threading.local()


def _hold_of(path: str) -> Hold | None:
    return next((hold for hold in tuple(_holds) if hold.path == path), None)


def _forget() -> None:
    """In a forked child: its copies of the lock must not outlive the holder. Closed, never unlocked."""
    if not getattr(_adopting, "now", False):
        for hold in tuple(_holds):
            hold.close()


@contextlib.contextmanager
def locks_inherited() -> Iterator[None]:
    """Let a fork in this block, by this thread, pass every lock on; the child calls `adopt`."""
    _adopting.now = True
    try:
        yield
    finally:
        _adopting.now = False


_daemon = 0


def _is_daemon() -> bool:
    """Tell whether this process is a detached daemon, and not a fork of one."""
    return _daemon == os.getpid()


def adopt_locks() -> None:
    """In a detached daemon: hold every lock that it was passed. Raises OSError if a file was taken away."""
    global _daemon  # noqa: PLW0603 - what this process is now
    _daemon = os.getpid()
    for hold in tuple(_holds):
        hold.claim()


def take_back_locks() -> None:
    """In the process that passed its locks on, once the other has ended: hold again what is still there."""
    from lockfile import LockFailed  # noqa: PLC0415 - see above

    for hold in tuple(_holds):
        try:
            hold.claim()
        except (OSError, LockFailed):
            hold.close()


def lock_descriptors() -> set[int]:
    """Return the descriptors that the locks need."""
    return {fd for hold in tuple(_holds) for fd in hold.fds}


def take(hold: Hold, timeout: float | None) -> None:
    """Publish the file, locked and naming the caller, which is to keep it or to hand it on.

    It is the caller's to release also if this raises, as a signal handler may do at any moment.
    """
    from lockfile import LockTimeout  # noqa: PLC0415 - see above

    from daemonkit.errors import AlreadyRunningError  # noqa: PLC0415 - see above

    reap()
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
            wait_for_end(error.pid, min(left, _SLICE))
        else:
            return


def _take_now(hold: Hold) -> None:
    with _answering(hold.path):
        while not _publish(hold):
            _remove_stale(hold.path)


@contextlib.contextmanager
def _answering(path: str) -> Iterator[None]:
    """Explain an OSError. A live holder is the better answer: its file may be all that this user can read here."""
    try:
        yield
    except OSError as error:
        with contextlib.suppress(OSError):
            if holder := find_holder(path):
                raise already_running(path, holder) from error
        raise explained(error, path) from error


def keep(hold: Hold) -> None:
    """Let this process hold it until it is released, or the process ends."""
    hold.keep()
    _hook_fork()
    _holds.add(hold)


def own_hold(path: str, likely: Hold | None) -> Hold | None:
    """Return the hold that this process has on a pidfile: the likely one if it still is, else whichever there is."""
    return likely if likely in _holds else _hold_of(path)


def remove_stale(path: str) -> None:
    """Remove the file if nobody holds it; AlreadyRunningError against a live holder."""
    with _answering(path):
        _remove_stale(path)


_hooked = False


def _hook_fork() -> None:
    global _hooked  # noqa: PLW0603 - fork hooks can't be taken back, so one is set, and only once there is a lock
    if not _hooked:
        os.register_at_fork(after_in_child=_forget)
        _hooked = True


def _publish(hold: Hold) -> bool:
    """Give its path a new file, complete and locked; return False if the name is taken."""
    if not hold.name:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), hold.path)
    hold.open(hold.folder, os.O_PATH | os.O_DIRECTORY)
    source = _nameless_file(hold)
    try:
        hold.fill()
        linked = _link(source, hold.name, hold.directory)
    finally:
        if source[0] != "/":
            os.unlink(source, dir_fd=hold.directory)
    if not linked:
        hold.close()
    return linked


def _nameless_file(hold: Hold) -> str:
    """Open a new file, and return the path to link it by."""
    try:
        hold.open(".", os.O_TMPFILE | os.O_RDWR)
    except OSError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.EISDIR}:
            raise
        # NFS and FUSE have no O_TMPFILE: a name of its own, which only a crash before the link leaves behind.
        source = f".{hold.name}.{os.getpid()}.{threading.get_ident()}"
        hold.open(source, _WRITE | os.O_CREAT | os.O_EXCL)
        return source
    return f"/proc/self/fd/{hold.fd}"


def _link(source: str, name: str, directory: int) -> bool:
    try:
        os.link(source, name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=source[0] == "/")
    except FileExistsError:
        return False
    return True


def _remove_stale(path: str) -> None:
    """Remove the file if nobody holds it; raise AlreadyRunningError if somebody does."""
    try:
        fd = os.open(path, _WRITE)
    except FileNotFoundError:
        return
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, fd)
        if holder := examine(fd, path):
            raise already_running(path, holder)
        stack.enter_context(_mutex(fd, path))
        # Another starter may have been here, or the holder's daemon: look again, now that nobody else can.
        if holder := examine(fd, path):
            raise already_running(path, holder)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.lstat(path), os.fstat(fd)):
                os.unlink(path)
