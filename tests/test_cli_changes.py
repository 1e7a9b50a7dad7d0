"""What changes a running app: `restart`, `reload`, several apps at once."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from harness import PATIENCE, alive, children, eventually
from shell import COMMAND, one_line

if TYPE_CHECKING:
    from shell import Shell


FLAG = "[ -e flag ] && exit 6; sleep 0.6; touch flag; exit 6"


def test_an_instance_that_is_killed_is_restarted_and_counted(shell: Shell) -> None:
    shell.start("web", "-i", 2, "--restart", "always")
    os.kill(shell.instances("web")[0], signal.SIGKILL)
    eventually(lambda: shell.report("web")["restarts"] == 1 and shell.report("web")["up"] == 2)


def test_reload_returns_once_each_instance_is_a_new_one(shell: Shell) -> None:
    shell.start("web", "-i", 3)
    before = set(shell.instances("web"))
    shell("reload", "web")
    after = set(shell.instances("web"))
    assert len(after) == 3 and before.isdisjoint(after) and not any(map(alive, before))


def test_a_reload_that_fails_says_so_and_the_old_run_stays(shell: Shell) -> None:
    (shell.folder / "good").touch()
    shell.start("web", command=("sh", "-c", "test -e good && exec sleep 1000; exit 5"))
    before = shell.instances("web")
    (shell.folder / "good").unlink()
    assert "not reloaded" in one_line(shell("reload", "web", status=1).stderr)
    assert shell.instances("web") == before and alive(before[0])


@pytest.mark.long
def test_a_reload_whose_worker_is_killed_fails_and_the_settings_stay_the_old_ones(shell: Shell) -> None:
    shell.start("web", "--env", "WORD=one", "--ready-check", "sh -c 'test $WORD = one'")
    reload = subprocess.Popen(
        [*COMMAND, "reload", "web", "--env", "WORD=two"], cwd=shell.folder, env=shell.environment, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    eventually(lambda: len(shell.state("web")["instances"][0]["runs"]) == 2)
    [worker] = children(shell.report("web")["pid"])
    os.kill(worker, signal.SIGKILL)
    assert "web was not reloaded: the worker process was killed" in one_line(reload.communicate(timeout=PATIENCE)[1])
    assert json.loads((shell.home / "web.json").read_text())["env"] == {"WORD": "one"}
    eventually(lambda: shell.report("web")["up"] == 1)
    shell("scale", "web", 2)
    assert shell.report("web")["up"] == 2


@pytest.mark.long
def test_a_reload_that_comes_while_there_is_no_worker_is_done_by_the_next_one(shell: Shell) -> None:
    shell.start("web")
    for count in (2, 3, 4):
        [worker] = children(shell.report("web")["pid"])
        log = (shell.home / "web.log").read_text().count("the worker process was killed")
        os.kill(worker, signal.SIGKILL)
        eventually(lambda: (shell.home / "web.log").read_text().count("the worker process was killed") > log)  # noqa: B023 - called here
        shell("scale", "web", count)
        assert shell.report("web")["wanted"] == count


def test_a_reload_that_is_refused_says_why_and_is_an_event_of_no_instance(shell: Shell) -> None:
    told = 'echo "$DAEMONKIT_EVENT,$DAEMONKIT_INSTANCE,$DAEMONKIT_PID,$DAEMONKIT_EXITCODE" >told.new; mv told.new told'
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        shell.start("web", "--on-event", told, command=("sh", "-c", "while :; do echo served; sleep 0.02; done"))
        before, settings = shell.instances("web"), (shell.home / "web.json").read_text()
        assert f"'{where}': Address already in use" in one_line(
            shell("reload", "web", "--listen", where, status=1).stderr
        )
    assert "Traceback" not in (shell.home / "web.log").read_text()
    eventually(lambda: (shell.folder / "told").read_text() == "reload-failed,,,\n")
    assert shell.instances("web") == before and (shell.home / "web.json").read_text() == settings
    shell("reload", "web", "--listen", where)
    assert alive(shell.instances("web")[0]) and not alive(before[0])


@pytest.mark.long
@pytest.mark.parametrize("says", ["OSError: [Errno 98] Address already in use", "Error: listen EADDRINUSE"])
def test_a_reload_that_fails_for_the_port_names_the_way_out(shell: Shell, says: str) -> None:
    shell.start("web", command=("sh", "-c", f"mkdir port && exec sleep 1000; echo '{says}'; seq 30; exit 1"))
    *lines, failure = shell("reload", "web", status=1).stderr.splitlines()
    assert lines == [str(number) for number in range(21, 31)]
    assert "not reloaded" in failure and "daemonkit restart web" in failure and "--listen" in failure
    shell.start("other", command=("sh", "-c", "mkdir other && exec sleep 1000; exit 1"))
    assert "--listen" not in shell("reload", "other", status=1).stderr


def test_a_reload_whose_end_nothing_tells_does_not_wait_for_it(shell: Shell) -> None:
    shell.start("web")
    (shell.home / "web.state").write_text("rubbish")
    assert "so the outcome is unknown" in one_line(shell("reload", "web", status=1).stderr)


def test_restart_stops_nothing_that_it_could_not_start_again(shell: Shell) -> None:
    (shell.folder / "room").mkdir()
    shell.start("web", "--cwd", "room")
    pid = shell.report("web")["pid"]
    (shell.folder / "room").rmdir()
    assert "room: No such file" in one_line(shell("restart", "web", status=1).stderr)
    assert shell.report("web")["pid"] == pid


def test_settings_are_kept_as_they_were_given(shell: Shell) -> None:
    shell.start("web", "--log-max-bytes", "1K", "--log", "a.log")
    settings = json.loads((shell.home / "web.json").read_text())
    assert settings["log"] == str(shell.folder / "a.log") and not {"stdout", "stderr"} & set(settings)
    assert "--stdout" not in shell("unit", "web").stdout
    shell("restart", "web")
    assert json.loads((shell.home / "web.json").read_text()) == settings


def test_reload_of_what_is_not_up_tells_whether_it_came_up(shell: Shell) -> None:
    shell.start("web", "--backoff", "20,1,20", command=("sh", "-c", FLAG))
    eventually(lambda: (shell.folder / "flag").exists() and not shell.instances("web"))
    assert "did not come up" in one_line(shell("reload", "web", status=1).stderr)


def test_reload_of_a_start_that_is_under_way_waits_for_new_runs(shell: Shell) -> None:
    program = "import os, socket, time; time.sleep(0.7); s = socket.socket(1, 2); s.sendto(b'READY=1', '\\0' + os.environ['NOTIFY_SOCKET'][1:]); time.sleep(1000)"
    with subprocess.Popen(
        [*COMMAND, "start", "web", "--wait-ready", "--", sys.executable, "-c", program],
        env=shell.environment, stdout=subprocess.DEVNULL,
    ) as start:  # fmt: skip
        eventually(lambda: (shell.home / "web.state").exists() and shell.state("web")["instances"][0]["runs"])
        first = shell.state("web")["instances"][0]["runs"]
        shell("reload", "web")
        assert len(shell.instances("web")) == 1 and shell.instances("web") != first
        assert start.wait(PATIENCE) == 0


@pytest.mark.long
def test_several_apps_at_once(shell: Shell) -> None:
    for name in ("a", "b", "c"):
        shell.start(name)
    assert "no app x" in one_line(shell("stop", "a", "x", "b", status=1).stderr)
    assert [one["state"] for one in json.loads(shell("ls", "--json").stdout)] == ["stopped", "stopped", "running"]
    shell("restart", "--all")
    assert {one["state"] for one in json.loads(shell("ls", "--json").stdout)} == {"running"}
    shell("delete", "--all")
    assert list(shell.home.iterdir()) == []


# --- what can't be started again is found out first -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "path"),
    [("--log", "d/a.log"), ("--stdout", "d/out.{instance}.log"), ("--stderr", "d/e.log"), ("--listen", "unix:d/s"), ("--cwd", "d"), ("--stdin", "d/in")],
)  # fmt: skip
@pytest.mark.parametrize("how", ["gone", "a file", "closed"])
def test_restart_stops_nothing_whose_files_have_gone(shell: Shell, option: str, path: str, how: str) -> None:
    folder = shell.folder / "d"
    folder.mkdir()
    (folder / "in").touch()
    if how == "closed" and os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    shell.start("web", option, path)
    before = shell.report("web")["pid"], *shell.instances("web")
    folder.rename(shell.folder / "old")
    if how == "closed":
        folder.mkdir(mode=0)
    elif how == "a file":
        folder.touch()
    said = one_line(shell("restart", "web", status=1).stderr)
    assert str(folder) in said
    assert {"closed": "Permission denied", "a file": "Not a directory", "gone": "No such file"}[how] in said
    assert (shell.report("web")["pid"], *shell.instances("web")) == before
    if how == "closed":
        folder.rmdir()
    elif how == "a file":
        folder.unlink()
    (shell.folder / "old").rename(folder)
    shell("restart", "web")


def test_restart_stops_nothing_whose_user_has_gone(shell: Shell) -> None:
    shell.start("web")
    settings = json.loads((shell.home / "web.json").read_text())
    (shell.home / "web.json").write_text(json.dumps(settings | {"user": "nobody-like-this"}))
    pid = shell.report("web")["pid"]
    assert "nobody-like-this" in one_line(shell("restart", "web", status=1).stderr)
    assert shell.report("web")["pid"] == pid


def test_a_restart_that_fails_does_not_count_as_a_wish_to_stay_stopped(shell: Shell) -> None:
    shell.start("web", command=("sh", "-c", "[ -e bad ] && exit 3; exec sleep 1000"))
    (shell.folder / "bad").touch()
    shell("restart", "web", status=1)
    assert shell.report("web")["state"] == "failed"
    (shell.folder / "bad").unlink()
    shell("start", "--all")
    assert shell.report("web")["state"] == "running"


def test_stop_says_that_it_has_killed(shell: Shell) -> None:
    stubborn = (
        "sh",
        "-c",
        "[ $DAEMONKIT_INSTANCE = 1 ] && trap '' TERM; touch up$DAEMONKIT_INSTANCE; while :; do sleep 0.05; done",
    )
    shell.start("web", "-i", 2, "--stop-timeout", 0.2, command=stubborn)
    eventually(lambda: (shell.folder / "up1").exists())
    said = one_line(shell("stop", "web").stderr)
    assert "instance 1 of web did not end within 0.2 s" in said and "SIGKILL" in said
    assert shell("stop", "web").stderr == ""
    shell.start("good")
    assert shell("stop", "good").stderr == ""


def test_a_start_that_fails_runs_the_program_once(shell: Shell) -> None:
    for restart in ("on-failure", "always"):
        shell("start", "bad", "--restart", restart, "--", "sh", "-c", "echo run >>runs; exit 3", status=1)
    assert (shell.folder / "runs").read_text() == "run\n" * 2


def test_an_app_that_is_up_restarts_at_once_as_ever(shell: Shell) -> None:
    shell.start("web", command=("sh", "-c", "echo run >>runs; sleep 0.3; [ -e enough ] && exec sleep 1000; touch enough; exit 1"))  # fmt: skip
    eventually(lambda: (shell.folder / "runs").read_text() == "run\n" * 2)
