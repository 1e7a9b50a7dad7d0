"""Starts that are cut short: killed, interrupted, or failed by the kernel at a chosen system call.

After each of them the three promises are checked: the caller's status is honest, nothing runs that should not,
and the next start works.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import harness
import pytest
from harness import alive, eventually, pid_in, stop

if TYPE_CHECKING:
    from pathlib import Path

ROUNDS = int(os.environ.get("DAEMONKIT_KILLS", "8"))
strace = pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")

SERVICE = """
    with daemonkit.detached(pidfile="pid", stdout="log", stderr=daemonkit.STDOUT, wait_ready=True) as d:
        print("begun")
        d.ready()
        wait()
"""


def _running(directory: Path) -> int | None:
    """Return the pid of a daemon that holds the pidfile; whatever else it says must be a dead number."""
    with contextlib.suppress(FileNotFoundError):
        pid = pid_in(directory / "pid")
        if alive(pid):
            return pid
    return None


def _check_and_clear(directory: Path, before: set[int]) -> None:
    """Let what goes on come to an end; at most one daemon is left, and it holds the pidfile. Then a start works."""

    def settled() -> bool:
        left = [pid for pid in set(harness.children()) - before if alive(pid) and not _is_tracer(pid)]
        return not left or left == [_running(directory)]

    eventually(settled, "one daemon at most, and the pidfile names it")
    assert {path.name for path in directory.iterdir()} <= {
        "program.py",
        "faulty.py",
        "pid",
        "log",
        "trace",
        "trace.err",
    }
    if daemon := _running(directory):
        assert stop(daemon) == 0
    done = harness.run(directory, SERVICE)
    assert done.returncode == 0, done.stderr
    assert stop(pid_in(directory / "pid")) == 0
    assert not (directory / "pid").exists()


def _is_tracer(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return harness.Path(f"/proc/{pid}/comm").read_text() == "strace\n"
    return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_caller_that_is_signalled_at_any_moment_of_its_start(tmp_path: Path, number: int) -> None:
    shake_hands = "daemonkit.detached, daemonkit.StartError\nos.write(1, b'x')\n"
    program = harness.write(tmp_path, shake_hands + textwrap.dedent(SERVICE), "faulty.py")
    before = set(harness.children())
    chance = random.Random(number)
    for _ in range(ROUNDS):
        with subprocess.Popen(
            [sys.executable, program], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as caller:
            assert caller.stdout and caller.stdout.read(1) == b"x"
            select.select([], [], [], chance.uniform(0, 0.01))
            caller.send_signal(number)
            status = caller.wait(harness.PATIENCE)
        if status == 0:
            assert eventually(lambda: _running(tmp_path))
        elif number == signal.SIGINT:  # it caught the signal, so nothing of it is left
            assert _running(tmp_path) is None and status in {-signal.SIGINT, 1}
        _check_and_clear(tmp_path, before)


@pytest.mark.parametrize("victim", ["caller", "middle process", "daemon"])
def test_any_of_the_three_processes_killed_at_any_moment_before_it_is_ready(tmp_path: Path, victim: str) -> None:
    body = SERVICE.replace("d.ready()", "while not os.path.exists(sys.argv[1]): time.sleep(0.001)\n        d.ready()")
    program = harness.write(tmp_path, body, "faulty.py")
    before = set(harness.children())
    chance = random.Random(9)
    for turn in range(ROUNDS):
        go = tmp_path.parent / f"{tmp_path.name}.go.{turn}"
        with subprocess.Popen([sys.executable, program, go], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as caller:
            middle = eventually(lambda caller=caller: harness.children(caller.pid))[0]
            pids = {"caller": lambda caller=caller: [caller.pid], "middle process": lambda middle=middle: [middle]}
            pid = eventually(pids.get(victim, lambda middle=middle: harness.children(middle)))[0]
            select.select([], [], [], chance.uniform(0, 0.01))
            os.kill(pid, signal.SIGKILL)  # none of them can have ended: the daemon waits, and the others for it
            status = caller.wait(harness.PATIENCE)
            go.touch()
            assert caller.stderr
            error = caller.stderr.read()
        if victim == "caller":  # the start goes on without it
            assert status == -signal.SIGKILL
            eventually(lambda: _running(tmp_path))
        else:
            assert status == 1 and "StartError" in error, error
            eventually(lambda: _running(tmp_path) is None)
        _check_and_clear(tmp_path, before)


FAULTS = [
    ("openat", "EMFILE"), ("openat", "ENOSPC"), ("openat", "ENFILE"), ("write", "ENOSPC"), ("write", "EIO"), ("fcntl", "ENOLCK"),
    ("linkat", "ENOSPC"), ("linkat", "EPERM"), ("clone", "EAGAIN"), ("clone", "ENOMEM"), ("socketpair", "EMFILE"), ("setsid", "EPERM"),
    ("pidfd_open", "EMFILE"), ("pwrite64", "EIO"), ("chdir", "EACCES"), ("dup2", "EBADF"),
    ("poll", "EINTR"), ("recvfrom", "EINTR"), ("sendto", "EINTR"), ("prlimit64", "EPERM"),
    ("rt_sigprocmask", "EINVAL"), ("newfstatat", "EIO"),
]  # fmt: skip


@strace
@pytest.mark.parametrize(("call", "error"), FAULTS, ids=[f"{call}-{error}" for call, error in FAULTS])
def test_a_system_call_that_fails_is_an_honest_status(tmp_path: Path, call: str, error: str) -> None:
    """Each of the first calls of its kind in each of the three processes, counted from where the start begins."""
    body = "daemonkit.detached, daemonkit.StartError\nos.write(2, b'waiting\\n'); os.read(0, 1)\n" + textwrap.dedent(
        SERVICE
    )
    program = harness.write(tmp_path, body, "faulty.py")
    before = set(harness.children())
    injected = 0
    for n in range(1, 4):
        status, said = _start_under_strace(program, call, f"inject={call}:error={error}:when={n}")
        if status == 0:
            assert eventually(lambda: _running(tmp_path)), f"{call} no {n}: told that it runs"
        else:
            assert status == 1 and "Error" in said, f"{call} no {n}: {status} {said}"
            eventually(lambda: _running(tmp_path) is None)
        _check_and_clear(tmp_path, before)
        injected += (tmp_path / "trace").read_text().count("INJECTED")
    assert injected, f"no {call} was made to fail: take it off the list"


def _start_under_strace(program: Path, call: str, fault: str) -> tuple[int, str]:
    """Start the program with a fault that counts from its first read; return its status and what it said."""
    directory = program.parent
    with (
        (directory / "trace.err").open("w+") as err,  # not a pipe, which the tracer and the daemon could keep open
        subprocess.Popen(
            [sys.executable, program], cwd=directory, stdin=subprocess.PIPE, stdout=err, stderr=err
        ) as caller,
    ):
        eventually(lambda: (directory / "trace.err").read_text() == "waiting\n")
        command = ["strace", "-f", "-p", caller.pid, "-o", directory / "trace", "-e", f"trace={call}", "-e", fault]
        with subprocess.Popen([str(part) for part in command], stderr=subprocess.PIPE, text=True) as tracer:
            assert tracer.stderr
            assert "attached" in tracer.stderr.readline()
            caller.communicate(b"x", timeout=harness.PATIENCE)
            tracer.terminate()
            tracer.communicate(timeout=harness.PATIENCE)
        err.seek(0)
        return caller.returncode, err.read()


@pytest.mark.parametrize("begun", [True, False])
def test_an_accident_in_the_middle_process_is_told_and_nothing_is_left(tmp_path: Path, begun: bool) -> None:  # noqa: FBT001 - a case
    wait_for = 'while not os.path.exists("begun"): time.sleep(0.01)' if begun else "pass"
    done = harness.run(
        tmp_path,
        f"""
        import errno
        caller, pidfd_open = os.getpid(), os.pidfd_open
        def no_descriptor(pid):
            if os.getpid() == caller:
                return pidfd_open(pid)
            {wait_for}
            raise OSError(errno.EMFILE, "Too many open files")
        os.pidfd_open = no_descriptor
        with daemonkit.detached(pidfile="pid", stdout="log", stderr=daemonkit.STDOUT, working_directory=".") as d:
            open("begun", "w").close()
            wait()
        """,
    )
    assert done.returncode == 1 and "StartError" in done.stderr and "Too many open files" in done.stderr
    assert _running(tmp_path) is None
