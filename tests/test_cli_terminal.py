"""The `daemonkit` command at a terminal: Ctrl-C, colours, progress, `top`."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest
from harness import PATIENCE, Terminal, alive, eventually
from shell import COMMAND, one_line

if TYPE_CHECKING:
    from shell import Shell


def test_ctrl_c_during_a_start_leaves_nothing_and_says_so(shell: Shell) -> None:
    terminal = Terminal(
        ["env", f"DAEMONKIT_HOME={shell.home}", *COMMAND, "start", "web", "--wait-ready", "--", "sleep", "1000"],
        shell.folder,
    )
    try:
        terminal.read("starting web")
        terminal.type("\x03")
        assert "interrupted; web was not started" in terminal.read()
        assert os.waitstatus_to_exitcode(os.waitpid(terminal.pid, 0)[1]) == 130
    finally:
        terminal.hang_up()
    assert not list(shell.home.glob("*.pid")) and not list(shell.home.glob("*.json"))


@pytest.mark.long
@pytest.mark.parametrize(("verb", "said"), [("stop", "is being stopped\r\n"), ("restart", "will not be started again")])
def test_ctrl_c_during_a_stop_says_that_it_goes_on(shell: Shell, verb: str, said: str) -> None:
    shell.start("web", "--stop-timeout", 2, command=("sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"))
    terminal = Terminal(["env", f"DAEMONKIT_HOME={shell.home}", *COMMAND, verb, "web"], shell.folder)
    try:
        terminal.read("stopping web")
        terminal.type("\x03")
        assert said in terminal.read()
        assert os.waitstatus_to_exitcode(os.waitpid(terminal.pid, 0)[1]) == 130
    finally:
        terminal.hang_up()
    eventually(lambda: shell.report("web")["pid"] is None)


@pytest.mark.long
def test_what_is_told_on_a_terminal_takes_the_place_of_the_progress(shell: Shell) -> None:
    words = ["start", "web", "--wait-ready", "--start-timeout", "1.5", "--", "sh", "-c", "echo words; exec sleep 1000"]
    terminal = Terminal(["env", f"DAEMONKIT_HOME={shell.home}", *COMMAND, *words], shell.folder)
    try:
        shown = terminal.read()
        os.waitpid(terminal.pid, 0)
    finally:
        terminal.hang_up()
    assert "starting web" in shown
    for line in ("words", "daemonkit: web did not start"):
        before = shown[: shown.index(line)]
        assert before.endswith((f"\r{' ' * len('starting web ...')}\r", "\n"))


def test_an_interrupt_that_only_the_command_gets_ends_the_start(shell: Shell) -> None:
    command = [*COMMAND, "start", "web", "--wait-ready", "--start-timeout", "1000", "--", "sleep", "1000"]
    starter = subprocess.Popen(command, env=shell.environment, stderr=subprocess.PIPE, text=True)
    eventually(lambda: json.loads(shell("ls", "--json").stdout or "[]"))
    starter.send_signal(signal.SIGINT)
    assert "interrupted; web was not started" in one_line(starter.communicate(timeout=PATIENCE)[1])
    assert starter.returncode == 130
    assert json.loads(shell("ls", "--json").stdout) == []


def test_a_terminal_gets_colour_unless_no_color_says_otherwise(shell: Shell) -> None:
    shell.start("web")
    seen = {}
    for no_color in ("", "1"):
        words = ["env", f"NO_COLOR={no_color}", "TERM=xterm-256color", f"DAEMONKIT_HOME={shell.home}"]
        terminal = Terminal([*words, *COMMAND, "ls"], shell.folder)
        try:
            seen[no_color] = terminal.read()
            os.waitpid(terminal.pid, 0)
        finally:
            terminal.hang_up()
    assert "running" in seen[""] and "running" in seen["1"]
    assert "\x1b[32m" in seen[""] and "\x1b" not in seen["1"]
    assert "\x1b" not in shell("ls").stdout


@pytest.mark.parametrize("key", ["q", "\x03"])
def test_top_shows_the_table_and_the_instances_until_a_key_ends_it(shell: Shell, key: str) -> None:
    shell.start("web", "-i", 2)
    terminal = Terminal(["env", "TERM=xterm", f"DAEMONKIT_HOME={shell.home}", *COMMAND, "top"], shell.folder)
    try:
        assert "web" in terminal.read("2/2")
        terminal.type("i")
        assert str(shell.instances("web")[0]) in terminal.read("LAST EXIT") + terminal.read("running")
        terminal.type(key)
        assert "\x1b[?1049l" in terminal.read()
        assert os.waitstatus_to_exitcode(os.waitpid(terminal.pid, 0)[1]) == 0
    finally:
        terminal.hang_up()
    assert "needs a terminal" in one_line(shell("top", status=1).stderr)


def test_top_that_is_terminated_leaves_the_terminal_as_it_was(shell: Shell) -> None:
    shell.start("web")
    terminal = Terminal(["env", "TERM=xterm", f"DAEMONKIT_HOME={shell.home}", *COMMAND, "top"], shell.folder)
    try:
        assert "\x1b[?1049h" in terminal.read("1/1")
        os.kill(terminal.pid, signal.SIGTERM)
        assert "\x1b[?1049l" in terminal.read()
        assert os.waitstatus_to_exitcode(os.waitpid(terminal.pid, 0)[1]) == 143
    finally:
        terminal.hang_up()


def test_a_foreground_app_under_nohup_outlives_its_terminal(shell: Shell) -> None:
    program = f"exec nohup {' '.join(COMMAND)} run --min-uptime 0.05 -- sleep 1000"
    terminal = Terminal(["sh", "-c", program], shell.folder)
    log = shell.folder / "nohup.out"
    eventually(lambda: log.exists() and "is up" in log.read_text())
    terminal.hang_up()
    select.select([], [], [], 0.3)
    assert alive(terminal.pid)
    os.kill(terminal.pid, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(terminal.pid, 0)[1]) == 0
    assert "SIGKILL" not in log.read_text()
