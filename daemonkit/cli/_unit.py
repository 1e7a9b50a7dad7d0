"""Print an app as a systemd unit: `daemonkit unit`."""

from __future__ import annotations

import math
import os
import re
import sys

from daemonkit.cli import _app, _appfile, _say
from daemonkit.cli._options import words_of
from daemonkit.cli._plan import in_order, order_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence
    from typing import Final

    from daemonkit.cli._app import Settings
    from daemonkit.cli._appfile import AppFile
    from daemonkit.cli._manifest.replica import Wanted

_START: Final = 90.0  # seconds; systemd's own limit
_PLAIN: Final = re.compile(r"((\w+=[\w./:@%+,=-]*|#.*|)(\n|$))*")
"""An environment file that every reader takes alike: it has no quotes, $, spaces."""


def unit(options: argparse.Namespace) -> int:
    if bool(options.file) + bool(options.names) + options.all != 1:
        raise _say.Usage("give either NAME or -f FILE; see: daemonkit unit --help")
    _check_target(options)
    if options.target != "systemd":
        print(_manifest_of(options), end="")
        return 0
    if options.file:
        print(unit_of_file(_appfile.read(_appfile.find(options.file)), of_user=options.user), end="")
        return 0
    units = {app.name: unit_of(app.name, app.settings(), of_user=options.user) for app in _selected(options)}
    if len(units) == 1:
        print(*units.values(), end="")
    else:
        print("\n".join(f"# {name}.service\n{text}" for name, text in units.items()), end="")
    return 0


def _selected(options: argparse.Namespace) -> list[_app.App]:
    return _app.apps() if options.all else _app.select(options.names)


def _check_target(options: argparse.Namespace) -> None:
    target, image = options.target, options.image
    if options.user and target != "systemd":
        raise _say.Usage(f"--user is for systemd alone, not for {target}")
    if image is None and target in {"compose", "kubernetes"}:
        raise _say.Usage(f"{target} runs images: give --image IMAGE, one that has daemonkit and the program in it")
    if image is not None and target == "systemd":
        raise _say.Usage("systemd runs the program as it is here: leave --image out")
    if image is not None and not re.fullmatch(r"[!-~]+", image):
        raise _say.Usage(f"invalid IMAGE: {image!r}")


def _manifest_of(options: argparse.Namespace) -> str:
    """Return what runs the same apps on that engine; OSError, LookupError, ValueError."""
    from importlib import import_module

    apps = _wanted(options)
    if not apps:
        raise LookupError("there is no app; `daemonkit ls` lists all")
    text: str = import_module(f"daemonkit.cli._manifest.{options.target}").manifest(apps, options.image)
    return text


def _wanted(options: argparse.Namespace) -> list[Wanted]:
    from daemonkit.cli._manifest.replica import Wanted

    if not options.file:
        settings_of = {app.name: app.settings() for app in _selected(options)}
        order = in_order({name: set(one.get("after", ())) & settings_of.keys() for name, one in settings_of.items()})
        return [Wanted(name, settings_of[name], tuple(settings_of[name].get("after", ()))) for name in order]
    file = _appfile.read(_appfile.find(options.file))
    folder = os.path.dirname(file.path)
    others = {path: text for path, text in (file.texts or {}).items() if path != file.path and _PLAIN.fullmatch(text)}
    read = {os.path.relpath(path, folder): _appfile.variables_of(path) for path in others}
    apps = []
    for name in order_of(file):
        settings, after = file.apps[name]
        env = settings.get("env", {}).items()
        files = {path: variables for path, variables in read.items() if variables.items() <= env}
        apps.append(Wanted(name, settings, after, files))
    return apps


def unit_of(name: str, settings: Settings, *, of_user: bool = False) -> str:
    """Return a systemd unit that runs the same app, for the system's manager or the user's: systemd.service(5)."""
    arguments = [sys.executable, "-m", "daemonkit", "run", name]
    arguments += words_of({key: value for key, value in settings.items() if key not in {"cwd", "env"}})
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
        others=[f"{other}.service" for other in settings.get("after", ())],
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
    for name in order_of(file):
        wish = file.apps[name]
        own = wish.settings.get(option, default) + _app.MARGIN
        until[name] = own + max((until[other] for other in wish.after), default=0.0)
    return max(until.values()) - _app.MARGIN


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
    others: Sequence[str] = (),
) -> str:
    # Under systemd's own PATH the program may not be found; elsewhere than at home it would not be this app.
    variables = {"PATH": variables["PATH"], "DAEMONKIT_HOME": _app.home()} | {**variables}
    environment = "".join(f"Environment={_quoted(f'{key}={value}')}\n" for key, value in variables.items())
    user = f"User={os.geteuid()}\n" if os.geteuid() and not of_user else ""  # otherwise root would run it
    after = " ".join([*([] if of_user else ["network.target"]), *others])
    order = (f"After={after}\n" if after else "") + (f"Wants={' '.join(others)}\n" if others else "")
    target = "default.target" if of_user else "multi-user.target"
    command = " ".join(_quoted(word.replace("$", "$$")) for word in arguments)  # systemd expands $
    start_timeout, stop_timeout = max(_START, start_timeout + _app.MARGIN), stop_timeout + _app.MARGIN
    return (
        f"[Unit]\nDescription={description.replace('%', '%%')}\n{order}\n"
        f"[Service]\n# {remark}\n"
        f"Type=notify\nExecStart={command}\nExecReload=kill -HUP $MAINPID\n"
        f"WorkingDirectory={cwd.replace('%', '%%')}\n{user}{environment}"
        f"KillMode=mixed\nTimeoutStartSec={_seconds(start_timeout)}\nTimeoutStopSec={_seconds(stop_timeout)}\nRestart=on-failure\n\n"
        f"[Install]\nWantedBy={target}\n"
    )


def _seconds(value: float) -> str:
    return "infinity" if value == math.inf else f"{value:.0f}"


def _quoted(text: str) -> str:
    """Quote a word as systemd.syntax(7) describes; "%" is doubled: systemd.unit(5)."""
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("\n", "\\n")
    return text if text and not set(text) & set(" \t'\";\\") else f'"{text}"'
