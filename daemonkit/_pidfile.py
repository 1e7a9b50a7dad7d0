"""The pidfile: a kernel lock for truth, a number for readers.

The lock is an open file description lock (fcntl(2), ``F_OFD_SETLK``) on the file itself. It ends with the last
descriptor of the process that took it, however that process dies, and unlike a record lock it is not lost when
the holder opens and closes its own pidfile. Three ranges of offsets are used, none of which is ever written:

- ``[token, 2**62 + told)``, held for life. The token is the holder's pid and start time (`Identity.token`), so that
  the kernel itself says who took the lock: a reader needs neither the file's text nor the wall clock to know it,
  and a lock that a dead holder's descendant still has open is told from a live one. Any two such ranges overlap.
  What the end tells: the PID and time namespaces in which the token was made, as it means nothing in others; whether
  the lock is lent to a program that is being launched, so that, should the launcher be killed before it has handed it
  over, there is one to look for; and whether the holder is a detached daemon, whose process group is its own.
- byte 0, held for a moment: the mutex of whoever is about to replace the file or to hand it to another process.
- ``[pid, pid + 2 * start time + daemon)``, a record lock of the holder's own. It is only a short cut: the kernel drops
  it when its process ends and names the owner to whoever asks, so that asking about a held file takes one call and no
  look at /proc. It always ends before the token, as that is the same start time, shifted by more bits than a pid has.

A file is published complete: an unnamed file (``O_TMPFILE``) gets its text and its lock, and only then a name
(``linkat``), which fails if the name is taken. ``kill -9`` at any point leaves no debris. A stale file is removed
by whoever holds its mutex and finds the name still on it: device and inode decide, as in FreeBSD's pidfile_verify.

Who only asks loads no `lockfile`, which takes as long as all the rest: what is derived from its classes is imported
where it is raised, and `PidFile` has a module of its own, which has it loaded before any right is dropped.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import stat
import struct
import threading
import time
from collections import namedtuple
from functools import partial

from daemonkit import _process
from daemonkit._process import Identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

    from daemonkit.errors import AlreadyRunningError

_MODE: Final = 0o644
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_WRITE = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_PID_MAX: Final = 1 << 22
_MUTEX_PATIENCE: Final = 2.0  # seconds; who holds the mutex makes a few system calls and is gone
_SLICE: Final = 0.05  # seconds between looks at a file whose holder may release it without ending
_CLOCK_SLACK: Final = 0.02  # seconds; start times and file times both tick in steps of up to 10 ms

# --- the kernel's locks -------------------------------------------------------------------------------------

_FLOCK = struct.Struct("hhqqi")  # struct flock of fcntl(2): type, whence, start, length, pid
_ASK_RECORD = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 1, _PID_MAX, 0)
_END: Final = (1 << 62) + 1
_ASK_HOLDER = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, _END - 1, 0, 0)  # no other lock of ours goes that far
_PLACE_SHIFT: Final = 3
# What the lowest bits of the end tell, in the order in which they may follow: the end is to shrink, as who may read the
# file could have locked what is behind it.
_NEW: Final = 4
_LENT: Final = 3  # some program has it, and is to be looked for
_NAMED: Final = 2  # the same, and the file's text says which
_DAEMON: Final = 1
_PLAIN: Final = 0


def _lock(fd: int, kind: int, start: int, length: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))


def _locked_by(fd: int) -> tuple[Identity, int] | None:
    """Return who took the lock, by the kernel's word, and what its end tells; that process may have died since.

    Asking for a read lock finds write locks alone, which nobody can take who may not write the file.
    """
    kind, _, start, length, _ = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _ASK_HOLDER))
    # One that begins lower (most begin at 0) or has no end is the lock of another tool.
    if kind == fcntl.F_UNLCK or start < _PID_MAX or length == 0:
        return None
    return Identity.from_token(start), start + length - _END


def _record_of(fd: int) -> tuple[Identity, bool, int] | None:
    """Return the holder's record lock: who it is by its own words, whether a daemon, and its pid as seen from here.

    The process certainly lives; seen from another PID namespace its number is another, or 0.
    """
    kind, _, start, length, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, _ASK_RECORD))
    return None if kind == fcntl.F_UNLCK else (Identity(start, length >> 1), bool(length & 1), pid)


def _set_record(fd: int, kind: int, who: Identity, *, daemon: bool = False) -> None:
    try:
        length = max(who.started, 1) << 1 | daemon
        fcntl.fcntl(fd, fcntl.F_SETLK, _FLOCK.pack(kind, os.SEEK_SET, who.pid, length, 0))
    except OSError:
        pass  # only a short cut: without it readers take the longer way


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
            _process.wait_for_end(None, 0.001)
        else:
            break
    try:
        yield
    finally:
        _lock(fd, fcntl.F_UNLCK, 0, 1)


# --- who holds it -------------------------------------------------------------------------------------------


class Holder(namedtuple("Holder", ("pid", "started", "ours", "here", "daemon"), defaults=(True, False))):
    """The live process that a pidfile belongs to."""

    __slots__ = ()
    pid: int
    started: int
    """Clock ticks since boot, 0 where /proc hides it."""
    ours: bool
    """Whether it has daemonkit's lock; if not, another tool's process seems to run it."""
    here: bool
    """Whether the pid means something here; if not, it is that of another PID namespace (a container)."""
    daemon: bool
    """Whether it is a detached daemon, so that its process group is its own, though it does not lead it."""


def find_holder(path: str) -> Holder | None:
    """Return the live holder of the pidfile, or None; reads only. Raises OSError for what can't be a pidfile."""
    _process.reap()
    if _holds and (hold := _hold_of(os.path.abspath(path))) and hold.is_current():
        return hold.holder()  # opening it would drop our record lock
    try:
        fd = os.open(path, _READ)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _explained(error, path) from error
    try:
        record = _record_of(fd)
        if record and record[0].pid == record[2]:
            return Holder(*record[0], ours=True, daemon=record[1])
        return _examine(fd, path)
    finally:
        os.close(fd)


def _examine(fd: int, path: str) -> Holder | None:
    """Do the same for an open file, by the lock's own words."""
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        number = errno.EISDIR if stat.S_ISDIR(info.st_mode) else errno.EINVAL
        raise OSError(number, "not a regular file, which a pidfile must be; give another path", path)
    if lock := _locked_by(fd):
        owner, told = lock
        place, kind = divmod(told, 1 << _PLACE_SHIFT)
        if (record := _record_of(fd)) and record[0] == owner:
            # Of a process in another PID namespace this one may know another number, or none.
            return Holder(record[2] or owner.pid, owner.started, ours=True, here=record[2] != 0, daemon=record[1])
        if (here := _process.place()) and place != here:  # whether it lives can't be seen from here, but it is locked
            return Holder(*owner, ours=True, here=False)
        if _process.is_alive(owner):
            return Holder(*owner, ours=True, daemon=kind == _DAEMON)
        return _borrower(fd, owner, kind) if kind in {_LENT, _NAMED} else None
    pid = _parse(os.pread(fd, 64, 0))
    started = _process.start_of(pid) if pid else None
    if started is None or _process.wall_clock(started) > info.st_mtime + _CLOCK_SLACK:
        return None  # dead, or a number that was given out again after the file was written
    return Holder(pid, started, ours=False)


def _borrower(fd: int, launcher: Identity, kind: int) -> Holder | None:
    """Return the program that a launcher lent the lock to, and was killed before it could say so.

    It is the one that the file names, or else the oldest of all that have the lock's descriptor.
    """
    inode, mark = os.fstat(fd), f" {launcher.token} "
    named = _parse(os.pread(fd, 64, 0))
    pids = _process.all_pids() if kind == _LENT and named == launcher.pid else [named]
    found = [_process.identity_of(pid) for pid in pids if _has_lock(pid, inode, mark)]
    oldest = min((who for who in found if who), key=lambda who: who.started, default=None)
    return Holder(*oldest, ours=True) if oldest else None


def _has_lock(pid: int, inode: os.stat_result, mark: str) -> bool:
    """Tell whether a process has the very file open that the lock with that mark was taken through: proc(5), fdinfo."""
    with contextlib.suppress(OSError):
        for number in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.path.samestat(os.stat(f"/proc/{pid}/fd/{number}"), inode):
                    with open(f"/proc/{pid}/fdinfo/{number}", encoding="ascii") as lines:
                        if any(line.startswith("lock:") and mark in line for line in lines):
                            return True
    return False


def _parse(text: bytes) -> int:
    """Return the pid that a pidfile's first line names, 0 if none: generous, as the FHS asks of readers."""
    first = text.split(b"\n", 1)[0].strip()
    return int(first) if first.isdigit() and len(first) < 20 and int(first) < _PID_MAX else 0


def _held(path: str, holder: Holder) -> AlreadyRunningError:
    from daemonkit.errors import AlreadyRunningError  # noqa: PLC0415 - see above

    started = holder.here and (holder.started or _process.start_of(holder.pid))
    since = f" (since {time.strftime('%H:%M', time.localtime(_process.wall_clock(started)))})" if started else ""
    if holder.pid == os.getpid() and holder.here:
        way_out = "that is this process itself: release it first"
    elif not holder.here:
        way_out = "its number is that of another PID namespace (a container): end it there"
    elif holder.ours:
        way_out = f"end that one first (kill {holder.pid})"
    else:
        way_out = (
            f"another tool's process, it seems: end it (kill {holder.pid}), or remove the file if it is a stranger"
        )
    message = f"{path} is held by process {holder.pid}{since}; {way_out}"
    return AlreadyRunningError(message, path=path, pid=holder.pid)


def _explained(error: OSError, path: str) -> OSError:
    """Return the same error with the pidfile's path and, where the bare text would puzzle, the cause."""
    text = error.strerror or str(error)
    if error.errno == errno.ELOOP:
        text = "a symbolic link, which a pidfile must not be; give the path it leads to"
    return OSError(error.errno, text, path)


# --- holding it ---------------------------------------------------------------------------------------------


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
        self._kind = _NEW

    @property
    def directory(self) -> int:
        """The directory's descriptor."""
        return self.fds[0]

    @property
    def fd(self) -> int:
        """The file's descriptor, which has the lock."""
        return self.fds[1]

    def holder(self) -> Holder:
        """Tell who holds it, as `find_holder` does."""
        return Holder(*self.owner, ours=True, daemon=self._kind == _DAEMON)

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
        self.owner, self._kind = _process.identity(), _NEW
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
        me = _process.identity()
        # The mutex is taken on a descriptor of its own: one that descendants share could outlive this process.
        with contextlib.ExitStack() as stack:
            own = os.open(self.name, _WRITE, dir_fd=self.directory)
            stack.callback(os.close, own)
            stack.enter_context(_mutex(own, self.path))
            if not self.is_current():
                raise FileNotFoundError(errno.ENOENT, "removed or replaced while the daemon was starting", self.path)
            if lock := _locked_by(own):
                self._kind = lock[1] & (1 << _PLACE_SHIFT) - 1  # a daemon that has ended since may have said another
            self.name_holder(me, _DAEMON if _is_daemon() else _PLAIN)
        _set_record(self.fd, fcntl.F_WRLCK, me, daemon=_is_daemon())

    def keep(self) -> None:
        """Let this process hold it until it is released, or the process ends."""
        if _is_daemon():
            self._tell(_DAEMON)
        _set_record(self.fd, fcntl.F_WRLCK, self.owner, daemon=_is_daemon())

    def name_holder(self, who: Identity, kind: int = _PLAIN) -> None:
        """Make `who` the one that the lock and the file name; for whoever has the mutex, or is the holder so far.

        There is no moment at which either names nobody: the lock's range is widened or kept before it is cut, its
        end last, and the text is written in one piece, padded to its old length and only then shortened.
        """
        text, length = b"%d\n" % who.pid, os.fstat(self.fd).st_size
        os.pwrite(self.fd, text.ljust(length, b"\n"), 0)
        if length > len(text):
            os.ftruncate(self.fd, len(text))
        if self._kind == _LENT:
            self._tell(_NAMED)
        self.owner = who
        self._lock_range()
        _lock(self.fd, fcntl.F_UNLCK, _PID_MAX, who.token - _PID_MAX)
        self._tell(kind)

    def lend(self) -> None:
        """Say that a program is about to get the lock's descriptor; `name_holder` is to follow."""
        self._tell(_LENT)

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
        return _END + (_process.place() << _PLACE_SHIFT | self._kind)

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
def inherited() -> Iterator[None]:
    """Let a fork in this block, by this thread, pass every lock on; the child calls `adopt`."""
    _adopting.now = True
    try:
        for hold in tuple(_holds):
            _set_record(hold.fd, fcntl.F_UNLCK, hold.owner, daemon=True)  # it would go on naming the parent
        yield
    finally:
        _adopting.now = False


_daemon = 0


def _is_daemon() -> bool:
    """Tell whether this process is a detached daemon, and not a fork of one."""
    return _daemon == os.getpid()


def adopt() -> None:
    """In a detached daemon: hold every lock that it was passed. Raises OSError if a file was taken away."""
    global _daemon  # noqa: PLW0603 - what this process is now
    _daemon = os.getpid()
    for hold in tuple(_holds):
        hold.claim()


def take_back() -> None:
    """In the process that passed its locks on, once the other has ended: hold again what is still there."""
    from lockfile import LockFailed  # noqa: PLC0415 - see above

    for hold in tuple(_holds):
        try:
            hold.claim()
        except (OSError, LockFailed):
            hold.close()


def descriptors() -> set[int]:
    """Return the descriptors that the locks need."""
    return {fd for hold in tuple(_holds) for fd in hold.fds}


# --- taking it ---------------------------------------------------------------------------------------------------


def take(hold: Hold, timeout: float | None) -> None:
    """Publish the file, locked and naming the caller, which is to keep it or to hand it on.

    It is the caller's to release also if this raises, as a signal handler may do at any moment.
    """
    from lockfile import LockTimeout  # noqa: PLC0415 - see above

    from daemonkit.errors import AlreadyRunningError  # noqa: PLC0415 - see above

    _process.reap()
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
            _process.wait_for_end(error.pid, min(left, _SLICE))
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
                raise _held(path, holder) from error
        raise _explained(error, path) from error


def keep(hold: Hold) -> None:
    """Let this process hold it until it is released, or the process ends."""
    hold.keep()
    _hook_fork()
    _holds.add(hold)


def own(path: str, likely: Hold | None) -> Hold | None:
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
    if (hold := _hold_of(path)) and hold.is_current():
        raise _held(path, hold.holder())  # opening it would drop our record lock
    try:
        fd = os.open(path, _WRITE)
    except FileNotFoundError:
        return
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, fd)
        if holder := _examine(fd, path):
            raise _held(path, holder)
        stack.enter_context(_mutex(fd, path))
        # Another starter may have been here, or the holder's daemon: look again, now that nobody else can.
        if holder := _examine(fd, path):
            raise _held(path, holder)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.lstat(path), os.fstat(fd)):
                os.unlink(path)
