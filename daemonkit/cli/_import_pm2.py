"""Apps from PM2's ecosystem.json: https://pm2.keymetrics.io/docs/usage/application-declaration/."""

from __future__ import annotations

import json
import os
import re
import shlex

from daemonkit.cli._import import Imported, toml

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Final

    from daemonkit.cli._import import Table

_INTERPRETERS: Final = {
    ".js": "node",
    ".cjs": "node",
    ".mjs": "node",
    ".py": "python3",
    ".sh": "bash",
    ".rb": "ruby",
    ".pl": "perl",
    ".php": "php",
}  # PM2's own, by the script's end
_UNITS: Final = {"": 0.001, "s": 1, "m": 60, "h": 3600}


def from_pm2(path: str, text: str) -> tuple[list[Imported], list[str]]:
    """Return its apps, and what else could not be taken over; ValueError."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        read = f'JSON.stringify(eval("(" + fs.readFileSync("{os.path.basename(path)}") + ")"))'
        way = f"if it is JavaScript, which PM2 reads too: node -p '{read}' >ecosystem.json; then import that"
        raise ValueError(f"{path} is not JSON: {error}; {way}") from None
    whole = found if isinstance(found, dict) else {"apps": found}
    listed = whole.get("apps", [whole])
    listed = listed if isinstance(listed, list) else [listed]
    if not listed or not all(isinstance(one, dict) and isinstance(one.get("script"), str) for one in listed):
        raise ValueError(f"{path} has no list of apps with a script each, as PM2's ecosystem.json does")
    lost = [f"{key}: no counterpart" for key in whole if "apps" in whole and key != "apps"]
    return [_app(one) for one in listed], lost


def _app(given: Mapping[str, Any]) -> Imported:
    app = Imported(str(given.get("name") or os.path.splitext(os.path.basename(given["script"]))[0]))
    app.keys["command"] = _command(given)
    app.keys["restart"] = "always"
    rest = {key: value for key, value in given.items() if key not in _IN_COMMAND and value is not None}
    hints = {key: "for another stage: another file, or an env_file" for key in given if key.startswith("env_")}
    app.take_all(rest, _TABLE, _HINTS | hints)
    return app


def _command(given: Mapping[str, Any]) -> list[str]:
    script = given["script"]
    interpreter = given.get("interpreter") or given.get("exec_interpreter")
    if not interpreter:
        interpreter = _INTERPRETERS.get(os.path.splitext(script)[1], "none")
    if interpreter == "none":
        return [*shlex.split(script), *_words(given.get("args"))]
    flags = given.get("interpreter_args") or given.get("node_args")
    return [str(interpreter), *_words(flags), script, *_words(given.get("args"))]


def _words(value: object) -> list[str]:
    if isinstance(value, str):
        return shlex.split(value)
    return [str(word) for word in value] if isinstance(value, list) else []


def _seconds(value: object) -> float:
    """Return seconds: PM2 has milliseconds, or a text as "10s"."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", str(value))
    if not found:
        raise ValueError
    seconds = float(found[1]) * _UNITS[found[2]]
    return int(seconds) if seconds.is_integer() else round(seconds, 3)


def _instances(value: object) -> int | str:
    return "auto" if value in {0, -1, "0", "-1", "max"} else int(str(value))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _size(value: object) -> object:
    return value if isinstance(value, int) else _text(value).removesuffix("B")


def _switch(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _env(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise TypeError
    return {name: one if type(one) in {int, str} else toml(one) for name, one in value.items()}


_IN_COMMAND: Final = frozenset(
    {"name", "script", "args", "interpreter", "exec_interpreter", "interpreter_args", "node_args"}
)
_TABLE: Final[Table] = {
    "cwd": ("cwd", _text),
    "env": ("env", _env),
    "env_file": ("env_file", _text),
    "instances": ("instances", _instances),
    "autorestart": ("restart", lambda value: "always" if value else "never"),
    "max_memory_restart": (
        "max_memory",
        lambda value: value if isinstance(value, int) else _text(value).removesuffix("B"),
    ),
    "min_uptime": ("steady_after", _seconds),
    "max_restarts": ("max_restarts", int),
    "restart_delay": ("backoff", lambda value: [_seconds(value), 1]),
    "exp_backoff_restart_delay": ("backoff", lambda value: [_seconds(value), 1.5, 15]),
    "kill_timeout": ("stop_timeout", _seconds),
    "listen_timeout": ("start_timeout", _seconds),
    "wait_ready": ("wait_ready", _switch),
    "stop_exit_codes": ("success_codes", lambda value: value if isinstance(value, list) else [int(value)]),
    "log_file": ("log", _text),
    "log": ("log", _text),
    "out_file": ("stdout", _text),
    "output": ("stdout", _text),
    "out": ("stdout", _text),
    "error_file": ("stderr", _text),
    "error": ("stderr", _text),
    "err_file": ("stderr", _text),
    "user": ("user", lambda value: value),
    "uid": ("user", lambda value: value),
    "gid": ("group", lambda value: value),
}
_HINTS: Final = {
    "exec_mode": "for cluster mode set listen, and have the program listen on descriptor 3",
    "watch": "no watching; after a change type daemonkit reload",
    "ignore_watch": "no watching",
    "cron_restart": "have cron type daemonkit restart",
    "instance_var": "an instance's number is $DAEMONKIT_INSTANCE",
    'exec_mode = "fork"': "",
    "watch = false": "",
    "autostart = true": "",
    "time = false": "",
    "merge_logs": "",
    "combine_logs": "",
    "log_date_format": "log_format puts the time before each line",
    "time": "log_format puts the time before each line",
    "autostart": "name those that are to be started: daemonkit up NAME",
    "treekill": 'its whole group is stopped, unless kill_mode = "main"',
    "pid_file": "it is in $DAEMONKIT_HOME",
    "source_map_support": "give node --enable-source-maps",
}
