"""The `daemonkit` command where things are not as they should be: damaged files, full disks, other users."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import harness
import pytest
from harness import PATIENCE, alive, eventually, let_everybody_in, python_for_everybody
from shell import QUICK, one_line
from supervising import FIRST, tree

import daemonkit
from daemonkit._supervise import marks
from daemonkit._system.process import identity_of
from daemonkit.cli import _app

if TYPE_CHECKING:
    from shell import Shell


FULL = """
mount -t tmpfs -o size=64k,mode=700 tmpfs {home} || exit 77
D="{python} -m daemonkit"
$D start web --min-uptime 0.05 -- sleep 1000 || exit 1
cat /dev/zero >{home}/filler 2>/dev/null
$D start other --min-uptime 0.05 -- sleep 1000; echo start $?
killed=$(sed 's/.*"up": .\\([0-9]*\\).*/\\1/' {home}/web.state)
kill -9 $killed
timeout {patience} sh -c "while grep -q '\\[$killed\\]' {home}/web.state 2>/dev/null; do sleep 0.05; done"; echo believed $?
# The new run of what was killed takes a moment to be up.
timeout {patience} sh -c "until $D status web >/dev/null; do sleep 0.1; done"
$D status web; echo status $?
timeout {patience} $D reload web; echo reload $?
$D stop web; echo stop $?
"""


def test_an_app_whose_supervisor_was_killed_has_failed_whatever_the_state_says(shell: Shell) -> None:
    shell.start("web", "-i", 2)
    pid, instances = shell.report("web")["pid"], shell.instances("web")
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not any(map(alive, [pid, *instances])))
    assert shell.state("web")["instances"][0]["up"]
    report = shell.report("web")
    assert (report["state"], report["up"], report["pid"]) == ("failed", 0, None)
    shell("start", "web")
    assert shell.report("web")["up"] == 2


def kill_both(shell: Shell, name: str) -> None:
    """Kill an app's supervisor and worker process so that neither can do anything about the other's end."""
    supervisor = shell.report(name)["pid"]
    (worker,) = harness.children(supervisor)
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in (supervisor, worker):
            os.kill(pid, number)
    for pid in (supervisor, worker):
        harness.ended(pid)


LEFT = {
    "a child": ["sh", "-c", "prlimit --rttime=unlimited:unlimited sleep {0} & wait"],
    "the main process": ["runuser", "-u", "nobody", "--", "sleep", "{0}"],
    "a child that sudo started": ["sh", "-c", "sudo -u nobody sleep {0} & wait"],
}


@pytest.mark.parametrize("what", LEFT)
def test_what_lost_its_mark_does_not_run_twice_after_supervisor_and_worker_were_killed(shell: Shell, what: str) -> None:
    command = [word.format(FIRST) for word in LEFT[what]]
    tool = " ".join(command).replace("sh -c ", "").split()[0]
    if not shutil.which(tool) or (tool != "prlimit" and os.getuid() != 0):
        pytest.skip(f"no {tool} here, or not for this user")
    ours = range(FIRST, FIRST + 1)
    shell.start("web", command=tuple(command))
    (first,) = eventually(lambda: tree(ours))
    kill_both(shell, "web")
    bystander = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    shell("start", "web")
    eventually(lambda: len(now := tree(ours)) == 1 and first not in now)
    assert alive(bystander.pid)
    bystander.kill()
    bystander.wait()
    shell("delete", "web")
    eventually(lambda: not tree(ours))


def test_a_session_that_began_later_is_nothing_that_was_left() -> None:
    """Its leader may have been given the pid of an instance that was killed."""
    with subprocess.Popen(["sleep", "1000"], start_new_session=True) as later:
        begun = identity_of(later.pid)
        assert begun and marks.end_sessions({later.pid}, begun.started - 1) == [later.pid]
        assert alive(later.pid)
        assert marks.end_sessions({later.pid}, begun.started) == []
        assert not alive(later.pid)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"instances": 5}', '{"instances": [{"up": 5}]}', "\0\xff"])
def test_a_state_that_is_damaged_makes_no_wrong_statement(shell: Shell, text: str) -> None:
    shell.start("web")
    (shell.home / "web.state").write_text(text)
    report = shell.report("web")
    assert (report["state"], report["up"], report["wanted"]) == ("running", None, 1)
    assert "?/1" in shell("ls").stdout


@pytest.mark.parametrize("text", ['{"command": ["x"], "instances": [1]}', "[" * 200_000, "\xff"])
def test_one_damaged_file_does_not_keep_the_others_from_being_listed(shell: Shell, text: str) -> None:
    shell.start("web")
    (shell.home / "bad.json").write_text(text, encoding="latin-1")
    (shell.home / "bad.state").write_text(text, encoding="latin-1")
    assert [(one["name"], one["state"]) for one in json.loads(shell("ls", "--json").stdout)] == [
        ("bad", "stopped"),
        ("web", "running"),
    ]


def test_a_supervisor_that_has_said_nothing_yet_is_starting(shell: Shell) -> None:
    shell.start("web")
    state = shell.state("web")
    shell("stop", "web")
    old = shell.state("web")
    shell("start", "web")
    assert state["supervisor"] != shell.state("web")["supervisor"]
    for text in (json.dumps(old), None):  # of the run before; of an app that has not been up yet
        (shell.home / "web.state").write_text(text) if text else (shell.home / "web.state").unlink()
        if not text:
            (shell.home / "web.json").unlink()
        report = shell.report("web")
        assert (report["state"], report["up"]) == ("starting", 0) and report["pid"]


def test_settings_that_are_damaged_are_told_and_can_be_given_anew(shell: Shell) -> None:
    shell.start("web")
    (shell.home / "web.json").write_text("{")
    assert "damaged" in one_line(shell("restart", "web", status=1).stderr)
    assert shell.report("web")["state"] == "running"
    shell("stop", "web")
    shell.start("web")


def test_what_is_started_again_while_it_is_deleted_keeps_its_pidfile(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell.start("web")
    monkeypatch.setenv("DAEMONKIT_HOME", str(shell.home))
    app = _app.App("web")  # as it is once delete has found that nothing runs, and somebody starts it
    pid = shell.report("web")["pid"]
    with pytest.raises(daemonkit.AlreadyRunningError):
        app.forget()
    assert shell.report("web")["pid"] == pid
    assert {"web.pid", "web.json", "web.log", "web.state"} <= {path.name for path in shell.home.iterdir()}


def test_settings_that_are_a_directory_are_told_and_disturb_no_others(shell: Shell) -> None:
    shell.start("web")
    (shell.home / "bad.json").mkdir()
    for verb in ("start", "restart", "unit"):
        assert "damaged" in one_line(shell(verb, "bad", status=1).stderr)
    shell("stop", "--all")
    assert not shell.report("web")["pid"]


def test_a_pidfile_that_another_tool_holds_is_left_alone(shell: Shell) -> None:
    shell.start("web")
    shell("stop", "web")
    with subprocess.Popen(["sleep", "1000"]) as stranger:
        try:
            eventually(lambda: (shell.home / "web.pid").write_text(f"{stranger.pid}\n") and shell.report("web")["pid"])
            for verb in ("stop", "delete", "restart", "start"):
                assert "another tool" in one_line(shell(verb, "web", status=1).stderr)
            assert stranger.poll() is None and (shell.home / "web.pid").read_text() == f"{stranger.pid}\n"
        finally:
            stranger.kill()


def test_a_number_that_a_strangers_process_was_given_after_a_power_cut_is_not_the_apps(shell: Shell) -> None:
    """The clock of a machine without a battery is behind then, and the pidfile is dated in the future."""
    shell.start("web")
    os.kill(supervisor := shell.report("web")["pid"], signal.SIGKILL)
    eventually(lambda: not alive(supervisor))
    with subprocess.Popen(["sleep", "1000"]) as stranger:
        try:
            pidfile = shell.home / "web.pid"
            pidfile.write_text(f"{stranger.pid}\n")
            os.utime(pidfile, (time.time() + 3600,) * 2)
            report = shell.report("web")
            assert (report["state"], report["pid"]) == ("failed", None)
            for verb in ("start", "restart"):
                shell(verb, "web")
                assert shell.report("web")["pid"] not in {None, stranger.pid}
            shell("delete", "web")
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_one_pidfile_that_is_none_does_not_keep_the_others_from_being_listed(shell: Shell) -> None:
    shell.start("web")
    (shell.home / "bad.pid").symlink_to("/etc/passwd")
    (shell.home / "bad.json").write_text("{}")
    done = shell("ls", status=1)
    assert "web   running" in done.stdout and "bad.pid: a symbolic link" in one_line(done.stderr)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become an ordinary user")
def test_as_an_ordinary_user(shell: Shell, everybody: dict[str, str]) -> None:
    python = python_for_everybody()
    if not python:
        pytest.skip("there is no Python 3.11 or later that another user can execute")
    let_everybody_in(shell.folder)
    shell.environment["PYTHONPATH"] = everybody["PYTHONPATH"]

    def somebody(uid: int, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, "-m", "daemonkit", *arguments],
            user=uid, group=uid, extra_groups=[], cwd=shell.folder, env=shell.environment,
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    done = somebody(65534, "start", "web", *QUICK, "-i", "2", "--", "sleep", "1000")
    assert (done.returncode, done.stderr) == (0, "")
    assert shell.home.stat().st_uid == 65534 and shell.report("web")["up"] == 2
    stranger = somebody(65533, "stop", "web")
    assert stranger.returncode == 1 and one_line(stranger.stderr) and shell.report("web")["up"] == 2
    assert somebody(65534, "delete", "web").returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small file system")
def test_a_full_disk_is_an_error_and_disturbs_no_running_app(shell: Shell) -> None:
    shell.home.mkdir(mode=0o700)
    script = FULL.format(home=shell.home, python=sys.executable, patience=PATIENCE)
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], env=shell.environment, capture_output=True, text=True, check=False
    )
    if done.returncode == 77:
        pytest.skip("no tmpfs can be mounted here")
    assert "start 1\n" in done.stdout and "status 0\n" in done.stdout and "stop 0\n" in done.stdout, done
    assert "believed 0\n" in done.stdout, done  # not for ever that the killed one is up
    first, *others = done.stderr.splitlines()
    assert "No space left" in first
    if "reload 0\n" not in done.stdout:
        assert "reload 1\n" in done.stdout and "the outcome is unknown" in one_line(f"{others[0]}\n")


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/etc/passwd"), os.mkdir])
def test_what_is_no_pidfile_keeps_no_other_app_from_being_shown_and_stopped(shell: Shell, make: Any) -> None:
    shell.start("web")
    make(shell.home / "odd.pid")
    done = shell("ls", status=1)
    assert "web" in done.stdout and "odd.pid" in one_line(done.stderr)
    done = shell("stop", "--all", status=1)
    assert "odd.pid" in done.stderr and shell.report("web")["state"] == "stopped"
