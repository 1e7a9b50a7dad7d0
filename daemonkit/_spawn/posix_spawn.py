"""posix_spawn(3) by the C library itself, which can do more than `os.posix_spawn`.

It enters a directory, and on glibc it closes whatever is open, on every Python: nobody has to list the descriptors, and
none escapes that another thread opens meanwhile.
"""

from __future__ import annotations

import os

try:
    import ctypes

    # PyDLL keeps other Python threads from changing the environment meanwhile, as `os.posix_spawn` does.
    _libc = ctypes.PyDLL(None)
except ImportError:  # a Python without ctypes
    _libc = None  # type: ignore[assignment]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Final

CAN_ENTER: Final = hasattr(_libc, "posix_spawn_file_actions_addchdir_np")  # glibc 2.29, musl 1.1.24
CAN_CLOSE_ALL: Final = CAN_ENTER and hasattr(_libc, "posix_spawn_file_actions_addclosefrom_np")  # glibc 2.34
_FLAGS: Final = 0x04 | 0x08 | 0x80  # POSIX_SPAWN_SETSIGDEF, _SETSIGMASK, _SETSID of spawn.h, in glibc and musl
_SIZE: Final = 1024  # bytes; more than any of the structures has, in glibc and musl


def _make_attributes() -> ctypes.Array[ctypes.c_char]:
    """Return a posix_spawnattr_t: a new session, no signal blocked, and each at its default.

    sigfillset(3) leaves out 32 and 33, which the C library keeps for itself: posix_spawn(3) would ignore both in the
    program, and in all that the program starts. So every bit is set by hand.
    """
    attributes, signals = ctypes.create_string_buffer(_SIZE), ctypes.create_string_buffer(_SIZE)
    _libc.posix_spawnattr_init(attributes)
    _libc.posix_spawnattr_setflags(attributes, ctypes.c_short(_FLAGS))
    _libc.sigemptyset(signals)
    _libc.posix_spawnattr_setsigmask(attributes, signals)
    signals.raw = b"\xff" * _SIZE
    _libc.posix_spawnattr_setsigdefault(attributes, signals)
    return attributes


_attributes = _make_attributes() if CAN_ENTER else None


_environ = ctypes.c_void_p.in_dll(_libc, "environ") if CAN_ENTER else None  # the variable itself: it may change


class FileActions:
    """A posix_spawn_file_actions_t: what the child does with its descriptors, and the directory that it enters.

    It can be used again, also by several threads at once, as posix_spawn(3) only reads it.
    """

    __slots__ = ("_destroy", "memory")

    def __init__(self, actions: Iterable[tuple[str, int, int]], cwd: bytes | None) -> None:
        """Make it; OSError, EBADF for a number at or above RLIMIT_NOFILE."""
        self.memory = files = ctypes.create_string_buffer(_SIZE)
        _libc.posix_spawn_file_actions_init(files)
        self._destroy = _libc.posix_spawn_file_actions_destroy  # which is still here when the interpreter ends
        for kind, fd, to in actions:
            if kind == "dup2":
                _check(_libc.posix_spawn_file_actions_adddup2(files, fd, to))
            elif kind == "close":
                _check(_libc.posix_spawn_file_actions_addclose(files, fd))
            else:
                _check(_libc.posix_spawn_file_actions_addclosefrom_np(files, fd))
        if cwd is not None:
            _check(_libc.posix_spawn_file_actions_addchdir_np(files, cwd))

    def __del__(self) -> None:
        """Free what the C library has allocated for it."""
        self._destroy(self.memory)


def spawn(
    path: bytes, argv: Sequence[bytes], env: Mapping[bytes, bytes] | None, actions: FileActions, started: list[int]
) -> None:
    """Start a program in a new session with all signals at their default; `env` None is the caller's.

    The pid is in `started` also if a signal handler raises in the midst of this. Raises OSError.
    """
    variables = _environ if env is None else _vector([name + b"=" + value for name, value in env.items()])
    pid = ctypes.c_int(0)
    try:
        _check(_libc.posix_spawn(ctypes.byref(pid), path, actions.memory, _attributes, _vector(argv), variables))
    finally:
        if pid.value:
            started.append(pid.value)


def _vector(parts: Sequence[bytes]) -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * (len(parts) + 1))(*parts)  # the last one stays NULL


def _check(number: int) -> None:
    if number:
        raise OSError(number, os.strerror(number))
