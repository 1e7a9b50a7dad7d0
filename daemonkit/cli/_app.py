"""An app of the `daemonkit` command: a supervised program with a name.

It consists of four files in a private directory: NAME.json (its settings), NAME.pid (its supervisor's pidfile),
NAME.log and NAME.state. The supervisor replaces the state at each event. The pidfile's lock alone decides whether the
app runs; the state is believed only if it names the process that holds the lock.
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
    """The content of NAME.json: `command`, a list, and the options by their names, as JSON values."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

_LOOK: Final = 0.1  # seconds between two looks at a file: the standard library can't wait for a change (inotify)
_LOOKS: Final = 20


class App:
    """One app, by its name. Its files are read when they are asked for."""

    def __init__(self, name: str) -> None:
        """Take the name; ValueError for an invalid one."""
        if not _NAME.fullmatch(name):
            raise ValueError(f"invalid name of an app: {name!r}; use letters, digits, '.', '_' and '-'")
        self.name = name
        self._path = os.path.join(home(), name)
        self.pidfile = f"{self._path}.pid"
        self.default_log = f"{self._path}.log"

    @property
    def is_known(self) -> bool:
        """Whether it has settings, or runs."""
        return os.path.lexists(f"{self._path}.json") or self.holder() is not None

    def must_be_known(self) -> None:
        """Raise LookupError if it is unknown."""
        if not self.is_known:
            self.settings()

    def holder(self) -> Holder | None:
        """Return its supervisor; None if it does not run."""
        return find_holder(self.pidfile)

    def settled_pid(self) -> int | None:
        """Wait for a start that is under way; return the supervisor's pid, None if the start failed."""
        for _ in range(_LOOKS):
            holder = self.holder()
            if holder is None or self._state_of(holder):
                break
            wait_for_end(holder.pid, _LOOK)
        return holder.pid if holder else None

    def settings(self) -> Settings:
        """Return its settings; LookupError if there are none, ValueError if the file is damaged."""
        try:
            found = _read_json(f"{self._path}.json")
        except FileNotFoundError:
            if self.holder():
                raise LookupError(f"{self.name} is still starting; its settings are kept once it is up") from None
            raise LookupError(
                f"there is no app {self.name}; start it with: daemonkit start {self.name} -- CMD"
            ) from None
        if not isinstance(found, dict) or not _is_command(found.get("command")):
            raise ValueError(f"{self._path}.json is damaged; start it anew: daemonkit start {self.name} -- CMD")
        return found

    def save(self, settings: Mapping[str, Any]) -> None:
        """Keep its settings."""
        _replace(f"{self._path}.json", json.dumps(settings, indent=1))

    def log(self) -> str:
        """Return the path of its log."""
        with contextlib.suppress(LookupError, ValueError, OSError):
            return str(self.settings().get("log") or self.default_log)
        return self.default_log

    def logs(self) -> list[str]:
        """Return its log and the rotated ones. A device is left out: it does not belong to the app."""
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
        """Remove the state, after a start that failed, or where it can't be replaced."""
        with contextlib.suppress(OSError):
            os.unlink(f"{self._path}.state")

    def forget(self) -> None:
        """Remove its files, its logs included; AlreadyRunningError if it has been started meanwhile."""
        from daemonkit._pidfile.hold import remove_stale  # here, as only `delete` needs it

        remove_stale(self.pidfile)
        for path in (*self.logs(), f"{self._path}.state", f"{self._path}.json"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def report(self) -> dict[str, Any]:
        """Return the fields of ``--json``, without `cpu` and `memory`."""
        holder = self.holder()
        state = self._state_of(holder) if holder else self._state()
        runs = state.get("instances", ())
        ended = "failed" if state.get("exitcode") else "stopped"
        begins = bool(holder and holder.locked_by_daemonkit and not state and self._state_is_pending())
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

    def _state_is_pending(self) -> bool:
        """Tell whether the supervisor has not written its first state yet: there is an earlier one's, or a new app."""
        return bool(self._state()) or not os.path.lexists(f"{self._path}.json")

    def running_state(self) -> dict[str, Any] | None:
        """Return the state that its supervisor wrote (`_keep.Journal`); None without one."""
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
        """Return the state that this supervisor wrote; {} if the state is damaged, or an earlier supervisor's."""
        state = self._state()
        return state if state.get("supervisor") == [holder.pid, holder.started] else {}

    def write_state(self, state: Mapping[str, Any]) -> None:
        """Replace the state, as its supervisor. After an OSError there is no state, rather than an old one."""
        path, text = f"{self._path}.state", json.dumps(state)
        try:
            _replace(path, text)
        except OSError:
            self.forget_state()
            _replace(path, text)  # now there may be room on a full disk


def count_of(settings: Settings) -> int:
    """Return how many instances the settings ask for."""
    count = settings.get("instances", 1)
    return len(os.sched_getaffinity(0)) if count == "auto" else int(count)


def _is_command(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(part, str) for part in value)


def _is_state(value: object) -> TypeGuard[dict[str, Any]]:
    """Tell whether the state is complete, or the file damaged."""
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
    """Return "up/wanted"."""
    up, wanted = (("?" if report[name] is None else str(report[name])) for name in ("up", "wanted"))
    return f"{up}/{wanted}"


# --- the directory ------------------------------------------------------------------------------------------------


def home() -> str:
    """Return the directory of all apps: $DAEMONKIT_HOME, else daemonkit/ in the XDG state directory."""
    if given := os.environ.get("DAEMONKIT_HOME"):
        return os.path.abspath(given)
    state = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(state):  # a relative path must be ignored: XDG Base Directory Specification
        user = os.path.expanduser("~")
        if not os.path.isabs(user):  # without HOME, and without an entry in the user database
            raise LookupError("no home directory to keep apps in; set DAEMONKIT_HOME")
        state = os.path.join(user, ".local", "state")
    return os.path.join(state, "daemonkit")


def make_home() -> None:
    """Create it, private to the user; PermissionError if others own it or can write there."""
    os.makedirs(home(), mode=0o700, exist_ok=True)
    info = os.stat(home())
    if info.st_uid != os.geteuid() or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        text = "others own it or can write there, so it can't be trusted; chmod 700 it, or set DAEMONKIT_HOME"
        raise PermissionError(errno.EPERM, text, home())


def apps() -> list[App]:
    """Return all apps that are known or being started, sorted by name."""
    with contextlib.suppress(FileNotFoundError):
        files = set(os.listdir(home()))
        names = {name for file in files for name, dot, end in [file.rpartition(".")] if end in {"json", "pid"}}
        known = [App(name) for name in sorted(names) if _NAME.fullmatch(name)]
        return [app for app in known if f"{app.name}.json" in files or _may_be_known(app)]
    return []


def _may_be_known(app: App) -> bool:
    try:
        return app.is_known
    except OSError:  # not a pidfile: whoever looks at the app is told
        return True


def _read(path: str) -> bytes:
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise ValueError(f"{path} is not a regular file")
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        return file.read()


def _read_json(path: str) -> object:
    """Return the content of a JSON file; None if it is damaged."""
    try:
        return json.loads(_read(path))
    except (ValueError, RecursionError):
        return None


def _replace(path: str, text: str) -> None:
    """Replace a file in one step: a reader sees the old one or the new one."""
    new = f"{path}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)  # left by a writer that was killed; only the holder of the pidfile writes
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
