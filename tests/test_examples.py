"""The examples, driven as a user drives them: copied to a directory of one's own, and run from its shell."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boot
import harness
import pytest
from harness import alive, ended, eventually, pid_in

import daemonkit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Command = Callable[..., subprocess.CompletedProcess[str]]

ROOT = Path(__file__).parent.parent
HOWTO = ROOT / "docs" / "howto"


def _command(directory: Path, name: str) -> Command:
    """Copy an example, and return what runs it: its streams are pipes read to their end, so a leak hangs."""
    shutil.copy(ROOT / "examples" / name, directory)

    def command(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "error", directory / name, *map(str, arguments)],
            cwd=options.pop("cwd", directory),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=harness.PATIENCE,
            check=False,
            **options,
        )

    return command


def _said(done: subprocess.CompletedProcess[str]) -> tuple[int, str, str]:
    return done.returncode, done.stdout, done.stderr


def _blocks(page: str, language: str) -> list[str]:
    """Return what a how-to page shows in that language."""
    text = (HOWTO / f"{page}.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


# --- service.py -----------------------------------------------------------------------------------------------------


@pytest.fixture
def service(tmp_path: Path) -> Command:
    return _command(tmp_path, "service.py")


def test_service_from_start_to_stop(tmp_path: Path, service: Command) -> None:
    pidfile, log = tmp_path / "service.pid", tmp_path / "service.log"
    assert _said(service("status")) == (3, "not running\n", "")
    done = service("start")
    pid = pid_in(pidfile)
    assert _said(done) == (0, f"started as process {pid}\n", "")
    assert _said(service("start")) == (0, f"already running as process {pid}\n", "")
    assert _said(service("status", cwd="/")) == (0, f"running as process {pid}\n", "")
    (tmp_path / "inbox" / "order").touch()
    eventually(lambda: log.read_text() == "took order\n")
    assert not (tmp_path / "inbox" / "order").exists()

    assert _said(service("stop", cwd="/")) == (0, "stopped\n", "")
    assert not alive(pid) and ended(pid) == 0 and not pidfile.exists()
    assert _said(service("stop")) == (0, "not running\n", "")


def test_service_start_that_fails_says_why_in_one_line_and_leaves_nothing(tmp_path: Path, service: Command) -> None:
    (tmp_path / "inbox").touch()  # in the way of the directory that the body makes
    assert _said(service("start")) == (1, "", f"service: {tmp_path}/inbox: File exists\n")
    assert _said(service("status")) == (3, "not running\n", "") and not (tmp_path / "service.pid").exists()


def test_service_start_that_is_refused_says_why_in_one_line(tmp_path: Path, service: Command) -> None:
    (tmp_path / "service.log").mkdir()
    assert _said(service("start")) == (1, "", f"service: {tmp_path}/service.log: Is a directory\n")
    assert not (tmp_path / "service.pid").exists()


def test_service_reload_opens_the_log_anew(tmp_path: Path, service: Command) -> None:
    assert service("start").returncode == 0
    pid = pid_in(tmp_path / "service.pid")
    log, old = tmp_path / "service.log", tmp_path / "service.log.1"
    log.rename(old)
    assert _said(service("reload")) == (0, "", "")
    eventually(log.exists)
    (tmp_path / "inbox" / "order").touch()
    eventually(lambda: log.read_text() == "took order\n")
    assert old.read_text() == "" and pid_in(tmp_path / "service.pid") == pid
    assert service("stop").returncode == 0 and ended(pid) == 0


# --- web.py ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def web(tmp_path: Path) -> Command:
    return _command(tmp_path, "web.py")


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=harness.PATIENCE) as answer:
        return str(answer.read().decode())


def _address(tmp_path: Path) -> str:
    found = re.match(r"listening on (http://127\.0\.0\.1:\d+/)\n", (tmp_path / "web.log").read_text())
    assert found
    return found[1]


def test_web_answers_as_soon_as_its_start_has_returned_and_ends_cleanly(tmp_path: Path, web: Command) -> None:
    assert _said(web(0)) == (0, "", "")
    url, pid = _address(tmp_path), pid_in(tmp_path / "web.pid")  # at once, without waiting for anything
    assert _get(url) == f"hello from process {pid}\n"
    os.kill(pid, signal.SIGTERM)
    assert ended(pid) == 0 and not (tmp_path / "web.pid").exists()
    with pytest.raises(OSError, match="refused"):
        _get(url)
    assert "Traceback" not in (tmp_path / "web.log").read_text()


def test_web_takes_the_port_it_is_given(tmp_path: Path, web: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert _said(web(port)) == (0, "", "")
    assert _address(tmp_path) == f"http://127.0.0.1:{port}/"
    assert daemonkit.stop(tmp_path / "web.pid") is True


def test_web_whose_port_is_taken_fails_in_one_line_and_leaves_nothing(tmp_path: Path, web: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = web(taken.getsockname()[1])
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("web: ") and "Address already in use" in done.stderr
    assert not (tmp_path / "web.pid").exists()


def test_web_refuses_what_is_no_port(tmp_path: Path, web: Command) -> None:
    done = web("http")
    assert done.returncode == 2 and "invalid int value: 'http'" in done.stderr and "Traceback" not in done.stderr
    done = web(70000)
    assert done.returncode == 1 and "port must be 0-65535" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "web.pid").exists()


# --- job.py ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def job(tmp_path: Path) -> Command:
    return _command(tmp_path, "job.py")


LONG = 'for n in 1 2 3 4 5; do echo "step $n"; done; until test -e end; do sleep 0.02; done; echo over; exit 5'


def test_job_is_launched_looked_at_and_waited_for(tmp_path: Path, job: Command) -> None:
    log = tmp_path / "job.log"
    done = job("start", "sh", "-c", LONG)
    pid = pid_in(tmp_path / "job.pid")
    assert _said(done) == (0, f"started as process {pid}; it writes to job.log\n", "")
    eventually(lambda: "step 5" in log.read_text())
    status = job("status")
    assert status.returncode == 0
    since = r"since \d{4}-\d\d-\d\d \d\d:\d\d"
    assert re.fullmatch(rf"running as process {pid} {since}\nstep 3\nstep 4\nstep 5\n", status.stdout)

    again = job("start", "true")
    assert again.returncode == 1 and f"job.pid is held by process {pid} " in again.stderr

    command = [sys.executable, tmp_path / "job.py", "wait"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as waiting:
        eventually(lambda: any("pidfd" in os.readlink(fd) for fd in Path(f"/proc/{waiting.pid}/fd").iterdir()))
        assert waiting.poll() is None
        (tmp_path / "end").touch()
        assert waiting.wait(harness.PATIENCE) == 0
        assert waiting.stdout
        assert waiting.stdout.read() in {"ended\n", "ended with status 5\n"}  # as far as the kernel tells
    assert ended(pid) == 5
    assert _said(job("status")) == (3, "not running\nstep 4\nstep 5\nover\n", "")
    for command_ in ("wait", "stop"):
        assert _said(job(command_)) == (3, "", "not running\n")


def test_job_is_stopped_and_started_again(tmp_path: Path, job: Command) -> None:
    assert job("start", "sleep", "1000").returncode == 0
    first = pid_in(tmp_path / "job.pid")
    assert _said(job("stop")) == (0, "stopped\n", "")
    assert ended(first) == -signal.SIGTERM
    assert job("start", "sleep", "1000").returncode == 0
    second = pid_in(tmp_path / "job.pid")
    assert second != first
    assert _said(job("stop")) == (0, "stopped\n", "")
    assert ended(second) == -signal.SIGTERM


def test_job_that_can_not_be_started_fails_in_one_line(tmp_path: Path, job: Command) -> None:
    assert _said(job("start", "no-such-program")) == (1, "", "job: [Errno 2] not found on PATH: 'no-such-program'\n")
    assert not (tmp_path / "job.pid").exists() and not (tmp_path / "job.log").exists()
    assert _said(job("status")) == (3, "not running\n", "")


@pytest.mark.parametrize("arguments", [(), ("start",), ("begin", "true")])
def test_job_tells_its_commands(job: Command, arguments: tuple[str, ...]) -> None:
    done = job(*arguments)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith("usage: ")


# --- the how-to page on systemd ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[boot.Machine]:
    if reason := boot.missing():
        pytest.skip(reason)
    try:
        with boot.booted(tmp_path_factory.mktemp("machine")) as booted:
            yield booted
    except boot.CannotBootError as error:
        pytest.skip(f"no machine can be built here: {error}")


PROGRAMS = {"notify": 0, "simple": 0, "forking": 1, "watchdog": 2, "service": 0}


@pytest.mark.parametrize("name", PROGRAMS)
def test_systemd_with_the_page_s_units_and_programs(machine: boot.Machine, name: str) -> None:
    kind = name if name in {"simple", "forking"} else "notify"
    (unit,) = [text for text in _blocks("systemd", "ini") if f"Type={kind}\n" in text]
    if name == "watchdog":
        unit = unit.replace("Type=notify\n", "Type=notify\nWatchdogSec=3\n")
    if name == "service":
        unit = unit.replace("app.py", "service.py start")
    there = f"/srv/{name}"
    unit = unit.replace("/srv/app/.venv/bin/python", sys.executable).replace("/srv/app", there)
    unit = unit.replace("[Unit]\n", "[Unit]\nDefaultDependencies=no\n")  # what those are is not in this machine
    machine.inside(there).mkdir(parents=True)
    machine.inside(f"{there}/app.py").write_text(_blocks("systemd", "python")[PROGRAMS[name]])
    shutil.copy(ROOT / "examples" / "service.py", machine.inside(there))
    machine.inside(f"/etc/systemd/system/page-{name}.service").write_text(unit)
    machine.systemctl("daemon-reload")
    try:
        done = machine.systemctl("enable", "--now", f"page-{name}")
        assert done.returncode == 0, machine.log()[-3000:]
        shown = machine.show(f"page-{name}")
        assert (shown["ActiveState"], shown["NRestarts"]) == ("active", "0")
        pidfile = machine.inside(f"{there}/{'service' if name == 'service' else 'app'}.pid")
        eventually(lambda: pid_in(pidfile) == int(shown["MainPID"]))
        assert machine.systemctl("reload", f"page-{name}").returncode == 0
        if name == "notify":
            assert shown["StatusText"] == "working"
        if name == "watchdog":  # it lives longer than it would without a word
            begin = int(shown["ExecMainStartTimestampMonotonic"])
            eventually(lambda: time.clock_gettime_ns(time.CLOCK_MONOTONIC) / 1e3 - begin > 5e6)
            assert machine.show(f"page-{name}")["MainPID"] == shown["MainPID"]
    finally:
        machine.systemctl("stop", f"page-{name}")
    shown = machine.show(f"page-{name}")
    assert (shown["ActiveState"], shown["Result"], shown["ExecMainStatus"]) == ("inactive", "success", "0")
    assert not pidfile.exists()


# --- the how-to page on log rotation ---------------------------------------------------------------------------------

COUNTING = """
import itertools, pathlib, time, daemonkit

with daemonkit.detached(pidfile="app.pid", stdout="app.log", stderr=daemonkit.STDOUT, working_directory="."):
    for n in itertools.count():
        print(n)
        if not n % 50:
            time.sleep(0.001)
        if pathlib.Path("enough").exists():
            break
"""


@pytest.mark.skipif(not shutil.which("logrotate"), reason="logrotate is not installed")
@pytest.mark.skipif(os.geteuid() != 0, reason="logrotate reads only configuration that root owns")
@pytest.mark.parametrize("way", ["postrotate", "copytruncate"])
def test_logrotate_with_the_page_s_configuration(tmp_path: Path, way: str) -> None:
    (block,) = [text for text in _blocks("logrotate", "") if way in text]
    text = block.replace("/srv/app/.venv/bin/python", sys.executable).replace("/srv/app", str(tmp_path))
    (tmp_path / "rotate.conf").write_text(text)
    (tmp_path / "service.py").write_text(
        (ROOT / "examples" / "service.py").read_text().replace("service.pid", "app.pid")
    )
    (tmp_path / "app.py").write_text(COUNTING)
    assert subprocess.run([sys.executable, "app.py"], cwd=tmp_path, check=False).returncode == 0
    pid, log = pid_in(tmp_path / "app.pid"), tmp_path / "app.log"
    for _ in range(3):
        eventually(lambda: log.stat().st_size > 2000)
        rotate = ["logrotate", "--force", "--state", tmp_path / "state", tmp_path / "rotate.conf"]
        done = subprocess.run(rotate, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        eventually(lambda: log.stat().st_size)  # it is opened anew
    (tmp_path / "enough").touch()
    assert ended(pid) == 0
    rotated = [
        subprocess.run(["gzip", "-dcf", path], capture_output=True, text=True, check=True).stdout
        for path in sorted(tmp_path.glob("app.log.*"), reverse=True)
    ]
    assert len(rotated) == 3 and all(rotated)
    lines = "".join([*rotated, log.read_text()]).splitlines()
    if way == "postrotate":
        assert lines == [str(n) for n in range(len(lines))]  # none lost, none doubled, none split
    else:
        assert len(set(lines)) == len(lines) and not any(
            "\0" in line for line in lines
        )  # what the tool can lose is lost
