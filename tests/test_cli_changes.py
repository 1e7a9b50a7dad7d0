"""What changes a running app: `restart`, `reload`, several apps at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

from harness import PATIENCE, alive, eventually
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


def test_several_apps_at_once(shell: Shell) -> None:
    for name in ("a", "b", "c"):
        shell.start(name)
    assert "no app x" in one_line(shell("stop", "a", "x", "b", status=1).stderr)
    assert [one["state"] for one in json.loads(shell("ls", "--json").stdout)] == ["stopped", "stopped", "running"]
    shell("restart", "--all")
    assert {one["state"] for one in json.loads(shell("ls", "--json").stdout)} == {"running"}
    shell("delete", "--all")
    assert list(shell.home.iterdir()) == []
