"""Programs that the `daemonkit` command runs otherwise: `run`, `spawn`, and under systemd by `unit`."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest
from harness import PATIENCE, alive, eventually
from shell import COMMAND, QUICK, one_line

import daemonkit

if TYPE_CHECKING:
    from shell import Shell


def test_spawn_prints_the_pid_of_what_it_launched(shell: Shell) -> None:
    done = shell("spawn", "--pidfile", "job.pid", "--log", "job.log", "--", "sh", "-c", "echo hello; exec sleep 1000")
    pid = int(done.stdout)
    assert alive(pid) and os.getsid(pid) == pid
    eventually(lambda: (shell.folder / "job.log").read_text() == "hello\n")
    refused = one_line(shell("spawn", "--pidfile", "job.pid", "--", "true", status=1).stderr)
    assert f"{pid} (since " in refused and refused.endswith(
        f"; stop it with: daemonkit stop --pidfile job.pid, or kill {pid}\n"
    )
    assert refused.startswith(f"daemonkit: {shell.folder}/job.pid is held by process ")
    daemonkit.stop(shell.folder / "job.pid")


@pytest.mark.parametrize("moment", [0.3, 1.5])
def test_run_that_is_stopped_ends_with_0_up_or_not(shell: Shell, moment: float) -> None:
    with subprocess.Popen(
        [*COMMAND, "run", "--", "sleep", "1000"], env=shell.environment, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr
        while "started" not in process.stderr.readline():
            pass
        select.select([process.stderr], [], [], moment)
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
        assert process.wait(PATIENCE) == 0 and "failed" not in said


def test_run_is_the_same_in_the_foreground(shell: Shell) -> None:
    done = shell("run", *QUICK, "-i", 2, "--", "sh", "-c", "echo hello $DAEMONKIT_INSTANCE")
    assert sorted(done.stdout.splitlines()) == ["hello 0", "hello 1"]
    shell("run", "--restart", "never", "--", "sh", "-c", "exit 4", status=1)
    process = subprocess.Popen(
        [*COMMAND, "run", *QUICK, "--", "sleep", "1000"], stderr=subprocess.PIPE, text=True, cwd=shell.folder
    )
    assert process.stderr
    for line in process.stderr:
        if "is up" in line:
            break
    process.terminate()
    assert process.wait(PATIENCE) == 0
    process.stderr.close()
    assert not shell.home.exists()


def test_a_unit_that_systemd_accepts(shell: Shell) -> None:
    if not shutil.which("systemd-analyze") or not os.access("/tmp", os.W_OK):
        pytest.skip("systemd-analyze is not installed, or may not write to /tmp")
    shell.start("web", "-i", 2, "--env", 'SAY=a "b" $c %d', "--umask", "027", "--max-memory", "1M")
    unit = shell("unit", "web").stdout
    path = shell.folder / "web.service"
    path.write_text(unit)
    done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Type=notify" in unit and "--instances=2" in unit and "--umask=27" in unit


def test_a_unit_finds_the_same_program_as_the_same_user(shell: Shell) -> None:
    path = f"/opt/venv/bin:{os.environ['PATH']}"
    shell.start("web", "--start-timeout", 1000, "--stop-timeout", 2_000_000, env={**shell.environment, "PATH": path})
    unit = shell("unit", "web").stdout.splitlines()
    assert f"Environment=PATH={path}" in unit
    assert "TimeoutStartSec=1005" in unit and "TimeoutStopSec=2000005" in unit
    assert not any(line.startswith("User=") for line in unit) or os.geteuid()


def test_a_unit_of_an_app_that_is_never_killed_waits_for_ever(shell: Shell) -> None:
    shell.start("web", "--stop-timeout", "inf")
    assert "TimeoutStopSec=infinity" in shell("unit", "web").stdout.splitlines()


def test_a_unit_for_ones_own_manager_and_several_at_once(shell: Shell) -> None:
    shell.start("web")
    shell.start("mail")
    own = shell("unit", "web", "--user").stdout
    assert "WantedBy=default.target" in own and "User=" not in own and "network.target" not in own
    both = shell("unit", "web", "mail").stdout
    assert both.count("[Service]") == 2 and "# web.service\n[Unit]\n" in both and "# mail.service\n[Unit]\n" in both
    assert "WantedBy=multi-user.target" in both
    shell("unit", status=2)


def test_a_unit_comes_after_those_of_the_apps_that_its_app_comes_after(shell: Shell) -> None:
    (shell.folder / "daemonkit.toml").write_text(
        '[defaults]\nmin_uptime = 0.05\n[apps.db]\ncommand = "sleep 1000"\n[apps.web]\ncommand = "sleep 1000"\nafter = ["db"]\n'
    )
    shell("up")
    for more, after in (((), "After=network.target db.service"), (("--user",), "After=db.service")):
        lines = shell("unit", "web", *more).stdout.splitlines()
        assert after in lines and "Wants=db.service" in lines
