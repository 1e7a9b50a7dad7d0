"""A worker process that is killed, or can not be had."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import harness
import pytest
from harness import PATIENCE, eventually, run
from supervising import supervising

from daemonkit._supervise import guardian as guardian_module
from daemonkit._system import fork as fork_module

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.long
def test_a_worker_that_is_killed_again_and_again_is_back_within_a_second(tmp_path: Path) -> None:
    with supervising(tmp_path, "supervise(['sleep', '1000'], instances=2)") as supervisor:
        for kill in range(1, 9):
            supervisor.until("start", 2 * kill)
            os.kill(supervisor.worker, signal.SIGKILL)
        supervisor.until("start", 18)
        supervisor.stop()
    assert guardian_module._WORKER_BACKOFF.delay(1000) < 0.5


def test_a_start_for_which_there_is_no_descriptor_is_a_failure_of_that_instance_alone(tmp_path: Path) -> None:
    body = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))
summary = daemonkit.supervise(["sh", "-c", "until test -e go; do sleep 0.05; done"], instances=20, restart="never", wait_ready=True,
    on_event=lambda event: open("go", "w").close())
states = [record.state for record in summary.instances]
print(states.count("exited") > 3 and states.count("failed") > 3 and states.count("exited") + states.count("failed") == 20)
"""
    done = run(tmp_path, body)
    assert done.stdout == "True\n" and "Too many open files" in done.stderr, done.stderr


def test_a_worker_that_can_not_be_forked_is_tried_again_and_no_descriptor_is_lost(tmp_path: Path) -> None:
    body = """
import errno
from daemonkit._supervise import guardian
fork_child, forks = guardian.fork_child, []
def fork(become):
    forks.append(0)
    if len(forks) in (2, 3, 4):
        raise OSError(errno.EAGAIN, "no process is left")
    return fork_child(become)
guardian.fork_child = fork
counts = []
def on_event(event):
    if event.kind == "start":
        print(event.pid, len(os.listdir("/proc/self/fd")), flush=True)
daemonkit.supervise(["sleep", "1000"], on_event=on_event)
"""
    program = harness.write(tmp_path, body)
    with (tmp_path / "out").open("wb") as out, (tmp_path / "errors").open("wb") as errors:
        process = subprocess.Popen([sys.executable, program], cwd=tmp_path, stdout=out, stderr=errors)
    eventually(lambda: (tmp_path / "out").read_text())
    os.kill(harness.children(process.pid)[0], signal.SIGKILL)
    eventually(lambda: len((tmp_path / "out").read_text().splitlines()) == 2)
    process.terminate()
    assert process.wait(PATIENCE) == 0
    lines = [line.split() for line in (tmp_path / "out").read_text().splitlines()]
    assert lines[0][1] == lines[1][1]
    assert "no process is left" in (tmp_path / "errors").read_text()


def test_sighup_reloads_where_no_descriptor_is_left_to_look_for_the_terminal(tmp_path: Path) -> None:
    body = """
import resource
def on_event(event):
    if event.kind == "ready" and not os.path.exists("full"):
        resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50))
        open("full", "w").close()
        with contextlib.suppress(OSError):
            while True:
                os.dup(0)
daemonkit.supervise(["sh", "-c", "echo $$ >> started; exec sleep 1000"], min_uptime=0.1, on_event=on_event)
open("summary", "w").close()
"""
    terminal = harness.Terminal([sys.executable, harness.write(tmp_path, body)], tmp_path)
    eventually((tmp_path / "full").exists)
    os.kill(terminal.pid, signal.SIGHUP)
    eventually(lambda: len((tmp_path / "started").read_text().split()) == 2)
    os.kill(terminal.pid, signal.SIGTERM)
    eventually((tmp_path / "summary").exists)
    os.waitpid(terminal.pid, 0)
    terminal.hang_up()


@pytest.mark.parametrize(("target", "forks"), [("['true']", ["worker"]), ("abs_", ["worker", "instance"])])
def test_a_command_is_started_without_the_fork_hooks_of_libraries(
    tmp_path: Path, target: str, forks: list[str]
) -> None:
    """A hook that hangs or is slow, as that of gRPC may be, is for who goes on in Python, not for who executes."""
    body = f"""
def hook():
    with open("hooks", "a") as file:
        file.write("x")
os.register_at_fork(after_in_child=hook)
abs_ = lambda: None
assert daemonkit.supervise({target}).exitcode == 0
"""
    assert run(tmp_path, body).returncode == 0
    assert len((tmp_path / "hooks").read_text()) == len(forks)


def test_a_start_for_which_there_is_no_process_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_process() -> int:
        ctypes.set_errno(errno.EAGAIN)
        return -1

    monkeypatch.setattr(fork_module, "load_fork", lambda: no_process)
    with pytest.raises(BlockingIOError, match="no process for the daemon"):
        fork_module.fork_to_exec(lambda: os._exit(0))
