"""The command line as argparse reads it: with `--help`, errors and completion."""

from __future__ import annotations

import argparse
import contextlib
import os

from daemonkit.cli import _say
from daemonkit.cli._commands import COMMANDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, NoReturn

# argparse translates its messages, for which gettext loads locale: longer than `ls` may take, and ours are in English.
argparse._ = str  # type: ignore[attr-defined]


def _known_names(**_: object) -> list[str]:
    from daemonkit.cli import _app

    return [app.name for app in _app.apps()]


class _Parser(argparse.ArgumentParser):
    def add_argument(self, *flags: str, **options: Any) -> argparse.Action:  # noqa: ANN401 - as argparse has it
        """Add an argument, for which argcomplete offers the names of all apps if it is one."""
        action = super().add_argument(*flags, **options)
        if action.metavar == "NAME":
            action.completer = _known_names  # type: ignore[attr-defined] # argcomplete's
        return action

    def error(self, message: str) -> NoReturn:
        """Refuse the command line in one line: argparse would show a dozen."""
        raise _say.Usage(f"{message}; see: {self.prog} --help")

    def format_help(self) -> str:
        """Begin with what it is for, and examples: the usage and the options may be long."""
        usage, _, rest = super().format_help().partition("\n\n")
        opening = self.description or ""
        return f"{opening}\n\n{usage}\n\n{rest.removeprefix(opening).lstrip()}"


def _formatter(prog: str) -> argparse.HelpFormatter:
    """Return a formatter of the terminal's width. To ask for that, argparse would import shutil and its compressors."""
    try:
        width = os.get_terminal_size().columns
    except OSError:
        width = 80
    return argparse.RawDescriptionHelpFormatter(prog, width=width - 2)


def _opening(what: str, examples: str) -> str:
    return f"{what}\n\n  {examples}"


def _parser_of(verb: str, add: Callable[..., argparse.ArgumentParser] = _Parser) -> argparse.ArgumentParser:
    command = COMMANDS[verb]
    parser = add(
        prog=f"daemonkit {verb}",
        usage=command.usage,
        description=_opening(f"{command.what[0].upper()}{command.what[1:]}.", command.examples),
        formatter_class=_formatter,
    )
    for arguments in command.arguments:
        arguments(parser)
    if command.program != "none":  # shown alone: whatever follows -- never reaches argparse
        what = "the program, if it is new" if command.program == "optional" else "the program"
        parser.add_argument("stray", metavar="-- CMD", nargs="*", help=what)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def _whole_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands: for help, errors and completion."""
    parser = _Parser(
        "daemonkit",
        description=_opening(
            "Keep programs running in the background.",
            "daemonkit start web -i 4 -- python worker.py\n  daemonkit ls\n  daemonkit start --help",
        ),
        formatter_class=_formatter,
    )
    parser.add_argument("--version", action="version", version=f"daemonkit {_version()}")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    commands = parser.add_subparsers(dest="verb", metavar="COMMAND", prog="daemonkit")  # or it imports shutil
    for verb, command in COMMANDS.items():
        _parser_of(verb, lambda verb=verb, what=command.what, **more: commands.add_parser(verb, help=what, **more))
    return parser


def _version() -> str:
    from daemonkit import __version__

    return __version__


def complete() -> None:
    """Print the completions that the shell has asked for, and end; return if it has not asked."""
    if "_ARGCOMPLETE" in os.environ:
        with contextlib.suppress(ImportError):
            import argcomplete  # the extra "cli"; a shell that completes a line sets this variable

            argcomplete.autocomplete(_whole_parser())


def parse(arguments: Sequence[str]) -> NoReturn:
    """Show help or the version, or refuse a command line that begins with no command."""
    _whole_parser().parse_args(arguments)
    raise _say.Usage("give a command; daemonkit --help lists them")


def parse_command(verb: str, arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of one command; to build the parsers of all of them takes longer than `ls`."""
    return _parser_of(verb).parse_intermixed_args(arguments)
