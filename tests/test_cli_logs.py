"""`daemonkit logs`, and the logs of apps: shown, followed, rotated, deleted."""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest
from harness import PATIENCE, eventually
from shell import COMMAND

from daemonkit._supervise import logs as logs_module
from daemonkit._supervise import pump as pump_module
from daemonkit.cli import _supervisor

if TYPE_CHECKING:
    from pathlib import Path

    from shell import Shell


def test_logs_shows_the_last_lines(shell: Shell) -> None:
    shell.start("web", command=("sh", "-c", "for i in 1 2 3 4 5; do echo line $i; done; exec sleep 1000"))
    shown = shell("logs", "web", "-n", 100).stdout
    assert re.findall(r"^line \d$", shown, re.MULTILINE) == [f"line {i}" for i in range(1, 6)]
    assert "has started" in shown and "is up" in shown
    assert shell("logs", "web", "-n", 1).stdout == shown.splitlines(keepends=True)[-1]
    assert shell("logs", "web", "-n", 0).stdout == ""


def test_logs_shows_the_end_of_a_long_log_of_any_bytes(shell: Shell) -> None:
    shell.start("web")
    eventually(lambda: "is up" in (shell.home / "web.log").read_text())  # the last that it has to say
    lines = [b"%06d %s" % (number, b"\xff" * (number % 300)) for number in range(5000)]
    for end in (b"", b"\n"):
        (shell.home / "web.log").write_bytes(b"\n".join(lines) + end)
        for count in (1, 2, 700, 4999, 5000, 6000):
            done = subprocess.run(
                [*COMMAND, "logs", "web", "-n", str(count)], env=shell.environment, capture_output=True, check=True
            )
            assert done.stdout == b"\n".join(lines[-count:]) + end, count


@pytest.mark.parametrize("how", ["rotated", "truncated"])
def test_logs_follows_across_rotation_and_truncation(shell: Shell, how: str) -> None:
    log = shell.folder / "log"
    shell.start("web", "--log", log)
    command = [*COMMAND, "logs", "web", "-f", "-n", "0"]
    follower = subprocess.Popen(command, env=shell.environment, stdout=subprocess.PIPE, bufsize=0)
    assert follower.stdout
    os.set_blocking(follower.stdout.fileno(), False)
    seen = bytearray()

    def arrives(line: str) -> bool:
        seen.extend(follower.stdout.read() or b"")  # type: ignore[union-attr]  # it is a pipe
        return line.encode() in seen

    def add(line: str) -> None:
        with log.open("a") as file:
            file.write(f"{line}\n")

    try:
        eventually(lambda: [add("begin"), arrives("begin")][-1])
        for number in range(60):
            if number in {20, 40}:
                eventually(lambda: arrives("line 39\n" if number == 40 else "line 19\n"))  # noqa: B023 - called at once
                if how == "rotated":
                    log.rename(shell.folder / f"log.{number}")
                else:
                    os.truncate(log, 0)
                    add(f"anew {number}")
                    eventually(lambda: arrives(f"anew {number}\n"))  # noqa: B023 - called at once
            add(f"line {number}")
        eventually(lambda: arrives("line 59\n"))
    finally:
        follower.send_signal(signal.SIGINT)
        assert follower.wait(PATIENCE) == 0
        follower.stdout.close()
    assert re.findall(r"^line \d+$", seen.decode(), re.MULTILINE) == [f"line {number}" for number in range(60)]


def test_a_log_with_a_limit_is_rotated_and_deleted_with_the_app(shell: Shell) -> None:
    loop = "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; exec sleep 1000"
    shell.start("web", "--log-max-bytes", "4K", "--log-backups", 20, command=("sh", "-c", loop))
    eventually(lambda: any("line 1999" in path.read_text() for path in shell.home.glob("web.log*")))
    parts = list(shell.home.glob("web.log*"))
    lines = [line for path in parts for line in path.read_text().splitlines() if line.startswith("line")]
    assert len(parts) > 2 and sorted(lines) == sorted(f"line {i}" for i in range(2000))
    shell("delete", "web")
    assert list(shell.home.iterdir()) == []


@pytest.mark.parametrize("option", ["--stdout", "--stderr", "--log"])
def test_a_failed_start_shows_the_last_lines_wherever_they_went(shell: Shell, option: str) -> None:
    done = shell(
        "start",
        "web",
        "--restart",
        "never",
        option,
        "out",
        "--",
        "sh",
        "-c",
        "echo last; echo words >&2; exit 3",
        status=1,
    )
    assert sorted(done.stderr.splitlines()[:-1]) == ["last", "words"]


def test_a_failed_start_shows_the_last_lines_of_a_log_that_was_rotated(shell: Shell) -> None:
    loop = "i=0; while [ $i -lt 40 ]; do echo the line that has the number $i; i=$((i+1)); done; exit 4"
    done = shell("start", "web", "--restart", "never", "--log-max-bytes", "1000", "--", "sh", "-c", loop, status=1)
    assert done.stderr.splitlines()[:-1] == [f"the line that has the number {i}" for i in range(30, 40)]


def test_logs_shows_the_last_lines_also_of_what_the_log_was_rotated_to(shell: Shell) -> None:
    shell.start("web", command=("true",))
    for number, text in (("", "7\n8\n"), (".1", "4\n5\n6\n"), (".2", "1\n2\n3\n")):
        (shell.home / f"web.log{number}").write_text(text)
    for count, shown in ((0, ""), (2, "7 8"), (3, "6 7 8"), (7, "2 3 4 5 6 7 8"), (9, "1 2 3 4 5 6 7 8")):
        assert shell("logs", "web", "-n", count).stdout.split() == shown.split()


def test_delete_leaves_a_device_that_an_app_logs_to(shell: Shell) -> None:
    device = shell.folder / "null"
    try:
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("needs root, to make a device")
    shell.start("web", "--log", device)
    shell("delete", "web")
    assert device.is_char_device()


def test_delete_takes_nothing_of_an_app_whose_name_looks_like_a_rotated_log(shell: Shell) -> None:
    shell.start("web")
    shell.start("web.log.1")
    (shell.home / "web.log.1").write_text("rotated")
    (shell.home / "web.log.2024.gz").write_text("put there by somebody")
    shell("delete", "web")
    assert shell.report("web.log.1")["up"] == 1
    assert not (shell.home / "web.log.1").exists() and (shell.home / "web.log.2024.gz").exists()


def test_the_log_of_a_start_that_failed_can_be_seen_and_deleted(shell: Shell) -> None:
    shell.start("web", command=("sh", "-c", "echo no database; exit 3"), status=1)
    assert "no database" in shell("logs", "web").stdout
    shell("delete", "web")
    assert list(shell.home.iterdir()) == []
    shell("delete", "web", status=1)


@pytest.mark.long
def test_what_the_supervisor_says_is_rotated_with_the_log(shell: Shell) -> None:
    """Also of an app that says nothing itself."""
    shell.start("web", "--log-max-bytes", "1K", "--log-backups", 2, "--restart", "always", command=("sleep", "0.1"))
    eventually(lambda: (shell.home / "web.log.2").exists())
    shell("stop", "web")
    for path in shell.home.glob("web.log*"):
        text = path.read_text()
        assert len(text) <= 1024 and all(line.startswith("daemonkit: ") for line in text.splitlines()), text


def test_a_full_disk_that_cuts_a_line_short_lets_nobody_wait_and_splits_nobodys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "log")
    log, handler = logs_module.Log(path, 10_000, 5, None, None), _supervisor.LogHandler(path)
    pump = pump_module.Pump(log, whole_lines=True)
    real, calls = os.write, iter(range(1000))

    def write(fd: int, data: bytes) -> int:
        if fd == log.fd and next(calls) % 2:
            raise OSError(errno.ENOSPC, "no room")
        return real(fd, bytes(data)[: 3 if fd == log.fd else None])

    def say(text: str) -> None:
        handler.emit(logging.LogRecord("daemonkit", logging.INFO, "", 0, text, (), None))

    monkeypatch.setattr(logging, "raiseExceptions", False)
    monkeypatch.setattr(os, "write", write)
    say("cut short")
    assert (tmp_path / "log").read_text() == "cut" and log.held_by is None
    real(pump.writer, b"an instance's\n")
    assert not pump.pump() and log.held_by is pump
    say("kept")
    monkeypatch.setattr(os, "write", real)
    pump.pump()
    say("after that")
    assert (tmp_path / "log").read_text() == "cutan instance's\nkept\nafter that\n"
    pump.close()
    log.close()
