"""When an instance is up: readiness, watchdog, memory, and the rolling restart."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
from typing import TYPE_CHECKING

import pytest
from harness import PATIENCE, alive, eventually
from supervising import READY, supervising

if TYPE_CHECKING:
    from pathlib import Path


def test_with_wait_ready_an_instance_is_up_when_one_of_its_processes_says_so(tmp_path: Path) -> None:
    (tmp_path / "ready.py").write_text(
        READY + "r, w = os.pipe()\nif os.fork() == 0:\n    say(b'STATUS=x\\nREADY=1'); os._exit(0)\nsignal.pause()"
    )
    body = f"supervise([{sys.executable!r}, 'ready.py'], wait_ready=True)"
    with supervising(tmp_path, body) as supervisor:
        pid = supervisor.until("ready")[0]["pid"]
        assert supervisor.events("start")[0]["pid"] == pid
        supervisor.stop()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("user", [None, 65534])
def test_a_process_of_another_user_can_say_that_its_instance_is_up(tmp_path: Path, user: int | None) -> None:
    body = f"""
{READY}
def target():
    if os.fork() == 0:
        os.getuid() or os.setresuid(65533, 65533, 65533)
        say(b"READY=1")
    signal.pause()
supervise(target, wait_ready=True, user={user})
"""
    with supervising(tmp_path, body) as supervisor:
        assert supervisor.until("ready")
        supervisor.stop()


def test_what_an_instance_says_before_it_ends_at_once_is_heard(tmp_path: Path) -> None:
    body = f"{READY}\nfor _ in range(4): supervise(lambda: say(b'READY=1'), wait_ready=True, instances=20)"
    with supervising(tmp_path, body) as supervisor:
        assert supervisor.process.wait(PATIENCE) == 0, supervisor.errors.read_text()
        assert len(supervisor.events("ready")) == 80


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_a_helper_of_an_instance_that_became_somebody_else_is_believed_though_it_is_gone(tmp_path: Path) -> None:
    body = f"""
{READY}
def target():
    os.setresuid(65533, 65533, 65533)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for _ in range(20):
        if os.fork() == 0:
            say(b"READY=1")
            os._exit(0)
    time.sleep(0.5)
supervise(target, wait_ready=True, instances=4, restart="never")
"""
    with supervising(tmp_path, body) as supervisor:
        assert supervisor.process.wait(PATIENCE) == 0, supervisor.errors.read_text()
        assert len(supervisor.events("ready")) == 4


def test_a_start_that_does_not_get_ready_in_time_is_a_failure(tmp_path: Path) -> None:
    body = "supervise(['sleep', '1000'], wait_ready=True, start_timeout=0.2, max_restarts=1)"
    with supervising(tmp_path, body) as supervisor:
        assert supervisor.process.wait(PATIENCE) == 0
        assert supervisor.summary()["instances"][0] == {"index": 0, "starts": 2, "exitcode": -9, "state": "gave-up"}
        assert not supervisor.events("ready")


@pytest.mark.long
def test_a_watchdog_that_falls_silent_is_killed_and_restarted(tmp_path: Path) -> None:
    (tmp_path / "dog.py").write_text(
        READY
        + "import time\nsay(b'READY=1')\nassert os.environ['WATCHDOG_USEC'] == '500000'\n"
        + "for _ in range(8): say(b'WATCHDOG=1'); time.sleep(0.1)\nopen('fed', 'w').close()\nsignal.pause()"
    )
    body = f"supervise([{sys.executable!r}, 'dog.py'], wait_ready=True, watchdog=0.5)"
    with supervising(tmp_path, body) as supervisor:
        silent = supervisor.until("watchdog")[0]
        assert (tmp_path / "fed").exists()
        assert supervisor.until("exit")[0]["exitcode"] == -signal.SIGKILL
        assert supervisor.until("start", 2)[1]["pid"] != silent["pid"]
        supervisor.stop()


def test_a_rolling_restart_replaces_one_after_the_other(tmp_path: Path) -> None:
    (tmp_path / "ready.py").write_text(READY + "say(b'READY=1')\nsignal.pause()")
    body = f"supervise([{sys.executable!r}, 'ready.py'], wait_ready=True, instances=3)"
    with supervising(tmp_path, body) as supervisor:
        first = {event["pid"] for event in supervisor.until("ready", 3)}
        supervisor.process.send_signal(signal.SIGHUP)
        supervisor.until("exit", 3)
        events = supervisor.events()[-9:]
        assert [event["kind"] for event in events] == ["start", "ready", "exit"] * 3
        assert [event["instance"] for event in events] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        assert {event["pid"] for event in events if event["kind"] == "exit"} == first
        summary = supervisor.stop()
        assert [record["starts"] for record in summary["instances"]] == [2, 2, 2]


def test_a_reload_that_fails_leaves_the_old_run(tmp_path: Path) -> None:
    (tmp_path / "ready.py").write_text(
        READY + "if os.path.exists('broken'): sys.exit(4)\nsay(b'READY=1')\nsignal.pause()"
    )
    body = f"supervise([{sys.executable!r}, 'ready.py'], wait_ready=True, instances=2)"
    with supervising(tmp_path, body) as supervisor:
        first = {event["pid"] for event in supervisor.until("ready", 2)}
        (tmp_path / "broken").touch()
        supervisor.process.send_signal(signal.SIGHUP)
        failed = supervisor.until("reload-failed")[0]
        assert failed["exitcode"] == 4 and all(map(alive, first))
        (tmp_path / "broken").unlink()
        supervisor.process.send_signal(signal.SIGHUP)
        supervisor.until("ready", 4)
        eventually(lambda: not any(map(alive, first)))
        supervisor.stop()


def test_a_reload_that_is_asked_for_again_meanwhile_is_done_again(tmp_path: Path) -> None:
    with supervising(tmp_path, "supervise(['sleep', '1000'], instances=2, min_uptime=0.2)") as supervisor:
        supervisor.until("ready", 2)
        supervisor.process.send_signal(signal.SIGHUP)
        supervisor.until("start", 3)
        supervisor.process.send_signal(signal.SIGHUP)
        supervisor.process.send_signal(signal.SIGHUP)
        supervisor.until("exit", 3)  # twice the one that had begun, once the other
        summary = supervisor.stop()
        assert [record["starts"] for record in summary["instances"]] == [3, 2]


@pytest.mark.long
def test_what_was_sent_in_time_counts_though_the_worker_was_held_up(tmp_path: Path) -> None:
    feeder = "import os, socket, time\ns = socket.socket(1, 2)\nwhile 1: s.sendto(b'WATCHDOG=1', '\\0' + os.environ['NOTIFY_SOCKET'][1:]); time.sleep(0.05)"
    with supervising(tmp_path, f"supervise([{sys.executable!r}, '-c', {feeder!r}], watchdog=0.7)") as supervisor:
        supervisor.until("ready")
        worker = supervisor.worker
        os.kill(worker, signal.SIGSTOP)
        select.select([], [], [], 1.5)  # longer than the watchdog
        os.kill(worker, signal.SIGCONT)
        select.select([], [], [], 0.5)
        assert supervisor.stop()["instances"][0]["starts"] == 1


@pytest.mark.long
def test_a_program_that_grows_is_replaced_gracefully(tmp_path: Path) -> None:
    grow = "import signal, os\nif not os.path.exists('grown'):\n    x = bytearray(100 << 20); open('grown', 'w').close()\nsignal.pause()"
    body = f"supervise([{sys.executable!r}, '-c', {grow!r}], max_memory=80 << 20, min_uptime=0.1)"
    with supervising(tmp_path, body) as supervisor:
        assert supervisor.until("memory")[0]["pid"] == supervisor.events("start")[0]["pid"]
        assert supervisor.until("exit")[0]["exitcode"] == -signal.SIGTERM
        assert len(supervisor.events("start")) == 2
        supervisor.stop()


GROW = "import os, signal, time\nif not os.path.exists('grown'):\n    x = bytearray(100 << 20); open('grown', 'w').close()\ntime.sleep(1000)"


@pytest.mark.long
@pytest.mark.parametrize(
    "wrapper", ["sh -c '{}; :'", "sh -c 'setsid {} & wait'", "sh -c '(setsid {} &) ; exec sleep 1000'"]
)
def test_memory_counts_for_all_that_belongs_to_the_instance(tmp_path: Path, wrapper: str) -> None:
    (tmp_path / "grow.py").write_text(GROW)
    command = wrapper.format(f"{sys.executable} grow.py")
    body = f"import shlex\nsupervise(shlex.split({command!r}), max_memory=80 << 20, min_uptime=0.1)"
    with supervising(tmp_path, body) as supervisor:
        assert supervisor.until("memory")[0]["pid"] == supervisor.events("start")[0]["pid"]
        supervisor.until("start", 2)
        supervisor.until("exit")
        supervisor.stop()


def test_memory_that_children_share_counts_once(tmp_path: Path) -> None:
    share = "import os, time\nx = bytearray(os.urandom(1 << 20) * 60)\nfor _ in range(4):\n    if os.fork() == 0: time.sleep(1000)\nopen('up', 'w').close(); time.sleep(1000)"
    body = f"""
from daemonkit._supervise import worker
worker._MEMORY_EVERY = 0.2
supervise([{sys.executable!r}, "-c", {share!r}], max_memory=150 << 20, min_uptime=0.1)
"""
    with supervising(tmp_path, body) as supervisor:
        eventually((tmp_path / "up").exists)
        supervisor.until("ready")
        select.select([], [], [], 1.0)
        assert not supervisor.events("memory")
        supervisor.stop()


def test_one_that_has_its_port_is_stopped_first_where_its_successor_needs_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    (tmp_path / "server.py").write_text(f"import socket\ns = socket.create_server(('127.0.0.1', {port}))\n" + GROW)
    body = f"""
from daemonkit._supervise import worker
worker._MEMORY_EVERY = 0.2
supervise([{sys.executable!r}, "server.py"], max_memory=80 << 20, ready_tcp="127.0.0.1:{port}", kill_mode="main")
"""
    with supervising(tmp_path, body) as supervisor:
        first = supervisor.until("memory")[0]["pid"]
        supervisor.until("ready", 2)
        kinds = [
            (event["kind"], event["exitcode"]) for event in supervisor.events() if event["kind"] in {"memory", "exit"}
        ]
        assert kinds == [("memory", None), ("exit", 1), ("exit", -signal.SIGTERM)] and not alive(first)
        supervisor.stop()


def test_a_reload_that_a_port_of_its_own_makes_fail_is_told_the_way_out(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    (tmp_path / "server.py").write_text(
        f"import socket, time\ns = socket.create_server(('127.0.0.1', {port}))\ntime.sleep(1000)"
    )
    with supervising(
        tmp_path, f"supervise([{sys.executable!r}, 'server.py'], ready_tcp='127.0.0.1:{port}')"
    ) as supervisor:
        supervisor.until("ready")
        supervisor.process.send_signal(signal.SIGHUP)
        supervisor.until("reload-failed")
        eventually(
            lambda: (
                f"listens on port {port}" in (text := supervisor.errors.read_text())
                and "use restart" in text
                and "--listen" in text
            )
        )
        supervisor.stop()
