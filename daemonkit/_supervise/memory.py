"""How much memory processes use together: proc(5)."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


def memory_of(pids: Iterable[int], limit: int) -> int:
    """Return how much is resident, in bytes.

    Pages that several share are counted for each, which is quick to find out; only if that is above the limit they are
    counted once (the proportional set size), where this process may look.
    """
    resident = {pid: _resident(pid) for pid in pids}
    total = sum(resident.values())
    if total <= limit:
        return total
    return sum(_proportional(pid, size) for pid, size in resident.items())


def _resident(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except OSError:
        return 0


def _proportional(pid: int, resident: int) -> int:
    """Return a process's proportional set size; what is resident where that can't be read."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) << 10
    except OSError:
        pass
    return resident
