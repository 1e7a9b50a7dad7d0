"""An app file that is TOML: `[defaults]`, and `[apps.NAME]` for each app."""

from __future__ import annotations

import os

from daemonkit.cli import _kinds
from daemonkit.cli._app import App
from daemonkit.cli._appfile import Wish, check_order, shown, suggestion, variables_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any, Final, NoReturn

    from daemonkit.cli._app import Settings

_OWN: Final = {"command": _kinds.COMMAND, "after": _kinds.NAMES, "env_file": _kinds.PATHS}
"""The keys that are not read as an option of the command line."""
_OF_ONE_APP: Final = frozenset({"command", "after"})


class Toml:
    """A TOML file that is being read."""

    def __init__(self, path: str, texts: dict[str, str]) -> None:
        """Begin; `texts` takes those of the environment files."""
        self._path = path
        self._texts = texts
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
            if not _kinds.fits(value, kind.schema) or any("\0" in text for text in _kinds.texts_in(value)):
                self._refuse(place, key, f"must be {kind.what}, not {shown(value)}")
            if key == "command":
                found[key] = self._command(place, value)
            elif key not in _OWN and option and value is not False:  # a switch that is off is one that was not given
                try:
                    found[key] = _kinds.read(option, value, self._folder)
                except (ValueError, KeyError):
                    self._refuse(place, key, f"must be {kind.what}, not {shown(value)}")
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
                self._refuse(place, "command", f"{str(error).lower()} in {shown(value)}")
        if not value or not value[0]:
            self._refuse(place, "command", "it is empty; give the program and its arguments")
        return value

    def _environment(self, place: str, files: str | Sequence[str]) -> dict[str, str]:
        environment: dict[str, str] = {}
        for name in [files] if isinstance(files, str) else files:
            try:
                environment |= variables_of(os.path.join(self._folder, os.path.expanduser(name)), self._texts)
            except (OSError, ValueError) as error:
                reason = f"{name}: {error.strerror}" if isinstance(error, OSError) else str(error)
                self._refuse(place, "env_file", reason)
        return environment

    def _must_be_table(self, place: str, value: object) -> None:
        if not isinstance(value, dict):
            self._refuse(place, "", f"must be a table, not {shown(value)}")

    def _check_keys(self, place: str, table: Mapping[str, object], keys: Iterable[str]) -> None:
        keys = [*keys]
        for key in table:
            if key in keys:
                continue
            if place == "[defaults]" and key in _OF_ONE_APP:
                self._refuse(place, key, "it belongs to one app: put it under [apps.NAME]")
            self._refuse(place, key, f"unknown key{suggestion(key, keys, table[key])}")

    def _refuse(self, place: str, key: str, reason: str) -> NoReturn:
        where = " ".join(part for part in (place, key) if part)
        separator = "" if not where else " " if reason.startswith("must ") else ": "
        raise ValueError(f"{self._path}: {where}{separator}{reason}")
