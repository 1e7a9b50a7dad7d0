"""The program to run: its arguments, environment, directory and path, looked up before anything is started."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Mapping, Sequence

from daemonkit._system.check import absolute_path, check_boolean
from daemonkit._system.streams import check_enterable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from daemonkit._system.streams import Path

_SHELL: Final = b"/bin/sh"
_ENCODING: Final = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()


def command_of(args: object, executable: Path | None, *, shell: bool) -> tuple[tuple[bytes, ...], str | bytes]:
    """Return the arguments, and the program by the name that the caller gave it."""
    check_boolean("shell", shell)
    if not isinstance(args, (list, tuple)) and isinstance(args, (str, bytes, os.PathLike)):
        if not shell:
            raise TypeError(
                f"args must be a sequence such as [{args!r}], not {args!r}; a command line is ['sh', '-c', {args!r}]"
            )
        args = [args]
    if not isinstance(args, (list, tuple, Sequence)):
        raise TypeError(f"args must be a sequence of strings and paths, not {args!r}")
    if not args:
        raise ValueError("args is empty; give the program and its arguments")
    argv = [text_of("args", part) for part in args]
    if shell:
        argv = [_SHELL if executable is None else text_of("executable", executable), b"-c", *argv]
    if executable is not None:
        text_of("executable", executable)
    program = os.fspath(executable if executable is not None else os.fsdecode(_SHELL) if shell else args[0])
    if not program:
        raise ValueError("args: the program's name is empty")
    return tuple(argv), program


def text_of(name: str, value: object) -> bytes:
    """Return the bytes of an argument; TypeError, ValueError if a program can't be given that."""
    if isinstance(value, str):
        text = value.encode(*_ENCODING)  # as os.fsencode() does, which takes several times as long
    elif isinstance(value, (bytes, os.PathLike)):
        text = os.fsencode(value)
    else:
        raise TypeError(f"{name}: {value!r} is neither a string nor a path")
    if b"\0" in text:
        raise ValueError(f"{name}: {value!r} has a NUL byte (embedded null byte), so it can't be given to a program")
    return text


def environment_of(env: object) -> dict[bytes, bytes] | None:
    """Return an environment as bytes; None for the caller's own. TypeError, ValueError."""
    if env is None:
        return None
    if not isinstance(env, Mapping):
        raise TypeError(f"env must be a mapping of names to values, not {env!r}")
    # All in one go: to encode and look at each by itself takes as long as half a launch.
    texts = [text for item in env.items() for text in item]
    with contextlib.suppress(TypeError):
        parts = "\0".join(texts).encode(*_ENCODING).split(b"\0")
        if len(parts) == len(texts) and all(parts[::2]) and b"=" not in b"".join(parts[::2]):
            return dict(zip(parts[::2], parts[1::2], strict=True))
    return _environment_of_odd(env)


def _environment_of_odd(env: Mapping[object, object]) -> dict[bytes, bytes]:
    """Do it variable by variable: for bytes, and to tell which one can't be used."""
    try:
        encoded = {os.fsencode(name): os.fsencode(value) for name, value in env.items()}  # type: ignore[arg-type]
    except TypeError as error:
        raise TypeError(f"env must map strings to strings: {error}") from error
    for name, value in encoded.items():
        if not name or b"=" in name:
            raise ValueError(f"env: invalid name {os.fsdecode(name)!r} (illegal environment variable name)")
        if b"\0" in name or b"\0" in value:
            raise ValueError(f"env: {os.fsdecode(name)!r} has a NUL byte (embedded null byte), in its name or value")
    return encoded


def own_environment() -> dict[bytes, bytes]:
    """Return a copy of this program's environment."""
    variables = getattr(os.environb, "_data", None)  # `os.environb.copy()` makes two Python calls for each variable
    return dict(variables) if isinstance(variables, dict) else os.environb.copy()


def directory_of(cwd: Path | None) -> str | None:
    """Return the directory, which can be entered; OSError with its path."""
    if cwd is None:
        return None
    folder = os.fsdecode(text_of("cwd", cwd))
    if not folder:
        raise FileNotFoundError(errno.ENOENT, "the directory's name is empty", folder)
    check_enterable(folder)
    return folder


def find_program(program: str | bytes, env: Mapping[bytes, bytes] | None, cwd: str | None) -> bytes:
    """Return the program's path, as seen from `cwd`; OSError with its name.

    It is looked for before the start, because a start that fails sends the caller a SIGCHLD.
    """
    name = text_of("args", program)
    if b"/" in name:
        candidates = [name]
    else:
        path = (os.environb if env is None else env).get(b"PATH", os.fsencode(os.defpath))
        candidates = [os.path.join(folder or b".", name) for folder in path.split(b":")]
    refused: OSError | None = None
    for candidate in candidates:
        full = candidate if cwd is None else os.path.join(os.fsencode(cwd), candidate)
        try:
            if is_program(full):
                return candidate
        except (FileNotFoundError, NotADirectoryError) as error:
            if len(candidates) == 1:
                absolute_path(os.fsdecode(full))  # which tells whether it is only the working directory that is gone
                raise OSError(error.errno, _missing(name), program) from None
            continue
        except OSError as error:
            refused = refused or OSError(error.errno, error.strerror, program)
            continue
        kind = "a directory" if os.path.isdir(full) else "not executable (chmod +x?)"
        refused = refused or PermissionError(errno.EACCES, f"{os.fsdecode(candidate)} is {kind}", program)
    raise refused or FileNotFoundError(errno.ENOENT, _missing(name), program)


def _missing(name: bytes) -> str:
    return os.strerror(errno.ENOENT) if b"/" in name else "not found on PATH"


def is_program(path: bytes) -> bool:
    """Tell whether a file can be executed; OSError if there is none."""
    return stat.S_ISREG(os.stat(path).st_mode) and os.access(path, os.X_OK, effective_ids=True)
