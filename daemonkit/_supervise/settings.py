"""What `supervise` was asked for: checked, looked up and opened, before anything is started."""

from __future__ import annotations

import contextlib
import logging
import os
import resource

from daemonkit._supervise import marks
from daemonkit._supervise.listen import addresses_of, bind_sockets
from daemonkit._supervise.plumbing import LogOptions, Logs, Plumbing, lay, settle_streams
from daemonkit._supervise.rules import Rules, seconds
from daemonkit._system.check import absolute_path, check_boolean, check_number
from daemonkit._system.program import command_of, directory_of, environment_of, find_program
from daemonkit._system.record import field, record, replace
from daemonkit._system.signals import ALL_SIGNALS
from daemonkit._system.streams import STREAM_NAMES, fill_closed
from daemonkit._system.users import Owner, owner_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping
    from typing import Any, Final

    from daemonkit._supervise.checks import Address
    from daemonkit._system.streams import Path

_logger = logging.getLogger("daemonkit")

_OF_RULES: Final = (
    "restart",
    "success_codes",
    "backoff",
    "min_uptime",
    "steady_after",
    "max_restarts",
    "stop_timeout",
    "kill_mode",
    "wait_ready",
    "start_timeout",
    "watchdog",
    "health_failures",
)
MOST_INSTANCES: Final = 1 << 22
"""As many processes as a kernel can number (proc(5)); a number beyond would keep the supervisor busy for ever."""
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


@record(frozen=True)
class CheckSettings:
    """The checks that there are, each a program as it was named and its arguments."""

    ready: tuple[str | bytes, tuple[bytes, ...]]
    health: tuple[str | bytes, tuple[bytes, ...]]
    """No arguments: there is none."""
    health_interval: float
    addresses: tuple[Address, ...]
    """For `ready_tcp`."""


@record(frozen=True)
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
    checks: CheckSettings | None
    cpus: tuple[int, ...]
    instances: int
    number: str | None
    """That of a single instance, where another engine numbers them; None: from 0 on."""
    rules: Rules
    stop_signal: int
    max_memory: int | None
    nofile: tuple[int, int]
    mark: int
    """The first of those that the runs have."""
    plumbing: Plumbing = field(default_factory=Plumbing)
    listen: tuple[int, ...] = ()
    bound: frozenset[int] = frozenset()
    """Those of them that nobody has handed in."""

    def number_of(self, index: int) -> bytes:
        """Return the number that an instance is told."""
        return b"%d" % index if self.number is None or self.instances > 1 else self.number.encode()

    def descriptors(self) -> list[int]:
        """Return all descriptors above 2 that instances are given, and those that the worker needs for them."""
        return sorted(self.plumbing.descriptors() | set(self.listen))

    def moved(self, to: Mapping[int, int]) -> Settings:
        """Return the same with other numbers for the descriptors."""
        return replace(
            self,
            plumbing=self.plumbing.moved(to),
            listen=tuple(to[fd] for fd in self.listen),
            bound=frozenset(to[fd] for fd in self.bound),
        )


@record(frozen=True)
class Kept:
    """What stays open from one set of settings to the next: sockets by their address, logs, pumps."""

    sockets: dict[object, socket.socket] = field(default_factory=dict)
    logs: Logs = field(default_factory=Logs)


def settle(options: Mapping[str, Any], kept: Kept, stack: contextlib.ExitStack) -> tuple[Settings, Kept]:
    """Return the settings for the arguments of `supervise`, and what they keep open, until the stack closes it.

    What `kept` has is used again. What has no effect comes first, so that a bad argument leaves neither a log nor a
    socket behind; and what was opened before an error is closed.
    """
    settings = check(options)
    with contextlib.ExitStack() as undo:
        fill_closed(undo)
        sockets, bound, known = bind_sockets(
            options["listen"], kept.sockets, undo, nonblocking=options["listen_nonblocking"]
        )
        streams = settle_streams(
            {name: options[name] for name in STREAM_NAMES}, settings.instances, settings.umask, undo
        )
        log_options = LogOptions(
            options["log_max_bytes"], options["log_backups"], options["log_format"], settings.umask, settings.owner
        )
        plumbing, logs = lay(streams, settings.instances, log_options, kept.logs, undo)
        settings = replace(
            settings,
            plumbing=plumbing,
            listen=tuple(sock.fileno() for sock in sockets),
            bound=frozenset(sock.fileno() for sock in bound),
        )
        stack.push(undo.pop_all())
    return settings, Kept(known, logs)


def end_what_is_left(settings: Settings) -> None:
    """End the orphans of supervisors that were killed, which may hold the very sockets that are to be bound."""
    marks.end_orphaned()
    if pids := marks.unproven_orphans(settings.cwd or settings.inherited_cwd or "."):
        text = (
            "these processes may have been left by a supervisor that was killed; nothing proves it, so they go on: %s"
        )
        _logger.warning(text, ", ".join(map(str, pids)))


def check(options: Mapping[str, Any]) -> Settings:
    """Return the settings without what has to be opened; TypeError, ValueError, LookupError, OSError."""
    rules = Rules(
        **{name: options[name] for name in _OF_RULES},
        ready_check=options["ready_check"] is not None,
        ready_tcp=options["ready_tcp"] is not None,
    )
    env, cwd, umask = options["env"], options["cwd"], options["umask"]
    count, memory = _count(options["instances"]), _size("max_memory", options["max_memory"])
    _size("log_max_bytes", options["log_max_bytes"])
    number, cpus = _signal_number(options["stop_signal"]), _cpus(options["cpu_affinity"])
    if options["log_backups"] is None:
        raise ValueError("log_backups must be a number, not None")
    check_number("log_backups", options["log_backups"], 1 << 30)
    umask = None if umask == -1 else umask
    check_number("umask", umask, 0o777)
    _check_format(options["log_format"])
    check_boolean("listen_nonblocking", options["listen_nonblocking"])
    command, program, argv = _target(options["target"], env, cwd)
    environment = _environment(env)
    owner = None
    if options["user"] is not None or options["group"] is not None:
        owner = owner_of(options["user"], options["group"], names=("user", "group", "extra_groups"))
        if env is None:
            environment = owner.environment(environment)
    return Settings(
        target=command,
        program=program,
        argv=argv,
        env=environment,
        cwd=None if cwd is None else absolute_path(os.fsdecode(cwd)),
        inherited_cwd=_current_directory() if cwd is None else None,
        umask=umask,
        owner=owner,
        checks=_checks(options),
        cpus=cpus,
        instances=count,
        number=options["number"],
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
        raise TypeError(f'instances must be a number or "auto", not {instances!r}')
    if not 1 <= instances <= MOST_INSTANCES:
        raise ValueError(f"instances must be from 1 to {MOST_INSTANCES}, not {instances}")
    return instances


def _size(name: str, value: int | None) -> int | None:
    check_number(name, value, 1 << 62)
    if value == 0:
        raise ValueError(f"{name} must be at least one byte, not 0")
    return value


def _signal_number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"stop_signal must be a signal such as signal.SIGTERM, not {value!r}")
    if value not in ALL_SIGNALS:
        raise ValueError(f"stop_signal: there is no signal {value!r}")
    return int(value)


def _cpus(affinity: object) -> tuple[int, ...]:
    if affinity is None:
        return ()
    if affinity != "spread":
        raise ValueError(f'cpu_affinity must be "spread" or None, not {affinity!r}')
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


def _checks(options: Mapping[str, Any]) -> CheckSettings | None:
    interval = seconds("health_interval", options["health_interval"])
    address = options["ready_tcp"]
    if options["ready_check"] is None and address is None and options["health_check"] is None:
        return None
    if address is not None and options["listen"]:
        raise ValueError("ready_tcp can't be used together with listen, as a socket that is bound here always accepts")
    found: dict[str, tuple[str | bytes, tuple[bytes, ...]]] = {}
    for name in ("ready_check", "health_check"):
        command = options[name]
        if callable(command):
            raise TypeError(f"{name} must be a command as a list, not {command!r}")
        try:
            _, *rest = (None, b"", ()) if command is None else _target(command, options["env"], options["cwd"])
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from None
        found[name] = rest[0], rest[1]  # type: ignore[assignment]  # a program and its arguments
    addresses = () if address is None else addresses_of("ready_tcp", address)
    return CheckSettings(found["ready_check"], found["health_check"], interval, addresses)


def _check_format(template: object) -> None:
    if template is None:
        return
    if not isinstance(template, str):
        raise TypeError(f"log_format must be a string or None, not {template!r}")
    if "\n" in template or "\0" in template:
        raise ValueError(f"log_format must be text for one line, not {template!r}")


def _environment(env: object) -> dict[bytes, bytes]:
    given = environment_of(env)
    own = {name: os.environb[name] for name in _NOT_PASSED if name in os.environb}
    return {k: v for k, v in (os.environb if given is None else given).items() if own.get(k) != v}
