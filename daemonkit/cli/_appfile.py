"""Several apps in one file: a TOML file or a Procfile, checked whole before anything is done.

A file gives for each app its settings, as `daemonkit start` would make them from its options, and the apps that it
comes after. Nothing here looks at what runs.
"""

from __future__ import annotations

import os
import re
from collections import namedtuple

from daemonkit.cli import _kinds
from daemonkit.cli._app import App

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any, Final, NoReturn

    from daemonkit.cli._app import Settings

NAMES: Final = ("daemonkit.toml", "Procfile")
"""The files that are looked for where none is given."""
_OWN: Final = {"command": _kinds.COMMAND, "after": _kinds.NAMES, "env_file": _kinds.PATHS}
"""The keys that are not read as an option of the command line."""
_OF_ONE_APP: Final = frozenset({"command", "after"})
_PORT: Final = 5000  # the first app's $PORT in a Procfile, and how far the next one's is from it: foreman, honcho
_PORT_STEP: Final = 100
_ELSEWHERE: Final = (".json", ".conf", ".ini", ".js", ".cjs", ".yml", ".yaml")


class Wish(namedtuple("Wish", ("settings", "after"))):
    """How an app is to run."""

    __slots__ = ()
    settings: Settings
    after: tuple[str, ...]


class AppFile(namedtuple("AppFile", ("path", "apps"))):
    """A file that has been read and checked."""

    __slots__ = ()
    path: str
    """Absolute, by the name it was given by: a link in it may be switched."""
    apps: dict[str, Wish]


def find(given: str | None) -> str:
    """Return the absolute path of the file that was given, or of the one in this directory; FileNotFoundError."""
    name = given or next((name for name in NAMES if os.path.exists(name)), None)
    if name is None:
        raise LookupError(f"there is no {' and no '.join(NAMES)} here; give one with -f FILE")
    here = os.environ.get("PWD", "")
    if os.path.isabs(here) and os.path.isdir(here) and os.path.samefile(here, "."):
        return os.path.normpath(os.path.join(here, name))
    return os.path.abspath(name)


def read(path: str) -> AppFile:
    """Read a file, with the environment files it names; ValueError, in one line, for all that is wrong with it."""
    file = os.path.basename(path)
    if file.endswith(_ELSEWHERE):
        raise ValueError(f"{path} is neither TOML nor a Procfile; convert it: daemonkit import {file} >daemonkit.toml")
    with open(path, "rb") as stream:
        data = stream.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: it is not UTF-8, from byte {error.start} on") from None
    if "Procfile" in file:
        return AppFile(path, procfile(path, text))
    return AppFile(path, _Toml(path).apps(text))


# --- TOML ------------------------------------------------------------------------------------------------------------


class _Toml:
    """A TOML file that is being read."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._folder = os.path.dirname(path)

    def apps(self, text: str) -> dict[str, Wish]:
        """Return the apps in their order in the file."""
        import tomllib

        try:
            found = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            self._refuse("", "", str(error) or "too deeply nested")
        self._check_keys("", found, ("defaults", "apps"))
        for table in found:
            self._must_be_table(f"[{table}]", found[table])
        defaults, apps = found.get("defaults", {}), found.get("apps", {})
        if not apps:
            self._refuse("", "", "there is no app in it; begin one with [apps.NAME]")
        self._check_keys("[defaults]", defaults, [*_kinds.BY_NAME, "env_file"])
        self._settings("[defaults]", defaults)
        return check_order(self._path, {name: self._app(name, app, defaults) for name, app in apps.items()})

    def _app(self, name: str, app: Any, defaults: Mapping[str, Any]) -> Wish:  # noqa: ANN401 - whatever the file has
        place = f"[apps.{name}]"
        try:
            App(name)
        except ValueError as error:
            self._refuse(place, "", str(error))
        self._must_be_table(place, app)
        self._check_keys(place, app, [*_kinds.BY_NAME, *_OWN])
        own = self._settings(place, app)
        if "command" not in own:
            self._refuse(place, "", 'there is no command; give one, as command = "python worker.py"')
        inherited = self._settings("[defaults]", {key: value for key, value in defaults.items() if key not in app})
        settings: Settings = {"cwd": self._folder} | inherited | own
        environment = self._environment(place, app.get("env_file", defaults.get("env_file", ())))
        environment |= self._settings("[defaults]", {"env": defaults.get("env", {})})["env"] | own.get("env", {})
        settings.pop("env", None)
        if environment:
            settings["env"] = environment
        return Wish(settings, tuple(app.get("after", ())))

    def _settings(self, place: str, table: Mapping[str, Any]) -> Settings:
        """Return the settings of a table, its values checked; without `after` and `env_file`."""
        found: Settings = {}
        for key, value in table.items():
            option = _kinds.BY_NAME.get(key)
            kind = _OWN[key] if key in _OWN or option is None else _kinds.kind_of(option)
            if not _kinds.fits(value, kind.schema) or any("\0" in text for text in _texts(value)):
                self._refuse(place, key, f"{kind.what}, not {_shown(value)}")
            if key == "command":
                found[key] = self._command(place, value)
            elif key not in _OWN and option and value is not False:  # a switch that is off is one that was not given
                try:
                    found[key] = _kinds.read(option, value, self._folder)
                except (ValueError, KeyError):
                    self._refuse(place, key, f"{kind.what}, not {_shown(value)}")
        for name in found.get("env", {}):
            if not name or "=" in name:
                self._refuse(place, "env", f"invalid name of a variable: {name!r}")
        return found

    def _command(self, place: str, value: str | list[str]) -> list[str]:
        if isinstance(value, str):
            import shlex

            try:
                value = shlex.split(value)
            except ValueError as error:
                self._refuse(place, "command", f"{str(error).lower()} in {_shown(value)}")
        if not value or not value[0]:
            self._refuse(place, "command", "it is empty; give the program and its arguments")
        return value

    def _environment(self, place: str, files: str | Sequence[str]) -> dict[str, str]:
        environment: dict[str, str] = {}
        for name in [files] if isinstance(files, str) else files:
            try:
                environment |= variables_of(os.path.join(self._folder, os.path.expanduser(name)))
            except (OSError, ValueError) as error:
                reason = f"{name}: {error.strerror}" if isinstance(error, OSError) else str(error)
                self._refuse(place, "env_file", reason)
        return environment

    def _must_be_table(self, place: str, value: object) -> None:
        if not isinstance(value, dict):
            self._refuse(place, "", f"a table, not {_shown(value)}")

    def _check_keys(self, place: str, table: Mapping[str, object], keys: Iterable[str]) -> None:
        keys = [*keys]
        for key in table:
            if key in keys:
                continue
            if place == "[defaults]" and key in _OF_ONE_APP:
                self._refuse(place, key, "it belongs to one app: put it under [apps.NAME]")
            self._refuse(place, key, f"unknown key{_suggestion(key, keys, table[key])}")

    def _refuse(self, place: str, key: str, reason: str) -> NoReturn:
        where = " ".join(part for part in (place, key) if part)
        raise ValueError(f"{self._path}: {where}{': ' if where else ''}{reason}")


def _suggestion(key: str, keys: Sequence[str], value: object) -> str:
    import difflib

    if near := difflib.get_close_matches(key.replace("-", "_"), keys, 1, 0.6):
        return f"; did you mean {near[0]}?"
    if "apps" in keys and isinstance(value, dict) and "command" in value:
        return f"; did you mean [apps.{key}]?"
    return ""


def _texts(value: object) -> Iterable[str]:
    if isinstance(value, dict):
        value = [*value, *value.values()]
    return [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]


def _shown(value: object) -> str:
    """Return a value as the file has it, at about that length."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value[:3]))}{', ...' if len(value) > 3 else ''}]"
    if isinstance(value, bool):
        return str(value).lower()
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) < 60 else f"{text[:56]}..."


# --- what both kinds of file have ------------------------------------------------------------------------------------


def check_order(path: str, apps: dict[str, Wish]) -> dict[str, Wish]:
    """Return the apps; ValueError if `after` names an unknown app, or goes round in a circle."""
    import graphlib

    for name, wish in apps.items():
        for other in wish.after:
            if other not in apps:
                raise ValueError(f"{path}: [apps.{name}] after: unknown app {other!r}{_suggestion(other, [*apps], 0)}")
    try:
        graphlib.TopologicalSorter({name: wish.after for name, wish in apps.items()}).prepare()
    except graphlib.CycleError as error:
        first, *others = error.args[1][::-1]
        raise ValueError(
            f"{path}: [apps.{first}] after: a circle: {' after '.join([first, *others])}; leave one of them out"
        ) from None
    return apps


def variables_of(path: str) -> dict[str, str]:
    """Return the variables of an environment file, as python-dotenv reads it; OSError, ValueError with the line."""
    with open(path, encoding="utf-8-sig") as stream:
        text = stream.read()
    try:
        from dotenv import dotenv_values, parser  # the extra "cli"
    except ImportError:
        raise ValueError(f"{path} can't be read without python-dotenv: pip install 'daemonkit[cli]'") from None
    import io

    for binding in parser.parse_stream(io.StringIO(text)):
        if binding.error:
            raise ValueError(f"{path}: line {binding.original.line} is not NAME=VALUE")
    return {name: value for name, value in dotenv_values(stream=io.StringIO(text)).items() if value is not None}


# --- Procfile --------------------------------------------------------------------------------------------------------


def procfile(path: str, text: str) -> dict[str, Wish]:
    """Return the apps of a Procfile, each with the variables of the `.env` beside it, and a $PORT of its own."""
    folder = os.path.dirname(path)
    environment: dict[str, str] = {}
    if os.path.exists(os.path.join(folder, ".env")):
        environment = variables_of(os.path.join(folder, ".env"))
    base = environment.get("PORT") or os.environ.get("PORT") or str(_PORT)
    if not base.isdecimal():
        raise ValueError(f"{path}: PORT: a number, not {base!r}")
    apps: dict[str, Wish] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*):\s*(\S.*)", line.rstrip())
        if not found or "\0" in line:
            raise ValueError(f"{path}: line {number} is not NAME: COMMAND: {_shown(line)}")
        name, command = found.groups()
        if name in apps:
            raise ValueError(f"{path}: line {number}: there is a {name} above already")
        port = int(base) + _PORT_STEP * len(apps)
        settings = {
            "command": ["/bin/sh", "-c", command],
            "cwd": folder,
            "env": {**environment, "PORT": str(port)},
        }
        apps[name] = Wish(settings, ())
    if not apps:
        raise ValueError(f"{path}: there is no NAME: COMMAND in it")
    return apps
