"""The options of `daemonkit start` and `run`: every argument of `supervise`, under its name with dashes."""

from __future__ import annotations

import math
import os
import re
import shlex
import signal

from daemonkit._system.signals import signal_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Mapping
    from typing import Any, Final

    from daemonkit.cli._app import Settings
    from daemonkit.cli._commands import Taking


_MOST_INSTANCES: Final = 1 << 22  # as supervise() has it, whose import takes longer

# --- from text: a ValueError or KeyError is a usage error ------------------------------------------------------------


class _HintError(ValueError):
    """A value that is refused, and the way out."""


def _at_least(least: float, value: float) -> float:
    if not value >= least:  # NaN is neither
        raise ValueError
    return value


def _count(text: str) -> int:
    return int(_at_least(0, int(text)))


def _instances(text: str) -> int | str:
    if text == "auto":
        return text
    if (count := int(text)) > _MOST_INSTANCES:
        raise _HintError(f"give {_MOST_INSTANCES} at most, as no system runs more processes")
    return int(_at_least(1, count))


def _seconds(text: str) -> float:
    return _at_least(math.ulp(0.0), float(text))


def _patience(text: str) -> float:
    return _at_least(0, float(text))


def _size(text: str) -> int | str:
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)(?:i?B)?", text, re.IGNORECASE)
    number = int(float(found[1]) * 1024 ** " KMGT".index(found[2].upper() or " ")) if found else 0
    if text.lower() == "max":  # in the words of cgroups(7) and systemd: no limit
        return "max"
    if number < 1:
        raise _HintError("give bytes, or a number with K, M, G or T, such as 200M, or max for no limit")
    return number


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _backoff(text: str) -> list[float]:
    parts = [float(part) for part in text.split(",")]
    if len(parts) > 3:
        raise ValueError
    from daemonkit._supervise.rules import Backoff

    Backoff(*parts)
    return parts


def signal_number(text: str) -> int:
    """Return a signal's number by its name, with or without SIG, as SIGRTMIN+N or SIGRTMAX-N, or by its number."""
    name = text.upper().removeprefix("SIG")
    found = re.fullmatch(r"([A-Z]\w*)([+-]\d+)?", name)
    number = signal.Signals[f"SIG{found[1]}"] + int(found[2] or 0) if found else int(name)
    if number not in signal.valid_signals():
        raise ValueError
    return int(number)


def _signal(text: str) -> str:
    return signal_name(signal_number(text)).removeprefix("signal ")


def _user(text: str) -> int | str:
    if not text or text.startswith("-"):  # a number below 0, or an option whose value was forgotten
        raise ValueError
    return int(text) if text.isdigit() else text


def _octal(text: str) -> int:
    number = int(text, 8)
    if not 0 <= number <= 0o777:
        raise ValueError
    return number


def absolute(path: str) -> str:
    """Return a path from the root on, by the name of the current directory that the user sees: no link is resolved.

    A ``current -> releases/7`` that is switched later then leads to the next release.
    """
    if os.path.isabs(path):
        return os.path.normpath(path)
    here = os.environ.get("PWD", "")
    try:
        is_here = os.path.isabs(here) and os.path.samefile(here, ".")
    except OSError:
        is_here = False
    return os.path.normpath(os.path.join(here if is_here else os.getcwd(), path))


def _path(text: str) -> str:
    if not text:
        raise ValueError
    if re.fullmatch(r"/dev/(stdin|stdout|stderr|fd/\d+)|/proc/self/fd/\d+", text):
        raise _HintError("leave it out: run writes to its own stdout and stderr, start to the log")
    return absolute(text)


def _listen(text: str) -> str:
    if not text:
        raise ValueError
    return f"unix:{_path(text.removeprefix('unix:'))}" if text.startswith("unix:") else text


def _script(text: str) -> str:
    if not text.strip():
        raise ValueError
    return text


def _command(text: str) -> list[str]:
    words = shlex.split(text)
    if not words:
        raise ValueError
    return words


def _address(text: str) -> str:
    if not re.fullmatch(r"(\[[^][]*\]|[^][:]*):[0-9]{1,5}", text):
        raise ValueError
    return text


def _at_least_one(text: str) -> int:
    return int(_at_least(1, int(text)))


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ValueError
    return name, value


class Option:
    """One option of the command line."""

    def __init__(  # noqa: PLR0913 - the fields
        self,
        flags: str,
        what: str,
        parse: Callable[[str], object] | None = str,
        metavar: str | None = None,
        *,
        choices: tuple[str, ...] | None = None,
        several: bool = False,
    ) -> None:
        self.flags = flags.split()
        self.what = what
        self.parse = parse
        """Returns the value of the text; None for an option without a value."""
        self.metavar = metavar
        self.choices = choices
        self.several = several
        """Whether it may be given several times."""

    @property
    def flag(self) -> str:
        """Its long form."""
        return self.flags[-1]

    @property
    def name(self) -> str:
        """Its name as a setting, and as an argument of `supervise`."""
        return self.flag.removeprefix("--").replace("-", "_")


OPTIONS: Final = (
    Option("-i --instances", 'how many instances, or "auto": one per usable CPU (1)', _instances, "N"),
    Option("--restart", "when to start an instance again (on-failure)", choices=("always", "on-failure", "never")),
    Option("--success-codes", "exit statuses that are not a failure (0)", _numbers, "N,N"),
    Option("--backoff", "seconds between restarts in a row (0.1,2,30)", _backoff, "INITIAL,FACTOR,MAXIMUM"),
    Option("--min-uptime", "seconds until an instance counts as up, at most 1 (1)", _seconds, "S"),
    Option("--steady-after", "a crash after this many seconds is the first in a row (10)", _seconds, "S"),
    Option("--max-restarts", "give up an instance after N restarts in a row (no limit)", _count, "N"),
    Option("--stop-signal", "the signal that asks an instance to end (SIGTERM)", _signal, "SIG"),
    Option("--stop-timeout", "seconds from that signal to SIGKILL (10)", _patience, "S"),
    Option("--kill-mode", "who gets that signal: all processes or the main one (group)", choices=("group", "main")),
    Option("--wait-ready", "an instance is up when it sends READY=1 to $NOTIFY_SOCKET", None),
    Option("--start-timeout", "seconds within which an instance must be up (30)", _seconds, "S"),
    Option("--ready-check", "a command that ends with 0 once the instance is up", _command, "CMD"),
    Option("--ready-tcp", "an instance is up when this accepts a connection", _address, "HOST:PORT"),
    Option("--health-check", "a command that ends with 0 while the instance is healthy", _command, "CMD"),
    Option("--health-interval", "seconds between health checks, and for each (10)", _seconds, "S"),
    Option("--health-failures", "start an instance again after N failures in a row (3)", _at_least_one, "N"),
    Option("--watchdog", "seconds within which an instance must send WATCHDOG=1", _seconds, "S"),
    Option("--max-memory", "replace an instance above this memory: 200M, 1.5G, max", _size, "BYTES"),
    Option("--cpu-affinity", "bind instance i to CPU i mod n", choices=("spread",)),
    Option("--listen", "a socket for all, HOST:PORT or unix:PATH; repeatable", _listen, "ADDR", several=True),
    Option("--listen-nonblocking", "hand the sockets over non-blocking", None),
    Option("--cwd", "the directory to run in (this one)", _path, "D"),
    Option("--env", "a variable for the environment; repeatable", _variable, "K=V", several=True),
    Option("--user", "the user to run as", _user, "U"),
    Option("--group", "the group to run as", _user, "G"),
    Option("--umask", "the umask, in octal", _octal, "MASK"),
    Option("--stdin", "the file to read from (/dev/null)", _path, "F"),
    Option("--stdout", "a file instead of the log; {instance} is the number", _path, "F"),
    Option("--stderr", "the same for stderr", _path, "F"),
    Option("--log", "the log file (NAME.log)", _path, "F"),
    Option("--on-event", "a shell command to run when an instance has trouble", _script, "CMD"),
    Option("--log-max-bytes", "rotate logs at this size; max: never (10M)", _size, "BYTES"),
    Option("--log-backups", "how many old logs to keep (5)", _count, "N"),
    Option("--log-format", "text before each line, of {time} and {instance}", str, "TEXT"),
)


def _typed(option: Option) -> Callable[[str], object]:
    def convert(text: str) -> object:
        try:
            return option.parse(text) if option.parse else True
        except (ValueError, KeyError) as error:
            import argparse

            hint = f"; {error}" if isinstance(error, _HintError) else ""
            raise argparse.ArgumentTypeError(f"invalid {option.metavar}: {text!r}{hint}") from error

    return convert


def add_options(parser: Taking) -> None:
    for option in OPTIONS:
        if option.parse is None:
            parser.add_argument(*option.flags, help=option.what, action="store_const", const=True)
        elif option.choices:
            parser.add_argument(*option.flags, help=option.what, choices=option.choices)
        else:
            action = "append" if option.several else "store"
            parser.add_argument(
                *option.flags, help=option.what, type=_typed(option), metavar=option.metavar, action=action
            )
    what = "a file of NAME=VALUE lines for the environment; repeatable"
    parser.add_argument("--env-file", metavar="F", action="append", default=[], help=what)
    parser.add_argument(
        "--update-env", action="store_true", help="take this shell's environment, not the app's old one"
    )


def add_count(parser: Taking) -> None:
    parser.add_argument("count", metavar="N", type=_typed(OPTIONS[0]), help='how many, or "auto": one per usable CPU')


def settings_of(options: Namespace) -> Settings:
    """Return what was asked for, by the names of `supervise`'s arguments."""
    settings = {option.name: value for option in OPTIONS if (value := getattr(options, option.name)) is not None}
    variables: dict[str, str] = {}
    for path in options.env_file:
        from daemonkit.cli._appfile import variables_of

        variables |= variables_of(path)
    variables |= dict(settings.get("env", ()))
    if variables:
        settings["env"] = variables
    if options.command:
        settings["command"] = options.command
    return settings


def words_of(settings: Mapping[str, Any]) -> list[str]:
    """Return settings as the options that say them; a command is none."""
    words: list[str] = []
    for option in OPTIONS:
        if option.name not in settings:
            continue
        value = settings[option.name]
        if option.parse is None:
            words.append(option.flag)
        else:
            words += [f"{option.flag}={_written(option.name, one)}" for one in (value if option.several else [value])]
    return words


def _written(name: str, value: object) -> str:
    if isinstance(value, list) and name in {"ready_check", "health_check"}:
        return shlex.join(value)
    if isinstance(value, list):
        return ",".join(map(str, value))
    return f"{value:o}" if name == "umask" else str(value)
