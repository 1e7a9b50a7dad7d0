"""What `supervise` was asked for: checked, looked up and opened, before anything is started."""

from __future__ import annotations

import logging
import os
import resource
from dataclasses import dataclass

from daemonkit._constants import INHERIT, PIPE, STDOUT
from daemonkit._supervise import marks
from daemonkit._supervise.listen import bind_sockets
from daemonkit._supervise.pump import Pump, make_pumps, path_of_instance
from daemonkit._system.check import absolute_path, check_number
from daemonkit._system.program import command_of, directory_of, environment_of, find_program
from daemonkit._system.signals import ALL_SIGNALS
from daemonkit._system.streams import STREAM_NAMES, check_path, check_stream, fill_closed, open_log, open_source
from daemonkit._system.unpatched import close
from daemonkit._system.users import Owner, owner_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable, Mapping
    from typing import Final

    from daemonkit._supervise.rules import Rules
    from daemonkit._system.streams import Path, StreamOption

_logger = logging.getLogger("daemonkit")

_NOT_PASSED: Final = frozenset(
    {
        b"NOTIFY_SOCKET",
        b"LISTEN_FDS",
        b"LISTEN_PID",
        b"LISTEN_FDNAMES",
        b"LISTEN_PIDFDID",
        b"WATCHDOG_USEC",
        b"WATCHDOG_PID",
    }
)  # the caller's own


@dataclass(frozen=True)
class Stream:
    """What one of an instance's descriptors 0, 1, 2 is opened from, at each start anew."""

    fd: int | None = None
    path: str | None = None
    """May have {instance} in it."""

    def path_of(self, index: int) -> str | None:
        """Return the path for one instance."""
        return None if self.path is None else path_of_instance(self.path, index)


@dataclass(frozen=True)
class Settings:
    """What `supervise` was asked for, checked and looked up."""

    target: Callable[[], object] | None
    path: bytes
    argv: tuple[bytes, ...]
    env: dict[bytes, bytes]
    cwd: str | None
    umask: int | None
    owner: Owner | None
    streams: tuple[Stream, Stream, Stream]
    pipes: dict[tuple[int, int], int]
    """The pump's write end of (instance, descriptor)."""
    listen: tuple[int, ...]
    bound: frozenset[int]
    """Those of them that nobody has handed in."""
    cpus: tuple[int, ...]
    instances: int
    rules: Rules
    stop_signal: int
    max_memory: int | None
    nofile: tuple[int, int]
    mark: int
    """The first of those that the runs have."""


def settle(  # noqa: PLR0913 - the options
    target: object,
    stack: contextlib.ExitStack,
    *,
    rules: Rules,
    instances: object,
    stop_signal: object,
    max_memory: int | None,
    cpu_affinity: object,
    listen: object,
    cwd: Path | None,
    env: object,
    user: int | str | None,
    group: int | str | None,
    umask: int | None,
    streams: Mapping[str, StreamOption],
    log_max_bytes: int | None,
    log_backups: int,
) -> tuple[Settings, tuple[Pump, ...]]:
    """Return the settings, and the pumps; the stack closes what was opened.

    What has no effect comes first, so that a bad argument leaves neither a log nor a socket behind.
    """
    count, memory, most = _count(instances), _size("max_memory", max_memory), _size("log_max_bytes", log_max_bytes)
    number, cpus = _signal_number(stop_signal), _cpus(cpu_affinity)
    if log_backups is None:
        raise ValueError("log_backups: a number, not None")
    check_number("log_backups", log_backups, 1 << 30)
    umask = None if umask == -1 else umask
    check_number("umask", umask, 0o777)
    command, path, argv = _target(target, env, cwd)
    environment = _environment(env)
    owner = None
    if user is not None or group is not None:
        owner = owner_of(user, group, names=("user", "group", "extra_groups"))
        if env is None:
            environment = owner.environment(environment)
    marks.end_orphaned()  # which may hold the very sockets that are to be bound
    if pids := marks.unproven_orphans():
        text = "instances of a supervisor that was killed may have left processes %s; nothing proves it, so they go on"
        _logger.warning(text, ", ".join(map(str, pids)))
    fill_closed(stack)
    sockets, bound = bind_sockets(listen, stack)
    opened = _streams(streams, count, umask, stack)
    logs = {which: stream.path for which, stream in enumerate(opened) if which and stream.path}
    pumps: dict[tuple[int, int], Pump] = {}
    if most:
        pumps = make_pumps(logs, count, most, log_backups, umask, owner, stack)
    else:
        _check_logs(logs, count, umask, owner)
    settings = Settings(
        target=command,
        path=path,
        argv=argv,
        env=environment,
        cwd=None if cwd is None else absolute_path(os.fsdecode(cwd)),
        umask=umask,
        owner=owner,
        streams=opened,
        pipes={key: pump.writer for key, pump in pumps.items()},
        listen=tuple(sock.fileno() for sock in sockets),
        bound=frozenset(sock.fileno() for sock in bound),
        cpus=cpus,
        instances=count,
        rules=rules,
        stop_signal=number,
        max_memory=memory,
        nofile=resource.getrlimit(resource.RLIMIT_NOFILE),
        mark=marks.base(),
    )
    return settings, tuple({id(pump): pump for pump in pumps.values()}.values())


def _check_logs(templates: Mapping[int, str], count: int, umask: int | None, owner: Owner | None) -> None:
    """Open each log once: that it can't be written is said here, and not at the first start."""
    for path in {path_of_instance(template, index) for template in templates.values() for index in range(count)}:
        close(open_log(path, umask, owner)[0])


def _count(instances: object) -> int:
    if instances == "auto":
        return len(os.sched_getaffinity(0))
    if not isinstance(instances, int) or isinstance(instances, bool):
        raise TypeError(f'instances: a number or "auto", not {instances!r}')
    if instances < 1:
        raise ValueError(f"instances: at least 1, not {instances}")
    return instances


def _size(name: str, value: int | None) -> int | None:
    check_number(name, value, 1 << 62)
    if value == 0:
        raise ValueError(f"{name}: at least one byte, not 0")
    return value


def _signal_number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"stop_signal: a signal, as signal.SIGTERM, not {value!r}")
    if value not in ALL_SIGNALS:
        raise ValueError(f"stop_signal: no signal {value!r} here")
    return int(value)


def _cpus(affinity: object) -> tuple[int, ...]:
    if affinity is None:
        return ()
    if affinity != "spread":
        raise ValueError(f'cpu_affinity: "spread" or None, not {affinity!r}')
    return tuple(sorted(os.sched_getaffinity(0)))


def _target(
    target: object, env: object, cwd: Path | None
) -> tuple[Callable[[], object] | None, bytes, tuple[bytes, ...]]:
    environment = environment_of(env)
    directory = directory_of(cwd)
    if callable(target):
        return target, b"", ()
    argv, program = command_of(target, None, shell=False)
    return None, find_program(program, environment, directory), argv


def _environment(env: object) -> dict[bytes, bytes]:
    given = environment_of(env)
    own = {name: os.environb[name] for name in _NOT_PASSED if name in os.environb}
    return {k: v for k, v in (os.environb if given is None else given).items() if own.get(k) != v}


def _streams(
    options: Mapping[str, StreamOption], count: int, umask: int | None, stack: contextlib.ExitStack
) -> tuple[Stream, Stream, Stream]:
    found: list[Stream] = []
    for name, value in options.items():
        number = STREAM_NAMES.index(name)
        if value == PIPE and isinstance(value, int):
            raise ValueError(f"{name}: PIPE has nobody to read it here; give a path or a descriptor")
        if isinstance(value, (str, bytes, os.PathLike)):
            check_path(name, value)
            if name == "stdin":
                for index in range(count):
                    close(open_source(name, path_of_instance(os.fsdecode(value), index), umask).fd)
            found.append(Stream(path=absolute_path(os.fsdecode(value))))
            continue
        if value == INHERIT or (value is None and number):
            found.append(Stream())
            continue
        check_stream(name, value)
        if value == STDOUT and name == "stderr":
            found.append(found[1] if found[1] != Stream() else Stream(fd=1))
            continue
        source = open_source(name, value, umask)
        stack.callback(close, source.fd)
        found.append(Stream(fd=source.fd))
    return found[0], found[1], found[2]
