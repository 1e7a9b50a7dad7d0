"""detached(): starts that fail, take too long, or are interrupted."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import harness
import pytest
from harness import ended, eventually, pid_in, reported, run, stop

if TYPE_CHECKING:
    from pathlib import Path


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


def test_a_status_that_is_no_text_is_refused_and_the_start_goes_on(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        with daemonkit.detached(wait_ready=True, stdout="log", working_directory=".") as d:
            try:
                d.ready(3)
            except TypeError as error:
                print(error)
            assert not d._started
            d.ready()
            report()
    """,
    )
    assert done.returncode == 0 and ended(reported(tmp_path)["pid"]) == 0
    assert (tmp_path / "log").read_text() == "status must be a string or None, not 3\n"


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


def test_a_start_that_fails_is_told_where_the_kernel_reaps_the_middle_process_in_that_moment(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        caller, waitid = os.getpid(), os.waitid
        def wait_until_it_is_gone(kind, pid, options):
            found = waitid(kind, pid, options)
            while os.getpid() == caller and os.path.exists(f"/proc/{pid}"): time.sleep(0.001)
            return found
        os.waitid = wait_until_it_is_gone
        try:
            with daemonkit.detached(pidfile="pid", wait_ready=True, working_directory="."):
                sys.exit(5)
        except daemonkit.StartError as error:
            print(error.exitcode, daemonkit.PidFile("pid").is_locked())
    """,
    )
    assert (done.returncode, done.stdout) == (0, "5 False\n"), done.stderr


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


def test_a_handler_that_raises_just_before_the_caller_waits_ends_the_daemon_too(tmp_path: Path) -> None:
    """Inject the fault: a signal that comes to another thread, where it is not blocked, right after the fork."""
    done = run(
        tmp_path,
        """
        caller, pair = os.getpid(), socket.socketpair
        class Interrupted(socket.socket):
            def close(self):
                super().close()
                if os.getpid() == caller: raise KeyboardInterrupt
        from daemonkit._detach import handshake
        handshake._socketpair = lambda: tuple(Interrupted(fileno=end.detach()) for end in pair())
        try:
            with daemonkit.detached(wait_ready=True):
                wait()
        except KeyboardInterrupt:
            print(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    """,
    )
    assert (done.returncode, done.stdout) == (0, "set()\n"), done  # and no process is left


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
