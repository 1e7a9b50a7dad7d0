"""`daemonkit run` as one replica on another engine: its number comes from outside, its root may be read-only."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest
from harness import PATIENCE, eventually
from shell import COMMAND, QUICK, Shell

if TYPE_CHECKING:
    from pathlib import Path

SAY = ("sh", "-c", "echo number $DAEMONKIT_INSTANCE")


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def _outside(shell: Shell, number: str) -> dict[str, str]:
    return {**shell.environment, "DAEMONKIT_INSTANCE": number}


@pytest.mark.parametrize("name", [(), ("web",)], ids=["nameless", "named"])
def test_the_number_from_outside_is_that_of_the_only_instance(shell: Shell, name: tuple[str, ...]) -> None:
    done = shell(
        "run", *name, *QUICK, "-i", 1, "--stdout", "out.{instance}", "--log-format", "[{instance}] ",
        "--on-event", "echo $DAEMONKIT_INSTANCE >event", "--restart", "never", "--", *SAY[:2], f"{SAY[2]}; exit 3",
        env=_outside(shell, "7"), status=1,
    )  # fmt: skip
    assert (shell.folder / "out.7").read_text() == "[7] number 7\n", done.stderr
    eventually(lambda: (shell.folder / "event").read_text() == "7\n")
    assert [path.name for path in shell.folder.glob("out*")] == ["out.7"]


@pytest.mark.parametrize(("number", "count"), [("7", 2), ("{{.Task.Slot}}", 1), ("", 1), ("-1", 1)])
def test_several_instances_and_what_is_no_number_are_counted_from_0_on(shell: Shell, number: str, count: int) -> None:
    done = shell("run", *QUICK, "-i", count, "--", *SAY, env=_outside(shell, number))
    assert sorted(done.stdout.splitlines()) == [f"number {index}" for index in range(count)]


def test_an_app_in_the_background_counts_from_0_on_whoever_started_it(shell: Shell) -> None:
    shell("start", "web", *QUICK, "--", *SAY, env=_outside(shell, "7"))
    eventually(lambda: "number 0" in (shell.home / "web.log").read_text())


def test_a_number_from_outside_is_not_kept_in_the_settings(shell: Shell) -> None:
    shell("run", "web", *QUICK, "--log", "web.{instance}", "--", *SAY, env=_outside(shell, "7"))
    assert "number 7" in (shell.folder / "web.7").read_text()
    shell("start", "web", *QUICK)
    eventually(lambda: "number 0" in (shell.folder / "web.0").read_text())


READ_ONLY = 'set -e; mount --rbind / "$1"; mount -o remount,ro,bind "$1"; mount --bind "$2" "$1$2"; shift 2; exec chroot "$ROOT" "$@"'


def test_a_named_run_needs_nothing_but_its_home_to_be_writable(shell: Shell) -> None:
    if os.geteuid() or not shutil.which("unshare"):
        pytest.skip("only root can make a root that is read-only")
    root, home = shell.folder / "root", shell.home
    root.mkdir()
    home.mkdir(mode=0o700)
    environment = {**shell.environment, "ROOT": str(root)}
    script = "touch /tmp/x 2>/dev/null && echo writable; echo number $DAEMONKIT_INSTANCE; exec sleep 1000"
    command = [
        "unshare", "--mount", "sh", "-c", READ_ONLY, "sh", str(root), str(home),
        *COMMAND, "run", "web", *QUICK, "--", "sh", "-c", script,
    ]  # fmt: skip
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespace can be made here")
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        try:
            eventually(lambda: shell("status", "web", status=None).returncode == 0)
            assert "1/1" in shell("ls").stdout
        finally:
            run.send_signal(signal.SIGTERM)
        out, _ = run.communicate(timeout=PATIENCE)
        assert run.returncode == 0 and "number 0" in out and "writable" not in out
