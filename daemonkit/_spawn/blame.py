"""Find out why a program could not be started."""

from __future__ import annotations

import contextlib
import errno
import os

from daemonkit._system.program import is_program
from daemonkit._system.streams import check_enterable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from daemonkit._spawn.ways import Plan

_SHEBANG: Final = 256  # bytes of a script's first line that the kernel reads: execve(2)


def blamed(error: OSError, plan: Plan, program: str | bytes) -> OSError:
    """Return the error with the file that is at fault: the program, the interpreter that it names, or `cwd`."""
    if plan.cwd is not None and error.filename is None:
        check_enterable(plan.cwd)  # it may have gone since
    number = error.errno or 0
    if number in {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}:
        return OSError(number, f"{os.strerror(number)}: {os.fsdecode(program)} was not started")
    path = _path(plan)
    at_fault: str | bytes = program
    text = os.strerror(number)
    if number in {errno.ENOENT, errno.EACCES, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}:
        while interpreter := _interpreter(path):  # it may be a script itself: execve(2)
            path = interpreter
            if not _is_runnable(path):
                at_fault = os.fsdecode(path)
                text = f"{os.strerror(number)}: the interpreter in the first line of {os.fsdecode(program)}"
        if at_fault == program and number == errno.ENOENT:
            text = f"{text}: the program is there, but not the loader that it needs"
    return OSError(number, text, at_fault)


def check_executable(plan: Plan) -> None:
    """Refuse what the kernel can't execute, as far as a look at the files tells: OSError.

    A shell that is to become the program can't tell its caller, and would run a file without a first line as a script.
    """
    path = _path(plan)
    while interpreter := _interpreter(path):
        path = interpreter
        if not is_program(path):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    with contextlib.suppress(PermissionError), open(path, "rb") as file:
        if file.read(4) != b"\x7fELF":
            raise OSError(errno.ENOEXEC, os.strerror(errno.ENOEXEC))


def _path(plan: Plan) -> bytes:
    return plan.path if plan.cwd is None else os.path.join(os.fsencode(plan.cwd), plan.path)


def _is_runnable(path: bytes) -> bool:
    try:
        return is_program(path)
    except OSError:
        return False


def _interpreter(path: bytes) -> bytes | None:
    try:
        with open(path, "rb") as script:
            line = script.read(_SHEBANG).partition(b"\n")[0]
    except OSError:
        return None
    # Blanks and tabs separate; the carriage return of a line that was written elsewhere is part of the name.
    return line[2:].replace(b"\t", b" ").strip(b" ").split(b" ")[0] if line.startswith(b"#!") else None
