"""Sockets that are bound once and handed to every instance."""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

import harness
import pytest
from harness import PATIENCE, run
from supervising import READY, supervising

if TYPE_CHECKING:
    from pathlib import Path


SERVER = (
    READY
    + """
import select
assert os.environ["LISTEN_PID"] == str(os.getpid())
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
    connection.recv(100); connection.sendall(str(os.getpid()).encode()); connection.close()
"""
)


def _ask(address: Any) -> int:
    with socket.create_connection(address, 10) if isinstance(address, tuple) else _unix(address) as connection:
        connection.sendall(b"who?")
        return int(connection.recv(100))


def _unix(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    return connection


def test_a_rolling_restart_refuses_and_cuts_no_connection(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(SERVER)
    body = f"""
sock = socket.create_server(("127.0.0.1", 0)); sock.setblocking(True)
with open("port.new", "w") as file: file.write(str(sock.getsockname()[1]))
os.rename("port.new", "port")
supervise([{sys.executable!r}, "server.py"], listen=sock, instances=2, wait_ready=True)
"""
    with supervising(tmp_path, body) as supervisor:
        old = {event["pid"] for event in supervisor.until("ready", 2)}
        address = ("127.0.0.1", int((tmp_path / "port").read_text()))
        assert _ask(address) in old
        supervisor.process.send_signal(signal.SIGHUP)
        seen: set[int] = set()
        while len(supervisor.events("exit")) < 2:
            seen.add(_ask(address))
        assert _ask(address) not in old
        supervisor.stop()


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:0", "unix:sock"])
def test_sockets_are_bound_once_and_handed_on(tmp_path: Path, listen: str) -> None:
    if listen.startswith("["):
        with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    script = "import socket, os; s = socket.socket(fileno=3); print(s.getsockname(), s.family.name, os.environ['LISTEN_FDS'], flush=True)"
    body = f"""supervise([{sys.executable!r}, "-c", {script!r}], listen={listen!r}, instances=2, stdout="out.{{instance}}")"""
    with supervising(tmp_path, body) as supervisor:
        assert supervisor.process.wait(PATIENCE) == 0, supervisor.errors.read_text()
    first, second = ((tmp_path / f"out.{index}").read_text() for index in (0, 1))
    assert first == second and first.split()[-1] == "1"
    assert not (tmp_path / "sock").exists()


def test_a_socket_that_was_handed_in_comes_once_and_stays_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "probe.py").write_text(harness.PRELUDE + "report(env=dict(os.environ))")
    body = f"""
sock = socket.create_server(("127.0.0.1", 0)); sock.settimeout(3); os.set_inheritable(sock.fileno(), True)
high = socket.socket(fileno=os.dup2(sock.detach(), 77)); high.settimeout(3)
supervise([{sys.executable!r}, "probe.py"], listen=[high, high])
assert high.gettimeout() == 3 and os.get_inheritable(77) and not os.get_blocking(77)
"""
    with supervising(tmp_path, body) as supervisor:
        assert supervisor.process.wait(PATIENCE) == 0, supervisor.errors.read_text()
    facts = harness.reported(tmp_path)
    assert facts["env"]["LISTEN_FDS"] == "2" and facts["env"]["LISTEN_PID"] == str(facts["pid"])
    assert [facts["fds"][fd]["path"][:6] for fd in (3, 4)] == ["socket"] * 2
    assert set(facts["fds"]) == {0, 1, 2, 3, 4, 5}  # the last is the report's


def test_a_socket_that_took_the_place_of_a_closed_stdin_is_handed_on_too(tmp_path: Path) -> None:
    script = "import socket, os; print(socket.socket(fileno=3).getsockname(), os.fstat(0).st_rdev == os.stat('/dev/null').st_rdev)"
    body = f"""
os.close(0)
sock = socket.create_server(("127.0.0.1", 0)); assert sock.fileno() == 0
supervise([{sys.executable!r}, "-c", {script!r}], listen=sock, stdout="out")
assert sock.fileno() == 0 and open("out").read() == f"{{sock.getsockname()}} True\\n"
"""
    with supervising(tmp_path, body) as supervisor:
        assert supervisor.process.wait(PATIENCE) == 0, supervisor.errors.read_text()


def test_a_live_unix_socket_is_refused_and_a_stale_one_replaced(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        done = run(tmp_path, "daemonkit.supervise(['true'], listen='unix:sock')")
        assert done.returncode == 1 and "another process listens there" in done.stderr and path.exists()
    assert run(tmp_path, "daemonkit.supervise(['true'], listen='unix:sock')").returncode == 0
    path.write_text("not a socket")
    assert "not a socket" in run(tmp_path, "daemonkit.supervise(['true'], listen='unix:sock')").stderr
    assert path.read_text() == "not a socket"


def test_a_live_socket_whose_queue_is_full_is_refused_at_once(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket(socket.AF_UNIX))
        server.bind(str(tmp_path / "sock"))
        server.listen(0)
        for _ in range(3):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.connect(str(tmp_path / "sock"))
        done = run(tmp_path, "daemonkit.supervise(['true'], listen='unix:sock')")
        assert done.returncode == 1 and "another process listens there" in done.stderr


@pytest.mark.parametrize("kind", ["address", "socket"])
@pytest.mark.parametrize("nonblocking", [False, True])
def test_tcp_listeners_do_not_delay_and_are_non_blocking_if_that_is_wished(
    tmp_path: Path, kind: str, *, nonblocking: bool
) -> None:
    script = (
        "import os, socket; s = socket.socket(fileno=3); print(s.getsockopt(6, socket.TCP_NODELAY), os.get_blocking(3))"
    )
    body = f"""
sock = socket.create_server(("127.0.0.1", 0))
listen = sock if {kind == "socket"} else "127.0.0.1:0"
supervise([{sys.executable!r}, "-c", {script!r}], listen=[listen, "unix:sock"], listen_nonblocking={nonblocking}, stdout="out")
assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0 and os.get_blocking(sock.fileno())
"""
    with supervising(tmp_path, body) as supervisor:
        assert supervisor.process.wait(PATIENCE) == 0, supervisor.errors.read_text()
    assert (tmp_path / "out").read_text() == f"1 {not nonblocking}\n"
