"""What instances print: no line is lost or split."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import harness
import pytest
from harness import PATIENCE, eventually, run
from supervising import supervising

from daemonkit._supervise import logs as logs_module
from daemonkit._supervise import pump as pump_module

if TYPE_CHECKING:
    from pathlib import Path


def test_logs_are_named_for_the_instance(tmp_path: Path) -> None:
    body = """supervise(["sh", "-c", "echo out $DAEMONKIT_INSTANCE; echo err >&2"], instances=2, stdout="log.{instance}", stderr=daemonkit.STDOUT)"""
    with supervising(tmp_path, body) as supervisor:
        assert supervisor.process.wait(PATIENCE) == 0
    assert [(tmp_path / f"log.{index}").read_text() for index in (0, 1)] == ["out 0\nerr\n", "out 1\nerr\n"]
    assert (tmp_path / "log.0").stat().st_mode & 0o777 == 0o640 & ~0o022


def test_rotation_loses_and_splits_no_line(tmp_path: Path) -> None:
    """Also over a crash of the instance, and a kill of the worker."""
    writer = "import os, sys, signal\nfor n in range(20000): print(os.getpid(), n)\nsys.stdout.flush(); os.kill(os.getpid(), 9)"
    body = f"""supervise([{sys.executable!r}, "-c", {writer!r}], max_restarts=2, stdout="log", log_max_bytes=50_000, log_backups=1000)"""
    with supervising(tmp_path, body) as supervisor:
        assert supervisor.process.wait(PATIENCE) == 0, supervisor.errors.read_text()
        pids = [event["pid"] for event in supervisor.events("start")]
    files = sorted(tmp_path.glob("log*"), key=lambda path: -int(path.suffix[1:] or 0))
    assert len(files) > 10 and all(path.stat().st_size <= 50_000 for path in files)
    lines = "".join(path.read_text() for path in files).splitlines()
    assert lines == [f"{pid} {n}" for pid in pids for n in range(20000)]


def test_what_is_no_file_is_not_rotated(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    body = """supervise(["seq", "1000"], stdout="fifo", log_max_bytes=500)"""
    with supervising(tmp_path, body) as supervisor:
        assert supervisor.process.wait(PATIENCE) == 0, supervisor.errors.read_text()
        assert os.read(reader, 1 << 16).split() == [b"%d" % n for n in range(1, 1001)]
    os.close(reader)
    assert [path.name for path in tmp_path.glob("fifo*")] == ["fifo"]


def test_a_flood_of_lines_keeps_no_signal_waiting(tmp_path: Path) -> None:
    with supervising(tmp_path, """supervise(["yes"], stdout="log", log_max_bytes=10_000_000)""") as supervisor:
        eventually((tmp_path / "log.2").exists)
        supervisor.stop()


def test_backups_beyond_the_number_go(tmp_path: Path) -> None:
    body = """supervise(["seq", "10000"], stdout="log", log_max_bytes=5000, log_backups=2)"""
    with supervising(tmp_path, body) as supervisor:
        assert supervisor.process.wait(PATIENCE) == 0
    assert sorted(path.name for path in tmp_path.glob("log*")) == ["log", "log.1", "log.2"]
    text = "".join((tmp_path / name).read_text() for name in ("log.2", "log.1", "log"))
    numbers = [int(line) for line in text.split()]
    assert numbers == list(range(numbers[0], 10001))


def test_a_wish_to_keep_all_backups_costs_no_more_than_those_that_there_are(tmp_path: Path) -> None:
    body = """supervise(["seq", "3000"], restart="never", stdout="log", log_max_bytes=1000, log_backups=1 << 30)"""
    with supervising(tmp_path, body) as supervisor:
        assert supervisor.process.wait(PATIENCE) == 0
    parts = sorted(tmp_path.glob("log.*"), key=lambda path: -int(path.suffix[1:]))
    lines = "".join(path.read_text() for path in [*parts, tmp_path / "log"])
    assert len(parts) > 10 and lines == "".join(f"{n}\n" for n in range(1, 3001))


def test_lines_in_a_pump_survive_the_worker(tmp_path: Path) -> None:
    writer = "import time\nfor n in range(100000):\n    print(n, flush=True)\n    if n == 5000: open('now', 'w').close(); time.sleep(1000)"
    body = f"""supervise([{sys.executable!r}, "-c", {writer!r}], stdout="log", log_max_bytes=10_000_000)"""
    with supervising(tmp_path, body) as supervisor:
        eventually((tmp_path / "now").exists)
        os.kill(supervisor.worker, signal.SIGKILL)
        supervisor.until("start", 2)
        lines = eventually(lambda: len(found := (tmp_path / "log").read_text().splitlines()) >= 5001 and found)
        assert lines[:5001] == [str(n) for n in range(5001)]
        supervisor.stop()


@pytest.mark.parametrize("shared", [False, True])
def test_what_a_pump_has_read_is_written_before_it_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, shared: bool
) -> None:
    monkeypatch.setattr(pump_module, "_AT_ONCE", 1)
    log = logs_module.Log(str(tmp_path / "log"), 1000, 5, None, None)
    pump = pump_module.Pump(log, whole_lines=shared)
    os.write(pump.writer, b"line\n")
    assert pump.pump() and (tmp_path / "log").read_text() == "line\n"
    pump.close()
    log.close()


def test_a_log_that_somebody_moves_is_begun_anew(tmp_path: Path) -> None:
    loop = "i=0; while [ $i -lt 4000 ]; do echo $i; i=$((i+1)); [ $i = 1000 ] && until [ -e moved ]; do sleep 0.01; done; done"
    body = f"""supervise(["sh", "-c", {loop!r}], stdout="log", log_max_bytes=3000, log_backups=50, restart="never")"""
    with supervising(tmp_path, body) as supervisor:
        eventually(lambda: "999\n" in (tmp_path / "log").read_text())
        (tmp_path / "log").rename(tmp_path / "moved")
        assert supervisor.process.wait(PATIENCE) == 0, supervisor.errors.read_text()
    parts = [tmp_path / "moved", *tmp_path.glob("log*")]
    assert sorted(int(line) for part in parts for line in part.read_text().splitlines()) == list(range(4000))


def test_long_lines_of_many_instances_in_one_log_are_not_split(tmp_path: Path) -> None:
    writer = "import os\nfor _ in range(300): os.write(1, (os.environ['DAEMONKIT_INSTANCE'] * 5999 + '\\n').encode())"
    body = f"""supervise([{sys.executable!r}, "-c", {writer!r}], instances=3, stdout="log", log_max_bytes=500_000, restart="never")"""
    body = body.replace("log_max_bytes", "log_backups=50, log_max_bytes")
    with supervising(tmp_path, body) as supervisor:
        assert supervisor.process.wait(PATIENCE) == 0, supervisor.errors.read_text()
    parts = [part.read_text() for part in tmp_path.glob("log*")]
    lines = [line for part in parts for line in part.splitlines()]
    assert len(parts) > 5 and all(len(part) <= 500_000 for part in parts)
    assert sorted(lines) == sorted(300 * [str(index) * 5999 for index in range(3)])


def test_the_unfinished_last_line_of_one_of_many_is_not_lost(tmp_path: Path) -> None:
    body = """supervise(["sh", "-c", "printf end$DAEMONKIT_INSTANCE"], instances=2, stdout="log", log_max_bytes=1000)"""
    with supervising(tmp_path, body) as supervisor:
        assert supervisor.process.wait(PATIENCE) == 0, supervisor.errors.read_text()
    assert (tmp_path / "log").read_text() in {"end0end1", "end1end0"}


def test_an_instance_that_opens_its_stderr_anew_does_not_empty_the_log(tmp_path: Path) -> None:
    script = "for i in 1 2 3; do echo line $i; echo warning $i >/dev/stderr; echo more $i >/dev/stdout; done"
    wanted = [f"{word} {i}" for i in (1, 2, 3) for word in ("line", "warning", "more")]
    for name, body in {
        "path": f"supervise(['sh', '-c', {script!r}], stdout='path', stderr=daemonkit.STDOUT)",
        "file": f"with open('file', 'a') as out: supervise(['sh', '-c', {script!r}], stdout=out, stderr=daemonkit.STDOUT)",
        "own": f"fd = os.open('own', os.O_WRONLY | os.O_APPEND | os.O_CREAT); os.dup2(fd, 1); os.dup2(fd, 2)\nsupervise(['sh', '-c', {script!r}])",
    }.items():
        with supervising(tmp_path, body) as supervisor:
            assert supervisor.process.wait(PATIENCE) == 0, supervisor.errors.read_text()
        assert (tmp_path / name).read_text().splitlines() == wanted, name


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("where", ["pipe", "file", "rotated", "device"])
def test_another_user_can_open_its_stdout_anew_and_nothing_that_was_there_changes_hands(
    tmp_path: Path, where: str
) -> None:
    harness.let_everybody_in(tmp_path)
    (tmp_path / "old").touch(mode=0o644)
    script = "echo one; echo two >/dev/stdout || echo failed; echo three >/dev/stderr"
    options = {
        "pipe": "",
        "file": ", stdout='old', stderr=daemonkit.STDOUT",
        "rotated": ", stdout='new', stderr=daemonkit.STDOUT, log_max_bytes=1000",
        "device": ", stdout='/dev/null', stderr=daemonkit.STDOUT",
    }[where]
    before = os.stat("/dev/null").st_uid
    body = (
        f"summary = daemonkit.supervise(['sh', '-c', {script!r}], user='nobody'{options})\nsys.exit(summary.exitcode)"
    )
    done = run(tmp_path, body)
    assert done.returncode == 0, done.stderr
    if where == "pipe":
        assert (done.stdout, done.stderr) == ("one\ntwo\n", "three\n")
    elif where != "device":
        assert (tmp_path / {"file": "old", "rotated": "new"}[where]).read_text() == "one\ntwo\nthree\n"
    assert os.stat("/dev/null").st_uid == before == 0 and (tmp_path / "old").stat().st_uid == 0
    assert where != "rotated" or (tmp_path / "new").stat().st_uid == 65534


@pytest.mark.parametrize("where", ["pump", "pipe"])
def test_a_descriptor_that_one_run_left_non_blocking_is_blocking_again_for_the_next(tmp_path: Path, where: str) -> None:
    script = "import os, sys\nnew = not os.path.exists('first')\nopen('first', 'w').close()\nopen('found', 'a').write(f'{os.get_blocking(1)} ')\nos.set_blocking(1, False)\nsys.exit(new)"
    body = f"""
r, w = os.pipe()
options = dict(stdout="log") if {where == "pump"} else dict(stdout=w)
supervise([{sys.executable!r}, "-c", {script!r}], **options)
"""
    with supervising(tmp_path, body) as supervisor:
        assert supervisor.process.wait(PATIENCE) == 0, supervisor.errors.read_text()
    assert (tmp_path / "found").read_text() == "True True "


@pytest.mark.parametrize("how", ["move", "remove", "folder"])
def test_sighup_and_each_start_open_a_log_anew_that_is_gone(tmp_path: Path, how: str) -> None:
    (tmp_path / "logs").mkdir()
    body = (
        "supervise(['sh', '-c', 'echo $$; exec sleep 1000'], stdout='logs/log', log_max_bytes=10_000, min_uptime=0.1)"
    )
    log = tmp_path / "logs" / "log"
    with supervising(tmp_path, body) as supervisor:
        first = supervisor.until("start")[0]["pid"]
        eventually(lambda: log.read_text() == f"{first}\n")
        if how == "move":
            log.rename(tmp_path / "logs" / "log.1")
        else:
            log.unlink()
        if how == "folder":
            (tmp_path / "logs").rmdir()
            (tmp_path / "logs").mkdir()
            os.kill(first, signal.SIGKILL)
        else:
            supervisor.process.send_signal(signal.SIGHUP)
        second = supervisor.until("start", 2)[1]["pid"]
        eventually(lambda: log.read_text() == f"{second}\n")
        supervisor.stop()


def test_ten_megabyte_lines_of_two_instances_in_one_plain_file_are_not_split(tmp_path: Path) -> None:
    writer = "import os\nfor _ in range(3):\n    line = os.environ['DAEMONKIT_INSTANCE'].encode() * 10_000_000 + b'\\n'\n    while line: line = line[os.write(1, line[:1 << 16]):]"
    body = f"""supervise([{sys.executable!r}, "-c", {writer!r}], instances=2, stdout="log", restart="never")"""
    with supervising(tmp_path, body) as supervisor:
        assert supervisor.process.wait(PATIENCE) == 0, supervisor.errors.read_text()
    lines = (tmp_path / "log").read_bytes().splitlines()
    assert sorted(lines) == [digit * 10_000_000 for digit in (b"0", b"0", b"0", b"1", b"1", b"1")]


def test_lines_in_a_pump_survive_the_calling_process(tmp_path: Path) -> None:
    writer = "import os, time\nopen('begun', 'w').close()\nwhile not os.path.exists('go'): time.sleep(0.01)\nfor n in range(1000): print(n, flush=True)\nopen('done', 'w').close(); time.sleep(1000)"
    body = f"""supervise([{sys.executable!r}, "-c", {writer!r}], stdout="log")"""
    with supervising(tmp_path, body) as supervisor:
        eventually((tmp_path / "begun").exists)
        worker = supervisor.worker
        os.kill(supervisor.pid, signal.SIGSTOP)  # it reads nothing any more
        (tmp_path / "go").touch()
        eventually((tmp_path / "done").exists)
        supervisor.process.kill()
        supervisor.process.wait(PATIENCE)
        eventually(lambda: not harness.alive(worker))
    assert (tmp_path / "log").read_text().split() == [str(n) for n in range(1000)]


def test_each_line_begins_with_the_time_and_the_instance_if_that_is_wished(tmp_path: Path) -> None:
    body = """supervise(["sh", "-c", "printf 'a\\\\nb'; echo c >&2"], instances=2, log_format="{time} [{instance}] ", stdout="out", stderr="err")"""
    with supervising(tmp_path, body) as supervisor:
        assert supervisor.process.wait(PATIENCE) == 0, supervisor.errors.read_text()
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d"
    out = (tmp_path / "out").read_text().replace("b2", "b\n2").replace("\n\n", "\n")
    assert len(re.findall(rf"(?m)^{stamp} \[[01]\] a$", out)) == 2, out
    assert len(re.findall(rf"{stamp} \[[01]\] b", out)) == 2
    assert len(re.findall(rf"(?m)^{stamp} \[[01]\] c$", (tmp_path / "err").read_text())) == 2


def test_log_format_holds_for_a_pipe_too_and_waits_for_its_reader(tmp_path: Path) -> None:
    body = "daemonkit.supervise(['seq', '200000'], log_format='{instance}: ')"
    done = run(tmp_path, body)
    assert done.stdout.splitlines() == [f"0: {n}" for n in range(1, 200_001)]


def test_log_format_takes_no_fresh_memory_for_each_read(tmp_path: Path) -> None:
    """The kernel clears each fresh page first, which took longer than all the rest: 90,000 of them for these 60 MB."""
    body = """
import resource
line = "a line of a log as a program writes it, sixty-four bytes........"
daemonkit.supervise(["sh", "-c", f"yes {line!r} | head -n 1000000"], restart="never", stdout="log", log_format="{time} ")
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""
    faults = int(run(tmp_path, body).stdout)
    assert (tmp_path / "log").read_bytes().count(b"\n") == 1_000_000
    assert faults < 20_000


def test_a_last_line_without_an_end_waits_for_a_slow_reader(tmp_path: Path) -> None:
    body = """
import fcntl
fcntl.fcntl(1, 1031, 4096)  # F_SETPIPE_SZ
daemonkit.supervise(["sh", "-c", "yes 1234567 | head -c 40000; printf rest"], restart="never", log_format="> ")
"""
    program = harness.write(tmp_path, body)
    reading = f"'{sys.executable}' '{program}' | '{sys.executable}' -c '{_SLOWLY}' >out"
    subprocess.run(["sh", "-c", reading], cwd=tmp_path, check=True, timeout=PATIENCE)
    assert (tmp_path / "out").read_text() == "> 1234567\n" * 5000 + "> rest"


_SLOWLY = """
import os, select
while data := os.read(0, 512):
    os.write(1, data)
    select.select([], [], [], 0.001)
"""


def test_lines_for_a_log_that_can_not_be_written_come_once_it_can(tmp_path: Path) -> None:
    """A limit of the supervisor's file sizes stands for a full disk; the program prints nothing more meanwhile."""
    body = """
import resource
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
script = "head -c 60000 /dev/zero | tr '\\\\0' a; echo; exec sleep 1000"
supervise(["sh", "-c", script], stdout="log", log_max_bytes=1_000_000)
"""
    with supervising(tmp_path, body) as supervisor:
        supervisor.until("ready")
        assert (tmp_path / "log").stat().st_size <= 50_000
        resource.prlimit(supervisor.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        eventually(lambda: (tmp_path / "log").read_text() == "a" * 60_000 + "\n")
        supervisor.stop()
