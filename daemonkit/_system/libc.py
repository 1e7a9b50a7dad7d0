"""The C library, for the few calls that Python has not."""

from __future__ import annotations

import contextlib
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ctypes
    from collections.abc import Iterator
    from typing import Final

_SIGACTION: Final = 256  # bytes, more than any struct sigaction has

_libc: ctypes.CDLL | None = None


def load_libc() -> ctypes.CDLL:
    """Return the C library. The first call takes 10 ms, for ctypes; make it before a fork or a change of user."""
    global _libc  # noqa: PLW0603 - a cache
    if _libc is None:
        import ctypes  # noqa: PLC0415 - 10 ms, which most programs never need to spend

        _libc = ctypes.CDLL(None, use_errno=True)
    return _libc


@contextlib.contextmanager
def c_handler_kept(number: int) -> Iterator[None]:
    """Put a signal's handler back in the end, also one that a C library has set and Python does not know of.

    What came meanwhile is lost to that, so it gets the signal once.
    """
    import ctypes  # noqa: PLC0415 - as above

    libc, before = load_libc(), ctypes.create_string_buffer(_SIGACTION)
    libc.sigaction(number, None, before)
    try:
        yield
    finally:
        libc.sigaction(number, before, None)
        os.kill(os.getpid(), number)
