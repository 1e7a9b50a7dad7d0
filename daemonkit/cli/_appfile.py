"""Several apps in one file: a TOML file or a Procfile, checked whole before anything is done.

A file gives for each app its settings, as `daemonkit start` would make them from its options, and the apps that it
comes after. Nothing here looks at what runs.
"""

from __future__ import annotations

import os
import sys
from collections import namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

    from daemonkit.cli._app import Settings

NAMES: Final = ("daemonkit.toml", "Procfile")
"""The files that are looked for where none is given."""
_PORT: Final = 5000  # the first app's $PORT in a Procfile, and how far the next one's is from it: foreman, honcho
_PORT_STEP: Final = 100
_ELSEWHERE: Final = (".json", ".conf", ".ini", ".js", ".cjs", ".yml", ".yaml")


class Wish(namedtuple("Wish", ("settings", "after"))):
    """How an app is to run."""

    __slots__ = ()
    settings: Settings
    after: tuple[str, ...]


class AppFile(namedtuple("AppFile", ("path", "apps", "texts"), defaults=(None,))):
    """A file that has been read and checked."""

    __slots__ = ()
    path: str
    """Absolute, by the name it was given by: a link in it may be switched."""
    apps: dict[str, Wish]
    texts: dict[str, str] | None
    """The texts of all files that were read for it, by their paths; None if it was not read."""


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
    name = os.path.basename(path)
    if name.endswith(_ELSEWHERE):
        raise ValueError(f"{path} is neither TOML nor a Procfile; convert it: daemonkit import {name} >daemonkit.toml")
    texts: dict[str, str] = {}
    text = text_of(path, texts)
    if "Procfile" in name:
        return AppFile(path, procfile(path, text, texts), texts)
    from daemonkit.cli._toml import Toml

    return AppFile(path, Toml(path, texts).apps(text), texts)


def recall(path: str) -> AppFile:
    """Read a file, or recall what it said, if nothing that it said depends on has changed since `remember`."""
    from daemonkit.cli import _remembered

    if said := _remembered.recall(path):
        return AppFile(path, {name: Wish(settings, tuple(after)) for name, (settings, after) in said.items()}, None)
    return read(path)


def remember(file: AppFile) -> None:
    """Keep what a file said, for `recall`."""
    if file.texts is not None:
        from daemonkit.cli import _remembered

        _remembered.remember(file.path, file.texts, file.apps)


def text_of(path: str, texts: dict[str, str]) -> str:
    """Return the text of a file, and put it, exactly as it is, among the texts that were read."""
    with open(path, encoding="utf-8", newline="") as stream:
        try:
            texts[path] = stream.read()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8, from byte {error.start} on") from None
    return texts[path].removeprefix("\ufeff").replace("\r\n", "\n")


# --- what both kinds of file have ------------------------------------------------------------------------------------


def check_order(path: str, apps: dict[str, Wish]) -> dict[str, Wish]:
    """Return the apps; ValueError if `after` names an unknown app, or goes round in a circle."""
    import graphlib

    for name, wish in apps.items():
        for other in wish.after:
            if other not in apps:
                raise ValueError(f"{path}: [apps.{name}] after: unknown app {other!r}{suggestion(other, [*apps])}")
    try:
        graphlib.TopologicalSorter({name: wish.after for name, wish in apps.items()}).prepare()
    except graphlib.CycleError as error:
        first, *others = error.args[1][::-1]
        raise ValueError(
            f"{path}: [apps.{first}] after: a circle: {' after '.join([first, *others])}; leave one of them out"
        ) from None
    return apps


def variables_of(path: str, texts: dict[str, str] | None = None) -> dict[str, str]:
    """Return the variables of an environment file, as python-dotenv reads it; OSError, ValueError with the line."""
    text = text_of(path, {} if texts is None else texts)
    try:
        from dotenv import dotenv_values, parser  # the extra "cli"
    except ImportError:
        raise ValueError(f"{path} can't be read without python-dotenv; {way_to_have('python-dotenv')}") from None
    import io

    for binding in parser.parse_stream(io.StringIO(text)):
        if binding.error:
            raise ValueError(f"{path}: line {binding.original.line} is not NAME=VALUE")
    return {name: value for name, value in dotenv_values(stream=io.StringIO(text)).items() if value is not None}


def way_to_have(package: str) -> str:
    """Return how to install a package of the extra "cli" beside this daemonkit, which need not come from an index."""
    return f"install it: {sys.executable or 'python'} -m pip install {package}"


def suggestion(key: str, keys: Sequence[str], value: object = None) -> str:
    """Return the end of a message about an unknown key: which one may be meant."""
    import difflib

    if near := difflib.get_close_matches(key.replace("-", "_"), keys, 1, 0.6):
        return f"; did you mean {near[0]}?"
    if "apps" in keys and isinstance(value, dict) and "command" in value:
        return f"; did you mean [apps.{key}]?"
    return ""


def shown(value: object) -> str:
    """Return a value as the file has it, at about that length."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value[:3]))}{', ...' if len(value) > 3 else ''}]"
    if isinstance(value, bool):
        return str(value).lower()
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) < 60 else f"{text[:56]}..."


# --- Procfile --------------------------------------------------------------------------------------------------------


def procfile(path: str, text: str, texts: dict[str, str]) -> dict[str, Wish]:
    """Return the apps of a Procfile, each with the variables of the `.env` beside it, and a $PORT of its own."""
    import re

    folder = os.path.dirname(path)
    environment: dict[str, str] = {}
    if os.path.exists(os.path.join(folder, ".env")):
        environment = variables_of(os.path.join(folder, ".env"), texts)
    base = environment.get("PORT") or os.environ.get("PORT") or str(_PORT)
    if not base.isdecimal():
        raise ValueError(f"{path}: PORT must be a number, not {base!r}")
    apps: dict[str, Wish] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*):\s*(\S.*)", line.rstrip())
        if not found or "\0" in line:
            raise ValueError(f"{path}: line {number} is not NAME: COMMAND: {shown(line)}")
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
