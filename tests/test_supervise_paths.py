"""The program, its directory and its logs are looked up at each start, not once."""

from __future__ import annotations

import os
import shutil
import signal
from typing import TYPE_CHECKING

import pytest
from harness import PATIENCE, children, eventually
from supervising import supervising

if TYPE_CHECKING:
    from pathlib import Path


def _unpack(folder: Path, release: int, out: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "app").write_text(f"#!/bin/sh\necho {release} $(pwd -P) >> {out}\nexec sleep 1000\n")
    (folder / "app").chmod(0o755)


@pytest.mark.parametrize("how", ["reload", "crash", "worker"])
@pytest.mark.parametrize("deploy", ["link", "anew"])
@pytest.mark.parametrize(
    "options",
    {
        "cwd": "['./app'], cwd='current'",
        "path": "[os.path.abspath('current/app')]",
        "relative": "['current/app']",
        "inherited": "['./app']",
        "PATH": "['app'], env={**os.environ, 'PATH': os.path.abspath('current') + ':' + os.environ['PATH']}",
    }.items(),
    ids=lambda item: item[0],
)
def test_a_new_release_serves_the_next_run(tmp_path: Path, deploy: str, how: str, options: tuple[str, str]) -> None:
    name, arguments = options
    out, current = tmp_path / "out", tmp_path / "current"
    if deploy == "link":
        _unpack(tmp_path / "releases" / "1", 1, out)
        _unpack(tmp_path / "releases" / "2", 2, out)
        current.symlink_to("releases/1")
    else:
        _unpack(current, 1, out)
    body = f"supervise({arguments}, min_uptime=0.1)"
    if name == "inherited":
        # As a shell does it: PWD has the link in it.
        body = f"os.chdir('current'); os.environ['PWD'] = {str(current)!r}\ndaemonkit.supervise({arguments}, min_uptime=0.1)"
    with supervising(tmp_path, body) as supervisor:
        eventually(lambda: out.read_text().startswith("1 "))  # the file is there before its text
        first = eventually(lambda: children(supervisor.worker))[0]
        if deploy == "link":
            (tmp_path / "new").symlink_to("releases/2")
            (tmp_path / "new").rename(current)
        else:
            shutil.rmtree(current)
            _unpack(current, 2, out)
        if how == "reload":
            supervisor.process.send_signal(signal.SIGHUP)
        else:
            os.kill(first if how == "crash" else supervisor.worker, signal.SIGKILL)
        eventually(lambda: out.read_text().splitlines()[-1].startswith("2 "))
        where = out.read_text().splitlines()[-1].split()[1]
        if name in {"cwd", "inherited"}:
            assert where == str(tmp_path / "releases" / "2" if deploy == "link" else current)
        supervisor.process.terminate()
        assert supervisor.process.wait(PATIENCE) == 0, supervisor.errors.read_text()


def test_a_directory_that_is_gone_is_waited_for(tmp_path: Path) -> None:
    out, current = tmp_path / "out", tmp_path / "current"
    _unpack(current, 1, out)
    with supervising(
        tmp_path, "supervise(['./app'], cwd='current', backoff=daemonkit.Backoff(0.05, 1.0))"
    ) as supervisor:
        first = supervisor.until("start")[0]["pid"]
        eventually(lambda: out.read_text())
        shutil.rmtree(current)
        os.kill(first, signal.SIGKILL)
        supervisor.until("exit", 3)
        assert supervisor.events("exit")[-1]["exitcode"] == 127
        _unpack(current, 2, out)
        eventually(lambda: out.read_text().splitlines()[-1].startswith("2 "))
        supervisor.stop()
    assert "was not started: FileNotFoundError" in supervisor.errors.read_text()
