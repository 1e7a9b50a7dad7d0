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

from daemonkit._pidfile.holder import find_holder
from daemonkit._system.pidfd import wait_for_end
from daemonkit._system.process import ticks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Final, TypeGuard

    from daemonkit._pidfile.holder import Holder

    Settings = dict[str, Any]
    """What is in NAME.json: `command`, a list, and the options of the command line by their names, as JSON values."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

_LOOK: Final = 0.1  # seconds between looks at a file that tells no one when it changes
_PATIENCE: Final = 20  # looks


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
        return find_holder(self.pidfile)

    def settled_pid(self) -> int | None:
        """Return the supervisor's pid, once a start that is under way is decided; None if that failed."""
        for _ in range(_PATIENCE):
            holder = self.holder()
            if holder is None or self._state_of(holder):
                break
            wait_for_end(holder.pid, _LOOK)
        return holder.pid if holder else None

    def settings(self) -> Settings:
        """Return what it was started with. LookupError if there is no such app, ValueError if the file is damaged."""
        try:
            found = _read_json(f"{self._path}.json")
        except FileNotFoundError:
            if self.holder():
                raise LookupError(f"{self.name} is still starting, and nothing of it is kept before it is up") from None
            raise LookupError(
                f"there is no app {self.name}; start it with: daemonkit start {self.name} -- CMD"
            ) from None
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

    def logs(self) -> list[str]:
        """Return its log and the rotated ones, as far as they are files: a device that it writes to is not its own."""
        folder, name = os.path.split(self.log())
        own = re.compile(re.escape(name) + r"(\.[0-9]+)?")
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return [
                entry.path
                for entry in os.scandir(folder)
                if own.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
            ]
        return []

    def forget_state(self) -> None:
        """Remove the state: it is of a start that failed, or can't be renewed."""
        with contextlib.suppress(OSError):
            os.unlink(f"{self._path}.state")

    def forget(self) -> None:
        """Remove all that is known of it, with its logs; AlreadyRunningError if it runs (another start came first)."""
        from daemonkit._pidfile.hold import remove_stale  # Importing lockfile takes 10 ms.

        remove_stale(self.pidfile)
        for path in (*self.logs(), f"{self._path}.state", f"{self._path}.json"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def report(self) -> dict[str, Any]:
        """Return how it is: the fields of ``--json`` but for `cpu` and `memory`."""
        holder = self.holder()
        state = self._state_of(holder) if holder else self._state()
        runs = state.get("instances", ())
        ended = "failed" if state.get("exitcode") else "stopped"
        begins = bool(holder and holder.locked_by_daemonkit and not state and self._has_said_nothing())
        up = sum(bool(one["up"]) for one in runs)
        uptime = (ticks() - holder.started) / os.sysconf("SC_CLK_TCK") if holder and holder.started else None
        return {
            "name": self.name,
            "state": ("running" if state.get("ready", not begins) else "starting") if holder else ended,
            "up": (up if runs else None) if holder and not begins else 0,
            "wanted": len(runs) if runs else self._wanted(),
            "pid": holder.pid if holder else None,
            "restarts": sum(max(one["starts"] - 1, 0) for one in runs),
            "uptime": None if uptime is None else round(max(uptime, 0.0), 2),
        }

    def _has_said_nothing(self) -> bool:
        """Tell whether the supervisor that holds the pidfile is about to write its first state."""
        return bool(self._state()) or not os.path.lexists(f"{self._path}.json")

    def running_state(self) -> dict[str, Any] | None:
        """Return what its supervisor says of the instances (`_keep.Journal`); None if none does."""
        holder = self.holder()
        return (self._state_of(holder) or None) if holder else None

    def _wanted(self) -> int | None:
        with contextlib.suppress(LookupError, ValueError, TypeError, OSError):
            return count_of(self.settings())
        return None

    def _state(self) -> dict[str, Any]:
        with contextlib.suppress(OSError):
            state = _read_json(f"{self._path}.state")
            if _is_state(state):
                return state
        return {}

    def _state_of(self, holder: Holder) -> dict[str, Any]:
        """Return what this very supervisor wrote: a state that is damaged, or of an earlier run, says nothing of it."""
        state = self._state()
        return state if state.get("supervisor") == [holder.pid, holder.started] else {}

    def write_state(self, state: Mapping[str, Any]) -> None:
        """Replace the state; for its supervisor. OSError if it can't be: then there is none, rather than an old one."""
        path, text = f"{self._path}.state", json.dumps(state)
        try:
            _replace(path, text)
        except OSError:
            self.forget_state()
            _replace(path, text)  # on a full disk there may be room now


def count_of(settings: Settings) -> int:
    """Return how many instances there are to be."""
    count = settings.get("instances", 1)
    return len(os.sched_getaffinity(0)) if count == "auto" else int(count)


def _is_command(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(part, str) for part in value)


def _is_state(value: object) -> TypeGuard[dict[str, Any]]:
    """Tell whether it is what a supervisor writes: a file that is damaged says nothing."""
    if not isinstance(value, dict) or not isinstance(value.get("instances"), list):
        return False
    return type(value.get("reloads_failed")) is int and all(
        isinstance(one, dict)
        and type(one.get("starts")) is int
        and isinstance(one.get("up"), list)
        and isinstance(one.get("runs"), list)
        and all(type(pid) is int for pid in one["up"] + one["runs"])
        and type(one.get("done")) is bool
        and type(one.get("failed")) is int
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
        user = os.path.expanduser("~")
        if not os.path.isabs(user):  # no HOME, and nobody in the password database
            raise LookupError("there is no home directory to keep apps in; give DAEMONKIT_HOME")
        state = os.path.join(user, ".local", "state")
    return os.path.join(state, "daemonkit")


def make_home() -> None:
    """Create it, private to the user; PermissionError if it is not the user's own."""
    os.makedirs(home(), mode=0o700, exist_ok=True)
    info = os.stat(home())
    if info.st_uid != os.geteuid() or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        text = "others can write there, or own it, so what it says can't be trusted; give DAEMONKIT_HOME, or chmod 700"
        raise PermissionError(errno.EPERM, text, home())


def apps() -> list[App]:
    """Return all that are known or are being started, by name."""
    with contextlib.suppress(FileNotFoundError):
        files = set(os.listdir(home()))
        names = {name for file in files for name, dot, end in [file.rpartition(".")] if end in {"json", "pid"}}
        known = [App(name) for name in sorted(names) if _NAME.fullmatch(name)]
        return [app for app in known if f"{app.name}.json" in files or _may_be_known(app)]
    return []


def _may_be_known(app: App) -> bool:
    try:
        return app.is_known
    except OSError:  # its pidfile is none, as whoever asks for more will be told
        return True


def _read(path: str) -> bytes:
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise ValueError(f"{path} is no file")
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        return file.read()


def _read_json(path: str) -> object:
    """Return what is in a file, None if that is no JSON."""
    try:
        return json.loads(_read(path))
    except (ValueError, RecursionError):
        return None


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
