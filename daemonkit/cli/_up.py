"""`daemonkit up` and `down`: the apps of a file, made to run as it says, or stopped."""

from __future__ import annotations

import contextlib
import os
import sys

from daemonkit.cli import _app, _appfile, _plan, _report, _say
from daemonkit.cli._app import App
from daemonkit.cli._plan import CHANGE, FORGET, GONE, KEEP, START, Found

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping
    from typing import Final

    from daemonkit.cli._app import Settings
    from daemonkit.cli._appfile import AppFile, Wish
    from daemonkit.cli._plan import Step
    from daemonkit.cli._tasks import Outcome, Task

_TRIES: Final = 5  # somebody else may have started or stopped the app since it was looked at
_UNDER_WAY: Final = {START: "is starting", CHANGE: "is changing", FORGET: "is stopping", KEEP: "is looked at"}
_WOULD: Final = {START: "would be started", CHANGE: "would be changed", FORGET: "would be stopped and forgotten"}


# --- up -------------------------------------------------------------------------------------------------------------


def up(options: argparse.Namespace) -> int:
    file = _appfile.recall(_appfile.find(options.file))
    environment = _present_environment() if options.update_env else None

    def planned() -> dict[str, Step]:
        return _plan.plan(file, look(file), names=options.names, prune=options.prune, environment=environment)

    steps = planned()
    if options.dry_run:
        for name, step in steps.items():
            print(f"{name}: {_WOULD[step.do]}{_reasons(step.why)}" if step.do in _WOULD else _kept(name, step, file)[0])
        return 0
    if file.texts or any(step.do in _WOULD for step in steps.values()):
        _app.make_home()
        _appfile.remember(file)
    if any(step.do in _WOULD for step in steps.values()):
        with turn(file.path):
            file = _appfile.recall(file.path)  # it may have been changed while somebody else was at it
            return _make_it_so(file, planned(), environment)
    kept = [_kept(name, step, file) for name, step in steps.items()]
    print("\n".join(line for line, _ in kept))
    return 0 if all(well for _, well in kept) else 1


def _present_environment() -> dict[str, str]:
    from daemonkit.cli._settings import present_environment

    return present_environment()


def look(file: AppFile) -> dict[str, Found]:
    """Return the apps that there are, of those that the file names or owns.

    One that somebody starts for the first time this very moment is left out: its settings are kept once it is up.
    """
    found = {}
    for app in _app.apps():
        try:
            one = _found(app, file.path)
        except LookupError:
            continue
        except (ValueError, OSError):  # it is damaged
            if app.name in file.apps:
                raise
            continue
        if app.name in file.apps or one.settings.get("file") == file.path:
            found[app.name] = one
    return found


def _found(app: App, path: str) -> Found:
    """Return how an app is; LookupError. If it is of this very file, by another name, it is the file's own."""
    settings = app.settings()
    if (owner := settings.get("file")) not in {None, path}:
        with contextlib.suppress(OSError):
            if os.path.samefile(owner, path):
                settings["file"] = path
    return Found(settings, _report.report(app)["state"])


def _kept(name: str, step: Step, file: AppFile) -> tuple[str, bool]:
    """Return the line for an app that is left as it is, and whether it is as it should be."""
    if step.do == GONE:
        forget = f"daemonkit up --prune stops and forgets it, daemonkit delete {name} too"
        return f"{name}: is no longer in {os.path.basename(file.path)}; {forget}", True
    report = _report.report(App(name))
    if report["state"] in {"running", "starting"}:
        return f"{name}: is as it should be, {_report.up_of(report)} up", True
    if report["state"] == "done":
        return f"{name}: is done", True
    return f"{name}: is {report['state']}, {_report.up_of(report)} up; see daemonkit logs {name}", False


def _reasons(why: tuple[str, ...]) -> str:
    return f" ({', '.join(why)})" if why else ""


def _make_it_so(file: AppFile, steps: Mapping[str, Step], environment: dict[str, str] | None) -> int:
    """Carry out the steps; return the exit status."""
    from daemonkit.cli import _start, _tasks

    if START in {step.do for step in steps.values()}:
        _start.share_what_supervisors_load()
    for name, step in steps.items():
        if step.do == GONE:
            print(_kept(name, step, file)[0])
    todo = {name: step for name, step in steps.items() if step.do != GONE}

    def task(name: str, step: Step) -> Task:
        if step.do == FORGET:
            return lambda: _forget(App(name))
        return lambda: bring(App(name), file.apps[name], file.path, environment)

    try:
        outcomes, left_out = _tasks.carry_out(
            {name: (_UNDER_WAY[step.do], task(name, step)) for name, step in todo.items()},
            _plan.Schedule({name: step.after for name, step in todo.items()}),
            _tell,
        )
    except KeyboardInterrupt:
        missing = [name for name in todo if not _is_there(name, file)]
        text = (
            f"not as the file says: {', '.join(missing)}; go on with daemonkit up"
            if missing
            else "all is as the file says"
        )
        raise _say.Interrupted(text) from None
    for name, other in left_out.items():
        _say.say(f"{name} is left as it was: it comes after {other}, which is not up")
    failed = [name for name, outcome in outcomes.items() if not outcome.done]
    if failed:
        _say.say(f"not as {os.path.basename(file.path)} says: {', '.join([*failed, *left_out])}")
    return 1 if failed else 0


def _is_there(name: str, file: AppFile) -> bool:
    """Tell whether an app is as the file says."""
    with contextlib.suppress(LookupError, ValueError, OSError):
        found = _found(App(name), file.path)
        if name in file.apps:
            return _plan.decide(file.apps[name].settings, found, None)[0] == KEEP
    return name not in file.apps


def _tell(name: str, outcome: Outcome) -> None:
    """Print how a task ended."""
    sys.stderr.write(outcome.messages)
    sys.stderr.flush()
    if outcome.done:
        print(f"{name}: {outcome.done}", flush=True)


# --- one app, in a process of its own -------------------------------------------------------------------------------


def bring(app: App, wish: Wish, path: str, environment: dict[str, str] | None) -> str:
    """Make an app run as it is wished; return what was done, "" if that failed, for a reason that was printed."""
    from daemonkit.cli._start import start_app

    for _ in range(_TRIES):
        found = _settled(app, path)
        if found:
            _plan.refuse_foreign(app.name, found.settings, path)
        do, why = _plan.decide(wish.settings, found, environment)
        if do == KEEP:
            line, well = _kept(app.name, _plan.Step(KEEP), _appfile.AppFile(path, {}))
            if not well:
                _say.say(line)
            return line.partition(": ")[2] if well else ""
        before = found.settings.get("environment") if found else None
        settings = wish.settings | {"file": path, "after": [*wish.after]}
        settings["environment"] = environment or before or _present_environment()
        if do == CHANGE:
            return _change(app, settings, why)
        try:
            start_app(app, settings)
        except _say.Failure:
            if not app.holder():  # else somebody else has started it meanwhile
                raise
        else:
            return _outcome("started", app, why)
    return ""


def _settled(app: App, path: str) -> Found | None:
    """Return how an app is, once a start that is under way is decided; None if there is none."""
    from daemonkit._system.pidfd import wait_for_end

    while True:
        holder = app.holder()
        try:
            found = _found(app, path)
        except LookupError:  # also while it is started for the first time
            if holder is None:
                return None
        else:
            if found.state != "starting" or holder is None:
                return found
        wait_for_end(holder.pid, _app.LOOK)


def _change(app: App, settings: Settings, why: tuple[str, ...]) -> str:
    from daemonkit.cli._change import reload_app

    before = app.holder()
    reload_app(app, settings)  # or restart, where that is what it takes
    after = app.holder()
    rolled = before and after and before.pid == after.pid
    return _outcome("reloaded" if rolled else "restarted", app, why)


def _outcome(word: str, app: App, why: tuple[str, ...]) -> str:
    from daemonkit.cli._start import wait_if_done

    wait_if_done(app)
    report = _report.report(app)
    how = f"{_report.up_of(report)} up, pid {report['pid']}" if report["pid"] else "done"
    return f"{word}{_reasons(why)}, {how}"


def _forget(app: App) -> str:
    from daemonkit.cli._change import delete_app

    delete_app(app)
    return "stopped and forgotten, as it is no longer in the file"


# --- down -----------------------------------------------------------------------------------------------------------


def down(options: argparse.Namespace) -> int:
    from daemonkit.cli import _tasks

    path = _appfile.find(options.file)
    with turn(path):
        known = _order_of(path)
        before = {name: [other for other, after in known.items() if name in after] for name in known}

        def task(app: App) -> Task:
            return lambda: _stop_one(app)

        tasks = {name: ("is stopping", task(App(name))) for name in known}
        try:
            outcomes, left_out = _tasks.carry_out(tasks, _plan.Schedule(before), _tell)
        except KeyboardInterrupt:
            up = [name for name in known if App(name).holder()]
            raise _say.Interrupted(f"still up: {', '.join(up)}" if up else "all are stopped") from None
    for name, other in left_out.items():
        _say.say(f"{name} is left as it was: {other}, which comes after it, is not stopped")
    if not known:
        _say.say(f"no app of {path} is known; daemonkit up starts them")
    return 0 if all(outcome.done for outcome in outcomes.values()) else 1


def _order_of(path: str) -> dict[str, list[str]]:
    """Return the known apps of a file, each with those that it comes after: as the file says, or as it said."""
    wished: dict[str, Wish] = {}
    with contextlib.suppress(ValueError, OSError):  # it need not be there any more
        wished = _appfile.read(path).apps
    kept: dict[str, list[str]] = {}
    for app in _app.apps():
        with contextlib.suppress(LookupError, ValueError, OSError):
            found = _settled(app, path) if app.name in wished else _found(app, path)
            if found and found.settings.get("file") == path:
                kept[app.name] = list(found.settings.get("after", []))
    return {name: [*wished[name].after] if name in wished else after for name, after in kept.items()}


def _stop_one(app: App) -> str:
    from daemonkit.cli._change import stop_app

    if not app.holder():
        return "does not run"
    stop_app(app)
    return "stopped"


# --- one at a time --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def turn(path: str) -> Iterator[None]:
    """Wait until nobody else changes the apps of this file, and keep others from it meanwhile."""
    from daemonkit import AlreadyRunningError, PidFile
    from daemonkit.cli._remembered import path_for

    _app.make_home()
    lock = PidFile(path_for(path, "turn"))  # two files with one number wait for each other, for nothing
    try:
        lock.acquire()
    except AlreadyRunningError as error:
        _say.say(f"{path} is being brought up or down by process {error.pid}; waiting for it")
        lock.acquire(timeout=None)
    try:
        yield
    finally:
        lock.release()
