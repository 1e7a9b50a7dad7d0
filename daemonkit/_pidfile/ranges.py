"""The kernel locks on a pidfile: which ranges of offsets are locked, and what they mean.

The locks are open file description locks (fcntl(2), ``F_OFD_SETLK``). Such a lock ends with the last descriptor of the
open file, however its processes die. A record lock (``F_SETLK``) would be lost as soon as the holder opens and closes
its own pidfile, and an flock(2) could carry no numbers. Two ranges are locked. Neither is ever written
to: a lock may cover offsets far beyond the end of a file.

- ``[token, END + namespace and state)`` is locked as long as the file is held. The token is the holder's pid and start
  time (`Identity.token`). So the kernel itself says who took the lock: a reader needs neither the file's text nor the
  wall clock, and recognizes a lock that only a dead holder's descendant still has open. Any two such ranges overlap, so
  there is never more than one. The end of the range carries two facts more: the PID and time namespaces in which the
  token was made, since a token means nothing in others, and a state (`State`).
- Byte 0 is locked for a moment, as a mutex, by a process that is about to replace the file or to hand it over.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections import namedtuple

from daemonkit._system.process import Identity, namespace_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

PID_MAX: Final = 1 << 22
FLOCK = struct.Struct("hhqqi")  # struct flock of fcntl(2): type, whence, start, length, pid
_END: Final = (1 << 62) + 1
_ASK: Final = FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, _END - 1, 0, 0)  # no other lock of daemonkit's reaches that far
_STATE_BITS: Final = 3


class State:
    """The state of a lock: the low three bits of its end.

    It may only decrease: growing the range can hit a reader's lock beyond it.
    """

    TAKEN: Final = 4
    """Held by the process that took it."""
    LENT: Final = 3
    """Lent to a program that is being launched. If the launcher died, find that program."""
    NAMED: Final = 2
    """The same, and the file's text already names that program."""
    DAEMON: Final = 1
    """Held by a detached daemon. Its process group is its own, although it does not lead the group."""
    HANDED_OVER: Final = 0
    """Held by another process than the one that took it, or by that one again."""


class Lock(namedtuple("Lock", ("owner", "namespace", "state"))):
    """The lock that the kernel reports. Its owner may have died while a descendant still has the lock open."""

    __slots__ = ()
    owner: Identity
    namespace: int
    """Where the owner's numbers mean something, see `namespace_id`."""
    state: int


def find_lock(fd: int) -> Lock | None:
    """Return the holder's lock on an open file, or None.

    It asks the kernel what would prevent a read lock. Only a write lock does, and that takes the right to write: so
    nobody who may only read the file can seem to hold it.
    """
    kind, _, start, length, _ = FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _ASK))
    # Another tool's lock begins lower (nearly all begin at 0), or has no end.
    if kind == fcntl.F_UNLCK or start < PID_MAX or length == 0:
        return None
    namespace, state = divmod(start + length - _END, 1 << _STATE_BITS)
    return Lock(Identity.from_token(start), namespace, state)


def end_of_lock(state: int) -> int:
    """Return the first offset beyond the lock of a holder in this process's namespaces."""
    return _END + (namespace_id() << _STATE_BITS | state)
