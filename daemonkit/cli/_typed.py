"""The command line that was typed. Most are a few plain words, which are read here without argparse.

To load argparse and to build a parser takes as long as all that `daemonkit status` does. Whatever is not a name, a
switch or an option with a plain value is left to argparse: what is wrong, what is shortened, and ``--help``.
"""

from __future__ import annotations

import os

from daemonkit.cli import _say
from daemonkit.cli._commands import COMMANDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterable, Sequence
    from typing import Any, NoReturn
else:
    Namespace = object


class Options(Namespace):
    """What was typed, by the names of the arguments."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.__dict__ |= values


class Words:
    """Takes a command's arguments as argparse does, and reads the plain command lines among those that it reads."""

    def __init__(self) -> None:
        """Begin with what each command takes."""
        self._values: dict[str, Any] = {}
        self._switches: dict[str, tuple[str, object]] = {}
        self._valued: dict[str, str] = {}
        self._names: list[tuple[str, str | None]] = []
        self.add_argument("--debug", action="store_true")

    def add_argument(  # noqa: PLR0913 - argparse's, but for those that are only shown
        self,
        *flags: str,
        action: str = "store",
        nargs: str | None = None,
        type: object = None,  # noqa: A002
        choices: object = None,
        default: object = None,
        const: object = True,
        dest: str | None = None,
        **_shown: object,
    ) -> None:
        """Add one argument."""
        name = dest or flags[-1].lstrip("-").replace("-", "_")
        self._values[name] = False if action == "store_true" else default
        if not flags[0].startswith("-"):
            self._names.append((name, nargs if type is None else "converted"))
        elif action in {"store_true", "store_const"}:
            self._switches |= dict.fromkeys(flags, (name, const))
        elif action == "store" and type is None and choices is None:
            self._valued |= dict.fromkeys(flags, name)

    def read(self, words: Iterable[str]) -> Options | None:
        """Return the options of a plain command line; None if it takes argparse to read it, or to refuse it."""
        values, names, rest = {**self._values}, [], iter(words)
        for word in rest:
            if word in self._switches:
                name, value = self._switches[word]
                values[name] = value
            elif word in self._valued and (value := next(rest, "-")) and value[0] != "-":
                values[self._valued[word]] = value
            elif word.startswith("-"):
                return None
            else:
                names.append(word)
        return Options(values | named) if (named := self._named(names)) is not None else None

    def _named(self, names: list[str]) -> dict[str, object] | None:
        match self._names, names:
            case [(name, "*")], _:
                return {name: names}
            case [(name, None | "?")], [value]:
                return {name: value}
            case (([] | [(_, "?")]), []):
                return {}
        return None


def parse(arguments: Sequence[str]) -> Namespace:
    """Return the options; `command` is the program after ``--``, None without one, `typed` all that was before."""
    if "_ARGCOMPLETE" in os.environ:
        from daemonkit.cli import _parser

        _parser.complete()
    end = arguments.index("--") if "--" in arguments else len(arguments)
    own, program = arguments[:end], arguments[end + 1 :] if end < len(arguments) else None
    verb, others = _verb_of(own)
    options = _options_of(verb, own, others)
    options.verb, options.where, options.command = verb, COMMANDS[verb].where, program
    options.typed = [word for word in others if word != "--debug"]
    _check_program(options)
    return options


def _verb_of(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Return the command that was typed, '' for none that there is, and its arguments; --debug may come before."""
    for number, word in enumerate(arguments):
        if word in COMMANDS:
            return word, [*arguments[:number], *arguments[number + 1 :]]
        if word != "--debug":
            break
    return "", []


def _options_of(verb: str, own: Sequence[str], others: Sequence[str]) -> Namespace:
    if verb:
        words = Words()
        for arguments in COMMANDS[verb].arguments:
            arguments(words)
        if options := words.read(others):
            return options
    from daemonkit.cli import _parser

    return _parser.parse_command(verb, others) if verb else _parser.parse(own)


def _check_program(options: Namespace) -> None:
    wanted = COMMANDS[options.verb].program
    stray: Iterable[str] = getattr(options, "stray", ())
    for word in stray:
        _refuse(options.verb, f"unexpected argument {word!r}; put the program after --")
    if wanted == "none" and options.command is not None:
        _refuse(options.verb, f"daemonkit {options.verb} takes no program")
    nameless = options.verb == "run" and options.name is None and not options.file
    if options.command == [] or ((wanted == "required" or nameless) and not options.command):
        _refuse(options.verb, "give the program after --")


def _refuse(verb: str, message: str) -> NoReturn:
    raise _say.Usage(f"{message}; see: daemonkit {verb} --help")
