"""The commands: what each takes, and what its help says. argparse is told in `_parser`, where it has to be loaded."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Callable
    from typing import Final, TypeAlias

    from daemonkit.cli._typed import Words

    Taking: TypeAlias = ArgumentParser | Words
    """What arguments are added to."""
    Add = Callable[[Taking], object]
    """Adds arguments to a command."""


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


# --- arguments -------------------------------------------------------------------------------------------------------


def _options(parser: Taking) -> None:
    from daemonkit.cli import _options

    _options.add_options(parser)


def _status(parser: Taking) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", help="the app")
    parser.add_argument("--env", action="store_true", help="show its environment too")
    parser.add_argument("--pidfile", metavar="F", help="look at the daemon with that pidfile instead")


def _stop(parser: Taking) -> None:
    _names(parser)
    parser.add_argument(
        "--pidfile", metavar="F", help="stop the daemon with that pidfile instead, such as one of spawn"
    )


def _instances(parser: Taking) -> None:
    from daemonkit.cli import _options

    _options.add_count(parser)


def _signal(parser: Taking) -> None:
    parser.add_argument("signal", metavar="SIG", help="the signal, such as USR1, HUP, RTMIN+1 or 10")
    _names(parser)


def _name(parser: Taking) -> None:
    parser.add_argument("name", metavar="NAME", help="the app")


def _names(parser: Taking) -> None:
    parser.add_argument("names", metavar="NAME", nargs="*", help="apps, or patterns such as 'web*'")
    parser.add_argument("--all", action="store_true", help="all apps")


def _update_env(parser: Taking) -> None:
    parser.add_argument(
        "--update-env", action="store_true", help="take this shell's environment, not the app's old one"
    )


def _own_name(parser: Taking) -> None:
    what = "be this app: a second one is refused, and ls, status, logs and stop see it"
    parser.add_argument("name", metavar="NAME", nargs="?", help=what)


def _json(parser: Taking) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _count(text: str) -> int:
    if not text.isdecimal():
        import argparse

        raise argparse.ArgumentTypeError(f"invalid number of lines: {text!r}")
    return int(text)


def _log(parser: Taking) -> None:
    parser.add_argument("names", metavar="NAME", nargs="*", help="apps (all), or patterns such as 'web*'")
    parser.add_argument("-f", "--follow", action="store_true", help="go on showing new lines; Ctrl-C ends it")
    parser.add_argument("-n", "--lines", type=_count, default=10, metavar="N", help="how many lines (10)")
    parser.add_argument("--err", action="store_true", help="show stderr alone, where it has a file of its own")
    parser.add_argument("--clear", action="store_true", help="empty the logs instead")


def _spawn(parser: Taking) -> None:
    parser.add_argument("--pidfile", metavar="F", help="a pidfile that the program holds as long as it runs")
    parser.add_argument("--log", metavar="F", help="append the output to this file, not to /dev/null")


def _source(parser: Taking) -> None:
    parser.add_argument("file", metavar="FILE", help="an ecosystem.json, a supervisord.conf or a Procfile")


def _file(parser: Taking) -> None:
    parser.add_argument("-f", "--file", metavar="FILE", help="the app file (daemonkit.toml, or Procfile)")


def _foreground(parser: Taking) -> None:
    parser.add_argument("-f", "--file", metavar="FILE", help="run all apps of this file (daemonkit.toml, a Procfile)")
    until = "with -f: end with the first app, and its status, or when none is left (all)"
    parser.add_argument("--until", choices=("any", "all"), help=until)


def _unit(parser: Taking) -> None:
    _names(parser)
    parser.add_argument("--user", action="store_true", help="make a unit for your own manager, systemctl --user")
    parser.add_argument("-f", "--file", metavar="FILE", help="run all apps of this file by one unit")
    targets = ("systemd", "compose", "kubernetes", "nomad", "slurm")
    what = "the engine that runs it: %(choices)s (systemd)"
    parser.add_argument("--for", dest="target", choices=targets, default="systemd", metavar="ENGINE", help=what)
    parser.add_argument(
        "--image", metavar="IMAGE", help="the image that has the program and daemonkit, for engines that run images"
    )


def _up(parser: Taking) -> None:
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
