"""The C library, for the few calls that Python has not."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ctypes

_libc: ctypes.CDLL | None = None


def load_libc() -> ctypes.CDLL:
    """Return the C library. The first call takes 10 ms, for ctypes; make it before a fork or a change of user."""
    global _libc  # noqa: PLW0603 - a cache
    if _libc is None:
        import ctypes  # noqa: PLC0415 - 10 ms, which most programs never need to spend

        _libc = ctypes.CDLL(None, use_errno=True)
    return _libc
