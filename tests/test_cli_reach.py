"""The command reaches further: signals, events, daemons with a pidfile, environments, known apps again."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest
from harness import alive, eventually
from shell import QUICK, one_line

import daemonkit

if TYPE_CHECKING:
    from shell import Shell

# --- signal -------------------------------------------------------------------------------------------------------

HEARS = (
    'trap "echo heard $DAEMONKIT_INSTANCE >>heard" USR1; touch ready$DAEMONKIT_INSTANCE; while :; do sleep 0.05; done'
)


@pytest.mark.parametrize("name", ["USR1", "SIGUSR1", "10"])
def test_a_signal_reaches_the_main_process_of_each_instance(shell: Shell, name: str) -> None:
    shell.start("web", "-i", 2, command=("sh", "-c", HEARS))
    eventually(lambda: (shell.folder / "ready0").exists() and (shell.folder / "ready1").exists())
    shell("signal", name, "web")
    eventually(lambda: sorted((shell.folder / "heard").read_text().splitlines()) == ["heard 0", "heard 1"])
    assert shell.report("web")["restarts"] == 0


def test_a_signal_to_what_does_not_run_or_that_is_none(shell: Shell) -> None:
    shell("start", "web", "--", "true")
    assert "does not run" in one_line(shell("signal", "USR1", "web", status=1).stderr)
    assert "no app nosuch" in one_line(shell("signal", "USR1", "nosuch", status=1).stderr)
    for words in (("NOSUCH", "web"), ("99", "web"), ("web",), ()):
        assert one_line(shell("signal", *words, status=2).stderr)


def test_a_state_that_names_a_stranger_has_nobody_signalled(shell: Shell) -> None:
    shell.start("web")
    shell.start("other")
    stranger = shell.instances("other")[0]
    text = (shell.home / "web.state").read_text().replace(str(shell.instances("web")[0]), str(stranger))
    (shell.home / "web.state").write_text(text)
    assert "no instance of web runs" in one_line(shell("signal", "KILL", "web", status=1).stderr)
    assert alive(stranger)


# --- on-event -----------------------------------------------------------------------------------------------------

TELL = 'echo "$DAEMONKIT_APP $DAEMONKIT_EVENT $DAEMONKIT_INSTANCE $DAEMONKIT_EXITCODE" >>{folder}/told; test -n "$DAEMONKIT_PID"'


def told(shell: Shell) -> list[str]:
    return sorted((shell.folder / "told").read_text().splitlines())


def test_on_event_is_run_for_crashes_and_giving_up(shell: Shell) -> None:
    program = "while ! [ -e go ]; do sleep 0.02; done; exit 3"
    shell.start(
        "web", "--max-restarts", 1, "--on-event", TELL.format(folder=shell.folder), command=("sh", "-c", program)
    )
    assert not (shell.folder / "told").exists()
    (shell.folder / "go").touch()
    eventually(lambda: told(shell) == ["web exit 0 3", "web exit 0 3", "web gave-up 0 3"])


def test_on_event_is_not_run_for_what_was_wished(shell: Shell) -> None:
    event = TELL.format(folder=shell.folder)
    rude = "trap 'exit 7' TERM; while :; do sleep 0.05; done"
    shell.start("web", "--on-event", event, command=("sh", "-c", rude))
    shell("reload", "web")
    shell("restart", "web")
    shell("stop", "web")
    shell("start", "job", "--on-event", event, "--", "true")
    shell.start("last", "--on-event", event, "--restart", "never", command=("sh", "-c", "sleep 0.3; exit 9"))
    eventually(lambda: told(shell) == ["last exit 0 9"])


def test_a_command_of_on_event_that_hangs_holds_up_nobody_and_one_that_fails_is_a_log_line(shell: Shell) -> None:
    program = "while ! [ -e go ]; do sleep 0.02; done; rm go; exit 3"
    hang = f"echo $$ >>{shell.folder}/hung; sleep 1000"
    shell.start("web", "--restart", "always", "--on-event", hang, command=("sh", "-c", program))
    (shell.folder / "go").touch()
    eventually(lambda: shell.report("web")["restarts"] == 1)
    pid = int(eventually((shell.folder / "hung").read_text))
    shell("delete", "web")
    assert alive(pid)
    os.killpg(os.getpgid(pid), signal.SIGKILL)
    shell.start("bad", "--restart", "never", "--on-event", "exit 5", command=("sh", "-c", "sleep 0.3; exit 3"))
    eventually(lambda: "--on-event ended with status 5, at exit" in shell("logs", "bad", "-n", 50).stdout)


# --- daemons with a pidfile ---------------------------------------------------------------------------------------


def test_a_spawned_pipeline_is_looked_after_by_its_pidfile(shell: Shell) -> None:
    shell("status", "--pidfile", "job.pid", status=3)
    assert shell("stop", "--pidfile", "job.pid").stdout == "job.pid: nothing runs\n"
    program = "sleep 1000 | (trap '' TERM; while :; do sleep 0.05; done) & echo $! >last; wait"
    pid = int(shell("spawn", "--pidfile", "job.pid", "--", "sh", "-c", program).stdout)
    last = int(eventually((shell.folder / "last").read_text))
    assert str(pid) in shell("status", "--pidfile", "job.pid").stdout
    report = json.loads(shell("status", "--pidfile", "job.pid", "--json").stdout)
    assert (report["state"], report["pid"]) == ("running", pid)
    os.kill(last, signal.SIGKILL)
    assert shell("stop", "--pidfile", "job.pid").stdout == ""
    assert not alive(pid)
    assert shell("status", "--pidfile", "job.pid", status=3).stdout == "job.pid: nothing runs\n"


@pytest.mark.parametrize("words", [("status",), ("status", "web", "--pidfile", "f"), ("stop", "web", "--pidfile", "f")])
def test_a_name_or_a_pidfile(shell: Shell, words: tuple[str, ...]) -> None:
    assert "either" in one_line(shell(*words, status=2).stderr)


def test_any_daemon_of_the_library_is_one_with_a_pidfile(shell: Shell) -> None:
    with daemonkit.PidFile(shell.folder / "own.pid"):
        assert str(os.getpid()) in shell("status", "--pidfile", "own.pid").stdout


# --- names --------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_known_apps_are_started_again_and_those_that_run_are_left_alone(shell: Shell) -> None:
    for name in ("web1", "web2", "mail"):
        shell.start(name)
    shell("stop", "web1", "mail")
    pid = shell.report("web2")["pid"]
    shell("start", "web*")
    assert shell.report("web1")["up"] == 1 and shell.report("web2")["pid"] == pid
    assert shell.report("mail")["state"] == "stopped"
    assert "runs already" in one_line(shell("start", "web1", status=1).stderr)
    shell("start", "web1", "web2")
    shell("delete", "web2", "mail")
    shell("start", "web*")
    shell("start", "--all")
    assert "no app matches" in one_line(shell("stop", "x*", status=1).stderr)
    assert "no app nosuch" in one_line(shell("start", "web1", "nosuch", status=1).stderr)


@pytest.mark.long
def test_after_a_reboot_all_is_started_but_what_was_stopped_or_is_done(shell: Shell) -> None:
    for name in ("killed", "ended", "stopped", "downed"):
        shell.start(name)
    shell("start", "job", "--", "true")
    shell("stop", "stopped")
    pids = [shell.report(name)["pid"] for name in ("killed", "ended")]
    instances = shell.instances("killed")
    os.kill(pids[0], signal.SIGKILL)
    os.kill(pids[1], signal.SIGTERM)  # as a shutdown does
    eventually(lambda: not any(map(alive, [*pids, *instances])))
    shell("stop", "downed")
    shell("start", "--all")
    states = {one["name"]: one["state"] for one in json.loads(shell("ls", "--json").stdout)}
    assert states == {"killed": "running", "ended": "running", "stopped": "stopped", "downed": "stopped", "job": "done"}
    shell("start", "stopped")
    assert shell.report("stopped")["state"] == "running"


def test_to_start_all_where_no_app_is_known_says_so(shell: Shell) -> None:
    said = f"daemonkit: no app is known in {shell.home}; start one with: daemonkit start NAME -- CMD\n"
    assert shell("start", "--all").stderr == said
    shell.start("web")
    shell("stop", "web")
    assert shell("start", "--all").stderr == ""


def test_options_are_laid_over_those_that_an_app_had(shell: Shell) -> None:
    shell.start("web", "-i", 2, "--env", "A=1", "--stop-timeout", 3)
    shell("stop", "web")
    shell("start", "web", "--env", "B=2", "--stop-timeout", 4)
    settings = json.loads((shell.home / "web.json").read_text())
    assert (settings["instances"], settings["stop_timeout"], settings["env"]) == (2, 4, {"A": "1", "B": "2"})


def test_status_shows_the_environment(shell: Shell) -> None:
    shell.start("web", "--env", "ASKED=yes", env={**shell.environment, "TODAY": "monday"})
    shown = shell("status", "web", "--env").stdout.splitlines()
    assert {"ASKED=yes", "TODAY=monday", "PYTHONUNBUFFERED=1"} <= set(shown)


@pytest.mark.parametrize("name", ["server.js", "./server.js", "app.py", "run.sh", "tool"])
def test_a_program_in_place_of_a_name_is_answered_with_the_line_that_starts_it(shell: Shell, name: str) -> None:
    path = shell.folder / name
    path.write_text("#!/bin/sh\nexec sleep 1000\n")
    path.chmod(0o755)
    said = one_line(shell("start", name, status=2).stderr)
    stem = path.name.partition(".")[0]
    runner = {"js": "node ", "py": "python ", "sh": "sh "}.get(path.suffix[1:], "")
    assert f"daemonkit start {stem} -- {runner}{name if runner or '/' in name else f'./{name}'}\n" in said
    assert "sh app.py 8000" in one_line(shell("start", "sh", "app.py", "8000", status=2).stderr)
    if not runner:
        shell("start", *QUICK, *said.rpartition("daemonkit start ")[2].split())


# --- programs that put themselves into the background -------------------------------------------------------------

ONCE = "import os, time\nif os.fork(): os._exit(0)\nos.setsid()\ntime.sleep(1000)"
TWICE = ONCE.replace("os.setsid()", "os.setsid()\nif os.fork(): os._exit(0)")


@pytest.mark.parametrize("program", [ONCE, TWICE])
@pytest.mark.parametrize("options", [(), ("--restart", "always"), ("--wait-ready",)])
def test_a_program_that_puts_itself_into_the_background_is_told_as_that(
    shell: Shell, program: str, options: tuple[str, ...]
) -> None:
    done = shell("start", "web", *options, "--", sys.executable, "-c", program, status=1 if options else 0)
    said = one_line(done.stderr)
    assert "put itself into the background (1 process" in said and "run in the foreground" in said
    assert "put itself into the background" in shell("logs", "web").stdout
    assert shell("status", "web", status=3)


def test_a_program_that_ends_is_told_as_done_and_nothing_else(shell: Shell) -> None:
    done = shell("start", "web", "--", "sh", "-c", "sleep 0.1 & wait; sleep 0.1 | cat")
    assert (done.stdout, done.stderr) == ("web: done\n", "")
