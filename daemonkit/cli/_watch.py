"""Wait until something changes in a directory: inotify(7), which the standard library does not have."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final, Self

_CHANGES: Final = 0x2 | 0x40 | 0x80 | 0x100 | 0x200  # IN_MODIFY, IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE
_LOOK: Final = 0.1  # seconds between two looks, where the kernel has no watch left to give: sysctl fs.inotify


class Watch:
    """Changes in directories."""

    def __init__(self, folders: Iterable[str]) -> None:
        """Watch from now on."""
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        self._is_complete = self._fd >= 0
        for folder in set(folders) if self._fd >= 0 else ():
            if libc.inotify_add_watch(self._fd, os.fsencode(folder), _CHANGES) < 0:
                self._is_complete = False

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Stop watching."""
        if self._fd >= 0:
            os.close(self._fd)

    def wait(self, also: int | None = None) -> bool:
        """Return at a change, or once the descriptor `also` has met its end; tell whether that was it."""
        poll = select.poll()
        for fd in (self._fd, also):
            if fd is not None and fd >= 0:
                poll.register(fd, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(None if self._is_complete else _LOOK * 1000)}
        if self._fd in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._fd, 1 << 16)
        return also in ready
