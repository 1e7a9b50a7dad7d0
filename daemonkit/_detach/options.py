"""The options of `detached`: checked and looked up in the caller, before any fork."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import FrameType

from daemon.daemon import DaemonContext, make_default_signal_map

from daemonkit._pidfile.pidfile import PidFile
from daemonkit._system.check import absolute_path, check_boolean, check_number, check_path, check_seconds
from daemonkit._system.descriptors import descriptor_of
from daemonkit._system.signals import ALL_SIGNALS
from daemonkit._system.streams import STREAM_NAMES, check_enterable, check_stream
from daemonkit._system.users import has_capability, owner_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from daemonkit._detach.context import DetachedContext
    from daemonkit._system.streams import Path

SignalKey = int | str
Action = str | Callable[[int, FrameType | None], object] | int | None
"""What a signal does: None ignores it, a string names a method, else as in `signal.signal`."""
_CAP_SYS_CHROOT: Final = 18  # capabilities(7), linux/capability.h


def check_options(context: DetachedContext) -> None:
    """Refuse bad arguments, except where that takes a look at the file system."""
    for name in STREAM_NAMES:
        check_stream(name, getattr(context, name))
    for name in ("initgroups", "prevent_core", "wait_ready", "detach_process"):
        check_boolean(name, getattr(context, name))
    if context.close_fds not in ("inherited", "all"):
        raise ValueError(f'close_fds must be "inherited" or "all", not {context.close_fds!r}')
    for item in context.files_preserve or ():
        if item is not None:
            descriptor_of("files_preserve", item)
    check_number("umask", context.umask, 0o777)
    check_seconds("start_timeout", context.start_timeout)
    if context.start_timeout is not None and context.start_timeout <= 0:
        raise ValueError(f"start_timeout must be more than 0 seconds, or None, not {context.start_timeout!r}")
    _check_paths(context)
    _check_signals(context)
    owner_of(context.uid, context.gid, initgroups=context.initgroups)


def _check_paths(context: DetachedContext) -> None:
    for name in ("working_directory", "chroot_directory"):
        value = getattr(context, name)
        if value is None and name == "chroot_directory":
            continue
        if not isinstance(value, (str, bytes, os.PathLike)):
            raise TypeError(f"{name} must be a path, not {value!r}")
        check_path(name, value)
    if isinstance(context.pidfile, (str, bytes, os.PathLike)):
        context.pidfile = PidFile(context.pidfile)  # assigned since
    if context.pidfile is not None and not isinstance(context.pidfile, AbstractContextManager):
        raise TypeError(f"pidfile must be a path, a PidFile or another context manager, not {context.pidfile!r}")


def _check_signals(context: DetachedContext) -> None:
    if not isinstance(context.signal_map, Mapping):
        raise TypeError(f"signal_map must be a mapping of signals to actions, not {context.signal_map!r}")
    for key, action in context.signal_map.items():
        number = signal_number(key)
        if number in (signal.SIGKILL, signal.SIGSTOP):
            raise ValueError(f"signal_map: {key!r} can be neither handled nor ignored")
        if isinstance(action, str):
            if not callable(getattr(context, action, None)):
                raise ValueError(f'signal_map: there is no method {action!r}; use "terminate" or "reopen"')  # noqa: TRY004 - its type is right
        elif not (action is None or callable(action) or action in (signal.SIG_DFL, signal.SIG_IGN)):
            raise TypeError(
                f"signal_map: the action for {key!r} must be None, a method's name or a handler, not {action!r}"
            )


class _DefaultSignals(dict[SignalKey, Action]):
    """A signal map that knows which of its entries nobody has asked for."""

    defaults: Mapping[SignalKey, Action] = {}


def full_signal_map(given: object) -> object:
    """Return the default signal map with the given one laid over it; `check_options` refuses anything but a mapping."""
    if given is not None and not isinstance(given, Mapping):
        return given
    named = {} if given is None else {_number_or_key(key): action for key, action in given.items()}
    defaults = {**make_default_signal_map(), signal.SIGHUP: "reopen"}
    full = _DefaultSignals({**defaults, **named})
    full.defaults = {key: action for key, action in defaults.items() if key not in named}
    return full


def _number_or_key(key: SignalKey) -> SignalKey:
    try:
        return signal_number(key)
    except (TypeError, ValueError):
        return key  # refused later


def handlers_to_set(signal_map: Mapping[SignalKey, Action]) -> dict[int, Action]:
    """Return the action for each signal number, but for those where the program's own handler stays.

    A handler stays if nobody has named its signal. The methods of an earlier context are not the program's own.
    """
    defaults = getattr(signal_map, "defaults", {})
    actions = {signal_number(key): action for key, action in signal_map.items()}
    for number, action in defaults.items():
        handler = signal.getsignal(number)
        owner = getattr(handler, "__self__", None)
        if callable(handler) and not isinstance(owner, DaemonContext) and actions.get(number, "") == action:
            del actions[number]
    return actions


def signal_number(key: object) -> int:
    if isinstance(key, str) and key in signal.Signals.__members__:
        return signal.Signals[key]
    if isinstance(key, bool) or not isinstance(key, (int, str)):
        raise TypeError(f'signal_map: a key must be a signal or its name, such as "SIGHUP", not {key!r}')
    if key not in ALL_SIGNALS:  # real-time signals are there too, which have no names
        raise ValueError(f'signal_map: there is no signal {key!r}; use one such as signal.SIGHUP or "SIGHUP"')
    return int(key)


def directories(chroot: Path | None, working: Path) -> tuple[str | None, str]:
    """Return both as absolute paths, the second as seen from within the first; OSError if they can't be entered."""
    directory = os.fsdecode(working)
    if chroot is None:
        directory = absolute_path(directory)
        check_enterable(directory)
        return None, directory
    root = absolute_path(os.fsdecode(chroot))
    directory = os.path.normpath("/" + directory)
    check_enterable(root)
    check_enterable(root + directory)
    if not has_capability(_CAP_SYS_CHROOT):
        raise PermissionError(
            errno.EPERM, "chroot_directory: only root (CAP_SYS_CHROOT) can change the root; start as root", root
        )
    return root, directory


def inside_root(path: str, root: str | None) -> str | None:
    """Return the path by which a log is found again after the chroot, None if it is not in there."""
    if root is None:
        return path
    prefix = root.rstrip("/") + "/"
    return path[len(prefix) - 1 :] if path.startswith(prefix) else None


def current_umask() -> int:
    mask = os.umask(0o077)  # no call only reads it; a file that another thread creates now is private
    os.umask(mask)
    return mask


def handed_streams(context: DetachedContext) -> set[int]:
    """Return the descriptors of open files given as streams: as with `DaemonContext`, the objects stay usable."""
    values = ((name, getattr(context, name)) for name in STREAM_NAMES)
    return {descriptor_of(name, value) for name, value in values if hasattr(value, "fileno")}
