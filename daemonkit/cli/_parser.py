"""The command line: what each command takes, its `--help`, and what completes it."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections import namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final


class _Command(namedtuple("_Command", ("where", "takes", "what", "examples"))):
    __slots__ = ()
    where: tuple[str, str]
    """The module and the function that do it."""
    takes: str
    """What is on its command line, by the names in `_ADD`; CMD, CMD?: a program after ``--``."""
    what: str
    examples: str


_COMMANDS: Final = {
    "start": _Command(
        ("_commands", "start"),
        "NAME OPTIONS CMD?",
        "start an app in the background; return when it is up",
        "daemonkit start web -i 4 -- python worker.py\n  daemonkit start web    # a known app again, as it was",
    ),
    "run": _Command(
        ("_commands", "run"),
        "OPTIONS CMD",
        "the same in the foreground: under systemd, in a container, to debug",
        "daemonkit run -i 4 --restart always -- python worker.py",
    ),
    "spawn": _Command(
        ("_commands", "spawn"),
        "SPAWN CMD",
        "launch a program that outlives the terminal, and print its pid",
        "daemonkit spawn --log job.log -- python job.py",
    ),
    "ls": _Command(("_table", "ls"), "JSON", "list all apps", "daemonkit ls\n  daemonkit ls --json"),
    "status": _Command(
        ("_table", "status"), "NAME JSON", "tell how an app is; status 3 if it does not run", "daemonkit status web"
    ),
    "stop": _Command(("_commands", "each"), "NAMES", "stop apps", "daemonkit stop web mail\n  daemonkit stop --all"),
    "restart": _Command(
        ("_commands", "each"), "NAMES", "stop and start apps, in this shell's environment", "daemonkit restart web"
    ),
    "reload": _Command(
        ("_commands", "each"),
        "NAMES",
        "restart the instances one at a time, each stopped once its successor is up",
        "daemonkit reload web",
    ),
    "delete": _Command(
        ("_commands", "each"), "NAMES", "stop apps and forget them, their logs too", "daemonkit delete web"
    ),
    "logs": _Command(("_logview", "logs"), "NAME LOGS", "show the end of an app's log", "daemonkit logs web -n 100 -f"),
    "top": _Command(("_table", "top"), "", "the table of ls, live; Ctrl-C ends it", "daemonkit top"),
    "unit": _Command(
        ("_unit", "unit"),
        "NAME",
        "print a systemd unit that runs the same app",
        "daemonkit unit web >/etc/systemd/system/web.service",
    ),
}


def _add_options(parser: argparse.ArgumentParser) -> None:
    from daemonkit.cli import _options

    _options.add_options(parser)


def _known_names(**_: object) -> list[str]:
    from daemonkit.cli import _app

    return [app.name for app in _app.apps()]


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the app").completer = _known_names  # type: ignore[attr-defined]


def _add_names(parser: argparse.ArgumentParser) -> None:
    names = parser.add_argument("names", metavar="NAME", nargs="*", help="apps")
    names.completer = _known_names  # type: ignore[attr-defined] # argcomplete's
    parser.add_argument("--all", action="store_true", help="all apps")


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of lines")
    return int(text)


def _add_logs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--follow", action="store_true", help="go on as it grows; Ctrl-C ends it")
    parser.add_argument("-n", "--lines", type=_count, default=10, metavar="N", help="how many lines (10)")


def _add_spawn(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pidfile", metavar="F", help="held by the program as long as it runs")
    parser.add_argument("--log", metavar="F", help="where its output is appended to (nowhere)")


_ADD: Final[dict[str, Callable[[argparse.ArgumentParser], object]]] = {
    "NAME": _add_name,
    "NAMES": _add_names,
    "OPTIONS": _add_options,
    "JSON": lambda parser: parser.add_argument("--json", action="store_true", help="as JSON"),
    "LOGS": _add_logs,
    "SPAWN": _add_spawn,
    # Shown alone: what follows -- never gets as far as argparse.
    "CMD": lambda parser: parser.add_argument("stray", metavar="-- CMD", nargs="*", help="the program"),
    "CMD?": lambda parser: parser.add_argument("stray", metavar="-- CMD", nargs="*", help="the program, if it is new"),
}


def _formatter(prog: str) -> argparse.HelpFormatter:
    """Return a formatter of the terminal's width, which argparse would import shutil and its compressors for."""
    try:
        width = os.get_terminal_size().columns
    except OSError:
        width = 80
    return argparse.RawDescriptionHelpFormatter(prog, width=width - 2)


def _parser(verbs: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "daemonkit",
        description="Keep programs running in the background.",
        epilog="examples:\n  daemonkit start web -i 4 -- python worker.py\n  daemonkit ls\n  daemonkit start --help",
        formatter_class=_formatter,
    )
    parser.add_argument("--version", action="store_true", help="tell the version and end")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    commands = parser.add_subparsers(dest="verb", metavar="COMMAND", prog="daemonkit")  # or it imports shutil for that
    for verb in verbs:
        _, takes, what, examples = _COMMANDS[verb]
        sub = commands.add_parser(
            verb,
            help=what,
            description=f"{what[0].upper()}{what[1:]}.",
            epilog=f"examples:\n  {examples}",
            formatter_class=_formatter,
        )
        for part in takes.split():
            _ADD[part](sub)
        sub.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")
        sub.set_defaults(refuse=sub.error)
    return parser


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options; `command` is what follows ``--``, None without that."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    own, command = arguments[:end], arguments[end + 1 :] if end < len(arguments) else None
    verb = next((one for one in own if not one.startswith("-")), "")
    parser = _parser([verb] if verb in _COMMANDS else [*_COMMANDS])
    if "_ARGCOMPLETE" in os.environ:
        with contextlib.suppress(ImportError):
            import argcomplete  # the extra "cli"; a shell that completes a line sets this variable

            argcomplete.autocomplete(_parser([*_COMMANDS]))
    options = parser.parse_args(own)
    options.command = command
    if options.verb is None and not options.version:
        parser.error("give a command; daemonkit --help lists them")
    takes = _COMMANDS[options.verb].takes.split() if options.verb else []
    if "CMD" in takes and not command:
        options.refuse("give the program, after --")
    if command is not None and not (command and {"CMD", "CMD?"}.intersection(takes)):
        options.refuse("there is no program after --" if not command else "it takes no program")
    if getattr(options, "stray", None):
        options.refuse(f"{options.stray[0]!r} is no option; the program follows --")
    options.where = _COMMANDS[options.verb].where if options.verb else None
    return options
