"""Parents and children: prctl(2), which Python has not."""

from __future__ import annotations

import os
import signal

from daemonkit._system.libc import load_libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_GET_CHILD_SUBREAPER: Final = 37


def _prctl(option: int, value: object) -> None:
    if load_libc().prctl(option, value, 0, 0, 0) != 0:
        import ctypes  # noqa: PLC0415 - it is loaded by now

        number = ctypes.get_errno()
        raise OSError(number, f"{os.strerror(number)}: prctl({option}, {value})")


def become_subreaper(*, on: bool = True) -> None:
    """Become the parent of every process that this process's descendants leave behind; if not `on`, be it no longer."""
    _prctl(_PR_SET_CHILD_SUBREAPER, int(on))


def is_subreaper() -> bool:
    """Tell whether this process is one."""
    load_libc()
    import ctypes  # noqa: PLC0415 - it is loaded by now

    answer = ctypes.c_int()
    _prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(answer))
    return bool(answer.value)


def die_with_parent() -> None:
    """Be killed when the parent ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
