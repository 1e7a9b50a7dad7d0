"""The commands that start something: `daemonkit start`, `run` and `spawn`."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import sys

from daemonkit._system.fork import fork_child
from daemonkit._system.program import find_program
from daemonkit.cli import _app, _say
from daemonkit.cli._app import App
from daemonkit.cli._options import absolute, settings_of
from daemonkit.cli._settings import check_startable, laid_over, present_environment
from daemonkit.cli._title import set_title

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence
    from typing import Any, Final, NoReturn

    from daemonkit._pidfile.holder import Holder
    from daemonkit._supervise import Summary
    from daemonkit.cli._app import Settings

_INTERRUPTED: Final = 130  # as a shell has it: 128 + SIGINT
LAST_LINES: Final = 10
_LAST_BYTES: Final = 1 << 16
_MARGIN: Final = 5.0  # seconds in which a supervisor that has nothing left to do ends
_LOOKS: Final = 20
_RUNNERS: Final = {
    ".js": "node ",
    ".mjs": "node ",
    ".py": "python ",
    ".sh": "sh ",
    ".rb": "ruby ",
    ".jar": "java -jar ",
}


# --- which apps, with which settings ---------------------------------------------------------------------------------


def start(options: argparse.Namespace) -> int:
    changes = settings_of(options)
    if options.command:
        _start_one(_the_one(options), new_settings(changes), options)
        return 0
    if bool(options.names) == options.all:
        raise _say.Usage("give either names of apps or --all; see: daemonkit start --help")
    if not options.all:
        _refuse_programs(options.names)
    elif not _app.apps():
        _say.say(f"no app is known in {_app.home()}; start one with: daemonkit start NAME -- CMD")
    apps = [app for app in _app.apps() if _is_to_run(app)] if options.all else _app.select(options.names)
    is_one = len(apps) == 1 and options.names == [apps[0].name]

    def start_again(app: App) -> None:
        settings = _known_settings(app, changes, options)
        if app.holder() and not is_one:
            return
        _start_one(app, settings, options)

    return _say.for_each(apps, start_again, debug=options.debug)


def _start_one(app: App, settings: Settings, options: argparse.Namespace) -> None:
    program = ["--", *options.command] if options.command else []
    if app.holder() and (program or options.typed != [app.name]):
        # What --env was given may be a secret, and a message may end up in a log.
        given = f"{app.name} [options]" if options.env else shlex.join([*options.typed, *program])
        raise _say.Failure(_runs_already(app, f"change it with: daemonkit reload {given}"))
    start_app(app, settings)
    print(outcome(app))


def new_settings(given: Settings) -> Settings:
    """Return the settings of a new app: those that were given, this directory and this environment."""
    return _in_a_directory(given) | {"environment": present_environment()}


def _in_a_directory(given: Settings) -> Settings:
    return given if "cwd" in given else {"cwd": absolute("."), **given}


def _known_settings(app: App, changes: Settings, options: argparse.Namespace) -> Settings:
    settings = laid_over(app.settings(), changes)
    return settings | {"environment": present_environment()} if options.update_env else settings


def _is_to_run(app: App) -> bool:
    """Tell whether `start --all` starts it: not what was stopped by request, nor what has done its work."""
    return not app.is_to_stay_stopped and app.last_state().get("ended") != "done"


def _the_one(options: argparse.Namespace) -> App:
    if len(options.names) != 1 or options.all:
        raise _say.Usage("give one NAME for the program; see: daemonkit start --help")
    return App(options.names[0])


def _refuse_programs(names: Sequence[str]) -> None:
    """Refuse what looks like a program that was meant to be started: the name of an app is missing, or the ``--``."""
    first, *others = names
    suffix = os.path.splitext(first)[1]
    if not _is_app(first) and (os.path.isfile(first) or _is_program(first)):
        name = os.path.basename(first).partition(".")[0] if os.path.isfile(first) else "NAME"
        runner = _RUNNERS.get(suffix, "")
        here = "./" if os.path.isfile(first) and not runner and "/" not in first else ""
        program = " ".join([f"{runner}{here}{first}", *others])
        raise _say.Usage(f"{first!r} is a program; to start it as an app: daemonkit start {name} -- {program}")
    for word in others:
        source = os.path.splitext(word)[1] in _RUNNERS
        if not _is_app(word) and (source or os.path.isfile(word) or _is_program(word)):
            raise _say.Usage(f"unexpected argument {word!r}; put the program after --; see: daemonkit start --help")


def _is_app(word: str) -> bool:
    """Tell whether a word names a known app, or is a pattern."""
    try:
        return any(sign in word for sign in "*?[") or App(word).is_known
    except ValueError:
        return False


def _is_program(word: str) -> bool:
    try:
        return bool(find_program(word, None, None))
    except (OSError, ValueError):
        return False


# --- in the background -----------------------------------------------------------------------------------------------


def start_app(app: App, settings: Settings) -> None:
    """Start it in the background; return once it is up.

    Raises Failure, with the program's last lines, if it does not come up; AlreadyRunningError; before anything is
    started OSError with the path, LookupError, ValueError.
    """
    _app.make_home()
    if app.holder():
        raise _say.Failure(_runs_already(app))
    check_startable(settings, app)
    sys.stdout.flush()
    report = os.memfd_create("report")
    try:
        status = _launch(app, settings, report)
        if status != 0:
            os.lseek(report, 0, os.SEEK_SET)
            with open(os.dup(report), encoding="utf-8") as file:
                text = file.read()
            lines, cause = json.loads(text) if text else ([], f"{app.name} did not start: its start was ended")
            raise _say.Failure(cause, lines)
    finally:
        os.close(report)


def _launch(app: App, settings: Settings, report: int) -> int:
    """Start it by a child, which becomes the caller of `detached`; return the child's exit status."""
    with _say.progress(f"starting {app.name}"):
        child = fork_child(lambda: _become(app, settings, report))
        pidfd = os.pidfd_open(child)
        try:
            from daemonkit.cli import _report  # noqa: F401 - `outcome` needs it, and now there is nothing else to do

            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        except KeyboardInterrupt:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                signal.pidfd_send_signal(pidfd, signal.SIGINT)  # kill(1) has sent it to this process alone
                os.waitpid(child, 0)  # it ends the start
            raise _say.Interrupted(f"{app.name} {'runs' if app.holder() else 'was not started'}") from None
        finally:
            os.close(pidfd)


def outcome(app: App) -> str:
    """Return, in a line, how a start has ended."""
    from daemonkit.cli import _report

    wait_if_done(app)
    if note := app.last_state().get("note"):
        _say.say(f"{app.name}: {note}")
    report = _report.report(app)
    return f"{app.name}: {_report.up_of(report)} up, pid {report['pid']}" if report["pid"] else f"{app.name}: done"


def wait_if_done(app: App) -> None:
    """Wait for the end of a supervisor that has nothing left to do."""
    from daemonkit._system.pidfd import wait_for_end

    state = app.running_state()
    if state and all(one["done"] for one in state["instances"]):
        wait_for_end(state["supervisor"][0], _MARGIN)


def _runs_already(app: App, way_out: str = "") -> str:
    from daemonkit._pidfile.holder import already_running

    holder = _settled_holder(app)
    if holder and not holder.locked_by_daemonkit:
        return _say.in_one_line(already_running(app.pidfile, holder))
    pid = f", as process {holder.pid}" if holder else ""
    return f"{app.name} runs already{pid}; {way_out or f'stop it first: daemonkit stop {app.name}'}"


def _settled_holder(app: App) -> Holder | None:
    """Return its supervisor; of a start that is under way, once the supervisor has taken the place of its caller."""
    from daemonkit._system.pidfd import wait_for_end

    for _ in range(_LOOKS):
        holder = app.holder()
        if holder is None or not holder.locked_by_daemonkit or app.state_of(holder):
            break
        wait_for_end(holder.pid, _app.LOOK)
    return holder


def _become(app: App, settings: Settings, report: int) -> NoReturn:
    """Become the app's supervisor, in the child, or report why it did not start; does not return."""
    from daemonkit import STDOUT, AlreadyRunningError, StartError, detached

    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt_once)
    set_title(f"daemonkit: {app.name}")
    log, *_ = _app.streams_of(settings, app.default_log)
    files = _app.log_paths(settings, app.default_log)
    before = sizes_of(files)
    status, lines, cause = 1, list[str](), ""
    context = None
    try:
        context = detached(
            pidfile=app.pidfile, stdout=log, stderr=STDOUT, prevent_core=False, detach_process=True, wait_ready=True
        )
        with context:
            os.close(report)
            status = _supervise(
                settings, context, app, log, lambda: _last_lines(files, before), must_start=True
            ).exitcode
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except AlreadyRunningError:
        cause = _runs_already(app)
    except StartError as error:
        *lines, reason = error.reason.splitlines() or [str(error)]  # the program's last lines come before the cause
        if error.exitcode == 0:  # a SIGTERM, before any instance ran
            reason = "it was stopped meanwhile"
        cause = f"{app.name} did not start: {reason}; see {' and '.join(files[:2])}"
    except KeyboardInterrupt:
        status = _INTERRUPTED
    except Exception as error:  # noqa: BLE001 - any failure is one line
        cause = _say.in_one_line(error)
    if cause:
        with open(report, "w", encoding="utf-8", closefd=False) as file:
            json.dump([lines, cause], file)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    if context:
        context.close()  # os._exit() runs no exit handler, which would free the pidfile
    os._exit(status)


def _interrupt_once(number: int, _frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # the terminal and the parent may send one each
    raise KeyboardInterrupt


# --- in the foreground -----------------------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> int:
    from daemonkit import AlreadyRunningError

    if options.file:
        from daemonkit.cli._foreground import run_file

        return run_file(options)
    try:
        if options.name is None:
            _run_nameless(settings_of(options))
        else:
            app = App(options.name)
            run_app(app, _settings_to_run(app, options))
    except AlreadyRunningError:
        raise _say.Failure(_runs_already(App(options.name))) from None
    except SystemExit as error:
        if isinstance(error.code, str):
            raise _say.Failure(error.code) from error
        raise


def _settings_to_run(app: App, options: argparse.Namespace) -> Settings:
    """Return the known settings; with a program new ones, in an environment that is laid over the one it had."""
    changes = settings_of(options)
    if not options.command:
        return _known_settings(app, changes, options)
    settings = new_settings(changes)
    before = app.readable_settings()
    if before.get("command") == options.command and not options.update_env:  # a unit that was printed for it, say
        settings["environment"] = before.get("environment", {}) | settings["environment"]
    return settings


def run_app(app: App, settings: Settings) -> NoReturn:
    """Be that app, in the foreground, until it ends; SystemExit with its status."""
    from daemonkit import STDOUT, detached
    from daemonkit.cli import _logview

    _app.make_home()
    if app.holder():
        raise _say.Failure(_runs_already(app))
    own = _app.numbered(settings, _app.number_from_outside(settings))
    check_startable(own, app)
    log, *_ = _app.streams_of(own, app.default_log)
    paths = _app.log_paths(own, app.default_log)
    set_title(f"daemonkit: {app.name}")
    with _logview.shown_meanwhile(paths):
        context = detached(
            pidfile=app.pidfile, stdout=log, stderr=STDOUT, prevent_core=False, detach_process=False, wait_ready=True
        )
        _heed_nohup(context)
        with context:
            sys.exit(_supervise(settings, context, app, log, list, must_start=False).exitcode)


def share_what_supervisors_load() -> None:
    """Load all that a supervisor needs, before several are forked: they share that memory, and start sooner."""
    import gc
    from importlib import import_module

    for name in ("_detach", "_supervise", "cli._supervisor", "cli._title"):
        import_module(f"daemonkit.{name}")
    gc.collect()
    gc.freeze()  # a collection would write to all of it, and so copy it


def keep_in_foreground(name: str, settings: Settings, tell_ready: Callable[[], object], *, app: App | None) -> int:
    """Be that app; what it writes goes to this process's own streams, unless it has a log. Return its exit status.

    That is the program's own, as a shell has it, if it failed. SystemExit too. `tell_ready` is called once it is up.
    Without `app` no other command sees it.
    """
    from daemonkit import detached

    own = _app.numbered(settings, _app.number_from_outside(settings))
    check_startable(own, app)
    set_title(f"daemonkit: {name}")
    log, pidfile = own.get("log"), app.pidfile if app else None
    with detached(pidfile=pidfile, stdout=log, stderr=log, prevent_core=False, detach_process=False):
        summary = _supervise(settings, _Told(tell_ready), app, log, list, must_start=False)
    failed = [one.exitcode for one in summary.instances if one.state in {"failed", "gave-up"} and one.exitcode]
    status = failed[0] if failed else summary.exitcode
    return status if status >= 0 else 128 - status


class _Told:
    """Stands for the context of `detached` where somebody else is told that the app is up."""

    def __init__(self, tell_ready: Callable[[], object]) -> None:
        self._tell_ready = tell_ready

    def ready(self, _status: str) -> None:
        self._tell_ready()


def _run_nameless(given: Settings) -> NoReturn:
    from daemonkit import detached

    settings = _in_a_directory(given) | {"environment": dict(os.environ)}
    own = _app.numbered(settings, _app.number_from_outside(settings))
    check_startable(own)
    log, *_ = _app.streams_of(own, None)
    context = detached(detach_process=False, wait_ready=True, stdout=log, stderr=log, prevent_core=False)
    _heed_nohup(context)
    with context:
        # Also if it is stopped before it is up.
        sys.exit(_supervise(settings, context, None, log, list, must_start=False).exitcode)


def _heed_nohup(context: Any) -> None:  # noqa: ANN401 - a DetachedContext
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # nohup(1): supervise() must see it
        context.signal_map.pop(signal.SIGHUP, None)


def _supervise(  # noqa: PLR0913 - what a supervisor is made of
    settings: Settings,
    context: Any,  # noqa: ANN401 - a DetachedContext
    app: App | None,
    log: str | None,
    last_lines: Any,  # noqa: ANN401 - a callable that returns lines
    *,
    must_start: bool,
) -> Summary:
    from daemonkit.cli import _supervisor

    try:
        return _supervisor.Supervisor(settings, context, app, log, last_lines, must_start=must_start).run()
    except Exception as error:
        raise SystemExit(_say.in_one_line(error)) from error


# --- the program's last lines ----------------------------------------------------------------------------------------


def sizes_of(files: list[str]) -> dict[tuple[int, int], int]:
    """Return their sizes by device and inode, which stay the same when they are rotated."""
    sizes = {}
    for path in (part for file in files for part in (f"{file}.1", file)):
        with contextlib.suppress(OSError):
            info = os.stat(path)
            sizes[info.st_dev, info.st_ino] = info.st_size
    return sizes


def _last_lines(files: list[str], before: dict[tuple[int, int], int]) -> list[str]:
    return lines_since(files, before)[-LAST_LINES:]


def lines_since(files: list[str], before: dict[tuple[int, int], int]) -> list[str]:
    """Return the lines that the program itself has written since `before`, the last ones if they are many."""
    lines: list[str] = []
    for path in (part for file in files for part in (f"{file}.1", file)):
        if not os.path.isfile(path):
            continue
        with contextlib.suppress(OSError), open(path, "rb") as file:
            info = os.fstat(file.fileno())
            file.seek(max(before.get((info.st_dev, info.st_ino), 0), info.st_size - _LAST_BYTES))
            lines += file.read().decode(errors="backslashreplace").splitlines()
    return [line for line in lines if not line.startswith(_say.OWN)]


# --- without a supervisor --------------------------------------------------------------------------------------------


def spawn(options: argparse.Namespace) -> int:
    from daemonkit import STDOUT, AlreadyRunningError, spawn_detached

    try:
        process = spawn_detached(options.command, stdout=options.log, stderr=STDOUT, pidfile=options.pidfile)
    except AlreadyRunningError as error:  # which names the library's way out
        command = shlex.join(["daemonkit", "stop", "--pidfile", options.pidfile])
        raise _say.Failure(str(error).replace(f"with daemonkit.stop({error.path!r})", f"with: {command}")) from error
    print(process.pid)
    return 0
