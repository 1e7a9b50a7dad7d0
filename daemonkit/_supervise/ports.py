"""Who listens on a TCP port of this machine: read from /proc, and only where somebody asks."""

from __future__ import annotations

import contextlib
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

_LISTEN: Final = "0A"  # TCP_LISTEN of include/net/tcp_states.h, as /proc/net/tcp writes it


def listening_ports() -> dict[int, int]:
    """Return the port of each listening TCP socket, by its inode: proc_net_tcp.rst."""
    found: dict[int, int] = {}
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError), open(f"/proc/net/{name}", encoding="ascii") as file:
            for line in list(file)[1:]:
                _, local, _, state, *rest = line.split()
                if state == _LISTEN:
                    found[int(rest[5])] = int(local.rpartition(":")[2], 16)
    return found


def sockets_of(pids: Iterable[int]) -> set[int]:
    """Return the inodes of all sockets that these processes have open, as far as this process may look."""
    found: set[int] = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    name = os.readlink(f"/proc/{pid}/fd/{fd}")
                    if name.startswith("socket:["):
                        found.add(int(name[8:-1]))
    return found
