"""posix_spawn(3) with a working directory, by the C library itself: `os.posix_spawn` has no word for that."""

from __future__ import annotations

import os

from daemonkit._system.libc import load_libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Final

_FLAGS: Final = 0x04 | 0x08 | 0x80  # POSIX_SPAWN_SETSIGDEF, _SETSIGMASK, _SETSID of spawn.h, in glibc and musl
_SIZE: Final = 1024  # bytes; more than any of the structures has, in glibc and musl


def has_spawn_in() -> bool:
    """Tell whether the C library can start a program in a directory: glibc 2.29, musl 1.1.24. Loads what it takes."""
    try:
        return hasattr(load_libc(), "posix_spawn_file_actions_addchdir_np")
    except ImportError:  # a Python without ctypes
        return False


def spawn_in(  # noqa: PLR0913, PLR0917 - posix_spawn(3) has as many
    cwd: bytes,
    path: bytes,
    argv: Sequence[bytes],
    env: Mapping[bytes, bytes],
    actions: Iterable[tuple[int, ...]],
    started: list[int],
) -> None:
    """Do what `os.posix_spawn` does with these actions, all signals at their default and a new session, in `cwd`.

    Puts the pid in `started`, also if a signal handler raises in the midst of this. Raises OSError.
    """
    import ctypes  # noqa: PLC0415 - load_libc() has loaded it

    libc = load_libc()
    by_kind = {
        os.POSIX_SPAWN_DUP2: libc.posix_spawn_file_actions_adddup2,
        os.POSIX_SPAWN_CLOSE: libc.posix_spawn_file_actions_addclose,
    }
    if (close_from := getattr(os, "POSIX_SPAWN_CLOSEFROM", None)) is not None:
        by_kind[close_from] = libc.posix_spawn_file_actions_addclosefrom_np
    attributes, files, signals = (ctypes.create_string_buffer(_SIZE) for _ in range(3))
    variables = [name + b"=" + value for name, value in env.items()]
    pid = ctypes.c_int(0)
    libc.posix_spawnattr_init(attributes)
    libc.posix_spawn_file_actions_init(files)
    try:
        libc.posix_spawnattr_setflags(attributes, ctypes.c_short(_FLAGS))
        libc.sigemptyset(signals)
        libc.posix_spawnattr_setsigmask(attributes, signals)
        libc.sigfillset(signals)
        libc.posix_spawnattr_setsigdefault(attributes, signals)
        for kind, *numbers in actions:
            _check(by_kind[kind](files, *numbers))
        _check(libc.posix_spawn_file_actions_addchdir_np(files, cwd))
        vectors = ((ctypes.c_char_p * (len(part) + 1))(*part, None) for part in (argv, variables))
        _check(libc.posix_spawn(ctypes.byref(pid), path, files, attributes, *vectors))
    finally:
        if pid.value:
            started.append(pid.value)
        libc.posix_spawn_file_actions_destroy(files)
        libc.posix_spawnattr_destroy(attributes)


def _check(number: int) -> None:
    if number:
        raise OSError(number, os.strerror(number))
