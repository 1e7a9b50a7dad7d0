"""A working day with the command, from the first start to the morning after a power cut."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING, Self

from harness import PATIENCE, alive, children, eventually

if TYPE_CHECKING:
    from pathlib import Path

    from shell import Shell

SITE = """
import os, signal, socket, threading
stopping = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stopping.set())
release = open(f"{os.getcwd()}/release").read().strip()
if release == "broken":
    raise SystemExit("the database schema does not fit")
print("serving release", release)
with socket.socket(fileno=3) as server:
    server.settimeout(0.05)
    while not stopping.is_set():
        try:
            connection, _ = server.accept()
        except TimeoutError:
            continue
        with connection:
            connection.sendall(release.encode())
"""


class Visitors:
    """Ask a server all the time; what fails is counted."""

    def __init__(self, path: Path) -> None:
        self._path, self._done = path, threading.Event()
        self.asked = self.failed = 0
        self.answers: set[bytes] = set()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._done.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._done.is_set():
            self.asked += 1
            try:
                with socket.socket(socket.AF_UNIX) as client:
                    client.settimeout(PATIENCE)
                    client.connect(str(self._path))
                    answer = client.makefile("rb").read()
            except OSError:
                answer = b""
            self.failed += not answer
            self.answers.add(answer)


def test_a_working_day(shell: Shell) -> None:
    (shell.folder / "site.py").write_text(SITE)
    (shell.folder / "release").write_text("1")
    shell.start("web", "-i", 2, "--min-uptime", 1, "--listen", "unix:site.sock", command=(sys.executable, "site.py"))
    shell.start("mail", "--restart", "always", command=("sh", "-c", "echo mail is here; exec sleep 1000"))
    supervisor = shell.report("web")["pid"]

    os.kill(shell.instances("mail")[0], signal.SIGKILL)  # a crash
    eventually(lambda: shell.report("mail")["restarts"] == 1 and shell.report("mail")["up"] == 1)
    assert shell.report("mail")["instances"][0]["exitcode"] == -signal.SIGKILL
    assert "SIGKILL" in shell("status", "mail").stdout
    both = shell("logs", "web", "mail", "-n", 100).stdout
    assert "web  | serving release 1" in both and both.count("mail | mail is here") == 2

    with Visitors(shell.folder / "site.sock") as visitors:
        for count in (6, 3):
            shell("scale", "web", count)
            assert shell.report("web")["up"] == count
        (shell.folder / "release").write_text("broken")
        assert "the database schema does not fit" in shell("reload", "web", status=1).stderr
        assert "the database schema does not fit" in shell("logs", "web", "-n", 20).stdout
        (shell.folder / "release").write_text("2")
        shell("reload", "web", "--env", "STAGE=live")
        eventually(lambda: b"2" in visitors.answers)
    assert visitors.asked > 50 and visitors.failed == 0 and visitors.answers == {b"1", b"2"}
    assert (shell.report("web")["pid"], shell.report("web")["up"]) == (supervisor, 3)

    shell("stop", "mail")
    everything = [supervisor, *children(supervisor), *shell.instances("web")]
    for pid in everything:  # the power goes
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    eventually(lambda: not any(map(alive, everything)))
    assert {one["name"]: one["state"] for one in json.loads(shell("ls", "--json").stdout)} == {
        "mail": "stopped",
        "web": "failed",
    }
    shell(
        "start", "--all", cwd="/", env={"PATH": os.environ["PATH"], "DAEMONKIT_HOME": str(shell.home)}
    )  # cron's @reboot
    assert {one["name"]: one["state"] for one in json.loads(shell("ls", "--json").stdout)} == {
        "mail": "stopped",
        "web": "running",
    }
    assert shell.report("web")["up"] == 3 and "STAGE=live" in shell("status", "web", "--env").stdout
