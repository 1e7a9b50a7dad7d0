"""An app of the `daemonkit` command: a supervised program with a name.

It consists of a few files in a private directory: NAME.json (its settings), NAME.pid (its supervisor's pidfile),
NAME.log, NAME.state, and NAME.stopped while it is to stay stopped. The supervisor replaces the state at each event.
The pidfile's lock alone decides whether the app runs; the state is believed only if it names the holder of the lock.

Looking at an app loads neither `json` nor `re`, which with `enum` take as long as all the rest of `daemonkit ls`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat

from daemonkit._pidfile.holder import find_holder
from daemonkit.cli import _json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any, Final, TypeGuard

    from daemonkit._pidfile.holder import Holder

    Settings = dict[str, Any]
    """The content of NAME.json, as JSON values: `command`, a list; `environment`, in which it was started; and the
    options by their names.
    """
    State = dict[str, Any]
    """The content of NAME.state (`_journal.Journal`)."""

_SIGNS: Final = str.maketrans("", "", "._-")
_PATTERN: Final = r"[][A-Za-z0-9._*?!-]*[][*?][][A-Za-z0-9._*?!-]*"
LOOK: Final = 0.1  # seconds between two looks at a file: the standard library can't wait for a change (inotify)
MARGIN: Final = 5.0  # seconds that the supervisor itself may take, beyond its instances' timeouts
_PARTS: Final = ("json", "state", "stopped", "next")


class App:
    """One app, by its name. Its files are read when they are asked for."""

    def __init__(self, name: str) -> None:
        """Take the name; ValueError for an invalid one."""
        if not is_name(name):
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

    # --- what was asked for -----------------------------------------------------------------------------------------

    def settings(self) -> Settings:
        """Return its settings; LookupError if there are none, ValueError if the file is damaged."""
        try:
            found = read_json(f"{self._path}.json")
        except FileNotFoundError:
            if self.holder():
                raise LookupError(f"{self.name} is still starting; its settings are kept once it is up") from None
            raise LookupError(f"there is no app {self.name}; `daemonkit ls` lists all") from None
        if not isinstance(found, dict) or not _is_command(found.get("command")):
            raise ValueError(f"{self._path}.json is damaged; start it anew: daemonkit start {self.name} -- CMD")
        return found

    def readable_settings(self) -> Settings:
        """Return its settings; {} if there are none, or they are damaged."""
        with contextlib.suppress(LookupError, ValueError, OSError):
            return self.settings()
        return {}

    def save(self, settings: Mapping[str, Any]) -> None:
        """Keep its settings; for its supervisor."""
        replace(f"{self._path}.json", _json.written(settings, indent=1))

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Wait until no other command changes its settings: each begins with what the one before it has left."""
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):  # it is still starting, or the file system has no locks
                while True:
                    file = stack.enter_context(open(f"{self._path}.json", "rb"))
                    fcntl.flock(file, fcntl.LOCK_EX)
                    if os.path.samestat(os.fstat(file.fileno()), os.stat(f"{self._path}.json")):  # it is replaced
                        break
                    file.close()
            yield

    def propose(self, settings: Mapping[str, Any]) -> None:
        """Leave settings for its supervisor, which takes them at the next SIGHUP."""
        replace(f"{self._path}.next", _json.written(settings, indent=1))

    def take_proposal(self) -> Settings | None:
        """Return the settings that were left for its supervisor, once; None if there are none."""
        path = f"{self._path}.next"
        with contextlib.suppress(OSError, ValueError):
            found = read_json(path)
            os.unlink(path)
            if isinstance(found, dict) and _is_command(found.get("command")):
                return found
        return None

    @property
    def is_to_stay_stopped(self) -> bool:
        """Whether it was stopped by request."""
        return os.path.lexists(f"{self._path}.stopped")

    def stay_stopped(self, wish: bool) -> None:  # noqa: FBT001 - it is what is set
        """Keep that it is to stay stopped, also after a reboot; or that it is not."""
        with contextlib.suppress(OSError):  # a full disk does not keep an app from being stopped
            if wish:
                os.close(os.open(f"{self._path}.stopped", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            elif self.is_to_stay_stopped:
                os.unlink(f"{self._path}.stopped")

    # --- how it is --------------------------------------------------------------------------------------------------

    def last_state(self) -> State:
        """Return the state that its last supervisor wrote; {} without one."""
        with contextlib.suppress(OSError):
            state = read_json(f"{self._path}.state")
            if _is_state(state):
                return state
        return {}

    def state_of(self, holder: Holder) -> State:
        """Return the state that this supervisor wrote; {} if the state is damaged, or an earlier supervisor's."""
        state = self.last_state()
        return state if state.get("supervisor") == [holder.pid, holder.started] else {}

    def running_state(self) -> State | None:
        """Return the state that its supervisor wrote; None without one."""
        holder = self.holder()
        return (self.state_of(holder) or None) if holder else None

    def state_is_pending(self) -> bool:
        """Tell whether the supervisor has not written its first state yet: there is an earlier one's, or a new app."""
        return bool(self.last_state()) or not os.path.lexists(f"{self._path}.json")

    def write_state(self, state: Mapping[str, Any]) -> None:
        """Replace the state, as its supervisor. After an OSError there is no state, rather than an old one."""
        path, text = f"{self._path}.state", _json.written(state)
        try:
            replace(path, text)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(path)
            replace(path, text)  # now there may be room on a full disk

    # --- its logs ---------------------------------------------------------------------------------------------------

    def logs(self) -> list[str]:
        """Return the paths of its logs: those of the last start, also if that failed."""
        return self.last_state().get("logs") or log_paths(self.readable_settings(), self.default_log)

    # --- the end ----------------------------------------------------------------------------------------------------

    def forget(self) -> None:
        """Remove the files that daemonkit made for it; AlreadyRunningError if it has been started meanwhile.

        A log that the user named is not daemonkit's, and another app may write to it too.
        """
        from daemonkit._pidfile.hold import remove_stale  # Importing lockfile takes 10 ms.

        remove_stale(self.pidfile)
        for path in (*rotated(self.default_log), *(f"{self._path}.{part}" for part in _PARTS)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    @property
    def has_left_a_log(self) -> bool:
        """Whether there is a log of it: a start that failed leaves one, and nothing else."""
        return bool(rotated(self.default_log) or self.last_state())


def rotated(log: str) -> list[str]:
    """Return the log and what it was rotated to, as far as they are files."""
    import re

    folder, name = os.path.split(log)
    own = re.compile(re.escape(name) + r"(\.[0-9]+)?")
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        files = [entry for entry in os.scandir(folder) if own.fullmatch(entry.name)]
        return [entry.path for entry in files if entry.is_file(follow_symlinks=False)]
    return []


def count_of(settings: Settings) -> int:
    """Return how many instances the settings ask for."""
    count = settings.get("instances", 1)
    return len(os.sched_getaffinity(0)) if count == "auto" else int(count)


def number_from_outside(settings: Settings) -> str | None:
    """Return the number that another engine has given to the one instance that there is; None if it has not."""
    number = os.environ.get("DAEMONKIT_INSTANCE", "")
    return number if number.isascii() and number.isdecimal() and count_of(settings) == 1 else None


def numbered(settings: Settings, number: str | None) -> Settings:
    """Return the settings with this number instead of ``{instance}``."""
    named = {key: settings[key] for key in ("stdin", "stdout", "stderr", "log", "log_format") if settings.get(key)}
    return settings | {key: text.replace("{instance}", number) for key, text in named.items()} if number else settings


def streams_of(settings: Settings, default_log: str | None) -> tuple[str | None, str | None, str | None]:
    """Return the supervisor's own log, and the paths of the program's stdout and stderr, which may have {instance}.

    None is the supervisor's own stream.
    """
    log = settings.get("log") or default_log
    out = settings.get("stdout") or log
    error = settings.get("stderr") or (log if settings.get("stdout") else out)
    if isinstance(log, str) and "{instance}" in log:  # the supervisor is none of them
        log = default_log
    return log, out, error


def log_paths(settings: Settings, default_log: str | None) -> list[str]:
    """Return the paths of all of its logs."""
    templates = [path for path in streams_of(settings, default_log) if isinstance(path, str)]
    with contextlib.suppress(ValueError, TypeError):  # damaged settings
        count = count_of(settings)
        return [*dict.fromkeys(path.replace("{instance}", str(i)) for path in templates for i in range(count))]
    return templates


def _is_command(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(part, str) for part in value)


def _is_state(value: object) -> TypeGuard[State]:
    """Tell whether the state is complete, or the file damaged."""
    if not isinstance(value, dict) or not isinstance(value.get("instances"), list):
        return False
    logs = value.get("logs", [])
    return (
        value.get("ended") in (None, "stopped", "done", "failed")  # a tuple: a list in the file has no hash
        and isinstance(value.get("file", ""), (str, type(None)))
        and isinstance(value.get("note", ""), str)
        and _is_reload(value.get("reload", {"number": 0, "outcome": ""}))
        and isinstance(logs, list)
        and all(isinstance(path, str) for path in logs)
        and all(map(_is_instance, value["instances"]))
    )


def _is_reload(value: object) -> bool:
    return isinstance(value, dict) and type(value.get("number")) is int and isinstance(value.get("outcome"), str)


def _is_instance(one: object) -> bool:
    return (
        isinstance(one, dict)
        and type(one.get("starts")) is int
        and isinstance(one.get("up"), list)
        and isinstance(one.get("runs"), list)
        and all(type(pid) is int for pid in one["up"] + one["runs"])
        and type(one.get("done")) is bool
        and type(one.get("failed")) is int
        and isinstance(one.get("state", ""), str)
        and type(one.get("exitcode")) in {int, type(None)}
        and type(one.get("exited_at")) in {int, float, type(None)}
    )


# --- the directory ---------------------------------------------------------------------------------------------------


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
        known = [App(name) for name in sorted(names) if is_name(name)]
        return [app for app in known if f"{app.name}.json" in files or _may_be_known(app)]
    return []


def select(names: Sequence[str]) -> list[App]:
    """Return the apps of names and patterns, each once; LookupError for a pattern that none matches."""
    found: dict[str, App] = {}
    for name in names:
        if any(sign in name for sign in "[]*?") and _is_pattern(name):
            from fnmatch import fnmatchcase

            matching = [app for app in apps() if fnmatchcase(app.name, name)]
            if not matching:
                raise LookupError(f"no app matches {name!r}; `daemonkit ls` lists all")
            found |= {app.name: app for app in matching}
        else:
            found[name] = App(name)
    return [*found.values()]


def is_name(text: str) -> bool:
    """Tell whether an app may have this name: letters, digits, ".", "_" and "-", of which the last three not first."""
    return text.isascii() and text[:1].isalnum() and text.translate(_SIGNS).isalnum()


def _is_pattern(text: str) -> bool:
    import re

    return bool(re.fullmatch(_PATTERN, text))


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


def read_json(path: str) -> object:
    """Return the content of a JSON file; None if it is damaged."""
    try:
        return _json.read(_read(path).decode())
    except (ValueError, RecursionError):
        return None


def replace(path: str, text: str) -> None:
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
