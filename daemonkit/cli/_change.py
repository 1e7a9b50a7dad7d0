"""The commands that change what runs: `daemonkit stop`, `restart`, `reload` and `delete`."""

from __future__ import annotations

import contextlib
import os
import signal

from daemonkit.cli import _app, _say
from daemonkit.cli._app import App
from daemonkit.cli._journal import DONE, UNDER_WAY
from daemonkit.cli._settings import check_startable, laid_over, present_environment
from daemonkit.cli._start import LAST_LINES, lines_since, outcome, sizes_of, start_app

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping
    from typing import Any, Final

    from daemonkit.cli._app import Settings

_PORT_TAKEN: Final = ("address already in use", "eaddrinuse")  # strerror(3), and Node's word


def stop_app(app: App, *, for_good: bool = True) -> bool:
    """Stop it, and have it stay stopped; return whether it ended on request, without a SIGKILL.

    Nothing is done if it does not run. LookupError if there is no such app; NotRunningError if another tool runs it.
    """
    from daemonkit import NotRunningError, stop

    settings = app.readable_settings()
    app.must_be_known()
    if for_good:
        app.stay_stopped(True)
    holder = app.holder()
    try:
        with _say.progress(f"stopping {app.name}"):
            in_time = stop(app.pidfile, float(settings.get("stop_timeout", 10.0)) + _app.MARGIN)
    except NotRunningError:
        if app.holder():  # another tool's process, or one in another PID namespace
            raise
        return True
    except KeyboardInterrupt:
        raise _say.Interrupted(f"{app.name} is being stopped") from None
    state = app.last_state()
    killed = [i for i, one in enumerate(state.get("instances", ())) if _was_killed(one)]
    if in_time and not (killed and holder and state.get("supervisor", [0])[0] == holder.pid):
        return True
    what = f"instance {', '.join(map(str, killed))} of {app.name}" if in_time else app.name
    _say.say(f"{what} did not end within {settings.get('stop_timeout', 10):g} s, and was killed (SIGKILL)")
    return False


def _was_killed(one: Mapping[str, Any]) -> bool:
    return one.get("state") == "stopped" and one.get("exitcode") == -signal.SIGKILL


def restart_app(app: App, settings: Settings) -> None:
    """Stop it and start it with these settings; nothing is stopped that could not be started again."""
    instead = f"use: daemonkit reload {app.name}"
    if is_inside(app):
        raise _say.Failure(f"{app.name} can't be restarted by a process of its own, which ends with it; {instead}")
    if (state := app.running_state()) and state.get("foreground"):
        pid = state["supervisor"][0]
        raise _say.Failure(f"{app.name} runs in the foreground, as process {pid}; restart it there, or {instead}")
    _app.make_home()
    check_startable(settings, app)
    try:
        stop_app(app, for_good=False)
    except _say.Interrupted as error:
        raise _say.Interrupted(f"{error}, and will not be started again") from None
    start_app(app, settings)


def is_inside(app: App) -> bool:
    """Tell whether this process belongs to the app, and ends with it: not if it was set free, as another app is."""
    from daemonkit._system.process import parent_of
    from daemonkit._system.run_mark import FREE, mark_of, supervisor_of

    holder = app.holder()
    pid: int | None = os.getpid()
    while holder and pid:
        if pid == holder.pid:
            return True
        if mark := mark_of(pid):  # the others, as sudo(8) and su(1), have lost it: their parents tell
            return mark != FREE and supervisor_of(mark) == holder.pid
        pid = parent_of(pid)
    return False


def delete_app(app: App) -> None:
    """Stop it and forget it."""
    if is_inside(app):
        raise _say.Failure(f"{app.name} can't be deleted by a process of its own, which ends with it")
    if not app.has_left_a_log:
        app.must_be_known()
    if app.is_known:
        stop_app(app)
    app.forget()


# --- the commands ----------------------------------------------------------------------------------------------------


def _stop(app: App, _options: argparse.Namespace) -> None:
    stop_app(app)


def _restart(app: App, options: argparse.Namespace) -> None:
    settings = app.settings()
    if options.update_env:
        settings["environment"] = present_environment()
    restart_app(app, settings)
    print(outcome(app))


def _delete(app: App, _options: argparse.Namespace) -> None:
    delete_app(app)


def _reload(app: App, options: argparse.Namespace) -> None:
    from daemonkit.cli._options import settings_of

    changes = settings_of(options)
    with app.changing():
        settings = laid_over(app.settings(), changes) if changes or options.update_env else None
        if settings and options.update_env:
            settings["environment"] = present_environment()
        reload_app(app, settings)


def scale(options: argparse.Namespace) -> int:
    app = App(options.name)
    with app.changing():
        reload_app(app, app.settings() | {"instances": options.count})
    print(outcome(app))
    return 0


def reload_app(app: App, settings: Settings | None = None) -> None:
    """Restart its instances one at a time, with other settings if they are given; return once that is done.

    Raises Failure if a new run does not come up: the old ones stay, and the old settings too. LookupError, OSError and
    ValueError for settings that can't be; nothing is changed then.
    """
    from daemonkit import attach

    app.must_be_known()
    if not app.holder():
        raise _say.Failure(f"{app.name} does not run; start it with: daemonkit start {app.name}")
    if settings:
        check_startable(settings, app)
    process, state = attach(app.pidfile), app.running_state()
    if state and "reload" not in state:
        raise _say.Failure(f"{app.name} was started by daemonkit 0.1; restart it once: daemonkit restart {app.name}")
    if settings and state:
        app.propose(settings)
    number = state["reload"]["number"] if state else 0
    before = sizes_of(app.logs())
    process.send_signal(signal.SIGHUP)
    with _say.progress(f"reloading {app.name}"):
        while state and (now := app.running_state()):
            if now["reload"]["number"] > number and now["reload"]["outcome"] != UNDER_WAY:
                _check_outcome(app, now["reload"], before)
                return
            process.wait_for_end(_app.LOOK)
    if not process.running:
        raise _say.Failure(f"{app.name} ended during the reload; see {app.logs()[0]}")
    raise _say.Failure(
        f"{app.name} reloads, but its state can't be read, so the outcome is unknown; is {_app.home()} full?"
    )


def _check_outcome(app: App, reload: Mapping[str, Any], before: dict[tuple[int, int], int]) -> None:
    if reload["outcome"] == DONE:
        return
    lines = lines_since(app.logs(), before)
    said = "\n".join(lines).lower()
    instead = ""
    if any(words in said for words in _PORT_TAKEN):
        instead = f"; they have its port: use daemonkit restart {app.name}, or have daemonkit bind it (--listen)"
    why = str(reload.get("why"))
    died = why.startswith("a new run")  # else the lines are those of the old runs, which have nothing to do with it
    cause = f"{app.name} was not reloaded: {why}{instead}; see {app.logs()[0]}"
    raise _say.Failure(cause, lines[-LAST_LINES:] if died else ())


def signal_app(app: App, number: int) -> None:
    """Send a signal to the main process of each instance."""
    from daemonkit._system.process import parent_of

    app.must_be_known()
    state = app.running_state()
    if not state:
        raise _say.Failure(f"{app.name} does not run; start it with: daemonkit start {app.name}")
    supervisor, _ = state["supervisor"]
    sent = 0
    for one in state["instances"]:
        for pid in one["up"] or one["runs"]:
            with contextlib.suppress(ProcessLookupError):  # it has ended
                pidfd = os.pidfd_open(pid)
                try:
                    # Looked at after the pidfd was opened: so it is that process, whoever had the number before.
                    if parent_of(parent_of(pid) or 0) == supervisor:
                        signal.pidfd_send_signal(pidfd, number)
                        sent += 1
                finally:
                    os.close(pidfd)
    if not sent:
        raise _say.Failure(f"no instance of {app.name} runs; see: daemonkit status {app.name}")


def _signal(app: App, options: argparse.Namespace) -> None:
    signal_app(app, options.number)


_VERBS: Final = {"signal": _signal, "stop": _stop, "restart": _restart, "reload": _reload, "delete": _delete}


def _signal_number(text: str) -> int:
    from daemonkit.cli._options import signal_number

    try:
        return signal_number(text)
    except (ValueError, KeyError):
        raise _say.Usage(f"invalid SIG: {text!r}; see: daemonkit signal --help") from None


def each(options: argparse.Namespace) -> int:
    """Run the command for each app that was named; return the worst status."""
    if options.verb == "signal":
        options.number = _signal_number(options.signal)
    if getattr(options, "pidfile", None):
        from daemonkit.cli import _daemons

        if options.names or options.all:
            raise _say.Usage("give either names of apps or --pidfile F; see: daemonkit stop --help")
        _daemons.stop_daemon(options.pidfile)
        return 0
    if bool(options.names) == options.all:
        raise _say.Usage(f"give either names of apps or --all; see: daemonkit {options.verb} --help")
    apps = _app.apps() if options.all else _app.select(options.names)
    return _say.for_each(apps, lambda app: _VERBS[options.verb](app, options), debug=options.debug)
