"""Checks of instances: ready_check, ready_tcp, health_check."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

import pytest
from harness import PATIENCE, alive, children, eventually, let_everybody_in, run
from supervising import FIRST, pids, supervising, tree


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_an_instance_is_up_once_its_ready_check_ends_with_0(tmp_path: Path) -> None:
    body = "supervise(['sleep', '1000'], ready_check=['sh', '-c', 'echo $$ >> tries; test -e ready'], instances=2)"
    with supervising(tmp_path, body) as supervisor:
        supervisor.until("start", 2)
        eventually(lambda: len(pids(tmp_path, "tries")) >= 4)
        assert not supervisor.events("ready")
        (tmp_path / "ready").touch()
        supervisor.until("ready", 2)
        tries = len(pids(tmp_path, "tries"))
        supervisor.stop()
    assert len(pids(tmp_path, "tries")) == tries  # none after that


def test_a_ready_check_that_never_succeeds_is_a_failed_start_and_its_last_words_are_in_the_log(tmp_path: Path) -> None:
    body = "supervise(['sleep', '1000'], ready_check=['sh', '-c', 'echo no database; exit 1'], start_timeout=0.8, max_restarts=0)"
    with supervising(tmp_path, body) as supervisor:
        assert supervisor.process.wait(PATIENCE) == 0
        assert supervisor.summary()["instances"][0]["state"] == "gave-up"
        errors = supervisor.errors.read_text()
        assert "ready_check of instance 0 printed at last: no database" in errors and "not up in time" in errors


def test_a_check_that_prints_without_end_waits_so_that_the_supervisor_does_not_read_all_day(tmp_path: Path) -> None:
    body = "supervise(['sleep', '1000'], ready_check=['yes', 'no database'], start_timeout=1.5)"
    with supervising(tmp_path, body) as supervisor:
        supervisor.until("exit")
        io = dict(line.split(": ") for line in (Path("/proc") / str(supervisor.worker) / "io").read_text().splitlines())
        assert int(io["rchar"]) < 256 << 20
        supervisor.stop()
        assert "printed at last: no database | no database" in supervisor.errors.read_text()


def test_a_check_that_had_to_wait_goes_on_and_counts(tmp_path: Path) -> None:
    check = ["sh", "-c", f"head -c {(1 << 27) + (5 << 16)} /dev/zero"]
    with supervising(tmp_path, f"supervise(['sleep', '1000'], ready_check={check!r})") as supervisor:
        supervisor.until("ready")
        supervisor.stop()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_a_check_has_the_environment_the_user_and_the_directory_of_its_instance(tmp_path: Path) -> None:
    let_everybody_in(tmp_path)
    (tmp_path / "sub").mkdir(mode=0o777)
    (tmp_path / "sub").chmod(0o777)
    check = "echo $DAEMONKIT_INSTANCE $MARK $(id -u) $(pwd) $(umask) > said.$DAEMONKIT_INSTANCE"
    body = f"""supervise(["sleep", "1000"], instances=2, ready_check=["sh", "-c", {check!r}], cwd="sub", user="nobody", umask=0o27,
    env={{**os.environ, "MARK": "here"}})"""
    with supervising(tmp_path, body) as supervisor:
        supervisor.until("ready", 2)
        for index in (0, 1):
            said = (tmp_path / "sub" / f"said.{index}").read_text().split()
            assert said == [str(index), "here", "65534", str(tmp_path / "sub"), "0027"]
        supervisor.stop()


def test_an_instance_is_up_once_its_port_accepts(tmp_path: Path) -> None:
    port = _free_port()
    (tmp_path / "server.py").write_text(
        f"import os, socket, time\nwhile not os.path.exists('go'): time.sleep(0.01)\ns = socket.create_server(('127.0.0.1', {port}))\nopen('bound', 'w').close()\nwhile True: s.accept()"
    )
    with supervising(
        tmp_path, f"supervise([{sys.executable!r}, 'server.py'], ready_tcp='127.0.0.1:{port}')"
    ) as supervisor:
        supervisor.until("start")
        assert not supervisor.events("ready")
        (tmp_path / "go").touch()
        supervisor.until("ready")
        assert (tmp_path / "bound").exists()
        supervisor.stop()


def test_a_port_that_only_the_old_run_listens_on_does_not_make_the_new_one_up(tmp_path: Path) -> None:
    port = _free_port()
    (tmp_path / "server.py").write_text(
        f"import socket, sys, time\ntry: s = socket.create_server(('127.0.0.1', {port}))\nexcept OSError: time.sleep(0.5); sys.exit(9)\nwhile True: s.accept()"
    )
    with supervising(
        tmp_path, f"supervise([{sys.executable!r}, 'server.py'], ready_tcp='localhost:{port}')"
    ) as supervisor:
        first = supervisor.until("ready")[0]["pid"]
        supervisor.process.send_signal(signal.SIGHUP)
        assert supervisor.until("reload-failed")[0]["exitcode"] == 9
        assert alive(first) and len(supervisor.events("ready")) == 1
        supervisor.stop()


@pytest.mark.long
def test_an_instance_that_fails_its_health_checks_is_stopped_and_started_again(tmp_path: Path) -> None:
    body = """supervise(["sleep", "1000"], min_uptime=0.05, health_check=["sh", "-c", "echo $$ >> checks; echo broken; test ! -e sick"],
    health_interval=0.5, health_failures=3)"""
    with supervising(tmp_path, body) as supervisor:
        first = supervisor.until("ready")[0]["pid"]
        eventually(lambda: len(pids(tmp_path, "checks")) >= 4)
        assert alive(first)
        before = len(pids(tmp_path, "checks"))
        (tmp_path / "sick").touch()
        assert supervisor.until("unhealthy")[0]["pid"] == first
        assert len(pids(tmp_path, "checks")) >= before + 2  # one may have been under way
        (tmp_path / "sick").unlink()
        assert supervisor.until("exit")[0]["exitcode"] == -signal.SIGTERM
        assert supervisor.until("ready", 2)[1]["pid"] != first
        assert "health_check of instance 0: broken" in supervisor.errors.read_text()
        supervisor.stop()


@pytest.mark.long
def test_a_hung_check_is_killed_with_what_it_started_and_never_piles_up(tmp_path: Path) -> None:
    number = FIRST + 12
    ours = range(number, number + 1)
    check = f"echo $$ >> checks; setsid sleep {number} & sleep {number} & sleep {number}"
    body = f"""supervise(["sleep", "1000"], min_uptime=0.05, health_check=["sh", "-c", {check!r}], health_interval=0.3, health_failures=4)"""
    with supervising(tmp_path, body) as supervisor:
        while not supervisor.events("unhealthy"):
            assert len(tree(ours)) <= 6
        assert len(supervisor.events("unhealthy")) == 1
        supervisor.until("exit")
        supervisor.stop()
    assert not tree(ours)


def test_a_check_that_prints_a_hundred_megabytes_and_leaves_a_process_is_a_check(tmp_path: Path) -> None:
    check = "head -c 100000000 /dev/zero; setsid sleep 1000 & echo $! > left; exit 0"
    body = f"""supervise(["sleep", "1000"], ready_check=["sh", "-c", {check!r}])"""
    with supervising(tmp_path, body) as supervisor:
        supervisor.until("ready")
        eventually(lambda: not alive(pids(tmp_path, "left")[0]))
        supervisor.stop()


def test_checks_end_with_their_instance_and_with_the_supervisor(tmp_path: Path) -> None:
    check = "echo $$ > check; exec sleep 1000"
    body = f"""supervise(["sh", "-c", "sleep 0.5; until test -e go; do sleep 0.01; done"], ready_check=["sh", "-c", {check!r}], restart="never")"""
    with supervising(tmp_path, body) as supervisor:
        (pid,) = eventually(lambda: pids(tmp_path, "check"))
        assert pid in children(supervisor.worker)
        (tmp_path / "go").touch()
        assert supervisor.process.wait(PATIENCE) == 0
        assert not alive(pid)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ("ready_check=['no-such-program']", "FileNotFoundError"),
        ("ready_check='true'", "TypeError"),
        ("health_check=[]", "ValueError"),
        ("health_check=len", "TypeError"),
        ("health_check=['true'], health_interval=0", "ValueError"),
        ("health_check=['true'], health_failures=0", "ValueError"),
        ("health_failures='3'", "TypeError"),
        ("ready_tcp='8000'", "ValueError"),
        ("ready_tcp=8000", "TypeError"),
        ("ready_tcp='no.such.host.invalid:80'", "OSError"),
        ("ready_tcp='127.0.0.1:80', listen='127.0.0.1:0'", "ValueError"),
        ("log_format=3", "TypeError"),
        ("log_format='a\\nb'", "ValueError"),
        ("listen_nonblocking=1", "TypeError"),
    ],
)
def test_bad_options_are_refused_before_anything_starts(tmp_path: Path, options: str, error: str) -> None:
    done = run(tmp_path, f"daemonkit.supervise(['touch', 'started'], {options})")
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith(error), done.stderr
    assert not (tmp_path / "started").exists()
