"""Apps from a supervisord.conf: http://supervisord.org/configuration.html."""

from __future__ import annotations

import configparser
import os
import re
import shlex

from daemonkit.cli._import import Imported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from daemonkit.cli._import import Table

_YES: Final = frozenset({"1", "true", "yes", "on"})
_SILENT: Final = frozenset({"unix_http_server", "supervisorctl", "rpcinterface:supervisor"})
"""Sections that only supervisord itself needs."""
_OF_ALL: Final = ("user", "umask", "directory")
"""Keys of [supervisord] that its programs inherit."""


def from_supervisord(path: str, text: str) -> tuple[list[Imported], list[str]]:
    """Return its apps, and what else could not be taken over; ValueError."""
    parser = configparser.RawConfigParser(inline_comment_prefixes=(";", "#"), strict=False)
    try:
        parser.read_string(text, path)
    except configparser.Error as error:
        raise ValueError(" ".join(str(error).split())) from None
    apps, lost = [], []
    common = _variables(parser.get("supervisord", "environment", fallback=""))
    for section in parser.sections():
        kind, _, name = section.partition(":")
        given = dict(parser.items(section))
        if kind in {"program", "fcgi-program"} and given.get("command"):
            apps.append(_app(name.strip(), given, common, os.path.dirname(os.path.abspath(path))))
        elif section == "supervisord":
            lost += [f"[supervisord] {key} = {given[key]}: for each app" for key in _OF_ALL if key in given]
        elif section not in _SILENT:
            hint = {
                "include": "import those files too",
                "group": "name them: daemonkit restart a b, or 'a*'",
                "eventlistener": "see on_event",
            }.get(kind, "no counterpart")
            lost.append(f"[{section}] {'; '.join(f'{key} = {value}' for key, value in given.items())}: {hint}")
    if not apps:
        raise ValueError(f"{path}: there is no [program:NAME] with a command in it")
    return apps, lost


def _app(name: str, given: dict[str, str], common: dict[str, str], here: str) -> Imported:
    app = Imported(name)
    numprocs = given.get("numprocs", "1")
    names = {"here": here, "program_name": name, "group_name": name, "numprocs": numprocs}
    command = given.pop("command")
    app.keys["command"] = _command(command, names)
    given.pop("process_name", None)  # an instance has a number and no name
    if "%(ENV_" in "".join(given.values()):
        app.lost.append("for %(ENV_X)s there is what X was when this was imported")
    if re.search(r"%\(process_num\)0\d", "".join(given.values()) + command):
        app.lost.append("its numbers have no zeros before them here: 0, not 00")
    names["process_num"] = "{instance}"
    given = {key: _PLACE.sub(lambda place: _meaning(place, names), value) for key, value in given.items()}
    if given.get("stopasgroup", "").lower() not in _YES:
        app.keys["kill_mode"] = "main"
    if found := re.fullmatch(r"[0-9]+", given.get("startsecs", "")):
        app.take("steady_after", int(found[0]))  # a run that is shorter counts as one more start that has failed
    if variables := common | _variables(given.pop("environment", "")):
        app.take("env", variables)
    app.take_all(_logs(given), _TABLE, _HINTS)
    return app


_PLACE: Final = re.compile(r"%\((\w+)\)[0-9]*[sd]|%%")


def _meaning(place: re.Match[str], names: dict[str, str]) -> str:
    """Return what stands for %(NAME)s."""
    name = place[1] or "%"
    return os.environ.get(name[4:], "") if name.startswith("ENV_") else names.get(name.lower(), name)


def _command(text: str, names: dict[str, str]) -> list[str]:
    """Return a command; one that depends on a variable, or on the instance's number, is a shell's."""
    needed: list[str] = []

    def hold(place: re.Match[str]) -> str:
        name = {"process_num": "DAEMONKIT_INSTANCE"}.get(place[1], (place[1] or "")[4:])
        if not (place[1] or "").startswith(("ENV_", "process_num")):
            return _meaning(place, names)
        needed.append(name)
        return f"\0{name}\0"

    words = shlex.split(_PLACE.sub(hold, text))
    if not needed:
        return words
    quoted = [re.sub(r'(["\\$`])', r"\\\1", word) if "\0" in word else shlex.quote(word) for word in words]
    line = " ".join(f'"{word}"' if "\0" in word else word for word in quoted)
    return ["sh", "-c", "exec " + re.sub("\0(\\w+)\0", r"${\1}", line)]


def _logs(given: dict[str, str]) -> dict[str, str]:
    """Return the settings with the logs as an app file has them."""
    out, own = given.get("stdout_logfile", "AUTO"), {"AUTO", "/DEV/STDOUT", "/DEV/STDERR", "/DEV/FD/1", "/DEV/FD/2"}
    if given.get("redirect_stderr", "").lower() in _YES:
        given = {key: value for key, value in given.items() if not key.startswith("stderr_logfile")}  # as supervisord
    if given.get("redirect_stderr", "").lower() in _YES and out.upper() not in own:
        given = given | ({"stderr_logfile": out} if "{instance}" in out else {"log": out})
        if "log" in given:
            del given["stdout_logfile"]
    nothing = {key for key, value in given.items() if key.endswith("_logfile") and value.upper() in own}
    nothing |= {key for key, value in given.items() if key == "stdout_logfile_maxbytes" and value == "0"}
    return {key: value for key, value in given.items() if key not in nothing}  # its own log, and in the foreground none


def _variables(text: str) -> dict[str, str]:
    found = re.findall(r"""([\w.-]+)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^,]*))""", text)
    return {name: double or single or plain.strip() for name, double, single, plain in found}


def _number(text: str) -> float:
    return float(text) if "." in text else int(text)


def _size(text: str) -> str:
    return text.upper().removesuffix("B")


def _log(text: str) -> str:
    if text == "syslog":
        raise ValueError
    return "/dev/null" if text.upper() == "NONE" else text


def _socket(text: str) -> str:
    return re.sub(r"^tcp://", "", text.replace("unix://", "unix:"))


_TABLE: Final[Table] = {
    "numprocs": ("instances", int),
    "autorestart": (
        "restart",
        lambda text: {"true": "always", "false": "never", "unexpected": "on-failure"}[text.lower()],
    ),
    "exitcodes": ("success_codes", lambda text: [int(code) for code in text.split(",")]),
    "startsecs": ("min_uptime", _number),
    "startretries": ("max_restarts", int),
    "stopsignal": ("stop_signal", str),
    "stopwaitsecs": ("stop_timeout", _number),
    "directory": ("cwd", str),
    "umask": ("umask", str),
    "user": ("user", str),
    "log": ("log", _log),
    "stdout_logfile": ("stdout", _log),
    "stderr_logfile": ("stderr", _log),
    "stdout_logfile_maxbytes": ("log_max_bytes", _size),
    "stdout_logfile_backups": ("log_backups", int),
    "socket": ("listen", _socket),
}
_HINTS: Final = {
    'autostart = "true"': "",
    "stopasgroup": "",
    "killasgroup": "",
    "redirect_stderr": "",
    "numprocs_start": "numbers begin with 0",
    "priority": "say with after what has to be up before it",
    "autostart": "name those that are to be started: daemonkit up NAME",
    "stderr_logfile_maxbytes": "log_max_bytes is for both",
    "stderr_logfile_backups": "log_backups is for both",
    "stdout_syslog": "no syslog",
    "stderr_syslog": "no syslog",
}
