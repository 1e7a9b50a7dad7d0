"""An app of the `daemonkit` command: a supervised program that is known by a name.

It is four files in one private directory, and nothing else: NAME.json (what was asked for), NAME.pid (the supervisor's
pidfile), NAME.log and NAME.state. The supervisor replaces the state at each event. Whether the app runs is what the
pidfile's lock says; the state counts only if it names the very process that holds the lock.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
from typing import TYPE_CHECKING, Any, Final

from daemonkit import _pidfile, _process

if TYPE_CHECKING:
    from collections.abc import Mapping

    from daemonkit._pidfile import Holder

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

_LOOK: Final = 0.1  # seconds between looks at a file that tells no one when it changes
_PATIENCE: Final = 20  # looks

Settings = dict[str, Any]
"""What is in NAME.json: `command`, a list, and the options of the command line by their names, as JSON values."""


class App:
    """One app, by its name; nothing is looked at yet."""

    def __init__(self, name: str) -> None:
        """Refuse what is no name: ValueError."""
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name for an app; use letters, digits, '.', '_' and '-'")
        self.name = name
        self._path = os.path.join(home(), name)
        self.pidfile = f"{self._path}.pid"
        self.default_log = f"{self._path}.log"

    @property
    def is_known(self) -> bool:
        """Whether there is anything of it."""
        return os.path.lexists(f"{self._path}.json") or self.holder() is not None

    def must_be_known(self) -> None:
        """Raise LookupError if there is nothing of it."""
        if not self.is_known:
            self.settings()  # which says so

    def holder(self) -> Holder | None:
        """Return the process that supervises it; None if it does not run."""
        return _pidfile.find_holder(self.pidfile)

    def settled_pid(self) -> int | None:
        """Return the supervisor's pid, once a start that is under way is decided; None if that failed."""
        for _ in range(_PATIENCE):
            holder = self.holder()
            if holder is None or self._state().get("supervisor") == [holder.pid, holder.started]:
                break
            _process.wait_for_end(holder.pid, _LOOK)
        return holder.pid if holder else None

    def settings(self) -> Settings:
        """Return what it was started with. LookupError if there is no such app, ValueError if the file is damaged."""
        try:
            found = json.loads(_read(f"{self._path}.json"))
        except FileNotFoundError:
            raise LookupError(
                f"there is no app {self.name}; start it with: daemonkit start {self.name} -- CMD"
            ) from None
        except ValueError:
            found = None
        if not isinstance(found, dict) or not _is_command(found.get("command")):
            text = f"{self._path}.json is damaged; start it anew with: daemonkit start {self.name} -- CMD"
            raise ValueError(text)
        return found

    def save(self, settings: Mapping[str, Any]) -> None:
        """Keep what it was started with."""
        _replace(f"{self._path}.json", json.dumps(settings, indent=1))

    def log(self) -> str:
        """Return the path of its log."""
        with contextlib.suppress(LookupError, ValueError, OSError):
            return str(self.settings().get("log") or self.default_log)
        return self.default_log

    def forget_state(self) -> None:
        """Remove the state, as of a start that failed."""
        with contextlib.suppress(OSError):
            os.unlink(f"{self._path}.state")

    def forget(self) -> None:
        """Remove all that is known of it, with its log; it must not run."""
        import glob  # which few commands need

        log = self.log()
        rotated = glob.glob(f"{glob.escape(log)}.[0-9]*")
        for path in (f"{self._path}.json", f"{self._path}.state", self.pidfile, log, *rotated):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def report(self) -> dict[str, Any]:
        """Return how it is: the fields of ``--json`` but for `cpu` and `memory`."""
        holder, state = self.holder(), self._state()
        if holder and state.get("supervisor") != [holder.pid, holder.started]:
            state = {}  # of an earlier run, or damaged: it says nothing about this one
        runs = state.get("instances", ())
        ended = "failed" if state.get("exitcode") else "stopped"
        up = sum(bool(one["up"]) for one in runs)
        uptime = (_process.ticks() - holder.started) / os.sysconf("SC_CLK_TCK") if holder and holder.started else None
        return {
            "name": self.name,
            "state": ("running" if state.get("ready", True) else "starting") if holder else ended,
            "up": (up if runs else None) if holder else 0,
            "wanted": len(runs) if runs else self._wanted(),
            "pid": holder.pid if holder else None,
            "restarts": sum(max(one["starts"] - 1, 0) for one in runs),
            "uptime": None if uptime is None else round(max(uptime, 0.0), 2),
        }

    def up_pids(self) -> list[int]:
        """Return the instances' pids, as the supervisor has told them."""
        return [pid for one in self._state().get("instances", ()) for pid in one["up"]]

    def reloads_failed(self) -> int:
        """Return how many rolling restarts have failed since it was started."""
        return int(self._state().get("reloads_failed", 0))

    def _wanted(self) -> int | None:
        with contextlib.suppress(LookupError, ValueError, OSError):
            wanted = self.settings().get("instances", 1)
            return len(os.sched_getaffinity(0)) if wanted == "auto" else int(wanted)
        return None

    def _state(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            state = json.loads(_read(f"{self._path}.state"))
            if _is_state(state):
                return dict(state)
        return {}

    def write_state(self, state: Mapping[str, Any]) -> None:
        """Replace the state; for its supervisor."""
        _replace(f"{self._path}.state", json.dumps(state))


def _is_command(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(part, str) for part in value)


def _is_state(value: object) -> bool:
    """Tell whether it is what a supervisor writes: a file that is damaged says nothing."""
    if not isinstance(value, dict) or not isinstance(value.get("instances"), list):
        return False
    return type(value.get("reloads_failed")) is int and all(
        isinstance(one, dict)
        and type(one.get("starts")) is int
        and isinstance(one.get("up"), list)
        and all(type(pid) is int for pid in one["up"])
        for one in value["instances"]
    )


def up_of(report: Mapping[str, Any]) -> str:
    """Return how many instances are up, of how many."""
    up, wanted = (("?" if report[name] is None else str(report[name])) for name in ("up", "wanted"))
    return f"{up}/{wanted}"


# --- the directory ------------------------------------------------------------------------------------------------


def home() -> str:
    """Return the directory of all apps: $DAEMONKIT_HOME, else daemonkit/ in the XDG state directory."""
    if given := os.environ.get("DAEMONKIT_HOME"):
        return os.path.abspath(given)
    state = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(state):  # the XDG Base Directory Specification: a relative path is to be ignored
        state = os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(state, "daemonkit")


def make_home() -> None:
    """Create it, private to the user; PermissionError if it is not the user's own."""
    os.makedirs(home(), mode=0o700, exist_ok=True)
    info = os.stat(home())
    if info.st_uid != os.geteuid() or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        text = "others can write there, or own it, so what it says can't be trusted; give DAEMONKIT_HOME, or chmod 700"
        raise PermissionError(errno.EPERM, text, home())


def apps() -> list[App]:
    """Return all that are known, by name."""
    with contextlib.suppress(FileNotFoundError):
        names = {name[:-5] for name in os.listdir(home()) if name.endswith(".json") and _NAME.fullmatch(name[:-5])}
        return [App(name) for name in sorted(names)]
    return []


def size_of(path: str) -> int:
    """Return a file's size in bytes, 0 if there is none."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(fd, "rb") as file:
        return file.read()


def _replace(path: str, text: str) -> None:
    """Write a file anew, complete or not at all."""
    new = f"{path}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)  # of one that was killed; only the holder of the pidfile writes
    try:
        with open(
            os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w", encoding="utf-8"
        ) as file:
            file.write(text + "\n")
        os.replace(new, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise
