"""The only module that forks."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
import warnings

from daemonkit._system.unpatched import genuine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from typing import NoReturn


def fork() -> int:
    try:
        return genuine(os.fork)()  # noqa: TID251 - the one place
    except OSError as error:
        text = f"{error.strerror}: no process for the daemon; end some, or raise the limit (ulimit -u)"
        raise OSError(error.errno, text) from error


def no_fork_warning() -> AbstractContextManager[object]:
    """Keep 3.12 and later from warning of threads that stay behind: detached() has, and named them."""
    if sys.version_info < (3, 12):
        return contextlib.nullcontext()
    return warnings.catch_warnings(action="ignore", category=DeprecationWarning)


def fork_child(become: Callable[[], NoReturn]) -> int:
    """Fork a child that calls `become`, which ends it; return its pid."""
    with no_fork_warning():
        pid = fork()
    if pid == 0:
        try:
            become()
        except BaseException:  # noqa: BLE001 - this process ends here, and nobody else would say why
            traceback.print_exc()
        finally:
            os._exit(255)
    return pid


def exit_status_of(error: BaseException | None) -> int:
    """Return the status that Python ends with after this exception."""
    if error is None:
        return 0
    if not isinstance(error, SystemExit):
        return 1
    if not isinstance(error.code, int):
        return int(error.code is not None)
    return error.code & 0xFF if -sys.maxsize - 1 <= error.code <= sys.maxsize else 0xFF  # -1: no C long holds it
