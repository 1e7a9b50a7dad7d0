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
    import ctypes
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from typing import NoReturn

_interpreter: ctypes.PyDLL | None = None


def fork() -> int:
    try:
        return genuine(os.fork)()  # noqa: TID251 - the one place
    except OSError as error:
        raise _no_process(error.errno or 0) from error


def _no_process(number: int) -> OSError:
    text = f"{os.strerror(number)}: no process for the daemon; end some, or raise the limit (ulimit -u)"
    return OSError(number, text)


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
        _begin(become)
    return pid


def fork_to_exec(become: Callable[[], NoReturn]) -> int:
    """Do the same in a process that has a single thread, for a child that executes a program or ends.

    `os.fork` runs the hooks of all libraries, in the child too: those of threading and logging alone touch 190 pages,
    which are copied, and take as long as all the rest. They renew locks that nobody holds here; an exec forgets them.
    """
    pid = load_fork()()
    if pid == 0:
        _begin(become)
    if pid < 0:
        import ctypes  # noqa: PLC0415 - loaded by now

        raise _no_process(ctypes.get_errno())
    return pid


def _begin(become: Callable[[], NoReturn]) -> NoReturn:
    try:
        become()
    except BaseException:  # noqa: BLE001 - this process ends here, and nobody else would say why
        traceback.print_exc()
    finally:
        os._exit(255)


def load_fork() -> Callable[[], int]:
    """Return fork(2): -1 means an error that `ctypes.get_errno` has. The interpreter stays locked meanwhile."""
    global _interpreter  # noqa: PLW0603 - a cache
    if _interpreter is None:
        import ctypes  # noqa: PLC0415 - 10 ms, which most programs never need to spend

        _interpreter = ctypes.PyDLL(None, use_errno=True)
    fork: Callable[[], int] = _interpreter.fork
    return fork


def exit_status_of(error: BaseException | None) -> int:
    """Return the status that Python ends with after this exception."""
    if error is None:
        return 0
    if not isinstance(error, SystemExit):
        return 1
    if not isinstance(error.code, int):
        return int(error.code is not None)
    return error.code & 0xFF if -sys.maxsize - 1 <= error.code <= sys.maxsize else 0xFF  # -1: no C long holds it


def first_cause(error: BaseException) -> tuple[BaseException, str]:
    """Return an exception, or the first one in a group of a TaskGroup; and text that counts the others."""
    causes = _ungrouped(error)
    return causes[0], f" (and {len(causes) - 1} more)" if len(causes) > 1 else ""


def _ungrouped(error: BaseException) -> list[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [cause for one in error.exceptions for cause in _ungrouped(one)]
