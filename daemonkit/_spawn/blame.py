"""What is at fault when a program could not be started."""

from __future__ import annotations

import errno
import os

from daemonkit._system.program import is_program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from daemonkit._spawn.ways import Plan

_SHEBANG: Final = 256  # bytes of a script's first line that the kernel reads: execve(2)


def blamed(error: OSError, plan: Plan, program: str | bytes) -> OSError:
    """Return the error with what is at fault as its filename: the program, or the interpreter that it names."""
    number = error.errno or 0
    if number in {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}:
        return OSError(number, f"{os.strerror(number)}: {os.fsdecode(program)} was not started")
    path = plan.path if plan.cwd is None else os.path.join(os.fsencode(plan.cwd), plan.path)
    at_fault: str | bytes = program
    text = os.strerror(number)
    if number in {errno.ENOENT, errno.EACCES, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}:
        while interpreter := _interpreter(path):  # which may be a script too: execve(2)
            path = interpreter
            if not _is_runnable(path):
                at_fault = os.fsdecode(path)
                text = f"{os.strerror(number)}: the interpreter in the first line of {os.fsdecode(program)}"
        if at_fault == program and number == errno.ENOENT:
            text = f"{text}: the program is there, but not the loader that it needs"
    return OSError(number, text, at_fault)


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
