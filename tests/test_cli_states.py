"""What `status` and `ls` tell: states, instances, cpu, memory; and `ps`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness import Terminal, alive, eventually
from shell import COMMAND

if TYPE_CHECKING:
    from shell import Shell

FLAKY = "if [ $DAEMONKIT_INSTANCE = 1 ] && [ -e bad ]; then exit 5; fi; exec sleep 1000"


def state_of(shell: Shell, name: str = "web") -> tuple[str, int]:
    done = shell("status", name, "--json", status=None)
    return json.loads(done.stdout)["state"], done.returncode


@pytest.mark.long
def test_an_app_of_which_an_instance_is_not_up_is_degraded(shell: Shell) -> None:
    shell.start("web", "-i", 3, "--max-restarts", 1, command=("sh", "-c", FLAKY))
    assert state_of(shell) == ("running", 0)
    (shell.folder / "bad").touch()
    os.kill(shell.instances("web")[1], signal.SIGKILL)
    eventually(lambda: shell.report("web")["instances"][1]["state"] == "gave-up")
    assert state_of(shell) == ("degraded", 4)
    report = shell.report("web")
    assert (report["up"], report["wanted"]) == (2, 3)
    (shell.folder / "bad").unlink()
    shell("reload", "web")
    assert state_of(shell) == ("running", 0)


@pytest.mark.long
def test_a_crash_loop_is_degraded_while_it_backs_off_and_failed_once_it_is_given_up(shell: Shell) -> None:
    shell.start("web", "--backoff", "0,1", "--max-restarts", 3, command=("sh", "-c", "sleep 0.3; exit 1"))
    shell.start("slow", "--backoff", "100,1,100", command=("sh", "-c", "sleep 0.3; exit 1"))
    eventually(lambda: state_of(shell) == ("failed", 3))
    eventually(lambda: shell.report("slow")["instances"][0]["state"] == "backoff")
    assert state_of(shell, "slow") == ("degraded", 4)


def test_an_instance_that_is_done_degrades_nothing(shell: Shell) -> None:
    shell.start("web", "-i", 2, command=("sh", "-c", "[ $DAEMONKIT_INSTANCE = 1 ] && exit 0; exec sleep 1000"))
    eventually(lambda: shell.report("web")["instances"][1]["state"] == "exited")
    assert state_of(shell) == ("running", 0)


@pytest.mark.parametrize(
    ("how", "state"), [("stop", "stopped"), ("TERM", "stopped"), ("KILL", "failed"), ("exit 0", "done"), ("exit 3", "failed")]
)  # fmt: skip
def test_how_an_app_has_ended(shell: Shell, how: str, state: str) -> None:
    program = f"while ! [ -e go ]; do sleep 0.02; done; {how}" if "exit" in how else "exec sleep 1000"
    shell.start("web", "--restart", "never", command=("sh", "-c", program))
    pid = shell.report("web")["pid"]
    if how == "stop":
        shell("stop", "web")
    elif "exit" in how:
        (shell.folder / "go").touch()
    else:
        os.kill(pid, signal.Signals[f"SIG{how}"])
    eventually(lambda: not alive(pid) and state_of(shell)[0] == state)
    assert state_of(shell) == (state, 3)
    assert state in shell("ls").stdout


def test_a_start_that_failed_leaves_a_known_app_failed(shell: Shell) -> None:
    shell("start", "job", "--", "true")
    shell("start", "job", "--", "false", status=1)
    assert state_of(shell, "job") == ("failed", 3)


def test_an_instance_tells_its_own_uptime_restarts_and_last_exit(shell: Shell) -> None:
    shell.start("web", "-i", 2, "--restart", "always")
    pid = shell.instances("web")[0]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: shell.report("web")["restarts"] == 1 and shell.report("web")["up"] == 2)
    first, second = shell.report("web")["instances"]
    assert list(first) == ["index", "pid", "state", "uptime", "starts", "exitcode", "exited_at", "cpu", "memory"]
    assert (first["index"], first["starts"], first["exitcode"]) == (0, 2, -9) and first["pid"] != pid
    assert (second["index"], second["starts"], second["exitcode"], second["exited_at"]) == (1, 1, None, None)
    assert first["uptime"] < second["uptime"]
    shown = shell("status", "web").stdout
    assert "SIGKILL" in shown and str(shell.folder) in shown and "sleep 1000" in shown
    assert str(shell.home / "web.log") in shown


def test_cpu_is_that_of_the_last_interval(shell: Shell) -> None:
    program = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.02)\nwhile True: pass"
    shell.start("web", command=(sys.executable, "-c", program))
    assert shell.report("web")["cpu"] < 5
    (shell.folder / "go").touch()
    eventually(lambda: shell.report("web")["cpu"] > 10)  # of a machine that may be loaded
    assert shell.report("web")["instances"][0]["cpu"] > 5


def test_memory_is_that_of_all_processes_of_the_app(shell: Shell) -> None:
    program = f"{sys.executable} -c 'import time; x = [1] * (8 << 20); print(); time.sleep(1000)' & wait"
    shell.start("web", command=("sh", "-c", program))
    eventually(lambda: shell.report("web")["instances"][0]["memory"] > 50 << 20)
    assert shell.report("web")["memory"] > 50 << 20


# --- ps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["start", "restart", "run"])
def test_ps_shows_neither_the_programs_words_nor_its_environment(shell: Shell, verb: str) -> None:
    seconds = f"4711.{os.getpid()}"  # nobody else's words
    words = ["--env", "PASSWORD=s3cret", *("--min-uptime", "0.05"), "--", "sleep", seconds]
    with open(os.devnull, "wb") as null:
        foreground = verb == "run" and subprocess.Popen([*COMMAND, "run", "web", *words], env=shell.environment, stdout=null, stderr=null)  # fmt: skip
    if not foreground:
        shell("start", "web", *words)
    if verb == "restart":
        shell("restart", "web")
    supervisor = eventually(lambda: shell.report("web")["up"] and shell.report("web")["pid"])
    worker = int(Path(f"/proc/{shell.instances('web')[0]}/stat").read_text().rpartition(")")[2].split()[1])
    for pid in (supervisor, worker):
        assert Path(f"/proc/{pid}/cmdline").read_bytes().strip(b"\0") == b"daemonkit: web"
        assert Path(f"/proc/{pid}/comm").read_text() == "daemonkit: web\n"
    found = subprocess.run(
        ["pgrep", "-f", f"slee[p] {seconds}"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert found == [str(pid) for pid in shell.instances("web")]
    shell("stop", "web")
    if foreground:
        assert foreground.wait(30) == 0


# --- narrow terminals, plain locales ------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [20, 40, 60, 80])
def test_a_narrow_terminal_shows_whole_columns(shell: Shell, columns: int) -> None:
    long = "a" * 64
    for name in (long, "b"):
        shell.start(name)
    program = f"stty cols {columns}; exec {' '.join(COMMAND)} ls"
    terminal = Terminal(
        ["env", "TERM=xterm", "NO_COLOR=1", f"DAEMONKIT_HOME={shell.home}", "sh", "-c", program], shell.folder
    )
    try:
        lines = terminal.read().splitlines()
        os.waitpid(terminal.pid, 0)
    finally:
        terminal.hang_up()
    assert len(lines) == 3 and all(len(line) <= max(columns, 24) for line in lines), lines
    assert lines[0].split()[:3] == ["NAME", "STATE", "UP"] and lines[2].split()[:3] == ["b", "running", "1/1"]


def test_the_c_locale_shows_names_of_any_bytes(shell: Shell) -> None:
    folder = shell.folder / "müll"
    folder.mkdir()
    shell.start("web", cwd=folder, env={**shell.environment, "LC_ALL": "C.UTF-8"})
    plain = {**shell.environment, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for command in (("ls",), ("status", "web"), ("status", "web", "--json"), ("ls", "--json"), ("logs", "web")):
        shell(*command, env=plain, encoding="utf-8")
