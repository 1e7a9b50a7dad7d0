"""Arbitrary pidfiles, arguments, and an app's files: an ordinary answer or an ordinary exception, and nothing changed."""

from __future__ import annotations

import logging
import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import common
import harness
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import daemonkit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from common import Account, Run

ORDINARY = (TypeError, ValueError, OSError, LookupError, RuntimeError, daemonkit.DaemonkitError)
QUIET = settings(max_examples=50, deadline=None, database=None, suppress_health_check=list(HealthCheck))

PIDFILES = st.one_of(
    st.binary(max_size=200),
    st.integers().map(lambda number: b"%d\n" % number),
    st.sampled_from(
        [b"%d\n" % os.getpid(), b"1\n", b" 1 \n", b"\n1\n", b"1", b"0\n", b"-1\n", b"1\n2\n", b"4194305\n", b"9" * 5000]
    ),
)

ODD: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.binary(max_size=8),
    st.sampled_from([-1, -2, -3, -4, 0, 1, 2, 10**30, "", "/", "\0", "..", "/no/such", float("inf"), float("nan"), object(), len]),
    st.lists(st.one_of(st.none(), st.integers(), st.text(max_size=4)), max_size=3),
    st.dictionaries(st.one_of(st.text(max_size=3), st.integers()), st.one_of(st.text(max_size=3), st.integers()), max_size=2),
)  # fmt: skip

SPAWN = "stdin stdout stderr input cwd env executable shell umask pass_fds user group extra_groups pidfile".split()
DETACHED = (
    "pidfile stdin stdout stderr working_directory chroot_directory umask uid gid initgroups prevent_core close_fds "
    "files_preserve detach_process wait_ready start_timeout signal_map"
).split()
SUPERVISE = (
    "instances restart success_codes backoff min_uptime max_restarts stop_signal stop_timeout wait_ready start_timeout "
    "watchdog max_memory cpu_affinity listen cwd env user group umask stdin stdout stderr log_max_bytes log_backups on_event"
).split()


def some(names: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    """One to three of the options, with odd values."""
    return st.dictionaries(st.sampled_from(names), ODD, min_size=1, max_size=3)


def fuzz(run: Run) -> None:
    """Try all of it until the time is over."""
    accounts = {name: run.account(f"fuzz: {name}") for name in ("pidfiles", "arguments", "an app's files")}
    logging.disable()
    folder = run.folder / "fuzz"
    folder.mkdir()
    os.chdir(folder)
    for _ in run.until(run.seconds):
        _pidfiles(accounts["pidfiles"], folder)
        _arguments(accounts["arguments"])
        _apps(accounts["an app's files"], folder)
        common.reap()
    os.chdir("/")


def _judge(account: Account, what: str, action: Callable[[], object]) -> None:
    before = set(harness.children())
    fault = None
    try:
        action()
    except ORDINARY:
        pass
    except BaseException as error:
        fault = f"{what}: {type(error).__name__}: {error}"
    left = common.strays(before) if set(harness.children()) - before else []
    common.end(left)
    account.count(fault, 0 if what.startswith("spawn") else len(left))


def _pidfiles(account: Account, folder: Path) -> None:
    path = folder / "app.pid"

    @QUIET
    @given(PIDFILES, st.integers(0, 2**31))
    def check(text: bytes, changed: int) -> None:
        path.write_bytes(text)
        os.utime(path, (changed, changed))
        before = path.stat()
        daemonkit.status(path)
        after = path.stat()  # all of it but the access time
        same = (before.st_ino, before.st_mtime_ns, before.st_ctime_ns) == (
            after.st_ino,
            after.st_mtime_ns,
            after.st_ctime_ns,
        )
        fault = None if same and path.read_bytes() == text else f"status() changed {text!r}"
        with suppress(daemonkit.NotRunningError):
            daemonkit.send_signal(path, signal.SIGKILL)
            fault = f"a signal was sent for {text!r}"
        try:
            with daemonkit.PidFile(path) as lock:
                fault = fault or (None if lock.read_pid() == os.getpid() else f"{text!r} is not taken over")
        except daemonkit.AlreadyRunningError:  # the courtesy to other tools: it names a process that is older
            fault = fault or (None if daemonkit.status(path) else f"{text!r} is held by nobody, and can't be had")
        account.count(fault)

    check()


def _arguments(account: Account) -> None:
    @QUIET
    @given(ODD, some(SPAWN))
    def spawn(args: object, options: dict[str, Any]) -> None:
        command = ["true"] if options else args
        _judge(
            account, f"spawn_detached({command!r}, **{options!r})", lambda: daemonkit.spawn_detached(command, **options)
        )  # type: ignore[arg-type]

    @QUIET
    @given(some(DETACHED))
    def detached(options: dict[str, Any]) -> None:
        _judge(account, f"detached(**{options!r})", lambda: daemonkit.detached(**options))

    @QUIET
    @given(some(SUPERVISE))
    def supervise(options: dict[str, Any]) -> None:
        if options.get("instances", 1) not in range(5) or options.get("min_uptime", 1) is None:
            options = {**options, "instances": 1}
        options = {"max_restarts": 1, **options}
        _judge(account, f"supervise(**{options!r})", lambda: daemonkit.supervise(["true"], **options))

    @QUIET
    @given(ODD, ODD)
    def control(pidfile: Any, other: Any) -> None:
        for call in (
            lambda: daemonkit.status(pidfile),
            lambda: daemonkit.attach(pidfile),
            lambda: daemonkit.send_signal(pidfile, other),
            lambda: daemonkit.stop(pidfile, other),
            lambda: daemonkit.PidFile(pidfile, other),
            lambda: daemonkit.Backoff(pidfile, other),
        ):
            _judge(account, f"control of {pidfile!r} with {other!r}", call)

    for check in (spawn, detached, supervise, control):
        check()


JSON: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                [
                    "supervisor",
                    "instances",
                    "runs",
                    "up",
                    "starts",
                    "failed",
                    "done",
                    "ready",
                    "exitcode",
                    "reload",
                    "number",
                    "outcome",
                    "command",
                    "log",
                    "logs",
                    "stdout",
                    "ended",
                    "state",
                    "cwd",
                    "exited_at",
                ]
            ),
            inner,
            max_size=5,
        ),
    ),
    max_leaves=12,
)


def _apps(account: Account, folder: Path) -> None:
    import json

    from daemonkit.cli import _app, _report

    os.environ["DAEMONKIT_HOME"] = str(folder / "home")
    _app.make_home()
    app = _app.App("web")

    @QUIET
    @given(st.one_of(st.binary(max_size=80), JSON.map(lambda value: json.dumps(value).encode())), JSON)
    def check(state: bytes, settings_: Any) -> None:
        (folder / "home" / "web.state").write_bytes(state)
        (folder / "home" / "web.json").write_text(json.dumps(settings_))
        fault = None
        try:
            report = _report.full_report(app)
            if report["pid"] is not None or report["up"] or report["state"] not in {"stopped", "done", "failed"}:
                fault = f"{report} of {state!r}"
            app.running_state(), app.logs()
            with suppress(ValueError):
                app.settings()
        except Exception as error:
            fault = f"{type(error).__name__}: {error} of {state!r}, {settings_!r}"
        account.count(fault)

    check()
