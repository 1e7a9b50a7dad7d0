"""What the kernel is told about a pidfile, and how it is asked."""

from __future__ import annotations

import fcntl
import os
import struct

from daemonkit._system.process import Identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

PID_MAX: Final = 1 << 22
FLOCK = struct.Struct("hhqqi")  # struct flock of fcntl(2): type, whence, start, length, pid
END: Final = (1 << 62) + 1
_ASK_HOLDER = FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, END - 1, 0, 0)  # no other lock of ours goes that far
NAMESPACE_SHIFT: Final = 3
# What the lowest bits of the end tell, in the order in which they may follow: the end is to shrink, as who may read the
# file could have locked what is behind it.
NEW: Final = 4
LENT: Final = 3  # some program has it, and is to be looked for
NAMED: Final = 2  # the same, and the file's text says which
DAEMON: Final = 1
PLAIN: Final = 0


def locked_by(fd: int) -> tuple[Identity, int] | None:
    """Return who took the lock, by the kernel's word, and what its end tells; that process may have died since.

    Asking for a read lock finds write locks alone, which nobody can take who may not write the file.
    """
    kind, _, start, length, _ = FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _ASK_HOLDER))
    # One that begins lower (most begin at 0) or has no end is the lock of another tool.
    if kind == fcntl.F_UNLCK or start < PID_MAX or length == 0:
        return None
    return Identity.from_token(start), start + length - END
