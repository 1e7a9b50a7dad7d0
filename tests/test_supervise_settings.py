"""Other settings while it runs: what `on_reload` returns is rolled in, or the old settings stay."""

from __future__ import annotations

import os
import signal
import socket
import threading
from typing import TYPE_CHECKING

import pytest
from harness import PATIENCE, alive, eventually
from supervising import READY, Supervisor, pids, supervising

if TYPE_CHECKING:
    from pathlib import Path

ON_RELOAD = """
def on_reload():
    return eval(read("wish"), globals())
"""


def _wish(directory: Path, text: str) -> None:
    (directory / "new").write_text(text)
    (directory / "new").rename(directory / "wish")


def _running(supervisor: Supervisor) -> dict[int, int]:
    """Return the pid of each instance that runs."""
    found: dict[int, int] = {}
    for event in supervisor.events():
        if event["kind"] == "ready":
            found[event["instance"]] = event["pid"]
        elif event["kind"] == "exit" and found.get(event["instance"]) == event["pid"]:
            del found[event["instance"]]
    return found


def test_another_command_environment_and_directory_are_rolled_in(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    body = ON_RELOAD + "supervise(['sh', '-c', 'exec sleep 1000'], instances=2, min_uptime=0.05, on_reload=on_reload)"
    with supervising(tmp_path, body) as supervisor:
        first = {event["pid"] for event in supervisor.until("ready", 2)}
        _wish(
            tmp_path,
            """{"target": ["sh", "-c", "echo $WORD > said.$DAEMONKIT_INSTANCE; exec sleep 1000"], "env": {**os.environ, "WORD": "new"}, "cwd": "sub"}""",
        )
        supervisor.process.send_signal(signal.SIGHUP)
        supervisor.until("exit", 2)
        assert {event["pid"] for event in supervisor.events("exit")} == first
        assert [(tmp_path / "sub" / f"said.{index}").read_text() for index in (0, 1)] == ["new\n"] * 2
        second = _running(supervisor)
        os.kill(supervisor.worker, signal.SIGKILL)  # what is in force holds for the next worker too
        (tmp_path / "sub" / "said.0").unlink()
        eventually((tmp_path / "sub" / "said.0").exists)
        assert not any(map(alive, second.values()))
        supervisor.stop()


def test_scaling_starts_and_stops_only_what_has_to_be(tmp_path: Path) -> None:
    body = (
        ON_RELOAD
        + "supervise(['sleep', '1000'], instances=2, min_uptime=0.05, on_reload=on_reload, stdout='log.{instance}')"
    )
    with supervising(tmp_path, body) as supervisor:
        first = {event["instance"]: event["pid"] for event in supervisor.until("ready", 2)}
        _wish(tmp_path, "{'instances': 5}")
        supervisor.process.send_signal(signal.SIGHUP)
        supervisor.until("ready", 5)
        five = _running(supervisor)
        assert {index: five[index] for index in first} == first and len(five) == 5
        _wish(tmp_path, "{'instances': 1}")
        supervisor.process.send_signal(signal.SIGHUP)
        supervisor.until("exit", 4)
        assert _running(supervisor) == {0: first[0]} and alive(first[0])
        _wish(tmp_path, "{'instances': 3}")
        supervisor.process.send_signal(signal.SIGHUP)
        supervisor.until("ready", 7)
        os.kill(supervisor.worker, signal.SIGKILL)
        supervisor.until("ready", 10)
        summary = supervisor.stop()
        assert [record["index"] for record in summary["instances"]] == [0, 1, 2]


def test_without_a_change_it_is_a_rolling_restart(tmp_path: Path) -> None:
    body = ON_RELOAD + "supervise(['sleep', '1000'], instances=2, min_uptime=0.05, on_reload=on_reload)"
    with supervising(tmp_path, body) as supervisor:
        first = {event["pid"] for event in supervisor.until("ready", 2)}
        _wish(tmp_path, "{'instances': 2}")
        supervisor.process.send_signal(signal.SIGHUP)
        supervisor.until("exit", 2)
        assert not first & set(_running(supervisor).values())
        supervisor.stop()


def test_settings_that_do_not_come_up_leave_the_old_ones_in_force(tmp_path: Path) -> None:
    old = "echo old >> said.$DAEMONKIT_INSTANCE; exec sleep 1000"
    new = "echo new >> said.$DAEMONKIT_INSTANCE; [ $DAEMONKIT_INSTANCE = 1 ] && exit 3; exec sleep 1000"
    body = ON_RELOAD + f"supervise(['sh', '-c', {old!r}], instances=3, min_uptime=0.1, on_reload=on_reload)"
    with supervising(tmp_path, body) as supervisor:
        first = {event["instance"]: event["pid"] for event in supervisor.until("ready", 3)}
        _wish(tmp_path, f"{{'target': ['sh', '-c', {new!r}], 'instances': 4}}")
        supervisor.process.send_signal(signal.SIGHUP)
        failed = supervisor.until("reload-failed")[0]
        assert (failed["instance"], failed["exitcode"]) == (1, 3)
        # The first had come up with the new settings: it goes back to the old ones. The others were never touched.
        eventually(lambda: (tmp_path / "said.0").read_text().split() == ["old", "new", "old"])
        eventually(
            lambda: len(running := _running(supervisor)) == 3 and running[1] == first[1] and running[2] == first[2]
        )
        os.kill(first[1], signal.SIGKILL)
        eventually(lambda: (tmp_path / "said.1").read_text().split() == ["old", "new", "old"])
        assert supervisor.stop()["instances"][-1]["index"] == 2
    assert "the old ones stay in force" in supervisor.errors.read_text()


def test_a_new_instance_that_does_not_come_up_is_taken_back(tmp_path: Path) -> None:
    script = "[ $DAEMONKIT_INSTANCE = 3 ] && exit 4; exec sleep 1000"
    body = ON_RELOAD + f"supervise(['sh', '-c', {script!r}], instances=2, min_uptime=0.1, on_reload=on_reload)"
    with supervising(tmp_path, body) as supervisor:
        first = {event["instance"]: event["pid"] for event in supervisor.until("ready", 2)}
        _wish(tmp_path, "{'instances': 4}")
        supervisor.process.send_signal(signal.SIGHUP)
        assert supervisor.until("reload-failed")[0]["instance"] == 3
        eventually(lambda: _running(supervisor) == first)
        assert [record["index"] for record in supervisor.stop()["instances"]] == [0, 1]


@pytest.mark.parametrize(
    "wish",
    [
        "1 / 0",
        "3",
        "{'no_such': 1}",
        "{'instances': 0}",
        "{'target': ['no-such-program']}",
        "{'on_event': None}",
        "{'target': print}",
        "{'listen': '127.0.0.1:1', 'stdout': '/no/such/log'}",
    ],
)
def test_what_is_refused_is_logged_and_changes_nothing(tmp_path: Path, wish: str) -> None:
    body = ON_RELOAD + "supervise(['sleep', '1000'], min_uptime=0.05, on_reload=on_reload)"
    with supervising(tmp_path, body) as supervisor:
        pid = supervisor.until("ready")[0]["pid"]
        _wish(tmp_path, wish)
        supervisor.process.send_signal(signal.SIGHUP)
        event = supervisor.until("reload-failed")[0]  # which is about no instance
        assert (event["instance"], event["pid"], event["exitcode"]) == (-1, 0, None)
        errors = supervisor.errors.read_text()
        assert "stay in force" in errors
        assert ("Traceback" in errors) == ("on_reload raised" in errors) == (wish == "1 / 0")
        _wish(tmp_path, "{}")
        supervisor.process.send_signal(signal.SIGHUP)  # a rolling restart, by the old settings
        assert supervisor.until("exit")[0]["pid"] == pid
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", 1), 1)
        supervisor.stop()


SERVER = (
    READY
    + """
import select
server = socket.socket(fileno=3)
server.setblocking(False)
stopping = []
signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
say(b"READY=1")
while not stopping:
    select.select([server], [], [], 0.05)
    try:
        connection, _ = server.accept()
    except BlockingIOError:
        continue
    connection.setblocking(True)
    connection.recv(100); connection.sendall(os.environ["WORD"].encode()); connection.close()
"""
)


def test_scaling_and_other_settings_under_load_fail_no_request(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(SERVER)
    body = (
        ON_RELOAD
        + """
sock = socket.create_server(("127.0.0.1", 0), backlog=512)
with open("port.new", "w") as file: file.write(str(sock.getsockname()[1]))
os.rename("port.new", "port")
supervise([sys.executable, "server.py"], listen=sock, instances=2, wait_ready=True, on_reload=on_reload, env={**os.environ, "WORD": "old"})
"""
    )
    failures: list[str] = []
    seen: list[str] = []
    done = threading.Event()

    def load(port: int) -> None:
        while not done.is_set():
            try:
                with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
                    connection.sendall(b"who?")
                    seen.append(connection.recv(100).decode())
            except Exception as error:
                failures.append(repr(error))

    with supervising(tmp_path, body) as supervisor:
        supervisor.until("ready", 2)
        thread = threading.Thread(target=load, args=(int((tmp_path / "port").read_text()),))
        thread.start()
        try:
            for wish, starts, ends in (
                ("{'instances': 4}", 4, 0),
                ("{'instances': 2}", 4, 2),
                ("{'instances': 3, 'env': {**os.environ, 'WORD': 'new'}}", 7, 4),
            ):
                _wish(tmp_path, wish)
                supervisor.process.send_signal(signal.SIGHUP)
                supervisor.until("ready", starts)
                if ends:
                    supervisor.until("exit", ends)  # or the next SIGHUP could find a wish that was read already
            before = len(seen)
            eventually(lambda: len(seen) > before + 50)
        finally:
            done.set()
            thread.join()
        assert failures == [] and set(seen) == {"old", "new"} and set(seen[-20:]) == {"new"}
        supervisor.stop()


def test_an_address_and_logs_that_change_are_bound_and_opened_and_the_old_ones_let_go(tmp_path: Path) -> None:
    ports = []
    for _ in range(2):
        with socket.create_server(("127.0.0.1", 0)) as server:
            ports.append(server.getsockname()[1])
    body = (
        ON_RELOAD
        + f"supervise(['sh', '-c', 'echo $$; exec sleep 1000'], listen='127.0.0.1:{ports[0]}', stdout='one', min_uptime=0.05, on_reload=on_reload)"
    )
    with supervising(tmp_path, body) as supervisor:
        first = supervisor.until("ready")[0]["pid"]
        for _ in range(3):
            _wish(
                tmp_path,
                f"{{'listen': ['127.0.0.1:{ports[0]}', '127.0.0.1:{ports[1]}'], 'stdout': 'two', 'log_format': '> '}}",
            )
            supervisor.process.send_signal(signal.SIGHUP)
            eventually(lambda: socket.create_connection(("127.0.0.1", ports[1]), 1).close() is None)
            eventually(lambda: (tmp_path / "two").read_text().startswith("> "))
            _wish(tmp_path, f"{{'listen': ['127.0.0.1:{ports[1]}'], 'stdout': 'one', 'log_format': None}}")
            starts = len(supervisor.events("start"))
            supervisor.process.send_signal(signal.SIGHUP)
            supervisor.until("start", starts + 1)
            supervisor.until("exit", starts)

            def refused() -> bool:
                try:
                    socket.create_connection(("127.0.0.1", ports[0]), 1).close()
                except ConnectionRefusedError:
                    return True
                return False

            eventually(refused)
            (tmp_path / "two").write_text("")
        assert pids(tmp_path, "one")[0] == first
        supervisor.stop()
