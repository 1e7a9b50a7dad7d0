"""An app's settings in effect: its environment, its directory, its streams; and whether it can be started with them."""

from __future__ import annotations

import errno
import os
import stat

from daemonkit._system.program import command_of, directory_of, find_program
from daemonkit._system.users import owner_of
from daemonkit.cli import _app

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

    from daemonkit.cli._app import App, Settings

LOG_MAX_BYTES: Final = 10 << 20  # of an app's logs, unless it is told otherwise
_OWNER: Final = ("user", "group", "extra_groups")
_NOT_KEPT: Final = frozenset({"_", "DAEMONKIT_INSTANCE", "INVOCATION_ID", "JOURNAL_STREAM", "LISTEN_FDNAMES",
                              "LISTEN_FDS", "LISTEN_PID", "LISTEN_PIDFDID", "MAINPID", "MANAGERPID", "NOTIFY_SOCKET",
                              "SYSTEMD_EXEC_PID", "WATCHDOG_PID", "WATCHDOG_USEC"})  # fmt: skip
"""Variables that mean one process or one start: this one's, when the app is started."""


def present_environment() -> dict[str, str]:
    """Return the environment of this shell, as far as it concerns an app."""
    return {name: value for name, value in os.environ.items() if name not in _NOT_KEPT}


def environment_in_effect(settings: Settings) -> dict[str, str]:
    """Return the environment that the program gets."""
    kept: Mapping[str, str] | None = settings.get("environment")  # None: kept by 0.1.0, which took the present one
    environment = {"PYTHONUNBUFFERED": "1", **(present_environment() if kept is None else kept)}
    if "user" in settings:  # that user's HOME, unless --env has one
        own = owner_of(settings["user"], settings.get("group"), names=_OWNER).environment(encoded(environment))
        environment = {os.fsdecode(name): os.fsdecode(value) for name, value in own.items()}
    given: dict[str, str] = settings.get("env", {})
    return environment | given


def encoded(environment: Mapping[str, str]) -> dict[bytes, bytes]:
    return {os.fsencode(name): os.fsencode(value) for name, value in environment.items()}


def laid_over(settings: Settings, changes: Settings) -> Settings:
    """Return the settings with some of them changed; of `env`, what is not named stays."""
    changed = settings | changes
    if "env" in changes:
        changed["env"] = settings.get("env", {}) | changes["env"]
    return changed


def check_startable(settings: Settings, app: App | None = None) -> None:
    """Raise for all that would make a start fail, as far as it can be known before; nothing is changed.

    OSError with the path, LookupError for an unknown user, ValueError.
    """
    environment = encoded(environment_in_effect(settings))
    directory = directory_of(settings["cwd"]) if "cwd" in settings else None
    _, program = command_of(settings["command"], None, shell=False)
    find_program(program, environment, directory)
    if settings.keys() & {"user", "group"}:
        owner_of(settings.get("user"), settings.get("group"), names=_OWNER)
    for index in range(_app.count_of(settings) if "stdin" in settings else 0):
        path = settings["stdin"].replace("{instance}", str(index))
        _check_access(path, os.R_OK)
    for path in _app.log_paths(settings, app.default_log if app else None):
        _check_log(path)
    for address in settings.get("listen", ()):
        if address.startswith("unix:"):
            _check_folder(address.removeprefix("unix:"))


def _check_log(path: str) -> None:
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        _check_folder(path)
        return
    if stat.S_ISLNK(kind):
        raise OSError(errno.ELOOP, "a symbolic link, so it can't be a log; give the path that it leads to", path)
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISSOCK(kind):
        _check_access(path, os.W_OK)


def _check_folder(path: str) -> None:
    """Raise, with the path, if no file can be made there."""
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        number = errno.ENOTDIR if os.path.exists(folder) else errno.ENOENT
        raise OSError(number, os.strerror(number), path)
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)


def _check_access(path: str, mode: int) -> None:
    os.stat(path)
    if not os.access(path, mode, effective_ids=True):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
