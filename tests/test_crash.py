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
    program = harness.write(tmp_path, SERVICE)
    before = set(harness.children())
    chance = random.Random(number)
    for _ in range(ROUNDS):
        with subprocess.Popen([sys.executable, program], cwd=tmp_path, stderr=subprocess.DEVNULL) as caller:
            select.select([], [], [], chance.uniform(0.03, 0.2))
            caller.send_signal(number)
            status = caller.wait(harness.PATIENCE)
        if status == 0:
            assert eventually(lambda: _running(tmp_path))
        elif number == signal.SIGINT:  # it caught the signal, so nothing of it is left
            assert _running(tmp_path) is None and status in {-signal.SIGINT, 1}
        _check_and_clear(tmp_path, before)


def test_any_of_the_three_processes_killed_at_any_moment(tmp_path: Path) -> None:
    program = harness.write(tmp_path, SERVICE)
    before = set(harness.children())
    chance = random.Random(9)
    for turn in range(ROUNDS):
        with subprocess.Popen([sys.executable, program], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as caller:
            victim = _nth_descendant(caller.pid, turn % 2)
            select.select([], [], [], chance.uniform(0, 0.01))
            if victim:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)  # its parent has not reaped it, or it is gone
                eventually(lambda victim=victim: not alive(victim))
            status = caller.wait(harness.PATIENCE)
            assert caller.stderr
            error = caller.stderr.read()
        assert status == 0 or "StartError" in error, error
        if status:
            eventually(lambda: _running(tmp_path) is None)
        _check_and_clear(tmp_path, before)


def _nth_descendant(caller: int, depth: int) -> int | None:
    """Return the middle process (0) or the daemon (1) as soon as it is there."""

    def look() -> int | None:
        with contextlib.suppress(IndexError):
            middle = harness.children(caller)[0]
            return harness.children(middle)[0] if depth else middle
        return None

    with contextlib.suppress(AssertionError):
        return eventually(look, patience=1)  # type: ignore[no-any-return]
    return None


FAULTS = [
    ("openat", "EMFILE"), ("openat", "ENOSPC"), ("openat", "ENFILE"), ("write", "ENOSPC"), ("write", "EIO"), ("fcntl", "ENOLCK"),
    ("linkat", "ENOSPC"), ("linkat", "EPERM"), ("clone", "EAGAIN"), ("clone", "ENOMEM"), ("socketpair", "EMFILE"), ("setsid", "EPERM"),
    ("pidfd_open", "EMFILE"), ("pwrite64", "EIO"), ("chdir", "EACCES"), ("dup2", "EBADF"),
    ("poll", "EINTR"), ("recvfrom", "EINTR"), ("sendto", "EINTR"), ("wait4", "EINTR"), ("prlimit64", "EPERM"),
    ("rt_sigprocmask", "EINVAL"), ("newfstatat", "EIO"),
]  # fmt: skip


@strace
@pytest.mark.parametrize(("call", "error"), FAULTS, ids=[f"{call}-{error}" for call, error in FAULTS])
def test_a_system_call_that_fails_is_an_honest_status(tmp_path: Path, call: str, error: str) -> None:
    """Each of the first calls of its kind in each of the three processes, counted from where the start begins."""
    body = (
        "daemonkit.detached, daemonkit.StartError\nos.write(2, b'waiting\\n'); os.read(0, 1)\n"
        + harness.textwrap.dedent(SERVICE)
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
def test_a_middle_process_that_fails_late_does_not_end_what_has_started(tmp_path: Path, begun: bool) -> None:  # noqa: FBT001 - a case
    """The daemon tells the caller itself: an accident in the middle process must not make that a lie."""
    wait_for = 'while not os.path.exists("begun"): time.sleep(0.01)' if begun else "pass"
    done = harness.run(
        tmp_path,
        f"""
        import errno
        def no_descriptor(pid):
            {wait_for}
            raise OSError(errno.EMFILE, "Too many open files")
        os.pidfd_open = no_descriptor
        with daemonkit.detached(pidfile="pid", stdout="log", stderr=daemonkit.STDOUT, working_directory=".") as d:
            open("begun", "w").close()
            wait()
        """,
    )
    daemon = _running(tmp_path)
    assert (done.returncode == 0) == (daemon is not None), done.stderr
    assert daemon or not begun
    if daemon:
        assert stop(daemon) == 0
    assert daemon or "Too many open files" in done.stderr
