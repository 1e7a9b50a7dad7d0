"""A program that was launched at a terminal: no key, no hang-up and no end of the shell reaches it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import harness
import pytest
from harness import Terminal, alive, ended, eventually, stop

if TYPE_CHECKING:
    from collections.abc import Iterator

# The caller launches a program whose log grows, tells its number, and stays in the foreground.
CALLER = """
p = daemonkit.spawn_detached(["sh", "-c", "while :; do echo tick; sleep 0.05; done"]{options})
with open("pids.new", "w") as file:
    file.write(f"{{p.pid}} {{os.getpid()}}")
os.rename("pids.new", "pids")
print("launched", flush=True)
{then}
"""
WAYS = {
    "": ", stdout='log'",
    "cwd, umask": ", stdout='log', cwd='/', umask=0o22",
    "pidfile": ", stdout='log', pidfile='pid', stderr=daemonkit.STDOUT",
}


@contextlib.contextmanager
def shell(directory: Path, *command: str) -> Iterator[Terminal]:
    """Have a shell at a terminal; whatever it is still doing at the end is ended."""
    terminal = Terminal(list(command or ("sh", "-i")), directory)
    try:
        yield terminal
    finally:
        terminal.hang_up()
        with contextlib.suppress(ChildProcessError, ProcessLookupError):
            if not harness.alive(terminal.pid):
                os.waitpid(terminal.pid, os.WNOHANG)
            else:
                os.kill(terminal.pid, signal.SIGKILL)
                ended(terminal.pid)


def pids(directory: Path) -> tuple[int, int]:
    program, caller = map(int, eventually((directory / "pids").read_text).split())
    return program, caller


def launched(directory: Path, options: str, then: str = "wait()") -> str:
    """Return the command line that runs the caller."""
    program = harness.write(directory, CALLER.format(options=options, then=then))
    return f'"{sys.executable}" "{program}"'


def grows(log: Path) -> bool:
    """Tell that the log goes on growing."""
    size = log.stat().st_size
    return bool(eventually(lambda: log.stat().st_size > size + 10, "a log that grows"))


def tty_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[4])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("key", "number"), [("\x03", signal.SIGINT), ("\x1c", signal.SIGQUIT)], ids=["Ctrl-C", "Ctrl-backslash"]
)
def test_a_key_that_ends_the_caller_does_not_reach_the_program(tmp_path: Path, way: str, key: str, number: int) -> None:
    del number
    with shell(tmp_path) as terminal:
        terminal.type("ulimit -c 0; " + launched(tmp_path, WAYS[way]) + "\n")
        program, caller = pids(tmp_path)
        terminal.read("launched")
        assert tty_of(caller) != 0 == tty_of(program)
        assert os.getsid(program) == os.getpgid(program) == program
        terminal.type(key)
        eventually(lambda: not alive(caller), "the caller ends of it")
        terminal.insist("echo back=$((1 + 1))\n", "back=2")
        assert alive(program) and grows(tmp_path / "log")
        assert stop(program) == -signal.SIGTERM


def test_keys_that_the_caller_itself_survives_do_not_reach_the_program_either(tmp_path: Path) -> None:
    with shell(tmp_path) as terminal:
        # No print() in the handler: the next key may come while the last one's is still at it.
        then = "signal.signal(signal.SIGINT, lambda *_: os.write(1, b'heard'))\nprint('listens', flush=True)\nwait()"
        terminal.type(launched(tmp_path, WAYS[""], then) + "\n")
        program, caller = pids(tmp_path)
        terminal.read("listens")
        for _ in range(3):
            terminal.insist("\x03", "heard")
        assert alive(caller) and alive(program) and grows(tmp_path / "log")
        os.kill(caller, signal.SIGKILL)
        assert stop(program) == -signal.SIGTERM


@pytest.mark.parametrize("way", WAYS)
def test_ctrl_z_stops_the_caller_and_not_the_program(tmp_path: Path, way: str) -> None:
    with shell(tmp_path) as terminal:
        terminal.type(launched(tmp_path, WAYS[way]) + "\n")
        program, caller = pids(tmp_path)
        terminal.read("launched")
        terminal.type("\x1a")
        eventually(lambda: harness.state(caller) == "T", "the caller is stopped")
        assert harness.state(program) not in "TZ" and grows(tmp_path / "log")
        terminal.insist("echo back=$((1 + 1))\n", "back=2")
        terminal.type("fg\n")
        eventually(lambda: harness.state(caller) != "T", "the caller goes on")
        assert grows(tmp_path / "log")
        terminal.type("\x03")
        eventually(lambda: not alive(caller))
        assert grows(tmp_path / "log") and stop(program) == -signal.SIGTERM


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("place", ["foreground", "background"])
def test_a_hang_up_ends_the_shell_and_not_the_program(tmp_path: Path, way: str, place: str) -> None:
    with shell(tmp_path) as terminal:
        terminal.type(launched(tmp_path, WAYS[way]) + (" &\n" if place == "background" else "\n"))
        program, caller = pids(tmp_path)
        terminal.read("launched")
        terminal.hang_up()
        if place == "foreground":
            eventually(lambda: not alive(caller), "the caller ends of it")
        eventually(lambda: not alive(terminal.pid), "the shell ends of it")
        assert grows(tmp_path / "log") and tty_of(program) == 0
        with contextlib.suppress(ProcessLookupError):
            os.kill(caller, signal.SIGKILL)
        assert stop(program, signal.SIGHUP) == -signal.SIGHUP  # which it would have died of


@pytest.mark.parametrize("shells", ["sh -i", "bash -i -O huponexit", "bash --login -i -O huponexit"])
def test_the_shells_exit_does_not_reach_it(tmp_path: Path, shells: str) -> None:
    command = shells.split()
    if not shutil.which(command[0]):
        pytest.skip(f"takes {command[0]}")
    with shell(tmp_path, *command) as terminal:
        terminal.type(launched(tmp_path, WAYS[""], "") + "; echo status=$?\n")
        terminal.read("status=0")
        program, caller = pids(tmp_path)
        assert not alive(caller)
        terminal.type("exit\n")
        terminal.read()  # to the end: the program does not have the terminal open
        eventually(lambda: not alive(terminal.pid), "the shell is gone")
        assert grows(tmp_path / "log")
        assert stop(program) == -signal.SIGTERM


@pytest.mark.long
def test_a_caller_that_leads_the_session_may_end_and_hang_up_at_once(tmp_path: Path) -> None:
    """`ssh -t host launcher`: the line is cut the instant it returns."""
    program = harness.write(tmp_path, CALLER.format(options=WAYS[""], then="os._exit(0)"))
    for _ in range(10):
        terminal = Terminal([sys.executable, program], tmp_path)
        assert terminal.read().strip() == "launched"
        terminal.hang_up()
        assert ended(terminal.pid) == 0
        pid, _ = pids(tmp_path)
        assert alive(pid) and grows(tmp_path / "log") and stop(pid) == -signal.SIGTERM
        (tmp_path / "pids").unlink()


def test_a_caller_that_is_hung_up_right_after_the_launch(tmp_path: Path) -> None:
    program = harness.write(tmp_path, CALLER.format(options=WAYS["pidfile"], then="wait()"))
    terminal = Terminal([sys.executable, program], tmp_path)
    pid, caller = pids(tmp_path)
    terminal.hang_up()
    assert ended(terminal.pid) == -signal.SIGHUP and caller == terminal.pid
    assert alive(pid) and grows(tmp_path / "log")
    assert harness.pid_in(tmp_path / "pid") == pid
    assert stop(pid) == -signal.SIGTERM


@pytest.mark.parametrize("way", ["", ", cwd='/', umask=0o22"], ids=["", "cwd, umask"])
def test_a_program_that_inherits_the_terminals_streams_shows_its_text_and_is_not_its_job(
    tmp_path: Path, way: str
) -> None:
    """It writes also where background jobs may not (`stty tostop`), and lives on when the line is gone."""
    command = "['sh', '-c', 'echo shown; cat marker >/dev/null; echo shown later; exec sleep 1000']"
    os.mkfifo(tmp_path / "marker")
    program = harness.write(
        tmp_path,
        f"""
        os.chdir(os.path.dirname(os.path.abspath(__file__)))
        p = daemonkit.spawn_detached({command.replace("marker", str(tmp_path / "marker"))}, stdin=daemonkit.INHERIT, stdout=daemonkit.INHERIT, stderr=daemonkit.INHERIT{way})
        with open("pids.new", "w") as file: file.write(f"{{p.pid}} {{os.getpid()}}")
        os.rename("pids.new", "pids")
    """,
    )
    with shell(tmp_path) as terminal:
        terminal.type(f'stty tostop; "{sys.executable}" "{program}"\n')
        pid, _ = pids(tmp_path)
        terminal.read("shown")
        assert tty_of(pid) == 0 and os.getsid(pid) == pid
        assert os.readlink(f"/proc/{pid}/fd/0").startswith("/dev/pts/")
        terminal.insist("echo back=$((1 + 1))\n", "back=2")
        terminal.type("\x03\x1c")  # which also throw away what is on its way to the screen
        terminal.insist("echo again=$((1 + 2))\n", "again=3")
        (tmp_path / "marker").open("w").close()
        terminal.read("shown later")
        terminal.hang_up()
        eventually(lambda: not alive(terminal.pid))
        assert alive(pid)
        assert stop(pid, signal.SIGHUP) == -signal.SIGHUP


def test_an_error_is_shown_at_the_terminal_and_the_status_is_not_0(tmp_path: Path) -> None:
    program = harness.write(tmp_path, "daemonkit.spawn_detached(['no-such-program'], stdout='log', pidfile='pid')\n")
    terminal = Terminal([sys.executable, program], tmp_path)
    shown = terminal.read()
    terminal.hang_up()
    assert ended(terminal.pid) == 1
    assert "FileNotFoundError" in shown and "no-such-program" in shown
    assert [path.name for path in tmp_path.iterdir()] == ["program.py"]
