"""A service whose target is a coroutine function, or runs an event loop of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import harness
import pytest
from harness import alive, ended, eventually, pid_in, run, stop, write

import daemonkit

if TYPE_CHECKING:
    from pathlib import Path

MAIN = """
import asyncio

class Connection:
    async def __aenter__(self):
        print("opened")
    async def __aexit__(self, *exc):
        await asyncio.sleep(0.01)
        print("closed", exc[0] and exc[0].__name__)

async def other():
    try:
        await asyncio.sleep(1000)
    finally:
        print("the other task's finally")

async def main(daemon):
    task = asyncio.create_task(other())
    async with Connection():
        try:
            daemon.ready("the loop runs")
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(0.01)
            print("finally")

OPTIONS = dict(pidfile="app.pid", stdout="app.log", stderr=daemonkit.STDOUT, wait_ready=True)
"""


def _lines(tmp_path: Path) -> list[str]:
    return (tmp_path / "app.log").read_text().splitlines()


def test_sigterm_cancels_the_task_so_that_finally_and_async_with_run_and_the_status_is_0(tmp_path: Path) -> None:
    done = run(tmp_path, MAIN + "print(daemonkit.Service(main, **OPTIONS).start())")
    assert done.stderr == "" and stop(int(done.stdout)) == 0
    assert _lines(tmp_path) == ["opened", "finally", "closed CancelledError", "the other task's finally"]
    assert not (tmp_path / "app.pid").exists()


@pytest.mark.parametrize(
    ("end", "status", "shown"),
    [("return", 0, None), ("raise SystemExit(3)", 3, None), ("raise ValueError('gone')", 1, "ValueError: gone"),
     ("asyncio.current_task().cancel(); await asyncio.sleep(1)", 1, "CancelledError")],
)  # fmt: skip
def test_the_status_is_that_of_the_coroutine(tmp_path: Path, end: str, status: int, shown: str | None) -> None:
    body = MAIN.replace("await asyncio.sleep(1000)\n        finally", f"{end}\n        finally")
    done = run(tmp_path, body + "print(daemonkit.Service(main, **OPTIONS).start())")
    assert done.stderr == "" and ended(int(done.stdout)) == status
    assert "finally" in _lines(tmp_path)
    assert (shown is None) == ("Traceback" not in "".join(_lines(tmp_path))) and (shown or "") in "".join(
        _lines(tmp_path)
    )


def test_a_sigterm_before_ready_is_a_failed_start(tmp_path: Path) -> None:
    body = MAIN.replace('daemon.ready("the loop runs")', "os.kill(os.getpid(), signal.SIGTERM)")
    done = run(
        tmp_path,
        body + "try: daemonkit.Service(main, **OPTIONS).start()\nexcept daemonkit.StartError as e: print(e.exitcode)",
    )
    assert (done.stdout, done.stderr) == ("0\n", "") and "finally" in _lines(tmp_path)


@pytest.mark.parametrize("parameters", ["", "number, frame", "*arguments"])
@pytest.mark.parametrize("runner", ["itself", "uvloop", "asyncio.run in a plain function"])
def test_a_signals_handler_may_be_a_coroutine_function(tmp_path: Path, runner: str, parameters: str) -> None:
    if runner == "uvloop":
        pytest.importorskip("uvloop")
    target = {
        "itself": "main",
        "uvloop": "lambda d: __import__('uvloop').run(main(d))",
        "asyncio.run in a plain function": "lambda d: asyncio.run(main(d))",
    }[runner]
    done = run(
        tmp_path,
        MAIN
        + f"""
async def again({parameters}):
    await asyncio.sleep(0.01)
    print("read anew")
print(daemonkit.Service({target}, signal_map={{"SIGHUP": again}}, **OPTIONS).start())
""",
    )
    assert done.stderr == ""
    for count in (1, 2):
        os.kill(int(done.stdout), signal.SIGHUP)
        eventually(lambda count=count: _lines(tmp_path).count("read anew") == count)  # type: ignore[misc]
    pid = int(done.stdout)
    if runner == "uvloop":  # a SIGTERM that comes inside a callback of its C code is swallowed: docs/howto/body.md
        for _ in range(20):
            os.kill(pid, signal.SIGTERM)
            with contextlib.suppress(AssertionError):
                eventually(lambda: not alive(pid), patience=1)
                break
        assert ended(pid) == 0
    else:
        assert stop(pid) == 0
    assert [line for line in _lines(tmp_path) if "closed" in line or line == "finally"][:1] == ["finally"]


def test_a_coroutine_handler_with_no_loop_running_is_a_warning_and_the_daemon_goes_on(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
async def again():
    pass
def main(daemon):
    daemon.ready()
    wait()
service = daemonkit.Service(main, pidfile="app.pid", stderr="app.log", wait_ready=True, signal_map={"SIGHUP": again})
print(service.start())
""",
    )
    os.kill(int(done.stdout), signal.SIGHUP)
    eventually(lambda: "SIGHUP" in "".join(_lines(tmp_path)) and "again" in "".join(_lines(tmp_path)))
    assert stop(int(done.stdout)) == 0


def test_the_programs_own_sigterm_handler_is_not_replaced(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        MAIN
        + """
def later(number, frame):
    print("asked")
print(daemonkit.Service(main, signal_map={"SIGTERM": later}, **OPTIONS).start())
""",
    )
    os.kill(int(done.stdout), signal.SIGTERM)
    eventually(lambda: "asked" in _lines(tmp_path))
    assert stop(int(done.stdout), signal.SIGKILL) == -signal.SIGKILL and "finally" not in _lines(tmp_path)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_in_the_foreground_too(tmp_path: Path, number: signal.Signals, status: int) -> None:
    program = subprocess.Popen(
        [sys.executable, write(tmp_path, MAIN + "sys.exit(daemonkit.Service(main, **OPTIONS).main(['run']))")],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert program.stdout and program.stdout.readline() == "opened\n"
    eventually(lambda: pid_in(tmp_path / "app.pid"))
    program.send_signal(number)
    out, err = program.communicate(timeout=harness.PATIENCE)
    assert (program.returncode, err) == (status, "")
    assert out.splitlines() == ["finally", "closed CancelledError", "the other task's finally"]


def test_a_method_a_partial_and_a_callable_object_are_targets_too(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
import asyncio, functools
class App:
    async def main(self, daemon):
        self.end(daemon)
    def plain(self):
        print("plain")
    def __call__(self, daemon):
        self.end(daemon)
    def end(self, daemon):
        print(type(daemon).__mro__[1].__name__)
        daemon.ready()
async def with_port(port, daemon):
    App().end(daemon)
class Async:
    async def __call__(self, daemon):
        App().end(daemon)
for target in App().main, App(), functools.partial(with_port, 80), Async(), App().plain:
    ready = target != App().plain and getattr(target, "__name__", "") != "plain"
    service = daemonkit.Service(target, pidfile="app.pid", stdout="app.log", stderr=daemonkit.STDOUT, wait_ready=ready)
    print(service.start())
    while service.status():
        time.sleep(0.01)
""",
    )
    assert done.stderr == ""
    assert [ended(int(pid)) for pid in done.stdout.split()] == [0] * 5
    assert _lines(tmp_path) == ["DetachedContext"] * 4 + ["plain"]


def test_a_start_that_fails_in_the_loop_is_told(tmp_path: Path) -> None:
    body = MAIN.replace('daemon.ready("the loop runs")', "raise OSError('no port')")
    done = run(tmp_path, body + "sys.exit(daemonkit.Service(main, name='app', **OPTIONS).main(['start']))")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "app: no port\n")
    assert not daemonkit.status(tmp_path / "app.pid")


@pytest.mark.parametrize(("tasks", "others"), [(1, ""), (3, " (and 2 more)")])
def test_a_start_that_fails_in_a_task_group_names_the_tasks_exception(tmp_path: Path, tasks: int, others: str) -> None:
    program = f"""
import asyncio
async def bind():
    raise OSError(98, "port 8000 is in use")
async def main():
    async with asyncio.TaskGroup() as group, asyncio.TaskGroup() as inner:
        for _ in range({tasks}):
            inner.create_task(bind())
OPTIONS = dict(pidfile="app.pid", wait_ready=True)
daemonkit.Service(main, name="app", **OPTIONS).main(["start"])
try:
    with daemonkit.detached(**OPTIONS):
        asyncio.run(main())
except daemonkit.StartError as error:
    assert "unhandled errors in a TaskGroup" in error.traceback
    print(error.reason)
"""
    done = run(tmp_path, program)
    assert done.stderr == f"app: port 8000 is in use{others}\n"
    assert done.stdout == f"OSError: [Errno 98] port 8000 is in use{others}\n"
