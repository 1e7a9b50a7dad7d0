"""detached(): each numbered point of the contract, on a real process, from outside."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import harness
import pytest
from harness import ended, eventually, pid_in, reported, run, stop

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the user, the root directory or mounts")
HERE = "os.chdir(os.path.dirname(os.path.abspath(__file__)))\n"


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


def test_what_was_printed_before_is_the_callers_and_appears_once(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        print("before", end="")
        sys.stderr.write("also before")
        with daemonkit.detached(stdout="log", stderr=daemonkit.STDOUT, working_directory="."):
            print("after")
            report()
    """,
    )
    assert (done.stdout, done.stderr) == ("before", "also before")
    assert ended(reported(tmp_path)["pid"]) == 0
    assert (tmp_path / "log").read_text() == "after\n"


def test_programs_that_the_daemon_runs_have_its_streams(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        import subprocess
        with daemonkit.detached(stdout="log", stderr=daemonkit.STDOUT):
            subprocess.run("echo out; echo err >&2; cat; ls -l /proc/self/fd/0", shell=True, check=True)
    """,
    )
    eventually(lambda: "/dev/null" in (tmp_path / "log").read_text())
    assert (tmp_path / "log").read_text().startswith("out\nerr\n")


def test_kill_9_loses_no_finished_line(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        with daemonkit.detached(pidfile="pid", stdout="log"):
            for n in range(50):
                print("line", n)
            os.kill(os.getpid(), signal.SIGKILL)
    """,
    )
    log = tmp_path / "log"
    eventually(lambda: log.read_text().count("\n") == 50)
    eventually(lambda: not harness.alive(pid_in(tmp_path / "pid")))


def test_a_line_printed_to_the_old_stdout_object_leaves_at_once_too(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        from sys import stdout
        with daemonkit.detached(stdout="log"):
            print("through an old reference", file=stdout)
            os.kill(os.getpid(), signal.SIGKILL)
    """,
    )
    eventually(lambda: (tmp_path / "log").read_text() == "through an old reference\n")


@pytest.mark.parametrize(
    "odd",
    [
        "sys.stdin = sys.stdout = sys.stderr = None",
        "import io; sys.stdin = sys.stdout = sys.stderr = io.StringIO()",
        "sys.stdout.close(); sys.stderr.close()",
        "os.close(0); os.close(1); os.close(2)",
        "sys.stdout = sys.__stdout__ = os.fdopen(os.dup(1), 'w'); sys.stdin = sys.__stdin__ = None",
        "sys.stdout = os.fdopen(1, 'w', closefd=True); sys.stderr = os.fdopen(2, 'w', closefd=True)",
        "sys.stdout = object()",
        "sys.stdout.detach()",
    ],
)
def test_the_streams_are_bound_to_0_1_2_whatever_they_were(tmp_path: Path, odd: str) -> None:
    done = run(
        tmp_path,
        f"""
        {odd}
        with daemonkit.detached(stdout="log", stderr="err", working_directory=".", pidfile="pid"):
            import gc; gc.collect()
            print("out"); print("err", file=sys.stderr)
            report(numbers=[sys.stdin.fileno(), sys.stdout.fileno(), sys.stderr.fileno()], read=sys.stdin.read())
    """,
    )
    assert done.returncode == 0, done.stderr
    facts = reported(tmp_path)
    assert facts["numbers"] == [0, 1, 2] and facts["read"] == ""
    assert ended(facts["pid"]) == 0
    assert (tmp_path / "log").read_text() == "out\n" and (tmp_path / "err").read_text() == "err\n"
    assert not (tmp_path / "pid").exists()


def test_sigterm_runs_finally_blocks_and_exit_handlers_and_ends_with_0(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        import atexit
        atexit.register(lambda: print("exit handler"))
        try:
            with daemonkit.detached(pidfile="pid", stdout="log", working_directory="."):
                try:
                    report()
                    wait()
                finally:
                    print("inner finally", os.path.exists("pid"))
        finally:
            print("outer finally", os.path.exists("pid"))
    """,
    )
    assert stop(reported(tmp_path)["pid"]) == 0
    assert (tmp_path / "log").read_text() == "inner finally True\nouter finally False\nexit handler\n"


def test_sigterm_works_though_the_caller_had_everything_blocked(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        with daemonkit.detached(working_directory="."):
            report()
            wait()
    """,
    )
    assert stop(reported(tmp_path)["pid"]) == 0


LOGGING = {
    "no logging set up": "",
    "a handler on stderr": "logging.basicConfig()",
    "a handler on stdout, the same file": "logging.basicConfig(stream=sys.stdout)",
    "a handler on another file": "logging.basicConfig(filename='other')",
    "logging disabled": "logging.disable(logging.CRITICAL)",
    "no last resort": "logging.lastResort = None",
}


@pytest.mark.parametrize("setup", LOGGING.values(), ids=LOGGING)
def test_an_exception_is_on_stderr_once_and_the_status_is_1(tmp_path: Path, setup: str) -> None:
    done = run(
        tmp_path,
        f"""
        {setup}
        with daemonkit.detached(pidfile="pid", stdout="log", stderr=daemonkit.STDOUT, working_directory="."):
            report()
            raise ValueError("the body broke")
    """,
    )
    assert done.returncode == 0
    assert ended(reported(tmp_path)["pid"]) == 1
    log = (tmp_path / "log").read_text()
    assert log.count("Traceback (most recent call last)") == 1 and log.count("\nValueError: the body broke") == 1, log
    assert not (tmp_path / "pid").exists()
    if "filename" in setup:
        assert "CRITICAL:daemonkit:" in (tmp_path / "other").read_text()


def test_sys_exit_in_the_body_is_the_status(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        with daemonkit.detached(pidfile="pid", stderr="log", working_directory="."):
            report()
            sys.exit(3)
    """,
    )
    assert ended(reported(tmp_path)["pid"]) == 3
    assert (tmp_path / "log").read_text() == "" and not (tmp_path / "pid").exists()


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


def test_logs_are_appended_to_and_created_0640_less_the_umask(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("kept\n")
    (tmp_path / "old").chmod(0o600)
    run(
        tmp_path,
        """
        with daemonkit.detached(stdout="old", stderr="new", umask=0o077, working_directory="."):
            print("more")
            report()
            wait()
    """,
    )
    pid = reported(tmp_path)["pid"]
    assert (tmp_path / "old").read_text() == "kept\nmore\n"
    assert (tmp_path / "old").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600
    stop(pid)


def test_sighup_reopens_the_logs_and_loses_nothing(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        with daemonkit.detached(pidfile="pid", stdout="log", stderr=daemonkit.STDOUT):
            for n in range(2000):
                print(n)
                time.sleep(0.0005)
    """,
    )
    pid = pid_in(tmp_path / "pid")
    for turn in range(5):
        eventually(lambda: (tmp_path / "log").stat().st_size > 0)
        (tmp_path / "log").rename(tmp_path / f"log.{turn}")
        os.kill(pid, signal.SIGHUP)
        eventually((tmp_path / "log").exists)
    assert ended(pid) == 0
    lines = "".join((tmp_path / name).read_text() for name in ["log.0", "log.1", "log.2", "log.3", "log.4", "log"])
    assert lines == "".join(f"{n}\n" for n in range(2000))


def test_reopen_takes_stderr_along_and_an_error_keeps_the_old_file(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        with daemonkit.detached(stdout="log", stderr=daemonkit.STDOUT, working_directory=".") as d:
            os.rename("log", "log.1")
            d.reopen()
            print("out"); print("err", file=sys.stderr)
            os.rename("log", "log.2")
            os.mkdir("log")
            try:
                d.reopen()
            except IsADirectoryError as error:
                report(error=error.filename)
            os.kill(os.getpid(), signal.SIGHUP)
            print("still here")
    """,
    )
    facts = reported(tmp_path)
    assert facts["error"] == str(tmp_path / "log")
    assert ended(facts["pid"]) == 0
    text = (tmp_path / "log.2").read_text()
    assert text.startswith("out\nerr\n") and text.endswith("still here\n") and "was not reopened" in text


# --- descriptors ------------------------------------------------------------------------------------------------


def test_inherited_descriptors_are_closed_and_the_programs_own_are_kept(tmp_path: Path) -> None:
    handed, other = os.pipe()
    try:
        run(
            tmp_path,
            f"""
            import resource
            own = open("own", "w")
            os.dup2({handed}, 900)
            resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
            logging.basicConfig(filename="logging")
            left, right = socket.socketpair()
            with daemonkit.detached(working_directory="."):
                own.write("kept")
                own.flush()
                left.send(b"x")
                logging.warning("kept too")
                report(own=own.fileno(), read=right.recv(1).decode())
                wait()
        """,
            pass_fds=(handed,),
        )
    finally:
        os.close(handed)
        os.close(other)
    facts = reported(tmp_path)
    assert handed not in facts["fds"] and 900 not in facts["fds"]
    assert facts["own"] in facts["fds"] and facts["read"] == "x"
    assert (tmp_path / "own").read_text() == "kept" and "kept too" in (tmp_path / "logging").read_text()
    stop(facts["pid"])


def test_copies_of_the_callers_streams_are_closed_so_that_its_reader_sees_the_end(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        copies = [os.dup(1), os.dup(2)]
        with daemonkit.detached(working_directory=".", pidfile="pid"):
            report()
            wait()
    """,
    )  # run() reads both pipes to their end: a copy kept open would hang it
    facts = reported(tmp_path)
    assert done.returncode == 0
    assert not [entry for entry in facts["fds"].values() if entry["path"].startswith("pipe:")]
    stop(facts["pid"])


def test_the_other_end_of_a_pipe_that_is_stdout_is_no_copy_of_it(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        reader, writer = os.pipe()
        os.dup2(writer, 1)
        os.write(writer, b"from the caller")
        os.close(writer)
        with daemonkit.detached(working_directory="."):
            report(read=os.read(reader, 100).decode())
            wait()
    """,
    )
    facts = reported(tmp_path)
    assert facts["read"] == "from the caller"
    stop(facts["pid"])


def test_close_fds_all_keeps_files_preserve_and_the_lock_alone(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        gone, kept, number = open("gone", "w"), open("kept", "w"), os.open("number", os.O_CREAT | os.O_WRONLY)
        preserve = [kept, number]
        with daemonkit.detached(close_fds="all", files_preserve=preserve, stdout="log", pidfile="pid", working_directory="."):
            report(kept=[kept.fileno(), number], preserve=len(preserve), held=daemonkit.PidFile("pid").read_pid())
            wait()
    """,
    )
    facts = reported(tmp_path)
    paths = [os.path.basename(entry["path"]) for entry in facts["fds"].values()]
    assert "gone" not in paths and set(facts["kept"]) <= set(facts["fds"])
    assert facts["preserve"] == 2 and facts["held"] == facts["pid"]
    assert len(facts["fds"]) <= 3 + 2 + 2 + 2  # streams, preserved, lock and directory; the listing and the report
    stop(facts["pid"])


def test_open_files_and_descriptors_as_streams(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        out = open("out", "a")
        out.write("first ")
        err = os.open("err", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        with daemonkit.detached(stdin=open(__file__), stdout=out, stderr=err, working_directory="."):
            print("second")
            print("error", file=sys.stderr)
            report(read=len(sys.stdin.read()))
            wait()
    """,
    )
    facts = reported(tmp_path)
    assert (tmp_path / "out").read_text() == "first second\n" and (tmp_path / "err").read_text() == "error\n"
    assert facts["read"] == (tmp_path / "program.py").stat().st_size
    stop(facts["pid"])


def test_crossed_streams_do_not_run_each_other_over(tmp_path: Path) -> None:
    with (tmp_path / "one").open("w") as one, (tmp_path / "two").open("w") as two:
        run(
            tmp_path,
            """
            with daemonkit.detached(stdout=2, stderr=1, working_directory="."):
                print("to the old stderr"); print("to the old stdout", file=sys.stderr)
                report()
        """,
            stdout=one,
            stderr=two,
        )
    ended(reported(tmp_path)["pid"])
    assert (tmp_path / "one").read_text() == "to the old stdout\n"
    assert (tmp_path / "two").read_text() == "to the old stderr\n"


# --- failing starts ---------------------------------------------------------------------------------------------


def test_a_failed_start_shows_the_daemons_traceback_on_the_callers_terminal(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        with daemonkit.detached(pidfile="pid", wait_ready=True):
            raise ValueError("no database")
    """,
    )
    assert done.returncode == 1
    assert re.search(r"StartError: the daemon ended with status 1 .*: ValueError: no database", done.stderr)
    assert "in <module>" in done.stderr.split("The daemon's own traceback")[1]
    assert not (tmp_path / "pid").exists()


FAILING = {
    "an exception": ("raise ValueError('x')", "1"),
    "sys.exit": ("sys.exit(7)", "7"),
    "sys.exit with more than a C long holds": ("sys.exit(2**70)", "255"),
    "os._exit": ("os._exit(9)", "9"),
    "a signal": ("os.kill(os.getpid(), signal.SIGKILL)", "-9"),
    "nothing": ("pass", "0"),
}


@pytest.mark.parametrize(("body", "status"), FAILING.values(), ids=FAILING)
def test_a_body_that_ends_before_ready_is_a_start_error_with_its_status(tmp_path: Path, body: str, status: str) -> None:
    done = run(
        tmp_path,
        f"""
        import atexit
        atexit.register(lambda: print("caller's handler", os.getpid() == caller))
        caller = os.getpid()
        lock = daemonkit.PidFile("pid")
        try:
            with daemonkit.detached(pidfile=lock, wait_ready=True, stdout="log", stderr=daemonkit.STDOUT):
                child = os.fork()
                if child == 0:
                    wait()
                {body}
        except daemonkit.StartError as error:
            print(error.exitcode, lock.read_pid(), os.path.exists("pid"), bool(error.traceback))
    """,
    )
    assert done.stdout == f"{status} None False {body[:2] in ('ra', 'sy')}\ncaller's handler True\n", done


def test_ready_ends_the_wait(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        with daemonkit.detached(pidfile="pid", wait_ready=True, working_directory=".") as d:
            open("warmed up", "w").close()
            d.ready("listening")
            d.ready("once more")
            report()
            wait()
    """,
    )
    assert done.returncode == 0 and (tmp_path / "warmed up").exists()
    assert stop(reported(tmp_path)["pid"]) == 0


def test_a_start_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        signal_map = {"SIGTERM": None}
        try:
            with daemonkit.detached(pidfile="pid", wait_ready=True, start_timeout=0.3, signal_map=signal_map):
                wait()
        except TimeoutError as error:
            assert isinstance(error, daemonkit.StartTimeoutError)
            print(error, error.exitcode, os.path.exists("pid"))
    """,
    )
    assert done.stdout == "the daemon had not started within 0.3 s, so it was ended -9 False\n", done


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_an_exception_in_the_waiting_caller_ends_the_daemon(tmp_path: Path, number: int) -> None:
    program = harness.write(
        tmp_path,
        """
        class Enough(Exception): pass
        def enough(*_): raise Enough
        signal.signal(signal.SIGUSR1, enough)
        try:
            with daemonkit.detached(pidfile="pid", wait_ready=True, working_directory="."):
                report()
                wait()
        except (KeyboardInterrupt, Enough) as error:
            print(type(error).__name__, os.path.exists("pid"))
    """,
    )
    with subprocess.Popen([sys.executable, program], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as caller:
        daemon = reported(tmp_path)["pid"]
        caller.send_signal(number)
        assert caller.stdout
        assert caller.stdout.read() == ("KeyboardInterrupt False\n" if number == signal.SIGINT else "Enough False\n")
    assert not harness.alive(daemon)


def test_a_handler_whose_signal_did_not_interrupt_the_waiting_caller_runs_too(tmp_path: Path) -> None:
    """As where it comes in the moment before poll(2) begins; here another thread gets it, and this one waits on."""
    program = harness.write(
        tmp_path,
        """
        import warnings
        class Enough(Exception): pass
        def enough(*_): raise Enough
        signal.signal(signal.SIGUSR1, enough)
        ready = threading.Event()
        def other():
            ready.set()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
            time.sleep(1000)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        threading.Thread(target=other, daemon=True).start()
        ready.wait()
        warnings.simplefilter("ignore")
        try:
            with daemonkit.detached(pidfile="pid", wait_ready=True, working_directory="."):
                report()
                wait()
        except Enough:
            print(os.path.exists("pid"), flush=True)
        os._exit(0)
    """,
    )
    with subprocess.Popen([sys.executable, program], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as caller:
        daemon = reported(tmp_path)["pid"]
        caller.send_signal(signal.SIGUSR1)
        assert caller.stdout and caller.stdout.read() == "False\n"
    assert not harness.alive(daemon)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP, signal.SIGTERM])
def test_a_start_goes_on_without_a_caller_that_is_killed(tmp_path: Path, number: int) -> None:
    program = harness.write(
        tmp_path,
        """
        with daemonkit.detached(pidfile="pid", wait_ready=True, working_directory=".") as d:
            report("begun")
            while not os.path.exists("go"):
                time.sleep(0.01)
            d.ready()
            report()
            wait()
    """,
    )
    with subprocess.Popen([sys.executable, program], cwd=tmp_path) as caller:
        daemon = reported(tmp_path, "begun")["pid"]
        caller.send_signal(number)
        assert caller.wait() == -number
    (tmp_path / "go").touch()
    assert reported(tmp_path)["pid"] == daemon == pid_in(tmp_path / "pid")
    assert stop(daemon) == 0


def test_a_middle_process_that_is_killed_calls_the_start_off(tmp_path: Path) -> None:
    program = harness.write(
        tmp_path,
        """
        try:
            with daemonkit.detached(pidfile="pid", wait_ready=True, working_directory="."):
                report()
                wait()
        except daemonkit.StartError as error:
            print(error.exitcode, os.path.exists("pid"))
    """,
    )
    with subprocess.Popen([sys.executable, program], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as caller:
        facts = reported(tmp_path)
        os.kill(facts["ppid"], signal.SIGKILL)
        assert caller.stdout
        assert caller.stdout.read() == "None False\n"
    eventually(lambda: not harness.alive(facts["pid"]))


def test_a_start_works_where_sigchld_is_ignored_or_everything_is_reaped(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        for _ in range(3):
            try:
                with daemonkit.detached(pidfile="pid", wait_ready=True):
                    sys.exit(5)
            except daemonkit.StartError as error:
                print(error.exitcode)
        def reap(*_):
            try:
                while os.waitpid(-1, os.WNOHANG)[0]: pass
            except ChildProcessError: pass
        signal.signal(signal.SIGCHLD, reap)
        with daemonkit.detached(pidfile="pid", wait_ready=True, working_directory=".") as d:
            report(handler=signal.getsignal(signal.SIGCHLD) is reap)
            d.ready()
            wait()
    """,
    )
    assert (done.returncode, done.stdout) == (0, "5\n5\n5\n"), done.stderr
    facts = reported(tmp_path)
    assert facts["handler"] is True
    stop(facts["pid"])


# --- what DaemonContext brings --------------------------------------------------------------------------------------


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


def test_the_signal_map(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        seen = []
        signal_map = {"SIGUSR1": lambda number, frame: seen.append(number), signal.SIGUSR2: None, "SIGQUIT": "terminate"}
        with daemonkit.detached(signal_map=signal_map, working_directory="."):
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGUSR2)
            report(seen=seen)
            wait()
    """,
    )
    facts = reported(tmp_path)
    assert facts["seen"] == [signal.SIGUSR1]
    assert facts["ignored"] >> signal.SIGUSR2 - 1 & 1
    assert stop(facts["pid"], signal.SIGQUIT) == 0


def test_the_default_signal_map_ignores_terminal_stops(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        with daemonkit.detached(working_directory="."):
            report()
            wait()
    """,
    )
    facts = reported(tmp_path)
    for number in (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU):
        assert facts["ignored"] >> number - 1 & 1
    for number in (signal.SIGTERM, signal.SIGHUP):
        assert facts["caught"] >> number - 1 & 1
    stop(facts["pid"])


@root_only
def test_a_change_of_user_takes_that_users_groups_and_its_files(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o777)
    run(
        tmp_path,
        """
        os.setgroups([0, 4, 27])
        with daemonkit.detached(uid="daemon", pidfile="pid", stdout="log", working_directory="out") as d:
            report()
            wait()
    """,
    )
    facts = reported(tmp_path / "out")
    import pwd

    user = pwd.getpwnam("daemon")
    assert facts["uid"] == [user.pw_uid] * 3 and facts["gid"] == [user.pw_gid] * 3
    assert facts["groups"] == sorted(os.getgrouplist("daemon", user.pw_gid))
    assert (tmp_path / "log").stat().st_uid == user.pw_uid
    assert stop(facts["pid"]) == 0
    assert (tmp_path / "pid").read_text() == ""  # the directory is root's: emptied, not removed


@root_only
@pytest.mark.parametrize(("options", "groups"), [("initgroups=False", []), ("gid='games'", None), ("gid=12345", None)])
def test_roots_groups_never_leak(tmp_path: Path, options: str, groups: list[int] | None) -> None:
    tmp_path.chmod(0o777)
    run(
        tmp_path,
        f"""
        os.setgroups([0, 4, 27])
        with daemonkit.detached(uid="daemon", {options}, working_directory="."):
            report()
            wait()
    """,
    )
    facts = reported(tmp_path)
    assert not {0, 4, 27} & set(facts["groups"])
    if groups is not None:
        assert facts["groups"] == groups
    stop(facts["pid"])


@root_only
def test_a_chroot_in_between_changes_nothing_for_pidfile_and_logs(tmp_path: Path) -> None:
    jail = tmp_path / "jail"
    (jail / "work").mkdir(parents=True)
    run(
        tmp_path,
        """
        with daemonkit.detached(chroot_directory="jail", working_directory="/work", pidfile="pid", stdout="jail/log") as d:
            print("one")
            os.rename("/log", "/log.1")
            d.reopen()
            print("two")
            report("/work/report", cwd_seen=os.getcwd()) if os.path.exists("/proc") else open("/work/done", "w").close()
            wait()
    """,
    )
    eventually((jail / "work" / "done").exists)
    pid = pid_in(tmp_path / "pid")
    assert os.readlink(f"/proc/{pid}/root") == str(jail) and os.readlink(f"/proc/{pid}/cwd") == str(jail / "work")
    assert (jail / "log.1").read_text() == "one\n" and (jail / "log").read_text() == "two\n"
    assert stop(pid) == 0
    assert not (tmp_path / "pid").exists()


# --- callers ------------------------------------------------------------------------------------------------------


def test_other_threads_are_named_in_a_warning(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        threading.Thread(target=time.sleep, args=(60,), name="poller", daemon=True).start()
        with daemonkit.detached(working_directory=".", stderr="err"):
            report()
            wait()
    """,
    )
    assert done.returncode == 0
    assert "program.py" in done.stderr and "RuntimeWarning" in done.stderr and "poller" in done.stderr
    assert "DeprecationWarning" not in done.stderr
    facts = reported(tmp_path)
    assert facts["threads"] == 1 and (tmp_path / "err").read_text() == ""
    stop(facts["pid"])


def test_with_warnings_as_errors_a_thread_is_an_error_and_nothing_starts(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        threading.Thread(target=time.sleep, args=(60,), name="poller", daemon=True).start()
        try:
            with daemonkit.detached(pidfile="pid"):
                pass
        except RuntimeWarning:
            print("refused", os.listdir("."))
    """,
        flags=("-W", "error"),
    )
    assert done.stdout == "refused ['program.py']\n", done


def test_a_running_event_loop_is_refused_and_a_loaded_asyncio_is_not(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        import asyncio
        async def main():
            with daemonkit.detached(pidfile="pid"):
                pass
        try:
            asyncio.run(main())
        except RuntimeError as error:
            print(error)
        with daemonkit.detached(working_directory="."):
            async def inside(): report()
            asyncio.run(inside())
    """,
    )
    assert done.stdout.startswith("an event loop runs in this thread") and done.returncode == 0
    assert ended(reported(tmp_path)["pid"]) == 0


def test_another_thread_than_the_main_one_is_refused(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        def start():
            try:
                with daemonkit.detached(pidfile="pid"):
                    pass
            except RuntimeError as error:
                print(error)
        thread = threading.Thread(target=start); thread.start(); thread.join()
        print(os.listdir("."))
    """,
    )
    assert "main thread" in done.stdout and done.stdout.endswith("['program.py']\n")


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


# --- one for each bug that was found --------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["the wait for the middle process", "recv"])
def test_an_exception_at_the_moment_of_success_does_not_take_the_start_back(tmp_path: Path, moment: str) -> None:
    """Inject the fault: a Ctrl-C just where the caller has learnt that the daemon runs."""
    done = run(
        tmp_path,
        f"""
        from daemonkit._detach import handshake
        real_recv = socket.socket.recv
        caller = os.getpid()
        def ended(*_):
            raise KeyboardInterrupt
        class Interrupted(socket.socket):
            def recv(self, size):
                part = real_recv(self, size)
                if os.getpid() == caller and part: signal.raise_signal(signal.SIGINT)
                return part
        if {moment!r} != "recv":
            handshake.wait_for_end = ended
        else:
            pair = socket.socketpair
            handshake._socketpair = lambda: tuple(Interrupted(fileno=end.detach()) for end in pair())
        with daemonkit.detached(pidfile="pid", working_directory="."):
            report()
            wait()
    """,
    )
    if done.returncode == 0:
        assert pid_in(tmp_path / "pid") == reported(tmp_path)["pid"]
        assert stop(pid_in(tmp_path / "pid")) == 0
    else:  # what was received got lost with the exception, so the daemon was ended; no stray is left either
        assert moment == "recv" and not (tmp_path / "pid").exists()


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


@pytest.mark.parametrize(
    "setup",
    [
        "h.setLevel(60)",
        "h.addFilter(lambda record: False)",
        "logging.getLogger('daemonkit').addFilter(lambda record: False)",
    ],
)
def test_a_handler_that_lets_nothing_through_does_not_swallow_the_traceback(tmp_path: Path, setup: str) -> None:
    run(
        tmp_path,
        f"""
        h = logging.StreamHandler(); logging.getLogger().addHandler(h); {setup}
        with daemonkit.detached(stderr="log", working_directory="."):
            report()
            raise ValueError("told all the same")
    """,
    )
    assert ended(reported(tmp_path)["pid"]) == 1
    assert (tmp_path / "log").read_text().count("\nValueError: told all the same") == 1


def test_a_rotated_log_is_created_less_the_same_umask(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        with daemonkit.detached(stdout="log", umask=0o077, working_directory=".") as d:
            os.rename("log", "log.1")
            d.reopen()
            report()
    """,
    )
    ended(reported(tmp_path)["pid"])
    assert (tmp_path / "log").stat().st_mode & 0o777 == (tmp_path / "log.1").stat().st_mode & 0o777 == 0o600


def test_real_time_signals_and_none_in_files_preserve_are_taken_as_by_daemon_context(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        with daemonkit.detached(signal_map={signal.SIGRTMIN + 3: None}, files_preserve=[None], working_directory="."):
            report()
    """,
    )
    assert done.returncode == 0, done.stderr
    facts = reported(tmp_path)
    assert facts["ignored"] >> signal.SIGRTMIN + 2 & 1
    ended(facts["pid"])


STRAY = """
        from daemonkit._detach import handshake
        real, made = handshake._socketpair, []
        def with_stray():
            made.append(pair := real())
            if len(made) == 2 and os.fork() == 0:
                os.closerange(0, 3)
                report("stray")
                wait()
            return pair
        handshake._socketpair = with_stray
"""


def test_a_start_does_not_wait_for_a_stray_fork_that_has_its_sockets_open(tmp_path: Path) -> None:
    """Another thread's fork in the midst of a start; it must neither delay the verdict nor change it."""
    done = run(
        tmp_path,
        f"""
        {STRAY}
        with daemonkit.detached(working_directory="."):
            report()
            wait()
    """,
    )
    assert done.returncode == 0
    assert stop(reported(tmp_path)["pid"]) == 0
    os.kill(reported(tmp_path, "stray")["pid"], signal.SIGKILL)


@pytest.mark.parametrize("end", ["raise ValueError('x')", "os.kill(os.getppid(), signal.SIGKILL); wait()"])
def test_a_start_that_fails_does_not_wait_for_a_stray_fork_either(tmp_path: Path, end: str) -> None:
    done = run(
        tmp_path,
        f"""
        {STRAY}
        try:
            with daemonkit.detached(wait_ready=True):
                {end}
        except daemonkit.StartError as error:
            print("told")
    """,
    )
    assert (done.returncode, done.stdout) == (0, "told\n")
    os.kill(reported(tmp_path, "stray")["pid"], signal.SIGKILL)


@root_only
def test_uid_alone_brings_its_group_also_where_the_user_stays(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        os.setresgid(5, 5, 5)
        with daemonkit.detached(uid="root", working_directory="."):
            report()
    """,
    )
    facts = reported(tmp_path)
    assert facts["gid"] == [0, 0, 0]
    ended(facts["pid"])
