"""One app as an engine is to run it: `daemonkit run NAME -i 1` in each replica, and what has to be said about it."""

from __future__ import annotations

import math
import os
import re
import textwrap
from collections import namedtuple

from daemonkit.cli import _app
from daemonkit.cli._import import toml
from daemonkit.cli._kinds import texts_in
from daemonkit.cli._manifest.mapping import cell, fields
from daemonkit.cli._options import words_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping
    from typing import Any, Final

    from daemonkit.cli._app import Settings

HOME: Final = "/tmp/daemonkit"  # noqa: S108 - in the replica; the command refuses a directory that is not its user's
AGAIN: Final = 'a program that ends with 0 is started again too; for one that has an end say restart = "never"'
_FOR_EVER: Final = 365 * 86400  # seconds; engines know no infinity
_OWN_MEMORY: Final = 64 << 20  # bytes that the supervisor itself may take
_ALL_V4: Final = "0.0.0.0"  # noqa: S104 - in the replica, which is reached as the engine allows
_ALL_V6: Final = "[::]"
_ANY: Final = {"", "*", _ALL_V4, _ALL_V6}
_LOOPBACK: Final = "127.0.0.1"
LAST_PORT: Final = 65535


class Wanted(namedtuple("Wanted", ("name", "settings", "after", "env_files"), defaults=((), {}))):
    """An app that a manifest is to be made for."""

    __slots__ = ()
    name: str
    settings: Settings
    after: tuple[str, ...]
    env_files: dict[str, dict[str, str]]
    """Variables by the files that they came from, relative to the app file: those that any engine reads alike."""


class Port(namedtuple("Port", ("host", "number"))):
    """A port to be published."""

    __slots__ = ()
    host: str
    """The one address it is to be reached at; '' for all."""
    number: int


class Replica:
    """One app on one engine."""

    def __init__(self, engine: str, wanted: Wanted) -> None:
        """Take the app; ValueError for what no manifest can hold."""
        self.engine, self.name, self.settings = engine, wanted.name, wanted.settings
        self.after, self.env_files = wanted.after, wanted.env_files
        self.remarks: list[str] = []
        """What the user has to know or to do."""
        self.env: dict[str, str] = self.settings.get("env", {})
        _check_text(self.name, {key: value for key, value in self.settings.items() if key != "environment"})
        if os.path.isabs(self.settings["command"][0]) and engine != "slurm":
            self.remark("command", "the program must be there in the image", self.settings["command"][0])
        given = {**self.settings, "after": [*self.after], "env_file": [*self.env_files]}
        for option in fields():
            if given.get(option) and (remark := cell(option, engine).remark):
                self.remark(option, remark, given[option])
        if self.settings.get("instances") == "auto" and engine != "slurm":  # which counts them where it runs
            self.remark("instances", f"this machine has {self.count} usable CPUs; change it to what the others have")

    def remark(self, option: str, text: str, value: object = None) -> None:
        """Add what has to be said about an option's value."""
        value = self.settings.get(option) if value is None else value
        shown = f" ({', '.join(value)})" if option == "env" and isinstance(value, dict) else f" = {toml(value)}"
        self.remarks.append(f"{option}{shown}: {text}")

    @property
    def count(self) -> int:
        """How many replicas."""
        return _app.count_of(self.settings)

    @property
    def restart(self) -> str:
        return str(self.settings.get("restart", "on-failure"))

    @property
    def grace(self) -> int:
        """Whole seconds within which it has ended after the request to."""
        return _whole(self.settings.get("stop_timeout", 10.0) + _app.MARGIN)

    @property
    def start_timeout(self) -> int:
        return _whole(self.settings.get("start_timeout", 30.0) + _app.MARGIN)

    @property
    def memory(self) -> int:
        """MiB that the engine has to allow; 0: no limit.

        A run that is above `max_memory` is replaced gracefully: for a while there are two.
        """
        most = self.settings.get("max_memory", "max")
        return 0 if most == "max" else math.ceil((2 * most + _OWN_MEMORY) / (1 << 20))

    @property
    def uses_number(self) -> bool:
        """Whether the instance's number matters."""
        return any(sign in text for text in texts_in(self._own()) for sign in ("{instance}", "DAEMONKIT_INSTANCE"))

    def _own(self) -> Settings:
        return {key: value for key, value in self.settings.items() if key != "environment"}

    def run(self, *, number: str = "1", **others: object) -> list[str]:
        """Return the words of `daemonkit run`; `others` are settings that are given there, whatever the table says."""
        kept = {key: value for key, value in self._own().items() if cell(key, self.engine).inside} | others
        return ["run", self.name, "-i", number, *words_of(kept), "--", *self.settings["command"]]

    def variables(self, allowed: str) -> tuple[dict[str, str], list[str]]:
        """Return the variables whose names the engine allows, and the others as `daemonkit run --env` takes them."""
        others = [f"{name}={value}" for name, value in self.env.items() if not re.fullmatch(allowed, name)]
        if others:
            self.remark("env", "names that are not allowed there are given to daemonkit run", dict.fromkeys(others))
        return {name: value for name, value in self.env.items() if f"{name}={value}" not in others}, others

    def comes_after(self, names: Container[str]) -> list[str]:
        """Return the apps that it comes after, as far as they are in the manifest."""
        if missing := [other for other in self.after if other not in names]:
            self.remark("after", f"{', '.join(missing)} is not in here: print one manifest for all", [*self.after])
        return [other for other in self.after if other in names]

    def owner(self) -> tuple[int | str | None, int | str | None]:
        """Return user and group; a group alone is that of the user that it runs as here."""
        user, group = self.settings.get("user"), self.settings.get("group")
        return (os.geteuid() if user is None and group is not None else user), group

    def owner_as_text(self) -> str:
        return ":".join(str(one) for one in self.owner() if one is not None)

    def ports(self, *, on_host: bool = False) -> tuple[list[Port], list[str]]:
        """Return the ports to be published, and the addresses to listen at in the replica; ValueError.

        `on_host`: the replica has the addresses of its host, not one of its own.
        """
        ports, addresses = [], []
        for address in self.settings.get("listen", ()):
            found = re.fullmatch(r"(.*):([0-9]{1,5})", address)
            inside = address
            if address.startswith("unix:"):
                self.remark("listen", "it is reached inside the replica alone; share it by a volume", address)
            elif not found or int(found[2]) > LAST_PORT:
                raise ValueError(f"{self.name}: listen: HOST:PORT or unix:PATH, not {address!r}")
            elif not int(found[2]):
                self.remark("listen", "a port that nobody knows can't be published; give a number", address)
            else:
                host = found[1]
                if host not in _ANY and not on_host:
                    inside = f"{_ALL_V6 if host[0] == '[' else _ALL_V4}:{found[2]}"
                    self.remark("listen", f"in the replica {inside}, as it has an address of its own", address)
                ports.append(Port(_LOOPBACK if host == "localhost" else _published(host), int(found[2])))
            addresses.append(inside)
        return ports, [*dict.fromkeys(addresses)]


def _published(host: str) -> str:
    return host if host not in _ANY and re.fullmatch(r"[0-9.]+|\[.*\]", host) else ""


def without_empty(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if value not in ("", [], {})}


def escaped(text: str) -> str:
    """Return a text that Compose and Kubernetes do not put variables into."""
    return text.replace("$", "$$")


def _whole(seconds: float) -> int:
    """Return seconds as engines take them."""
    return math.ceil(min(seconds, _FOR_EVER))


def dns_label(name: str, longest: int = 52, taken: Iterable[str] = ()) -> str:
    """Return a name as DNS allows it (RFC 1123, beginning with a letter), that is not taken."""
    label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    label = (label if label[:1].isalpha() else f"app-{label}")[:longest].rstrip("-")
    return untaken(label, longest, taken)


def untaken(name: str, longest: int, taken: Iterable[str]) -> str:
    """Return the name, or one that is like it and not taken."""
    others, found, number = {*taken}, name, 2
    while found in others:
        found, number = f"{name[: longest - 4]}-{number}", number + 1
    return found


def comments(remarks: Iterable[str]) -> str:
    """Return each as a comment of as many lines as it takes, one that is indented, a command, in a single line."""
    text = ""
    for remark in remarks:
        printable = "".join(sign if sign.isprintable() else " " for sign in remark)  # some readers end a line at others
        width = len(printable) + 1 if printable.startswith(" ") else 118
        lines = textwrap.wrap(printable, width, break_long_words=False, break_on_hyphens=False)
        text += "".join(f"# {line}\n" for line in lines)
    return text


def _check_text(name: str, settings: Mapping[str, Any]) -> None:
    for option, value in settings.items():
        try:
            for text in texts_in(value):
                text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{name}: {option}: it is not UTF-8, which a manifest has to be") from None
