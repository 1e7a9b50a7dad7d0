"""What each public name is on a system that can't have daemons like these: something that says so when called."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def unavailable(name: str, cause: ImportError) -> object:
    """Return a stand-in for the public `name` whose call raises NotImplementedError."""

    def call(*_args: object, **_options: object) -> NoReturn:
        message = f"daemonkit.{name} needs a POSIX system with fork and file locks, which {sys.platform} is not"
        raise NotImplementedError(message) from cause

    call.__name__ = call.__qualname__ = name
    return call
