"""The commands that change something: `start`, `run`, `spawn`, `stop`, `restart`, `reload`, `delete`."""

from __future__ import annotations

import contextlib
import os
import signal
import sys

from daemonkit._system.fork import fork_child
from daemonkit._system.pidfd import wait_for_end
from daemonkit._system.program import command_of, directory_of, environment_of, find_program
from daemonkit.cli import _app, _say
from daemonkit.cli._app import App
from daemonkit.cli._options import settings_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping
    from typing import Any, Final, NoReturn

    from daemonkit.cli._app import Settings

_INTERRUPTED: Final = 130  # as a shell has it: 128 + SIGINT
_LAST_LINES: Final = 10
_LAST_BYTES: Final = 1 << 16
_LOOK: Final = 0.1  # seconds between two looks at a file: the standard library can't wait for a change (inotify)
_MARGIN: Final = 5.0  # seconds that the supervisor itself may take, beyond its instances' stop timeout
_OWN: Final = "daemonkit: "
"""The beginning of each line that the supervisor itself writes to the log."""


def start(options: argparse.Namespace) -> int:
    app = App(options.name)
    settings = settings_of(options)
    if not options.command:
        settings = app.settings() | settings
    elif "cwd" not in settings:
        settings["cwd"] = os.getcwd()
    return _launch(app, settings)


def _launch(app: App, settings: Settings) -> int:
    """Start it by a child, which becomes the caller of `detached`; return the child's exit status."""
    _app.make_home()
    sys.stdout.flush()
    with _say.progress(f"starting {app.name}"):
        child = fork_child(lambda: _become(app, settings))
        pidfd = os.pidfd_open(child)
        try:
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        except KeyboardInterrupt:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                signal.pidfd_send_signal(pidfd, signal.SIGINT)  # kill(1) has sent it to this process alone
                os.waitpid(child, 0)  # it ends the start
            raise _say.Interrupted(f"{app.name} {'runs' if app.holder() else 'was not started'}") from None
    if status == 0:
        _print_outcome(app)
    return status


def _print_outcome(app: App) -> None:
    state = app.running_state()
    if state and all(one["done"] for one in state["instances"]):
        wait_for_end(state["supervisor"][0], _MARGIN)  # the supervisor is about to end
    report = app.report()
    if report["pid"]:
        print(f"{app.name}: {_app.up_of(report)} up, pid {report['pid']}")
    else:
        print(f"{app.name}: done")


def _become(app: App, settings: Settings) -> NoReturn:
    """Become the app's supervisor, in the child, or print why it did not start; does not return."""
    from daemonkit import STDOUT, AlreadyRunningError, StartError, detached

    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt_once)
    log = settings.get("log") or app.default_log
    files = _outputs(settings, log)
    before = _sizes(files)
    status = 1
    try:
        with detached(
            pidfile=app.pidfile,
            stdout=log,
            stderr=STDOUT,
            working_directory=settings.get("cwd", "/"),
            detach_process=True,
            wait_ready=True,
        ) as context:
            status = _supervise(settings, context, app, log, lambda: _last_lines(files, before))
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except AlreadyRunningError as error:
        holder = app.holder()
        if holder and not holder.locked_by_daemonkit:
            _say.say(_say.in_one_line(error))
        else:
            pid = app.settled_pid() or error.pid
            _say.say(f"{app.name} runs already, as process {pid}; stop it first: daemonkit stop {app.name}")
    except StartError as error:
        *lines, cause = error.reason.splitlines() or [str(error)]  # the program's last lines come before the cause
        if error.exitcode == 0:  # a SIGTERM, before any instance ran
            cause = "it was stopped before that"
        _say.clear()
        sys.stderr.writelines(f"{line}\n" for line in lines)
        _say.say(f"{app.name} did not start: {cause}; see {log}")
    except KeyboardInterrupt:
        status = _INTERRUPTED
    except Exception as error:  # noqa: BLE001 - any failure is one line
        _say.say(_say.in_one_line(error))
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(status)


def _interrupt_once(number: int, _frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # the terminal and the parent may send one each
    raise KeyboardInterrupt


def _supervise(
    settings: Settings,
    context: Any,  # noqa: ANN401 - a DetachedContext
    app: App | None,
    log: str | None,
    last_lines: Callable[[], list[str]] = list,
) -> int:
    import logging

    from daemonkit import STDOUT
    from daemonkit.cli import _keep

    streams: Settings = {}
    handler: logging.Handler = logging.StreamHandler()
    if log and settings.get("log_max_bytes") and "stdout" not in settings:
        streams = {"stdout": log, "stderr": settings.get("stderr", STDOUT)}
        handler = _keep.LogHandler(log)
    logging.basicConfig(level=logging.INFO, format=f"{_OWN}%(asctime)s %(message)s", handlers=[handler])
    try:
        return _keep.run(settings, streams, context, app, last_lines)
    except Exception as error:
        raise SystemExit(_say.in_one_line(error)) from error


def run(options: argparse.Namespace) -> int:
    from daemonkit import detached

    settings = settings_of(options)
    directory = settings.get("cwd") or os.getcwd()
    log = settings.get("log")
    try:
        context = detached(detach_process=False, wait_ready=True, stdout=log, stderr=log, working_directory=directory)
        if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # nohup(1): supervise() must see it
            del context.signal_map[signal.SIGHUP]
        with context:
            sys.exit(_supervise(settings, context, None, log))  # also if it is stopped before it is up
    except SystemExit as error:
        if isinstance(error.code, str):
            raise _say.Failure(error.code) from error
        raise


def spawn(options: argparse.Namespace) -> int:
    from daemonkit import STDOUT, spawn_detached

    process = spawn_detached(options.command, stdout=options.log, stderr=STDOUT, pidfile=options.pidfile)
    print(process.pid)
    return 0


def _stop(app: App) -> int:
    from daemonkit import NotRunningError, stop

    timeout = 10.0
    with contextlib.suppress(LookupError, ValueError, TypeError):
        timeout = float(app.settings().get("stop_timeout", timeout))
    try:
        with _say.progress(f"stopping {app.name}"):
            stop(app.pidfile, timeout + _MARGIN)
    except NotRunningError:
        if app.holder():  # another tool's process, or one in another PID namespace
            raise
        app.must_be_known()
    except KeyboardInterrupt:
        raise _say.Interrupted(f"{app.name} is being stopped") from None
    return 0


def _restart(app: App) -> int:
    settings = app.settings()
    _check(settings)
    try:
        _stop(app)
    except _say.Interrupted as error:
        raise _say.Interrupted(f"{error}, and will not be started again") from None
    return _launch(app, settings)


def _check(settings: Settings) -> None:
    """Raise if it can't be started, while the old one still runs."""
    _app.make_home()
    _, program = command_of(settings["command"], None, shell=False)
    environment = environment_of({**os.environ, **settings.get("env", {})})
    find_program(program, environment, directory_of(settings.get("cwd", "/")))


def _delete(app: App) -> int:
    if not app.logs():  # a start that failed leaves nothing else
        app.must_be_known()
    if app.is_known:
        _stop(app)
    app.forget()
    return 0


def _reload(app: App) -> int:
    """Restart its instances one at a time; return once that is done."""
    from daemonkit import attach

    app.must_be_known()
    if not app.holder():
        raise _say.Failure(f"{app.name} does not run; start it with: daemonkit start {app.name}")
    process, state = attach(app.pidfile), app.running_state()
    before = state["instances"] if state else []
    process.send_signal(signal.SIGHUP)
    with _say.progress(f"reloading {app.name}"):
        while state and (now := app.running_state()):
            pairs = list(zip(before, now["instances"], strict=True))
            if now["reloads_failed"] != state["reloads_failed"] or any(_has_failed(*pair) for pair in pairs):
                text = f"{app.name} was not reloaded: a new run did not come up, so the old ones stay; see {app.log()}"
                raise _say.Failure(text)
            if all(_is_replaced(*pair) for pair in pairs):
                return 0
            process.wait_for_end(_LOOK)
    if not process.running:
        raise _say.Failure(f"{app.name} ended during the reload; see {app.log()}")
    raise _say.Failure(
        f"{app.name} reloads, but its state can't be read, so the outcome is unknown; is {_app.home()} full?"
    )


def _has_failed(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Tell whether an instance that had no run has failed to come up."""
    return not before["runs"] and now["failed"] > before["failed"]


def _is_replaced(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Tell whether a new run is up and no old one is left, or the instance is done."""
    return now["done"] or (bool(now["up"]) and set(before["runs"]).isdisjoint(now["runs"]))


_VERBS: Final = {"stop": _stop, "restart": _restart, "reload": _reload, "delete": _delete}


def each(options: argparse.Namespace) -> int:
    """Run the command for each app that was named; return the worst status."""
    if bool(options.names) == options.all:
        raise _say.Usage(f"give either names of apps or --all; see: daemonkit {options.verb} --help")
    do, worst = _VERBS[options.verb], 0
    for app in _app.apps() if options.all else [App(name) for name in options.names]:
        try:
            worst = max(worst, do(app))
        except KeyboardInterrupt:
            raise _say.Interrupted(f"{app.name} {'runs' if app.holder() else 'does not run'}") from None
        except _say.Interrupted:
            raise
        except Exception as error:
            if options.debug:
                raise
            _say.say(_say.in_one_line(error))
            worst = 1
    return worst


def _outputs(settings: Settings, log: str) -> list[str]:
    """Return the files that the program writes to."""
    paths = [settings.get("stdout", log), settings.get("stderr", log)]
    return [
        *dict.fromkeys(
            path.replace("{instance}", str(index)) for path in paths for index in range(_app.count_of(settings))
        )
    ]


def _sizes(files: list[str]) -> dict[tuple[int, int], int]:
    """Return their sizes by device and inode, which stay the same when they are rotated."""
    sizes = {}
    for path in (part for file in files for part in (f"{file}.1", file)):
        with contextlib.suppress(OSError):
            info = os.stat(path)
            sizes[info.st_dev, info.st_ino] = info.st_size
    return sizes


def _last_lines(files: list[str], before: dict[tuple[int, int], int]) -> list[str]:
    """Return the last lines that the program itself has written since `before`."""
    lines: list[str] = []
    for path in (part for file in files for part in (f"{file}.1", file)):
        if not os.path.isfile(path):
            continue
        with contextlib.suppress(OSError), open(path, "rb") as file:
            info = os.fstat(file.fileno())
            file.seek(max(before.get((info.st_dev, info.st_ino), 0), info.st_size - _LAST_BYTES))
            lines += file.read().decode(errors="backslashreplace").splitlines()
    return [line for line in lines if not line.startswith(_OWN)][-_LAST_LINES:]
