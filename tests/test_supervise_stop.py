"""How instances are stopped, and which signal does what."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import harness
import pytest
from harness import PATIENCE, alive, eventually, run
from supervising import BEAT, GRACEFUL, SUPERVISE, pids, supervising


def test_a_supervisor_under_another_stops_in_order(tmp_path: Path) -> None:
    harness.write(tmp_path, f"daemonkit.supervise(['sh', '-c', {GRACEFUL!r}], instances=2)", "inner.py")
    with supervising(tmp_path, f"supervise([{sys.executable!r}, 'inner.py'])") as supervisor:
        eventually(lambda: len(pids(tmp_path, "up")) == 2)
        assert supervisor.stop()["instances"][0]["exitcode"] == 0
    assert sorted(pids(tmp_path, "finished")) == sorted(pids(tmp_path, "up"))


def test_a_signal_to_everything_stops_it_in_order(tmp_path: Path) -> None:
    with supervising(tmp_path, f"supervise(['sh', '-c', {GRACEFUL!r}])") as supervisor:
        eventually(lambda: pids(tmp_path, "up"))
        os.kill(supervisor.worker, signal.SIGTERM)
        assert supervisor.stop()["instances"][0] == {"index": 0, "starts": 1, "exitcode": 0, "state": "stopped"}
    assert pids(tmp_path, "finished") == pids(tmp_path, "up")


def test_one_that_is_stopped_as_it_starts_loses_no_signal(tmp_path: Path) -> None:
    body = """
def on_event(event):
    os.kill(os.getpid(), signal.SIGTERM)
begun = time.monotonic()
summary = daemonkit.supervise(["sleep", "1000"], on_event=lambda event: event.kind == "start" and on_event(event),
    stop_timeout=1000)
print(summary.instances[0].exitcode)
"""
    assert run(tmp_path, body).stdout == f"{-signal.SIGTERM}\n"


def test_nohup_lets_it_outlive_its_terminal(tmp_path: Path) -> None:
    body = "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + f"supervise(['sh', '-c', {BEAT!r}], min_uptime=0.1)"
    program = harness.write(tmp_path, SUPERVISE + body)
    terminal = harness.Terminal([sys.executable, program], tmp_path)
    first = eventually(lambda: pids(tmp_path, "started.0"))[0]
    parent = int(Path(f"/proc/{first}/stat").read_text().rpartition(")")[2].split()[1])
    caller = int(Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1])
    terminal.hang_up()
    select.select([], [], [], 0.3)
    assert alive(first) and alive(caller)
    os.kill(caller, signal.SIGHUP)
    eventually(lambda: len(pids(tmp_path, "started.0")) == 2)
    os.kill(caller, signal.SIGTERM)
    eventually((tmp_path / "summary").exists)
    os.waitpid(terminal.pid, 0)


def test_a_terminal_that_goes_stops_it(tmp_path: Path) -> None:
    program = harness.write(tmp_path, SUPERVISE + f"supervise(['sh', '-c', {GRACEFUL!r}])")
    terminal = harness.Terminal([sys.executable, program], tmp_path)
    eventually(lambda: pids(tmp_path, "up"))
    terminal.hang_up()
    eventually((tmp_path / "summary").exists)
    os.waitpid(terminal.pid, 0)
    assert pids(tmp_path, "finished") == pids(tmp_path, "up")


def test_a_stop_escalates_and_gives_the_whole_group_its_time(tmp_path: Path) -> None:
    (tmp_path / "inner").write_text(
        "trap 'sleep 0.3; echo done > finished; exit' TERM\ntouch up\nwhile :; do sleep 0.05; done\n"
    )
    (tmp_path / "outer").write_text("trap 'exit 0' TERM\nsh inner &\nwait\n")
    with supervising(tmp_path, 'supervise(["sh", "outer"], stop_timeout=20)') as supervisor:
        eventually((tmp_path / "up").exists)
        summary = supervisor.stop()
    assert summary["exitcode"] == 0
    assert (tmp_path / "finished").read_text() == "done\n"


def test_without_an_end_to_the_stop_timeout_what_left_the_group_has_its_time_too(tmp_path: Path) -> None:
    (tmp_path / "inner").write_text(GRACEFUL)
    with supervising(
        tmp_path, "supervise(['sh', '-c', 'setsid sh inner; :'], stop_timeout=float('inf'))"
    ) as supervisor:
        eventually(lambda: pids(tmp_path, "up"))
        supervisor.stop()
    assert pids(tmp_path, "finished") == pids(tmp_path, "up")


def test_one_that_ignores_the_stop_signal_is_killed(tmp_path: Path) -> None:
    body = """supervise(["sh", "-c", "trap '' TERM; touch up; while :; do sleep 1; done"], stop_timeout=0.3)"""
    with supervising(tmp_path, body) as supervisor:
        eventually((tmp_path / "up").exists)
        assert supervisor.stop()["instances"][0]["exitcode"] == -signal.SIGKILL


def test_a_second_signal_kills_at_once(tmp_path: Path) -> None:
    body = """supervise(["sh", "-c", "trap '' TERM; touch up; while :; do sleep 1; done"], stop_timeout=1000)"""
    with supervising(tmp_path, body) as supervisor:
        eventually((tmp_path / "up").exists)
        supervisor.process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            supervisor.process.wait(0.3)
        assert supervisor.stop(signal.SIGINT)["instances"][0]["state"] == "stopped"


def test_sigchld_as_a_stop_signal_hides_no_end(tmp_path: Path) -> None:
    done = run(tmp_path, "print(daemonkit.supervise(['true'], stop_signal=signal.SIGCHLD).exitcode)")
    assert done.stdout == "0\n", done.stderr


def test_a_stop_between_two_workers_starts_nothing_any_more(tmp_path: Path) -> None:
    body = """
from daemonkit._supervise import guardian
guardian._WORKER_BACKOFF = type("Backoff", (), {"delay": lambda in_row: 1.0})  # however long the worker has lived
class Killed(logging.Handler):
    killed = 0
    def emit(self, record):
        self.killed += record.getMessage().startswith("the worker process was killed")
        if self.killed == 2:
            signal.setitimer(signal.ITIMER_REAL, 0.03)  # within the pause
logging.getLogger("daemonkit").addHandler(Killed())
signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
assert supervise(["sleep", "1000"]).instances[0].state == "stopped"
"""
    with supervising(tmp_path, body) as supervisor:
        supervisor.until("start")
        os.kill(supervisor.worker, signal.SIGKILL)
        supervisor.until("start", 2)
        os.kill(supervisor.worker, signal.SIGKILL)
        assert supervisor.process.wait(PATIENCE) == 0, supervisor.errors.read_text()
        assert len(supervisor.events("start")) == 2


MASTER = """
import os, signal, time
signals = []
signal.signal(signal.SIGTERM, lambda *_: signals.append(1))
child = os.fork()
if child == 0:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    open("begun", "w").close()
    while not os.path.exists("go"):
        time.sleep(0.01)
    open("finished", "w").close()
    os._exit(0)
stray = os.fork()
if stray == 0:
    os.setsid()
    with open("stray.new", "w") as file:
        file.write(str(os.getpid()))
    os.rename("stray.new", "stray")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1000)
while not signals:
    time.sleep(0.01)
open("asked", "w").close()
os.waitpid(child, 0)
time.sleep(0.1)
raise SystemExit(10 + len(signals))
"""


def test_with_kill_mode_main_a_child_finishes_its_work_and_a_stray_is_killed_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "master.py").write_text(MASTER)
    body = f"supervise([{sys.executable!r}, 'master.py'], kill_mode='main', stop_timeout=1000)"
    with supervising(tmp_path, body) as supervisor:
        eventually(lambda: (tmp_path / "begun").exists() and (tmp_path / "stray").exists())
        supervisor.process.send_signal(signal.SIGTERM)
        eventually((tmp_path / "asked").exists)
        (tmp_path / "go").touch()
        assert supervisor.process.wait(PATIENCE) == 0
        assert supervisor.summary()["instances"][0]["exitcode"] == 11  # one signal, and no more
    assert (tmp_path / "finished").exists()
    assert not alive(int((tmp_path / "stray").read_text()))


@pytest.mark.parametrize("mode", ["group", "main"])
def test_in_both_modes_the_last_signal_goes_to_everything(tmp_path: Path, mode: str) -> None:
    script = (
        "trap '' TERM; sleep 1000 & echo $! >> left; setsid sleep 1000 & echo $! >> left; touch up; wait; sleep 1000"
    )
    with supervising(
        tmp_path, f"supervise(['sh', '-c', {script!r}], kill_mode={mode!r}, stop_timeout=0.3)"
    ) as supervisor:
        eventually((tmp_path / "up").exists)
        assert supervisor.stop()["instances"][0]["exitcode"] == -signal.SIGKILL
    assert not any(map(alive, pids(tmp_path, "left")))


# Two signals that come close together are one to a handler; the descriptor gets a byte for each.
COUNTS = """
import os, signal, time
out, into = os.pipe()
os.set_blocking(into, False)
signal.set_wakeup_fd(into)
signal.signal(signal.SIGTERM, lambda *_: open("asked", "w").close())
open("up", "w").close()
while not os.path.exists("go"):
    time.sleep(0.01)
with open("count", "w") as file:
    file.write(str(len(os.read(out, 100))))
"""


@pytest.mark.parametrize(
    "wrapper",
    [
        ["timeout", "--foreground", "1000"],  # without it, timeout itself sends two: to its child, and to its group
        ["tini", "-s", "--"],
        ["dumb-init"],
        ["tini", "-g", "-s", "--"],
    ],
    ids=" ".join,
)
def test_with_kill_mode_main_a_wrapper_passes_the_signal_on_and_no_second_one_comes(
    tmp_path: Path, wrapper: list[str]
) -> None:
    if not shutil.which(wrapper[0]):
        pytest.skip(f"no {wrapper[0]} here")
    command = [*wrapper, sys.executable, "-c", COUNTS]
    with supervising(tmp_path, f"supervise({command!r}, kill_mode='main', stop_timeout=1000)") as supervisor:
        eventually((tmp_path / "up").exists)
        supervisor.process.terminate()
        eventually((tmp_path / "asked").exists)
        select.select([], [], [], 0.1)  # a second one would come at once
        (tmp_path / "go").touch()
        assert supervisor.process.wait(PATIENCE) == 0
    assert (tmp_path / "count").read_text() == "1"
