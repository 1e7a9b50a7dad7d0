"""Parents and children: prctl(2), which Python has not."""

from __future__ import annotations

import errno
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_libc: Any = None


def load_prctl() -> None:
    """Load what the rest needs: it takes 10 ms, which only a supervisor spends, and none of it after a fork."""
    global _libc  # noqa: PLW0603 - a cache
    if _libc is None:
        import ctypes  # noqa: PLC0415 - as above

        _libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: object) -> None:
    load_prctl()
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(errno.EINVAL, f"prctl({option})")


def become_subreaper() -> None:
    """Become the parent of whatever this process's descendants leave behind."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> None:
    """Be killed when the parent ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
