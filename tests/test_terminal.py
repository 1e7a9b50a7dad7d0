"""A real terminal: hang-ups, Ctrl-C, and what the person at it sees."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

import harness
import pytest
from harness import Terminal, ended, eventually, pid_in, reported, stop

if TYPE_CHECKING:
    from pathlib import Path

STARTS = int(os.environ.get("DAEMONKIT_STARTS", "10"))


def test_every_start_survives_a_session_leader_whose_terminal_hangs_up(tmp_path: Path) -> None:
    """`ssh -t host app`: the program leads the session, and the line is cut the instant it ends."""
    program = harness.write(
        tmp_path,
        """
        with daemonkit.detached(pidfile=sys.argv[1], stdout=sys.argv[1] + ".log"):
            print("begun", flush=True)
            wait()
    """,
    )
    for n in range(STARTS):
        terminal = Terminal([sys.executable, program, f"{n}.pid"], tmp_path)
        assert terminal.read() == ""  # to the end: nobody has the terminal open any more
        terminal.hang_up()
        assert ended(terminal.pid) == 0
        daemon = pid_in(tmp_path / f"{n}.pid")
        eventually((tmp_path / f"{n}.pid.log").read_text)
        assert harness.alive(daemon)
        assert stop(daemon) == 0


def test_a_start_outlives_a_hang_up_in_its_midst(tmp_path: Path) -> None:
    """The line is cut while the caller still waits: the caller dies of SIGHUP, the start goes on."""
    program = harness.write(
        tmp_path,
        """
        with daemonkit.detached(pidfile="pid", wait_ready=True, working_directory=".") as d:
            report("begun")
            while not os.path.exists("go"): time.sleep(0.01)
            d.ready()
            report()
            wait()
    """,
    )
    terminal = Terminal([sys.executable, program], tmp_path)
    daemon = reported(tmp_path, "begun")["pid"]
    terminal.hang_up()
    assert ended(terminal.pid) == -signal.SIGHUP
    (tmp_path / "go").touch()
    facts = reported(tmp_path)
    assert facts["pid"] == daemon and facts["tty"] == 0
    assert stop(daemon) == 0


@pytest.mark.parametrize("key", ["\x03", "\x1c"], ids=["Ctrl-C", "Ctrl-backslash"])
def test_keys_after_the_start_do_not_reach_the_daemon(tmp_path: Path, key: str) -> None:
    program = harness.write(
        tmp_path,
        """
        with daemonkit.detached(pidfile="pid", working_directory="."):
            report()
            wait()
    """,
    )
    terminal = Terminal(["sh", "-i"], tmp_path)
    try:
        terminal.type(f'"{sys.executable}" "{program}"; echo "status=$?"\n')
        terminal.read("status=0")
        daemon = reported(tmp_path)["pid"]
        terminal.type(key)
        terminal.insist("echo alive=$((1 + 1))\n", "alive=2")
        assert harness.alive(daemon)
        assert stop(daemon) == 0
        terminal.type("exit\n")
        terminal.read()
    finally:
        terminal.hang_up()
        os.kill(terminal.pid, signal.SIGKILL)
        ended(terminal.pid)


def test_ctrl_c_while_waiting_ends_the_daemon_and_the_prompt_is_back(tmp_path: Path) -> None:
    program = harness.write(
        tmp_path,
        """
        with daemonkit.detached(pidfile="pid", wait_ready=True, working_directory="."):
            report()
            wait()
    """,
    )
    terminal = Terminal([sys.executable, program], tmp_path)
    daemon = reported(tmp_path)["pid"]
    terminal.type("\x03")
    assert "KeyboardInterrupt" in terminal.read()
    assert ended(terminal.pid) == -signal.SIGINT
    terminal.hang_up()
    assert not harness.alive(daemon) and not (tmp_path / "pid").exists()


def test_a_failed_start_is_told_on_the_terminal(tmp_path: Path) -> None:
    program = harness.write(
        tmp_path,
        """
        with daemonkit.detached(wait_ready=True, stderr="log"):
            raise ConnectionError("the queue is down")
    """,
    )
    terminal = Terminal([sys.executable, program], tmp_path)
    seen = terminal.read()
    assert ended(terminal.pid) == 1
    terminal.hang_up()
    assert seen.count("Traceback (most recent call last)") == 2 and "ConnectionError: the queue is down" in seen
    assert "ConnectionError: the queue is down" in (tmp_path / "log").read_text()
