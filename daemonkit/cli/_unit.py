"""Print an app as a systemd unit: `daemonkit unit`."""

from __future__ import annotations

import math
import os
import shlex
import sys

from daemonkit.cli import _app, _appfile, _say
from daemonkit.cli._options import OPTIONS
from daemonkit.cli._plan import in_order

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence
    from typing import Final

    from daemonkit.cli._app import Settings
    from daemonkit.cli._appfile import AppFile

_START: Final = 90.0  # seconds; systemd's own limit
_MARGIN: Final = 5.0  # seconds that the supervisor itself may take, beyond its instances' stop timeout


def unit(options: argparse.Namespace) -> int:
    if bool(options.file) + bool(options.names) + options.all != 1:
        raise _say.Usage("give either NAME or -f FILE; see: daemonkit unit --help")
    if options.file:
        print(unit_of_file(_appfile.read(_appfile.find(options.file)), of_user=options.user), end="")
        return 0
    apps = _app.apps() if options.all else _app.select(options.names)
    units = {app.name: unit_of(app.name, app.settings(), of_user=options.user) for app in apps}
    if len(units) == 1:
        print(*units.values(), end="")
    else:
        print("\n".join(f"# {name}.service\n{text}" for name, text in units.items()), end="")
    return 0


def unit_of(name: str, settings: Settings, *, of_user: bool = False) -> str:
    """Return a systemd unit that runs the same app, for the system's manager or the user's: systemd.service(5)."""
    arguments = [sys.executable, "-m", "daemonkit", "run", name]
    for option in OPTIONS:
        if option.name not in settings or option.name in {"cwd", "env"}:
            continue
        value = settings[option.name]
        if option.parse is None:
            arguments.append(option.flag)
        else:
            values = value if option.several else [value]
            arguments += [f"{option.flag}={_written(option.name, one)}" for one in values]
    arguments += ["--", *settings["command"]]
    kept = settings.get("environment", os.environ)
    return _text(
        f"{name}, kept running by daemonkit",
        f"This is the app itself. If it runs now, stop it before the unit is started: daemonkit stop {name}",
        arguments,
        settings.get("cwd", "/"),
        {"PATH": kept.get("PATH", os.defpath)} | settings.get("env", {}),
        settings.get("start_timeout", 0.0),
        settings.get("stop_timeout", 10.0),
        of_user=of_user,
    )


def unit_of_file(file: AppFile, *, of_user: bool = False) -> str:
    """Return a systemd unit that runs all apps of a file."""
    return _text(
        f"the apps of {file.path}, kept running by daemonkit",
        f"These are the apps themselves. Before the unit is started: daemonkit down -f {file.path}",
        [sys.executable, "-m", "daemonkit", "run", "-f", file.path],
        os.path.dirname(file.path),
        {"PATH": os.environ.get("PATH", os.defpath)},
        *(_longest(file, option, default) for option, default in (("start_timeout", 30.0), ("stop_timeout", 10.0))),
        of_user=of_user,
    )


def _longest(file: AppFile, option: str, default: float) -> float:
    """Return how long all apps take at most, one after the other where one comes after another."""
    until: dict[str, float] = {}
    for name in in_order({name: wish.after for name, wish in file.apps.items()}):
        wish = file.apps[name]
        own = wish.settings.get(option, default) + _MARGIN
        until[name] = own + max((until[other] for other in wish.after), default=0.0)
    return max(until.values()) - _MARGIN


def _text(  # noqa: PLR0913, PLR0917 - what a unit is made of
    description: str,
    remark: str,
    arguments: Sequence[str],
    cwd: str,
    variables: Mapping[str, str],
    start_timeout: float,
    stop_timeout: float,
    *,
    of_user: bool,
) -> str:
    # Under systemd's own PATH the program may not be found; elsewhere than at home it would not be this app.
    variables = {"PATH": variables["PATH"], "DAEMONKIT_HOME": _app.home()} | {**variables}
    environment = "".join(f"Environment={_quoted(f'{key}={value}')}\n" for key, value in variables.items())
    user = f"User={os.geteuid()}\n" if os.geteuid() and not of_user else ""  # otherwise root would run it
    after, target = ("", "default.target") if of_user else ("After=network.target\n", "multi-user.target")
    command = " ".join(_quoted(word.replace("$", "$$")) for word in arguments)  # systemd expands $
    start_timeout, stop_timeout = max(_START, start_timeout + _MARGIN), stop_timeout + _MARGIN
    return (
        f"[Unit]\nDescription={description.replace('%', '%%')}\n{after}\n"
        f"[Service]\n# {remark}\n"
        f"Type=notify\nExecStart={command}\nExecReload=kill -HUP $MAINPID\n"
        f"WorkingDirectory={cwd.replace('%', '%%')}\n{user}{environment}"
        f"KillMode=mixed\nTimeoutStartSec={_seconds(start_timeout)}\nTimeoutStopSec={_seconds(stop_timeout)}\nRestart=on-failure\n\n"
        f"[Install]\nWantedBy={target}\n"
    )


def _written(key: str, value: object) -> str:
    if isinstance(value, list) and key in {"ready_check", "health_check"}:
        return shlex.join(value)
    if isinstance(value, list):
        return ",".join(map(str, value))
    return f"{value:o}" if key == "umask" else str(value)


def _seconds(value: float) -> str:
    return "infinity" if value == math.inf else f"{value:.0f}"


def _quoted(text: str) -> str:
    """Quote a word as systemd.syntax(7) describes; "%" is doubled: systemd.unit(5)."""
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("\n", "\\n")
    return text if text and not set(text) & set(" \t'\";\\") else f'"{text}"'
