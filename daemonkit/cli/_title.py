"""Show another command line in ps(1): that of a supervisor would have the program's own words, and secrets."""

from __future__ import annotations

import contextlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_ARG_START: Final = 47  # the fields of proc(5)'s /proc/PID/stat that say where the command line lies in memory,
_ARG_END: Final = 48  # without the two before the name's ")"
_BEFORE: Final = 2


def set_title(text: str) -> None:
    """Write a text over this process's command line, as far as it has room, and over its name.

    A ``pkill -f PROGRAM`` would hit a supervisor whose command line names the program; and ``ps`` would show everyone
    the values of ``--env``. prctl(2)'s PR_SET_MM would need CAP_SYS_RESOURCE; one's own memory may be written by all.
    """
    title = text.encode(errors="backslashreplace")
    with contextlib.suppress(OSError, ValueError, IndexError):  # without /proc nobody sees the command line either
        with open("/proc/self/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
        start, end = (int(fields[number - _BEFORE]) for number in (_ARG_START, _ARG_END))
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            memory.seek(start)
            memory.write(title[: end - start - 1].ljust(end - start, b"\0"))  # the last byte 0: it ends there
        with open("/proc/self/comm", "wb", buffering=0) as comm:
            comm.write(title)  # the kernel keeps 15 bytes
