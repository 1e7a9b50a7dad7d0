"""detached(): the process that it makes, and what it shares with `DaemonContext`."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from harness import ended, pid_in, reported, run, stop


def test_the_caller_ends_with_status_0_and_the_pidfile_names_a_living_daemon(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        with daemonkit.detached(pidfile="app.pid", working_directory="."):
            report()
            wait()
    """,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    pid = pid_in(tmp_path / "app.pid")
    facts = reported(tmp_path)
    assert facts["pid"] == pid
    assert stop(pid) == 0
    assert not (tmp_path / "app.pid").exists()


def test_the_daemon_is_a_member_not_the_leader_of_a_session_without_a_terminal(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        with daemonkit.detached(working_directory="."):
            try:
                tty = os.open("/dev/tty", os.O_RDWR)
            except OSError as error:
                tty = str(error.errno)
            report(tty_open=tty)
            wait()
    """,
    )
    facts = reported(tmp_path)
    assert facts["sid"] == facts["pgid"] != facts["pid"]
    assert facts["sid"] != os.getsid(0)
    assert facts["tty"] == 0 and facts["tty_open"] == "6"  # ENXIO
    assert facts["mask"] == 0
    assert stop(facts["pid"]) == 0


def test_defaults_the_null_device_the_root_directory_a_safe_umask_and_no_core(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        home = os.getcwd()
        os.umask(0o002)
        with daemonkit.detached() as d:
            report(home + "/report", d=[d.pid, d.detached, d.is_open])
            wait()
    """,
    )
    facts = reported(tmp_path)
    assert {facts["fds"][fd]["path"] for fd in (0, 1, 2)} == {"/dev/null"}
    assert all(facts["fds"][fd]["inheritable"] for fd in (0, 1, 2))
    assert facts["cwd"] == "/" and facts["umask"] == 0o022 and facts["core"] == [0, 0]
    assert facts["d"] == [facts["pid"], True, True]
    stop(facts["pid"])


@pytest.mark.parametrize(
    "fork",
    [
        "pid = os.fork()\n        if not pid: sys.exit(0)\n        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])",
        "import multiprocessing as m; p = m.get_context('fork').Process(target=sys.exit, args=(0,)); p.start(); p.join(); code = p.exitcode",
    ],
)
def test_a_forked_child_leaves_the_pidfile_alone_and_exits_with_its_own_status(tmp_path: Path, fork: str) -> None:
    run(
        tmp_path,
        f"""
    with daemonkit.detached(pidfile="pid", working_directory=".", stderr="err") as d:
        {fork}
        report(code=code, file=open("pid").read(), held=d.pidfile.read_pid())
        wait()
    """,
    )
    facts = reported(tmp_path)
    assert facts["code"] == 0
    assert facts["file"] == f"{facts['pid']}\n" and facts["held"] == facts["pid"]
    assert stop(facts["pid"]) == 0
    assert (tmp_path / "err").read_text() == ""


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        with daemonkit.detached(pidfile="pid", working_directory="."):
            child = os.fork()
            if child == 0:
                wait()
            report(child=child)
            wait()
    """,
    )
    facts = reported(tmp_path)
    assert stop(facts["pid"], signal.SIGKILL) == -9
    locks = [line.split()[5] for line in Path("/proc/locks").read_text().splitlines()]
    inode = (tmp_path / "pid").stat().st_ino
    assert not [entry for entry in locks if entry.endswith(f":{inode}")]
    os.kill(facts["child"], signal.SIGKILL)


def test_the_callers_own_handlers_are_not_run_by_the_caller(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        import atexit
        atexit.register(lambda: os.write(os.open(f"exit.{os.getpid()}", os.O_CREAT | os.O_WRONLY), b"x"))
        try:
            with daemonkit.detached(working_directory="."):
                report()
                wait()
        finally:
            open(f"finally.{os.getpid()}", "w").close()
    """,
    )
    pid = reported(tmp_path)["pid"]
    assert not list(tmp_path.glob("exit.*")) and not list(tmp_path.glob("finally.*"))
    stop(pid)
    assert [path.name for path in tmp_path.glob("exit.*")] == [f"exit.{pid}"]
    assert [path.name for path in tmp_path.glob("finally.*")] == [f"finally.{pid}"]


def test_every_path_is_relative_to_the_callers_directory(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("input\n")
    run(
        tmp_path,
        """
        home = os.getcwd()
        with daemonkit.detached(pidfile="pid", stdin="in", stdout="out", stderr="err"):
            report(home + "/report", read=sys.stdin.read())
            wait()
    """,
    )
    facts = reported(tmp_path)
    assert facts["cwd"] == "/" and facts["read"] == "input\n"
    assert [facts["fds"][fd]["path"] for fd in (0, 1, 2)] == [str(tmp_path / name) for name in ("in", "out", "err")]
    assert pid_in(tmp_path / "pid") == facts["pid"]
    stop(facts["pid"])


def test_it_is_a_daemon_context(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        import daemon
        d = daemonkit.detached(stdout="log")
        assert isinstance(d, daemon.DaemonContext) and isinstance(d, daemonkit.DetachedContext)
        assert not d.is_open and d.pid is None
        d.working_directory, d.pidfile = ".", "pid"
        d.open()
        d.open()
        report(uid_seen=d.uid, gid_seen=d.gid)
        d.close()
        d.close()
        report("closed", exists=os.path.exists("pid"))
    """,
    )
    assert done.returncode == 0, done.stderr
    facts = reported(tmp_path)
    assert [facts["uid_seen"]] * 3 == facts["uid"] and [facts["gid_seen"]] * 3 == facts["gid"]
    assert reported(tmp_path, "closed")["exists"] is False
    ended(facts["pid"])


def test_a_foreign_pidfile_is_entered_and_left_in_the_daemon(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        from lockfile.pidlockfile import PIDLockFile
        lock = PIDLockFile(os.path.abspath("pid"))
        with daemonkit.detached(pidfile=lock, working_directory=".") as d:
            report(same=d.pidfile is lock)
            wait()
    """,
    )
    facts = reported(tmp_path)
    assert facts["same"] is True and pid_in(tmp_path / "pid") == facts["pid"]
    assert stop(facts["pid"]) == 0
    assert not (tmp_path / "pid").exists()


def test_a_foreign_pidfile_that_fails_is_a_start_error(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        class Broken:
            def __enter__(self): raise OSError("no lock today")
            def __exit__(self, *exc): pass
        try:
            with daemonkit.detached(pidfile=Broken()):
                pass
        except daemonkit.StartError as error:
            print(error, "in __enter__" in error.traceback)
    """,
    )
    assert done.stdout == "the daemon ended with status 1 before it had started: OSError: no lock today True\n", done


def test_it_leaves_nothing_of_dev_mode_to_complain_about(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        with daemonkit.detached(pidfile="pid", stdout="log", stderr=daemonkit.STDOUT, working_directory=".", wait_ready=True) as d:
            d.ready()
            report()
    """,
        flags=("-X", "dev", "-W", "error"),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert ended(reported(tmp_path)["pid"]) == 0
    assert (tmp_path / "log").read_text() == ""


def test_paths_in_bytes_may_be_given_where_python_forbids_to_compare_bytes_with_numbers(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        assert daemonkit.spawn_detached(["true"], stdin=b"/dev/null", stdout=b"out", pidfile=b"pid").wait() == 0
        assert daemonkit.supervise([b"true"], stdout=b"out", min_uptime=0.01, restart="never").exitcode == 0
        with daemonkit.detached(pidfile=b"pid", stdout=b"out", stderr=daemonkit.STDOUT, working_directory=b".") as d:
            d.reopen()
            report()
    """,
        flags=("-bb",),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert ended(reported(tmp_path)["pid"]) == 0


def test_locks_that_the_caller_held_already_are_the_daemons_too(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        with daemonkit.PidFile("outer.pid") as outer, daemonkit.detached(pidfile="pid", working_directory="."):
            report(outer=outer.read_pid(), mine=outer.i_am_locking())
            wait()
    """,
    )
    facts = reported(tmp_path)
    assert facts["outer"] == facts["pid"] == pid_in(tmp_path / "outer.pid") and facts["mine"]
    assert stop(facts["pid"]) == 0
    assert [path.name for path in tmp_path.glob("*pid")] == []


def test_a_failure_in_the_foreground_is_not_hidden_by_closing_twice(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        class Taken:
            def __enter__(self): raise RuntimeError("taken")
            def __exit__(self, *exc): pass
        try:
            with daemonkit.detached(pidfile=Taken(), detach_process=False, stdout="log"):
                pass
        except RuntimeError as error:
            print(error, file=sys.stderr)
    """,
    )
    assert done.stderr == "taken\n"
