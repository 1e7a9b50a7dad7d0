"""A log that daemonkit creates belongs to the user who writes it; whatever was there before keeps its owner."""

from __future__ import annotations

import os
import pwd
import stat
from typing import TYPE_CHECKING

import pytest
from harness import let_everybody_in, reported, run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the user")

# Each writes to stdout=LOG and stderr="new-log" as user daemon, and waits for its program to end.
DOORS = {
    "detached": """
        with daemonkit.detached(stdout=LOG, stderr="new-log", working_directory=".", uid="daemon"):
            report()
    """,
    "detached in the foreground": """
        with daemonkit.detached(stdout=LOG, stderr="new-log", working_directory=".", uid="daemon", detach_process=False):
            report()
    """,
    "spawn_detached": """
        program = ["sh", "-c", "echo text; exec cp program.py report"]
        assert daemonkit.spawn_detached(program, stdout=LOG, stderr="new-log", user="daemon").wait() == 0
    """,
    "supervise": """
        program = ["sh", "-c", "echo text"]
        assert daemonkit.supervise(program, stdout=LOG, stderr="new-log", user="daemon", restart="never").exitcode == 0
    """,
    "supervise, with rotation": """
        program = ["sh", "-c", "echo text"]
        options = dict(restart="never", log_max_bytes=1000)
        assert daemonkit.supervise(program, stdout=LOG, stderr="new-log", user="daemon", **options).exitcode == 0
    """,
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", ["roots log", "device"])
def test_only_a_log_that_was_created_goes_to_the_user(tmp_path: Path, door: str, kind: str) -> None:
    let_everybody_in(tmp_path)
    log = tmp_path / "log"
    if kind == "device":
        try:
            os.mknod(log, 0o600 | stat.S_IFCHR, os.makedev(1, 3))  # as /dev/null, which nobody's test should lose
        except PermissionError:
            pytest.skip("no devices can be made here")
    else:
        log.touch(0o600)
    done = run(tmp_path, "LOG = 'log'\n" + DOORS[door].replace("\n        ", "\n"))
    assert done.returncode == 0, done.stderr
    if door.startswith("detached"):
        reported(tmp_path)
    user = pwd.getpwnam("daemon")
    info = log.stat()
    assert (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)) == (0, 0, 0o600)
    new = (tmp_path / "new-log").stat()
    assert (new.st_uid, new.st_gid) == (user.pw_uid, user.pw_gid)
