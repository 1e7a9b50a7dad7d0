"""What `supervise` was asked for: checked, looked up and opened, before anything is started."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
from dataclasses import dataclass

from daemonkit._supervise import marks
from daemonkit._supervise.listen import addresses_of, bind_sockets
from daemonkit._supervise.plumbing import LogOptions, Plumbing, lay, settle_streams
from daemonkit._supervise.rules import seconds
from daemonkit._system.check import absolute_path, check_boolean, check_number
from daemonkit._system.program import command_of, directory_of, environment_of, find_program
from daemonkit._system.signals import ALL_SIGNALS
from daemonkit._system.streams import fill_closed
from daemonkit._system.users import Owner, owner_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Final

    from daemonkit._supervise.checks import Address
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
class CheckSettings:
    """The checks that there are, each a program as it was named and its arguments."""

    ready: tuple[str | bytes, tuple[bytes, ...]]
    health: tuple[str | bytes, tuple[bytes, ...]]
    """No arguments: there is none."""
    health_interval: float
    addresses: tuple[Address, ...]
    """For `ready_tcp`."""


@dataclass(frozen=True)
class Settings:
    """What `supervise` was asked for, checked and looked up."""

    target: Callable[[], object] | None
    program: str | bytes
    """As it was named; it is looked up at each start, as the directory and the logs are."""
    argv: tuple[bytes, ...]
    env: dict[bytes, bytes]
    cwd: str | None
    """As it was given, and made absolute; no symbolic link in it is resolved."""
    inherited_cwd: str | None
    """The caller's own, where none was given, as far as it has a path."""
    umask: int | None
    owner: Owner | None
    plumbing: Plumbing
    listen: tuple[int, ...]
    bound: frozenset[int]
    """Those of them that nobody has handed in."""
    checks: CheckSettings | None
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
    log_format: str | None,
    listen_nonblocking: bool,
    ready_check: object,
    ready_tcp: str | None,
    health_check: object,
    health_interval: float,
) -> Settings:
    """Return the settings; the stack closes what was opened.

    What has no effect comes first, so that a bad argument leaves neither a log nor a socket behind.
    """
    count, memory, most = _count(instances), _size("max_memory", max_memory), _size("log_max_bytes", log_max_bytes)
    number, cpus = _signal_number(stop_signal), _cpus(cpu_affinity)
    if log_backups is None:
        raise ValueError("log_backups: a number, not None")
    check_number("log_backups", log_backups, 1 << 30)
    umask = None if umask == -1 else umask
    check_number("umask", umask, 0o777)
    _check_format(log_format)
    check_boolean("listen_nonblocking", listen_nonblocking)
    command, program, argv = _target(target, env, cwd)
    checks = _checks(ready_check, ready_tcp, health_check, health_interval, env, cwd)
    if ready_tcp is not None and listen:
        raise ValueError("ready_tcp: not together with listen, as a socket that is bound here always accepts")
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
    sockets, bound = bind_sockets(listen, stack, nonblocking=listen_nonblocking)
    opened = settle_streams(streams, count, umask, stack)
    plumbing = lay(opened, count, LogOptions(most, log_backups, log_format, umask, owner), stack)
    return Settings(
        target=command,
        program=program,
        argv=argv,
        env=environment,
        cwd=None if cwd is None else absolute_path(os.fsdecode(cwd)),
        inherited_cwd=_current_directory() if cwd is None else None,
        umask=umask,
        owner=owner,
        plumbing=plumbing,
        listen=tuple(sock.fileno() for sock in sockets),
        bound=frozenset(sock.fileno() for sock in bound),
        checks=checks,
        cpus=cpus,
        instances=count,
        rules=rules,
        stop_signal=number,
        max_memory=memory,
        nofile=resource.getrlimit(resource.RLIMIT_NOFILE),
        mark=marks.base(),
    )


def _current_directory() -> str | None:
    """Return the working directory as the shell says it, so that a symbolic link in it is followed at each start."""
    with contextlib.suppress(OSError):
        said = os.environ.get("PWD", "")
        if os.path.isabs(said) and os.path.samefile(said, "."):
            return said
        return os.getcwd()
    return None


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
) -> tuple[Callable[[], object] | None, str | bytes, tuple[bytes, ...]]:
    environment = environment_of(env)
    directory = directory_of(cwd)
    if callable(target):
        return target, b"", ()
    argv, program = command_of(target, None, shell=False)
    find_program(program, environment, directory)  # so that one that is missing is an error of the caller's
    return None, program, argv


def _checks(  # noqa: PLR0913, PLR0917 - the options
    ready_check: object,
    ready_tcp: str | None,
    health_check: object,
    health_interval: float,
    env: object,
    cwd: Path | None,
) -> CheckSettings | None:
    interval = seconds("health_interval", health_interval)
    if ready_check is None and ready_tcp is None and health_check is None:
        return None
    found: list[tuple[str | bytes, tuple[bytes, ...]]] = []
    for name, command in (("ready_check", ready_check), ("health_check", health_check)):
        if callable(command):
            raise TypeError(f"{name}: a command, as a list, not {command!r}")
        try:
            _, program, argv = (None, b"", ()) if command is None else _target(command, env, cwd)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from None
        found.append((program, argv))
    addresses = () if ready_tcp is None else addresses_of("ready_tcp", ready_tcp)
    return CheckSettings(found[0], found[1] if health_check is not None else (b"", ()), interval, addresses)


def _check_format(template: object) -> None:
    if template is None:
        return
    if not isinstance(template, str):
        raise TypeError(f"log_format: a string or None, not {template!r}")
    if "\n" in template or "\0" in template:
        raise ValueError(f"log_format: text for one line, not {template!r}")


def _environment(env: object) -> dict[bytes, bytes]:
    given = environment_of(env)
    own = {name: os.environb[name] for name in _NOT_PASSED if name in os.environb}
    return {k: v for k, v in (os.environb if given is None else given).items() if own.get(k) != v}
