"""What changes while an app runs: `scale`, and `reload` with options."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from harness import PATIENCE, alive, eventually
from shell import COMMAND, one_line

if TYPE_CHECKING:
    from shell import Shell


def kept(shell: Shell) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((shell.home / "web.json").read_text())
    return settings


def test_scale_starts_and_stops_only_what_has_to_be(shell: Shell) -> None:
    shell.start("web", "-i", 2)
    pid, before = shell.report("web")["pid"], shell.instances("web")
    assert shell("scale", "web", 4).stdout == f"web: 4/4 up, pid {pid}\n"
    four = shell.instances("web")
    assert four[:2] == before and len(four) == 4
    shell("scale", "web", 1)
    assert shell.instances("web") == before[:1] and not any(map(alive, four[1:]))
    report = shell.report("web")
    assert (report["pid"], report["up"], report["wanted"], kept(shell)["instances"]) == (pid, 1, 1, 1)
    shell("restart", "web")
    assert shell.report("web")["up"] == 1


@pytest.mark.parametrize("count", ["0", "-1", "99999999999", "many", ""])
def test_scale_to_what_is_no_number_changes_nothing(shell: Shell, count: str) -> None:
    shell.start("web")
    assert one_line(shell("scale", "web", count, status=2).stderr)
    assert shell.report("web")["wanted"] == 1


def test_commands_that_change_an_app_at_the_same_time_all_hold(shell: Shell) -> None:
    shell.start("web", "--env", "KEPT=0")
    words = [
        ("reload", "web", "--env", "A=1"),
        ("reload", "web", "--env", "B=2"),
        ("scale", "web", "3"),
        ("reload", "web"),
    ]
    typed = [
        subprocess.Popen([*COMMAND, *one], cwd=shell.folder, env=shell.environment, stdout=subprocess.DEVNULL)
        for one in words
    ]
    assert [one.wait(PATIENCE) for one in typed] == [0, 0, 0, 0]
    settings = json.loads((shell.home / "web.json").read_text())
    assert settings["env"] == {"KEPT": "0", "A": "1", "B": "2"} and settings["instances"] == 3
    for pid in shell.instances("web"):
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert {b"KEPT=0", b"A=1", b"B=2"} <= set(environment)


def test_a_sighup_in_the_midst_of_a_change_leaves_it_to_go_on(shell: Shell) -> None:
    """As logrotate sends one: it brings no settings, and those on trial are not forgotten over it."""
    (shell.folder / "go").touch()
    shell.start("web", "--ready-check", "test -e go")
    (shell.folder / "go").unlink()
    scale = subprocess.Popen([*COMMAND, "scale", "web", "3"], cwd=shell.folder, env=shell.environment)
    eventually(lambda: len(shell.state("web")["instances"]) == 3)
    os.kill(shell.report("web")["pid"], signal.SIGHUP)
    (shell.folder / "go").touch()
    assert scale.wait(PATIENCE) == 0
    assert shell.report("web")["wanted"] == 3
    shell("reload", "web")


def test_scale_of_what_does_not_run_or_exist(shell: Shell) -> None:
    assert "no app web" in one_line(shell("scale", "web", 2, status=1).stderr)
    shell("start", "web", "--", "true")
    assert "does not run" in one_line(shell("scale", "web", 2, status=1).stderr)


SHOW = 'echo "$A $B" >>seen; exec sleep 1000'


def test_reload_with_options_holds_from_now_on(shell: Shell) -> None:
    shell.start("web", "--env", "A=1", command=("sh", "-c", SHOW))
    pid = shell.report("web")["pid"]
    shell("reload", "web", "--env", "B=2", "-i", 2)
    report = shell.report("web")
    assert (report["pid"], report["up"], report["wanted"]) == (pid, 2, 2)
    assert (shell.folder / "seen").read_text() == "1 \n1 2\n1 2\n"
    assert kept(shell)["env"] == {"A": "1", "B": "2"}
    os.kill(shell.instances("web")[0], 9)
    eventually(lambda: (shell.folder / "seen").read_text().endswith("1 2\n" * 3))
    shell("restart", "web")
    assert (shell.folder / "seen").read_text().endswith("1 2\n" * 5)


def test_reload_with_another_command_line_and_the_present_environment(shell: Shell) -> None:
    shell.start("web", command=("sh", "-c", "echo old >>seen; exec sleep 1000"))
    pid, before = shell.report("web")["pid"], shell.instances("web")
    words = ("--", "sh", "-c", 'echo "new $TODAY" >>seen; exec sleep 1000')
    shell("reload", "web", "--update-env", *words, env={**shell.environment, "TODAY": "tuesday"})
    assert (shell.folder / "seen").read_text() == "old\nnew tuesday\n"
    assert shell.report("web")["pid"] == pid and not any(map(alive, before))
    assert shell.report("web")["command"] == list(words[1:])


@pytest.mark.long
@pytest.mark.parametrize(
    "words",
    [("--env", "A=bad"), ("--", "sh", "-c", "exit 3"), ("-i", "3", "--env", "A=bad"), ("--", "sleep", "nonsense")],
)
def test_a_reload_whose_settings_do_not_come_up_leaves_the_old_ones_in_force(
    shell: Shell, words: tuple[str, ...]
) -> None:
    shell.start("web", "-i", 2, "--min-uptime", 1, command=("sh", "-c", f'[ "$A" = bad ] && exit 3; {SHOW}'))
    pid, before, settings = shell.report("web")["pid"], shell.instances("web"), kept(shell)
    assert "daemonkit: web was not reloaded" in shell("reload", "web", *words, status=1).stderr.splitlines()[-1]
    assert shell.instances("web") == before and shell.report("web")["pid"] == pid and kept(shell) == settings
    os.kill(before[0], 9)
    eventually(lambda: shell.report("web")["up"] == 2 and shell.instances("web") != before)
    shell("reload", "web")
    assert shell.report("web")["up"] == 2 and kept(shell) == settings


@pytest.mark.parametrize(
    "words",
    [("--", "no-such-program"), ("--cwd", "/no/such"), ("--user", "nobody-like-this"), ("--log", "/no/such/log")],
)
def test_a_reload_to_what_can_not_be_changes_nothing(shell: Shell, words: tuple[str, ...]) -> None:
    shell.start("web")
    before, settings = shell.instances("web"), kept(shell)
    assert one_line(shell("reload", "web", *words, status=1).stderr)
    assert shell.instances("web") == before and kept(shell) == settings and not (shell.home / "web.next").exists()


SERVER = """
import signal, socket, threading
stopping = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stopping.set())
with socket.socket(fileno=3) as server:
    server.settimeout(0.05)
    while not stopping.is_set():
        try:
            connection, _ = server.accept()
        except TimeoutError:
            continue
        with connection:
            connection.sendall(b"hello\\n")
"""


@pytest.mark.long
def test_scaling_and_reloading_with_options_under_load_fail_no_request(shell: Shell) -> None:
    import socket
    import sys

    (shell.folder / "site.py").write_text(SERVER)
    shell.start("web", "-i", 2, "--listen", "unix:sock", command=(sys.executable, "site.py"))
    done, asked, failed = threading.Event(), [0], [0]

    def ask() -> None:
        while not done.is_set():
            asked[0] += 1
            try:
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(str(shell.folder / "sock"))
                    failed[0] += client.makefile("rb").read() != b"hello\n"
            except OSError:
                failed[0] += 1

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        for words in (
            ("scale", "web", 6),
            ("reload", "web", "--env", "A=1"),
            ("scale", "web", 3),
            ("reload", "web", "-i", 4),
        ):
            shell(*words)
    finally:
        done.set()
        thread.join()
    assert asked[0] > 100 and failed[0] == 0
    assert shell.report("web")["up"] == 4
