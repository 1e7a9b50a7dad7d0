"""`daemonkit unit -f FILE`: one unit of systemd for all apps of a file."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from shell import Shell, one_line

if TYPE_CHECKING:
    from pathlib import Path

FILE = """
[apps.a]
command = "a"
stop_timeout = 100
[apps.b]
command = "b"
after = ["a"]
start_timeout = 600
"""


def test_the_unit_runs_the_file_and_waits_for_one_after_the_other(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    (tmp_path / "daemonkit.toml").write_text(FILE)
    lines = shell("unit", "-f", "daemonkit.toml").stdout.splitlines()
    assert f"ExecStart={sys.executable} -m daemonkit run -f {tmp_path}/daemonkit.toml" in lines
    assert {
        "Type=notify",
        "KillMode=mixed",
        f"WorkingDirectory={tmp_path}",
        f"Environment=DAEMONKIT_HOME={shell.home}",
    } <= {*lines}
    assert "TimeoutStartSec=640" in lines, "30 s and 5 for a, then 600 s and 5 for b"
    assert "TimeoutStopSec=120" in lines


def test_a_name_and_a_file_together_are_refused_and_a_bad_file_too(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    (tmp_path / "daemonkit.toml").write_text("[apps.a]\n")
    for arguments in ([], ["web", "-f", "daemonkit.toml"]):
        assert "give either NAME or -f FILE" in one_line(shell("unit", *arguments, status=2).stderr)
    assert "[apps.a]: there is no command" in one_line(shell("unit", "-f", "daemonkit.toml", status=1).stderr)
