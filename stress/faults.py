"""Fault and kill sweeps: one system call of a start, a spawn, a stop or a restart fails, or brings a signal."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import common
import harness

import daemonkit

if TYPE_CHECKING:
    from common import Account, Run

FAULTS = {
    "openat": "EMFILE ENFILE ENOMEM ENOSPC",
    "clone clone3 vfork fork": "EAGAIN ENOMEM",
    "socketpair socket pipe2 eventfd2 memfd_create epoll_create1 pidfd_open": "EMFILE ENFILE ENOMEM",
    "write pwrite64": "ENOSPC EIO EINTR",
    "read": "EIO EINTR",
    "ftruncate linkat unlink unlinkat": "EIO EPERM",
    "newfstatat": "EIO ENOMEM",
    "setsid prctl prlimit64 pidfd_send_signal": "EPERM",
    "poll ppoll epoll_wait waitid wait4 recvfrom recvmsg sendto sendmsg": "EINTR",
    "chdir execve": "EIO ENOMEM",
    "mmap": "ENOMEM",
}
ERRORS = {call: errors.split() for calls, errors in FAULTS.items() for call in calls.split()}
SIGNALS = ("SIGKILL", "SIGTERM", "SIGHUP", "SIGSTOP")

WAIT = "os.write(2, b'waiting\\n'); os.read(0, 1)\n"
PROGRAMS = {
    "start": """
        daemonkit.detached, daemonkit.StartError, daemonkit.PidFile
        {wait}
        with daemonkit.detached(pidfile="pid", stdout="log", stderr=daemonkit.STDOUT, wait_ready=True) as d:
            print("begun")
            d.ready()
            wait()
    """,
    "spawn": """
        daemonkit.spawn_detached
        {wait}
        print(daemonkit.spawn_detached(["sleep", "1000"]).pid)
    """,
    "spawn with a pidfile, a log and a directory": """
        daemonkit.spawn_detached, daemonkit.PidFile
        {wait}
        print(daemonkit.spawn_detached(["sleep", "1000"], pidfile="pid", stdout="log", cwd=".").pid)
    """,
    "stop": """
        daemonkit.stop, daemonkit.NotRunningError
        {wait}
        daemonkit.stop("pid", timeout=5)
    """,
    "supervise, with a restart": """
        import logging; logging.disable()
        daemonkit.supervise, daemonkit.PidFile
        {wait}
        with daemonkit.PidFile("pid"):
            daemonkit.supervise(["sh", "-c", "test -e second && exec sleep 1000; echo >second; exit 1"], stop_timeout=2)
    """,
}


@dataclass
class Outcome:
    """How the program ended: None if it runs on."""

    status: int | None
    said: str
    errors: str


class Traced:
    """A program that waits for a byte, so that a tracer can attach before what counts begins."""

    def __init__(self, folder: Path, what: str) -> None:
        text = harness.textwrap.dedent(PROGRAMS[what]).replace("{wait}", WAIT)
        self.program = harness.write(folder, text)
        self.out, self.err = (folder / "out").open("w+"), (folder / "err").open("w+")
        self.caller = subprocess.Popen(
            [sys.executable, self.program], cwd=folder, stdin=subprocess.PIPE, stdout=self.out, stderr=self.err
        )
        harness.eventually(lambda: (folder / "err").read_text() == "waiting\n")
        self.trace = folder / "trace"

    def go(self, *options: str, seconds: float | None = harness.PATIENCE) -> Outcome:
        """Attach strace with these options, let it go on; return how it ended, or that it runs after `seconds`."""
        command = ["strace", "-f", "-p", str(self.caller.pid), "-o", str(self.trace), *options]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
            assert tracer.stderr
            assert "attached" in tracer.stderr.readline()
            assert self.caller.stdin
            with suppress(BrokenPipeError):
                self.caller.stdin.write(b"x")
                self.caller.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                self._wait(seconds)
            tracer.terminate()
            tracer.communicate(timeout=harness.PATIENCE)
        self.out.seek(0)
        self.err.seek(0)
        return Outcome(self.caller.poll(), self.out.read(), self.err.read().removeprefix("waiting\n"))

    def _wait(self, seconds: float | None) -> None:
        """Wait for the caller's end; set what a SIGSTOP has stopped going again, after a moment."""
        for _ in range(int((seconds or 0) / 0.05) or 1):
            with suppress(subprocess.TimeoutExpired):
                self.caller.wait(0.05)
                return
            for pid in [self.caller.pid, *_descendants(self.caller.pid)]:
                if harness.state(pid) in {"T", "t"}:
                    with suppress(ProcessLookupError):
                        signal.pidfd_send_signal(_pidfd(pid), signal.SIGCONT)
        raise subprocess.TimeoutExpired("caller", seconds or 0)

    def close(self) -> None:
        """End it if it still runs."""
        if self.caller.poll() is None:
            self.caller.kill()
            self.caller.wait()
        self.out.close()
        self.err.close()


def _descendants(pid: int) -> list[int]:
    found = harness.children(pid)
    for one in found:
        found += harness.children(one)
    return found


def _pidfd(pid: int) -> int:
    import os

    return os.pidfd_open(pid)


def calls_of(run: Run, what: str) -> Counter[str]:
    """Return the system calls that the scenario makes, and how often the busiest process makes each."""
    with run.scratch() as folder:
        holder = _holder(folder, what)
        traced = Traced(folder, what)
        seconds = 3.0 if what.startswith("supervise") else harness.PATIENCE
        traced.go(seconds=seconds)
        per_process: Counter[tuple[str, str]] = Counter(
            re.findall(r"^(\d+) +(\w+)\(", traced.trace.read_text(), re.MULTILINE)
        )
        traced.close()
        _tidy(folder, holder)
    found: Counter[str] = Counter()
    for (_, call), count in per_process.items():
        found[call] = max(found[call], count)
    return found


def _holder(folder: Path, what: str) -> int | None:
    """For a stop, launch what is to be stopped."""
    if what != "stop":
        return None
    return daemonkit.spawn_detached(["sleep", "1000"], pidfile=folder / "pid").pid


def _tidy(folder: Path, holder: int | None) -> None:
    with suppress(daemonkit.NotRunningError):
        daemonkit.stop(folder / "pid", timeout=10)
    common.end([pid for pid, _ in harness.own_children()])
    del holder
    common.reap()


def judge(what: str, outcome: Outcome, folder: Path, *, killed: bool) -> str | None:
    """Return which promise was broken, if any. With `killed` the caller may have been killed before it could say."""
    if outcome.status is None and not what.startswith("supervise"):
        return "it hangs"
    holds = common.held_by(folder)
    good = outcome.status == 0
    if what == "start":
        # Of a signal, the daemon itself may have died once it had started.
        if good and not killed and not harness.eventually(lambda: common.held_by(folder), patience=10):
            return "status 0, and nothing runs"
        if not good and not killed and holds:
            return f"status {outcome.status}, and it runs"
    elif what == "stop":
        if good and holds:
            return "status 0, and it runs"
    elif what.startswith("spawn"):
        if good and not outcome.said.strip().isdigit():
            return "status 0, and no pid"
        if not good and not killed and holds:
            return f"status {outcome.status}, and it runs"
    if outcome.status == 1 and "Error" not in outcome.errors:
        return f"status 1, and it says {outcome.errors!r}"
    return None


def attempt(run: Run, account: Account, what: str, fault: str, *, killed: bool = False) -> None:
    """Make one attempt with a fault, and look at the promises."""
    with run.scratch() as folder:
        before = set(harness.children())
        holder = _holder(folder, what)
        traced = Traced(folder, what)
        broken: str | None
        try:
            call = fault.split(":", maxsplit=1)[0]
            seconds = 2.0 if what.startswith("supervise") else harness.PATIENCE
            outcome = traced.go("-e", f"trace={call}", "-e", f"inject={fault}", seconds=seconds)
            broken = judge(what, outcome, folder, killed=killed)
            if outcome.status is None and what.startswith("supervise"):
                broken = broken or _ends(traced)
        except AssertionError as error:
            broken = str(error).splitlines()[0]
        told = (
            set(map(int, re.findall(r"^\d+$", (folder / "out").read_text(), re.MULTILINE)))
            if what == "spawn"
            else set()
        )

        def belongs(pid: int) -> bool:
            """Tell what runs on by right: the holder, though its caller was killed; what a killed caller had launched."""
            launched = killed and what.startswith("spawn") and _is_sleep(pid)
            return pid in {holder, common.held_by(folder), *told} or launched

        traced.close()
        left = common.strays(before, belongs)
        common.end(left)
        account.count(broken and f"{what}, {fault}: {broken}", len(left))
        if left and not broken:
            account.notes[-1] += f": {what}, {fault}"
        _tidy(folder, holder)


def _is_sleep(pid: int) -> bool:
    with suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/comm").read_text() == "sleep\n"
    return False


def _ends(traced: Traced) -> str | None:
    """Stop a supervisor; it must end in time."""
    traced.caller.terminate()
    try:
        traced.caller.wait(15)
    except subprocess.TimeoutExpired:
        return "the supervisor does not stop"
    return None


def sweep(run: Run) -> None:
    """Let each system call fail in turn, and bring each signal."""
    scenarios = {what: calls_of(run, what) for what in PROGRAMS}
    errors = [
        (what, f"{call}:error={error}:when={number}")
        for what, calls in scenarios.items()
        for call, count in calls.items()
        for error in ERRORS.get(call, ())
        for number in range(1, min(count, 12) + 1)
    ]
    signals = [
        (what, f"{call}:signal={name}:when={number}")
        for what, calls in scenarios.items()
        if what != "stop"
        for call, count in calls.items()
        for name in SIGNALS
        for number in range(1, min(count, 8) + 1)
        if call not in {"exit_group", "restart_syscall", "rt_sigreturn", "kill"}
    ]
    for title, faults, killed in (("faults", errors, False), ("signals at system calls", signals, True)):
        run.chance.shuffle(faults)
        account = run.account(f"{title} ({len(faults):,} are possible)")
        for number in run.until(run.seconds / 2):
            if number == len(faults):
                break
            attempt(run, account, *faults[number], killed=killed)
