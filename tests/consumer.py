"""A program of somebody who type-checks strictly. It is read by mypy (test_package.py), never run.

Uses that must be refused carry `type: ignore` with the error that is meant: under --strict one too many is an error too.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, assert_type

import daemonkit

if TYPE_CHECKING:
    from collections.abc import Sequence


def become() -> None:
    with daemonkit.detached(pidfile=Path("app.pid"), stdout="app.log", stderr=daemonkit.STDOUT) as d:
        assert_type(d, daemonkit.DetachedContext)
        assert_type(d.detached, bool)
        assert_type(d.pid, int | None)
        d.ready("listening")
        d.ready()
        d.reopen()
    with daemonkit.detached(
        pidfile=daemonkit.PidFile("app.pid", timeout=3),
        stdin=daemonkit.DEVNULL,
        stderr=2,
        working_directory=b"/",
        chroot_directory=None,
        umask=0o027,
        uid="daemon",
        gid=1,
        initgroups=False,
        prevent_core=False,
        close_fds="all",
        files_preserve=[3, None],
        detach_process=False,
        wait_ready=True,
        start_timeout=1.5,
        signal_map={"SIGHUP": "reopen", signal.SIGTERM: "terminate", signal.SIGUSR1: None},
    ):
        pass
    daemonkit.detached("app.pid")  # type: ignore[call-arg]
    daemonkit.detached(pidfile=3)  # type: ignore[arg-type]
    daemonkit.detached(close_fds=True)  # type: ignore[arg-type]
    daemonkit.detached(umask="022")  # type: ignore[arg-type]
    daemonkit.detached(pid_file="app.pid")  # type: ignore[call-arg]


def launch() -> None:
    p = daemonkit.spawn_detached(
        ["b", Path("x"), b"y"], cwd="/", env={"A": "b"}, stdout=daemonkit.PIPE, pidfile="b.pid"
    )
    assert_type(p, daemonkit.DetachedProcess)
    assert_type(p.pid, int)
    assert_type(p.running, bool)
    assert_type(p.returncode, int | None)
    assert_type(p.poll(), int | None)
    assert_type(p.wait(timeout=1.0), int | None)
    assert_type(p.stdout, IO[bytes] | None)
    assert_type(p.fileno(), int)
    p.send_signal(signal.SIGTERM, group=True)
    p.terminate()
    p.kill()
    select.select([p], [], [])
    asyncio.new_event_loop().add_reader(p, print)
    daemonkit.spawn_detached("echo $A", shell=True, input=b"text", user="daemon", group=1, extra_groups=(), umask=0o22)
    daemonkit.spawn_detached(["a"], stdin=daemonkit.INHERIT, stderr=daemonkit.STDOUT, executable="b", pass_fds=[3])
    daemonkit.spawn_detached(["a"], env=os.environ)
    daemonkit.spawn_detached()  # type: ignore[call-arg]
    daemonkit.spawn_detached(["a"], "b")  # type: ignore[call-arg]
    daemonkit.spawn_detached([1])  # type: ignore[list-item]
    daemonkit.spawn_detached(["a"], input="text")  # type: ignore[arg-type]
    p.send_signal("TERM")  # type: ignore[arg-type]


def look_after() -> None:
    status = daemonkit.status("app.pid")
    assert_type(status, daemonkit.Status)
    assert_type(status.running, bool)
    assert_type(status.pid, int | None)
    assert_type(status.started, datetime | None)
    assert_type(daemonkit.stop(Path("app.pid"), timeout=None, signal=signal.SIGINT, kill=False), bool)
    assert_type(daemonkit.attach(daemonkit.PidFile("app.pid")), daemonkit.DetachedProcess)
    daemonkit.send_signal("app.pid", signal.SIGHUP)
    status.running = True  # type: ignore[misc]
    daemonkit.stop("app.pid", 10.0, signal.SIGTERM)  # type: ignore[call-arg]
    daemonkit.stop(4242)  # type: ignore[arg-type]
    daemonkit.send_signal("app.pid")  # type: ignore[call-arg]


def serve(argv: list[str]) -> int:
    def work(daemon: daemonkit.DetachedContext) -> None:
        daemon.ready()

    async def loop(daemon: daemonkit.DetachedContext) -> None:
        daemon.ready()

    async def reload() -> None:
        pass

    service = daemonkit.Service(
        work, pidfile=Path("app.pid"), stdout="app.log", stderr=daemonkit.STDOUT, wait_ready=True, name="app",
        stop_timeout=None, start_timeout=3, signal_map={"SIGHUP": reload, signal.SIGUSR1: None}, umask=0o027,
    )  # fmt: skip
    assert_type(service.start(), int)
    assert_type(service.restart(), int)
    assert_type(service.stop(), bool)
    assert_type(service.status(), daemonkit.Status)
    service.reload()
    service.run()
    assert_type(service.commands, dict[str, Callable[[], None]])
    daemonkit.Service(loop, pidfile=daemonkit.PidFile("app.pid"))
    daemonkit.Service(lambda: None, pidfile="app.pid")
    daemonkit.Service(work)  # type: ignore[call-arg]
    daemonkit.Service(work, pidfile="app.pid", stdot="app.log")  # type: ignore[call-arg]
    daemonkit.Service(work, pidfile="app.pid", umask="022")  # type: ignore[arg-type]
    daemonkit.Service("work", pidfile="app.pid")  # type: ignore[arg-type]
    daemonkit.Service(work, "app.pid")  # type: ignore[call-arg]
    return service.main(argv)


def lock() -> None:
    with daemonkit.PidFile("job.pid", timeout=None) as held:
        assert_type(held, daemonkit.PidFile)
        assert_type(held.read_pid(), int | None)
        assert_type(held.is_locked(), bool)
        assert_type(held.i_am_locking(), bool)
        held.break_lock()
    held.acquire(timeout=0.5)
    held.release()
    daemonkit.PidFile(3)  # type: ignore[arg-type]


def keep_running(command: Sequence[str]) -> None:
    def tell(event: daemonkit.Event) -> None:
        assert_type(event.instance, int)
        assert_type(
            event.kind, Literal["start", "ready", "exit", "gave-up", "reload-failed", "memory", "watchdog", "unhealthy"]
        )
        assert_type(event.pid, int)
        assert_type(event.exitcode, int | None)
        assert_type(event.time, float)

    summary = daemonkit.supervise(
        command,
        instances="auto",
        restart="always",
        success_codes={0, 3},
        backoff=daemonkit.Backoff(initial=0.5, factor=2, maximum=10),
        min_uptime=2,
        max_restarts=5,
        stop_signal=signal.SIGINT,
        stop_timeout=3.0,
        wait_ready=True,
        start_timeout=10,
        watchdog=5.0,
        max_memory=1 << 30,
        cpu_affinity="spread",
        listen=("127.0.0.1:8000", "unix:web.sock"),
        cwd=Path("/"),
        env={b"A": b"b"},
        user="daemon",
        group="daemon",
        umask=0o022,
        stdin=daemonkit.DEVNULL,
        stdout="web.{instance}.log",
        stderr=daemonkit.STDOUT,
        log_max_bytes=1_000_000,
        log_backups=3,
        on_event=tell,
    )
    assert_type(summary, daemonkit.Summary)
    assert_type(summary.exitcode, int)
    assert_type(summary.instances, tuple[daemonkit.InstanceRecord, ...])
    record = summary.instances[0]
    assert_type((record.index, record.starts, record.exitcode), tuple[int, int, int | None])
    assert_type(record.state, Literal["running", "backoff", "exited", "stopped", "failed", "gave-up"])
    daemonkit.supervise(lambda: None, listen="[::1]:0")
    summary.exitcode = 3  # type: ignore[misc]
    daemonkit.supervise(command, restart="sometimes")  # type: ignore[arg-type]
    daemonkit.supervise(command, instances="all")  # type: ignore[arg-type]
    daemonkit.supervise(command, 4)  # type: ignore[call-arg]
    daemonkit.supervise(len)  # type: ignore[arg-type]


def fail() -> dict[str, Any]:
    try:
        become()
    except daemonkit.AlreadyRunningError as error:
        assert_type((error.path, error.pid), tuple[str | None, int | None])
    except daemonkit.StartTimeoutError as error:
        timeout: TimeoutError = error
        return {"timeout": timeout}
    except daemonkit.StartError as error:
        assert_type((error.traceback, error.exitcode), tuple[str, int | None])
    except daemonkit.NotRunningError as error:
        lookup: ProcessLookupError = error
        assert_type(error.path, str | None)
        return {"lookup": lookup}
    except daemonkit.StopTimeoutError as error:
        assert_type(error.pid, int | None)
    except daemonkit.DaemonkitError as other:
        print(other.pid)  # type: ignore[attr-defined]
    daemonkit.spwan_detached([])  # type: ignore[attr-defined]
    return {}
