"""Print an app as a systemd unit: `daemonkit unit`."""

from __future__ import annotations

import math
import os
import sys

from daemonkit.cli import _app
from daemonkit.cli._app import App
from daemonkit.cli._options import OPTIONS

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Final

    from daemonkit.cli._app import Settings

_START: Final = 90.0  # seconds; systemd's own limit
_MARGIN: Final = 5.0  # seconds that the supervisor itself may take, beyond its instances' stop timeout


def unit(options: argparse.Namespace) -> int:
    app = App(options.name)
    print(unit_of(app.name, app.settings()), end="")
    return 0


def unit_of(name: str, settings: Settings) -> str:
    """Return a systemd unit that runs the same app: systemd.service(5)."""
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
    # Under systemd's own PATH the program may not be found; elsewhere than at home it would not be this app.
    variables = {"PATH": kept.get("PATH", os.defpath), "DAEMONKIT_HOME": _app.home()} | settings.get("env", {})
    environment = "".join(f"Environment={_quoted(f'{key}={value}')}\n" for key, value in variables.items())
    user = f"User={os.geteuid()}\n" if os.geteuid() else ""  # otherwise root would run it
    command = " ".join(_quoted(word.replace("$", "$$")) for word in arguments)  # systemd expands $
    start_timeout = max(_START, settings.get("start_timeout", 0.0) + _MARGIN)
    stop_timeout = settings.get("stop_timeout", 10.0) + _MARGIN
    return (
        f"[Unit]\nDescription={name}, kept running by daemonkit\nAfter=network.target\n\n"
        "[Service]\n"
        f"# This is the app itself. If it runs now, stop it before the unit is started: daemonkit stop {name}\n"
        f"Type=notify\nExecStart={command}\nExecReload=kill -HUP $MAINPID\n"
        f"WorkingDirectory={settings.get('cwd', '/').replace('%', '%%')}\n{user}{environment}"
        f"KillMode=mixed\nTimeoutStartSec={_seconds(start_timeout)}\nTimeoutStopSec={_seconds(stop_timeout)}\nRestart=on-failure\n\n"
        "[Install]\nWantedBy=multi-user.target\n"
    )


def _written(key: str, value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return f"{value:o}" if key == "umask" else str(value)


def _seconds(value: float) -> str:
    return "infinity" if value == math.inf else f"{value:.0f}"


def _quoted(text: str) -> str:
    """Quote a word as systemd.syntax(7) describes; "%" is doubled: systemd.unit(5)."""
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("\n", "\\n")
    return text if text and not set(text) & set(" \t'\";\\") else f'"{text}"'
