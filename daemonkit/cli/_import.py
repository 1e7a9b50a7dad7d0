"""An app file from another tool's: `daemonkit import FILE`.

What can't be taken over stands in the result as a comment: nothing is dropped in silence.
"""

from __future__ import annotations

import json
import os
import re

from daemonkit.cli import _appfile, _kinds

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    Table = Mapping[str, tuple[str, Callable[[Any], object]]]
    """For a key of the other tool: the key of an app file, and what makes its value; ValueError if it can't."""


def import_(options: argparse.Namespace) -> int:
    print(converted(options.file), end="")
    return 0


def converted(path: str) -> str:
    """Return the text of an app file; ValueError, OSError."""
    file = os.path.basename(path)
    if file.endswith((".js", ".cjs", ".mjs", ".ts")):
        way = f"node -p 'JSON.stringify(require(\"./{file}\"))' >ecosystem.json"
        raise ValueError(f"{path} is a program; have it write down what it exports: {way}; then import that")
    with open(path, encoding="utf-8-sig") as stream:
        text = stream.read()
    lost: list[str] = []
    if "Procfile" in file:
        apps = _from_procfile(path, text)
    elif file.endswith(".json"):
        from daemonkit.cli._import_pm2 import from_pm2

        apps, lost = from_pm2(path, text)
    elif file.endswith((".conf", ".ini")):
        from daemonkit.cli._import_supervisord import from_supervisord

        apps, lost = from_supervisord(path, text)
    else:
        raise ValueError(f"{path}: its name must be that of an ecosystem.json, a supervisord.conf or a Procfile")
    _give_names_of_their_own(apps)
    return _written(file, apps, lost)


def _give_names_of_their_own(apps: Iterable[Imported]) -> None:
    """Put a number behind a name that another app has already: PM2 allows that."""
    taken: set[str] = set()
    for app in apps:
        name, number = app.name, 2
        while app.name in taken:
            app.name, number = f"{name}-{number}", number + 1
        if app.name != name:
            app.lost.append(f"its name was {name!r}, which another one has too")
        taken.add(app.name)


class Imported:
    """An app of the result."""

    def __init__(self, name: str) -> None:
        """Change what no name of an app may have."""
        self.name = re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip("._-") or "app"
        self.keys: dict[str, Any] = {}
        self.lost: list[str] = []
        """What could not be taken over, and what to do instead."""
        if self.name != name:
            self.lost.append(f"its name was {name!r}")

    def take(self, key: str, value: object) -> bool:
        """Take over a setting, if an app file knows it and it may have that value; tell whether it did."""
        option = _kinds.BY_NAME.get(key)
        try:
            if key != "env_file":
                if option is None or not _kinds.fits(value, _kinds.kind_of(option).schema):
                    return False
                _kinds.read(option, value, "/")
        except (ValueError, KeyError):
            return False
        self.keys[key] = value
        return True

    def take_all(self, given: Mapping[str, Any], table: Table, hints: Mapping[str, str]) -> None:
        """Take over what the table knows, and leave a comment for the rest; an empty hint: nothing is lost.

        Nor is by a switch that is in its usual position, for which the hint "KEY = VALUE" is empty.
        """
        for key, value in given.items():
            if not hints.get(f"{key} = {toml(value)}", "lost"):
                continue
            if key in table:
                name, convert = table[key]
                try:
                    taken = self.take(name, convert(value))
                except (ValueError, KeyError, TypeError):
                    taken = False
                if not taken:
                    self.lost.append(f"{key} = {toml(value)}: {name} can't be that")
            elif hint := hints.get(key, "no counterpart"):
                self.lost.append(f"{key} = {toml(value)}: {hint}")


def _from_procfile(path: str, text: str) -> list[Imported]:
    path = os.path.abspath(path)
    apps = []
    for name, wish in _appfile.procfile(path, text, {}).items():
        app = Imported(name)
        app.keys["command"] = ["sh", *wish.settings["command"][1:]]
        if os.path.exists(os.path.join(os.path.dirname(path), ".env")):
            app.keys["env_file"] = ".env"
        app.keys["env"] = {"PORT": int(wish.settings["env"]["PORT"])}
        apps.append(app)
    return apps


# --- TOML ------------------------------------------------------------------------------------------------------------


def _written(source: str, apps: Iterable[Imported], lost: Iterable[str]) -> str:
    parts = [f"# From {source}, by daemonkit import. A comment says what could not be taken over.\n"]
    parts += [f"# {' '.join(text.split())}\n" for text in lost]
    for app in apps:
        parts.append(f"\n[apps.{_key(app.name)}]\n")
        parts += [f"{key} = {toml(value)}\n" for key, value in app.keys.items()]
        parts += [f"# {' '.join(text.split())}\n" for text in app.lost]
    return "".join(parts)


def _key(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z0-9_-]+", text) else toml(text)


def toml(value: object) -> str:
    """Return a value as TOML has it; None, which it has not, as null."""
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{_key(key)} = {toml(one)}' for key, one in value.items())} }}" if value else "{}"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return "null" if value is None else str(value).lower()
