"""The command line: what each command takes, its `--help`, and its completion."""

from __future__ import annotations

import argparse
import contextlib
import os

from daemonkit.cli import _say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Final, NoReturn

    Add = Callable[[argparse.ArgumentParser], object]
    """Adds arguments to a command's parser."""


class _Command:
    def __init__(
        self, where: str, what: str, examples: str, *arguments: Add, program: str = "none", usage: str | None = None
    ) -> None:
        self.where = where
        """The function that does it, as "module.name"."""
        self.what = what
        self.examples = examples
        self.arguments = arguments
        self.program = program
        """Whether a program follows, after ``--``: "none", "optional" or "required"."""
        self.usage = usage
        """Its first line of help, where argparse's would be a page of options."""


# argparse translates its messages, for which gettext loads locale: longer than `ls` may take, and ours are in English.
argparse._ = str  # type: ignore[attr-defined]


# --- arguments -------------------------------------------------------------------------------------------------------


def _options(parser: argparse.ArgumentParser) -> None:
    from daemonkit.cli import _options

    _options.add_options(parser)


def _known_names(**_: object) -> list[str]:
    from daemonkit.cli import _app

    return [app.name for app in _app.apps()]


def _status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", help="the app").completer = _known_names  # type: ignore[attr-defined] # argcomplete's
    parser.add_argument("--env", action="store_true", help="show its environment too")
    parser.add_argument("--pidfile", metavar="F", help="look at the daemon with that pidfile instead")


def _stop(parser: argparse.ArgumentParser) -> None:
    _names(parser)
    parser.add_argument(
        "--pidfile", metavar="F", help="stop the daemon with that pidfile instead, such as one of spawn"
    )


def _instances(parser: argparse.ArgumentParser) -> None:
    from daemonkit.cli import _options

    _options.add_count(parser)


def _signal(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("signal", metavar="SIG", help="the signal, such as USR1, HUP, RTMIN+1 or 10")
    _names(parser)


def _name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the app").completer = _known_names  # type: ignore[attr-defined] # argcomplete's


def _names(parser: argparse.ArgumentParser) -> None:
    names = parser.add_argument("names", metavar="NAME", nargs="*", help="apps, or patterns such as 'web*'")
    names.completer = _known_names  # type: ignore[attr-defined] # argcomplete's
    parser.add_argument("--all", action="store_true", help="all apps")


def _update_env(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--update-env", action="store_true", help="take this shell's environment, not the app's old one"
    )


def _own_name(parser: argparse.ArgumentParser) -> None:
    what = "be this app: a second one is refused, and ls, status, logs and stop see it"
    parser.add_argument("name", metavar="NAME", nargs="?", help=what).completer = _known_names  # type: ignore[attr-defined] # argcomplete's


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"invalid number of lines: {text!r}")
    return int(text)


def _log(parser: argparse.ArgumentParser) -> None:
    names = parser.add_argument("names", metavar="NAME", nargs="*", help="apps (all), or patterns such as 'web*'")
    names.completer = _known_names  # type: ignore[attr-defined] # argcomplete's
    parser.add_argument("-f", "--follow", action="store_true", help="go on showing new lines; Ctrl-C ends it")
    parser.add_argument("-n", "--lines", type=_count, default=10, metavar="N", help="how many lines (10)")
    parser.add_argument("--err", action="store_true", help="show stderr alone, where it has a file of its own")
    parser.add_argument("--clear", action="store_true", help="empty the logs instead")


def _spawn(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pidfile", metavar="F", help="a pidfile that the program holds as long as it runs")
    parser.add_argument("--log", metavar="F", help="append the output to this file, not to /dev/null")


def _source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="an ecosystem.json, a supervisord.conf or a Procfile")


def _file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--file", metavar="FILE", help="the app file (daemonkit.toml, or Procfile)")


def _foreground(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--file", metavar="FILE", help="run all apps of this file (daemonkit.toml, a Procfile)")
    until = "with -f: end with the first app, and its status, or when none is left (all)"
    parser.add_argument("--until", choices=("any", "all"), help=until)


def _unit(parser: argparse.ArgumentParser) -> None:
    _names(parser)
    parser.add_argument("--user", action="store_true", help="make a unit for your own manager, systemctl --user")
    parser.add_argument("-f", "--file", metavar="FILE", help="run all apps of this file by one unit")
    targets = ("systemd", "compose", "kubernetes", "nomad", "slurm")
    what = "the engine that runs it: %(choices)s (systemd)"
    parser.add_argument("--for", dest="target", choices=targets, default="systemd", metavar="ENGINE", help=what)
    parser.add_argument(
        "--image", metavar="IMAGE", help="the image that has the program and daemonkit, for engines that run images"
    )


def _up(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="*", help="only these apps, and those that they come after")
    _file(parser)
    parser.add_argument("-n", "--dry-run", action="store_true", help="say what would be done, and do nothing")
    parser.add_argument("--prune", action="store_true", help="stop and forget apps that are no longer in the file")
    parser.add_argument("--update-env", action="store_true", help="give all apps this shell's environment")


COMMANDS: Final = {
    "start": _Command(
        "_start.start",
        "start an app in the background; return when it is up",
        "daemonkit start web -i 4 -- python worker.py\n  daemonkit start web    # a known app again, as it was",
        _names,
        _options,
        program="optional",
        usage="daemonkit start NAME... [options] [-- CMD ARG...]",
    ),
    "run": _Command(
        "_start.run",
        "run an app in the foreground: under systemd, in a container, to debug",
        "daemonkit run web -i 4 --restart always -- python worker.py\n  daemonkit run -- python job.py",
        _own_name,
        _foreground,
        _options,
        program="optional",
        usage="daemonkit run [NAME] [options] [-- CMD ARG...]",
    ),
    "spawn": _Command(
        "_start.spawn",
        "launch a program that outlives the terminal, and print its pid",
        "daemonkit spawn --log job.log -- python job.py",
        _spawn,
        program="required",
    ),
    "ls": _Command("_table.ls", "list all apps", "daemonkit ls\n  daemonkit ls --json", _json),
    "status": _Command(
        "_table.status",
        "show the state of an app; status 4: not all of it is up, 3: it does not run",
        "daemonkit status web\n  daemonkit status --pidfile job.pid",
        _status,
        _json,
    ),
    "stop": _Command(
        "_change.each",
        "stop apps; they stay stopped until you start them",
        "daemonkit stop web mail\n  daemonkit stop --all\n  daemonkit stop --pidfile job.pid",
        _stop,
    ),
    "restart": _Command(
        "_change.each", "stop apps and start them again, as they were", "daemonkit restart web", _names, _update_env
    ),
    "reload": _Command(
        "_change.each",
        "restart the instances one at a time, each stopped once its successor is up",
        "daemonkit reload web\n  daemonkit reload web --env STAGE=live    # from now on",
        _names,
        _options,
        program="optional",
        usage="daemonkit reload NAME... [options] [-- CMD ARG...]",
    ),
    "scale": _Command(
        "_change.scale",
        "change the number of instances, and start or stop only as many as needed",
        "daemonkit scale web 4",
        _name,
        _instances,
    ),
    "signal": _Command(
        "_change.each",
        "send a signal to the main process of each instance",
        "daemonkit signal USR1 web",
        _signal,
    ),
    "delete": _Command("_change.each", "stop apps and forget them", "daemonkit delete web", _names),
    "logs": _Command(
        "_logview.logs",
        "show the end of the logs of apps, mixed by time",
        "daemonkit logs web -n 100 -f\n  daemonkit logs 'web*' mail -f",
        _log,
    ),
    "top": _Command("_top.top", "show the table of ls live; q ends it, i shows the instances", "daemonkit top"),
    "up": _Command(
        "_up.up",
        "make the apps of a file run as it says; leave alone what already does",
        "daemonkit up\n  daemonkit up -f site.toml web    # web, and what it comes after",
        _up,
    ),
    "down": _Command("_up.down", "stop the apps of a file, the last one first", "daemonkit down", _file),
    "import": _Command(
        "_import.import_",
        "print the app file for what another tool's file says",
        "daemonkit import supervisord.conf >daemonkit.toml",
        _source,
    ),
    "unit": _Command(
        "_unit.unit",
        "print a systemd unit, or a manifest for another engine, to run an app there",
        "daemonkit unit web >/etc/systemd/system/web.service\n"
        "  mkdir -p ~/.config/systemd/user\n"
        "  daemonkit unit web --user >~/.config/systemd/user/web.service\n"
        "  daemonkit unit -f daemonkit.toml --for kubernetes --image registry/site:1 >site.yaml",
        _unit,
    ),
}


# --- parsing ---------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
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


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options; `command` is the program after ``--``, None without one, `typed` all that was before."""
    if "_ARGCOMPLETE" in os.environ:
        with contextlib.suppress(ImportError):
            import argcomplete  # the extra "cli"; a shell that completes a line sets this variable

            argcomplete.autocomplete(_whole_parser())
    end = arguments.index("--") if "--" in arguments else len(arguments)
    own, program = arguments[:end], arguments[end + 1 :] if end < len(arguments) else None
    verb, others = _verb_of(own)
    if not verb:
        _whole_parser().parse_args(own)  # which shows help or the version, or refuses
        raise _say.Usage("give a command; daemonkit --help lists them")
    parser = _parser_of(verb)  # of this one alone: to build all of them takes longer than `ls`
    options = parser.parse_intermixed_args(others)
    options.verb, options.where, options.command = verb, COMMANDS[verb].where, program
    options.typed = [word for word in others if word != "--debug"]
    _check_program(parser, COMMANDS[verb].program, options)
    return options


def _verb_of(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Return the command that was typed, '' for none that there is, and its arguments; --debug may come before."""
    for number, word in enumerate(arguments):
        if word in COMMANDS:
            return word, [*arguments[:number], *arguments[number + 1 :]]
        if word != "--debug":
            break
    return "", []


def _check_program(parser: argparse.ArgumentParser, wanted: str, options: argparse.Namespace) -> None:
    stray: Iterable[str] = getattr(options, "stray", ())
    for word in stray:
        parser.error(f"unexpected argument {word!r}; put the program after --")
    if wanted == "none" and options.command is not None:
        parser.error(f"{parser.prog} takes no program")
    nameless = options.verb == "run" and options.name is None and not options.file
    if options.command == [] or ((wanted == "required" or nameless) and not options.command):
        parser.error("give the program after --")
