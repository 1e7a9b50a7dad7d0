"""One program, unchanged: under cron, as a container's process 1, and while its log is rotated by logrotate.

What a shell, ssh, inetd and a shell as process 1 make of it is in test_terminal.py and test_where.py; systemd has
test_systemd.py.
"""

from __future__ import annotations

import itertools
import os
import re
import select
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import harness
import pytest
from harness import children, ended, eventually, pid_in, reported, stop

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
    print("before")
    with daemonkit.detached(pidfile="pid", stdout="log", stderr=daemonkit.STDOUT, working_directory=".") as d:
        print("begun \\N{MIDDLE DOT} \\N{GREEK SMALL LETTER ALPHA}")
        report(detached=d.detached, environ=dict(os.environ))
        wait()
"""

# --- cron -----------------------------------------------------------------------------------------------------------


def _cron(directory: Path, program: Path, **more: str) -> subprocess.Popen[str]:
    """Run a program as Debian's cron does: cron(8), crontab(5), do_command.c.

    A process of cron's own leads the new session, starts the command by sh with four variables, feeds it an empty
    pipe, reads both outputs from one pipe to the end (that is the mail), and then waits for it.
    """
    return subprocess.Popen(
        ["/bin/sh", "-c", f"'{sys.executable}' '{program}'"],
        cwd=directory,
        env={"SHELL": "/bin/sh", "PATH": "/usr/bin:/bin", "HOME": str(directory), "LOGNAME": "root", **more},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        umask=0o022,
        text=True,
    )


def test_under_cron_it_detaches_and_the_job_is_over_at_once(tmp_path: Path) -> None:
    with _cron(tmp_path, harness.write(tmp_path, PROGRAM)) as job:
        mail, _ = job.communicate(timeout=harness.PATIENCE)  # the pipe's end: the daemon does not keep it open
    facts = reported(tmp_path)
    assert (job.returncode, mail) == (0, "before\n")
    assert facts["detached"] is True and facts["tty"] == 0 and facts["sid"] not in {job.pid, os.getsid(0)}
    assert facts["pid"] == pid_in(tmp_path / "pid") and facts["umask"] == 0o022
    assert facts["environ"]["PATH"] == "/usr/bin:/bin" and "LANG" not in facts["environ"]
    assert {facts["fds"][n]["path"] for n in (1, 2)} == {str(tmp_path / "log")}
    assert facts["fds"][0]["path"] == "/dev/null"
    # Without a locale too, what is not ASCII is written as UTF-8.
    eventually(lambda: (tmp_path / "log").read_text(encoding="utf-8") == "begun \u00b7 \u03b1\n")
    assert stop(facts["pid"]) == 0


def test_a_crontab_line_that_keeps_it_running_is_told_that_it_runs(tmp_path: Path) -> None:
    """The idiom `* * * * * app.py`: each minute one more start, of which all but one are refused."""
    program = harness.write(tmp_path, PROGRAM)
    with _cron(tmp_path, program) as job:
        job.communicate(timeout=harness.PATIENCE)
    daemon = reported(tmp_path)["pid"]
    with _cron(tmp_path, program) as again:
        mail, _ = again.communicate(timeout=harness.PATIENCE)
    assert again.returncode == 1 and f"held by process {daemon}" in mail
    assert harness.alive(daemon) and pid_in(tmp_path / "pid") == daemon
    os.kill(daemon, signal.SIGKILL)
    assert ended(daemon) == -signal.SIGKILL
    (tmp_path / "report").unlink()
    with _cron(tmp_path, program) as third:
        assert third.communicate(timeout=harness.PATIENCE)[0] == "before\n"
    assert third.returncode == 0
    assert stop(reported(tmp_path)["pid"]) == 0


def test_a_job_that_fails_to_start_its_daemon_is_mailed_the_reason(tmp_path: Path) -> None:
    program = harness.write(
        tmp_path,
        """
        with daemonkit.detached(pidfile="pid", wait_ready=True, stdout="log", stderr=daemonkit.STDOUT):
            raise ConnectionError("the queue is down")
    """,
    )
    with _cron(tmp_path, program) as job:
        mail, _ = job.communicate(timeout=harness.PATIENCE)
    assert job.returncode == 1 and "StartError" in mail and "ConnectionError: the queue is down" in mail
    assert not (tmp_path / "pid").exists()


# --- a container's process 1 ----------------------------------------------------------------------------------------

namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("nsenter"),
    reason="a PID namespace takes root, unshare(1) and nsenter(1)",
)

WITH_AN_ORPHAN = """
    with daemonkit.detached(pidfile="pid", working_directory=".") as d:
        middle = os.fork()
        if middle == 0:
            if os.fork() == 0:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                while os.getppid() != 1: time.sleep(0.01)
                report("orphan")
                wait()
            os._exit(0)
        os.waitpid(middle, 0)
        report(detached=d.detached)
        try:
            wait()
        finally:
            print("ends")
"""


class Container:
    """As `docker run image python program.py`: it is process 1, and the line has no terminal."""

    def __init__(self, program: Path) -> None:
        """Start it."""
        command = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, program)
        self.outer = subprocess.Popen(
            command, cwd=program.parent, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )
        self.facts = reported(program.parent)
        self.init = children(self.outer.pid)[0]

    def execute(self, text: str) -> subprocess.CompletedProcess[str]:
        """As `docker exec`: Python in there."""
        enter = ("nsenter", "-t", str(self.init), "-p", "-m", "-w")
        return subprocess.run(
            [*enter, sys.executable, "-c", f"import daemonkit, signal; {text}"],
            capture_output=True,
            text=True,
            timeout=harness.PATIENCE,
            check=False,
        )

    def output(self) -> str:
        """Wait for its end and return what `docker logs` shows."""
        return self.outer.communicate(timeout=harness.PATIENCE)[0]


@namespaces
def test_docker_stop_ends_process_1_with_status_0_and_its_orphans_with_it(tmp_path: Path) -> None:
    container = Container(harness.write(tmp_path, WITH_AN_ORPHAN))
    assert (container.facts["pid"], container.facts["detached"]) == (1, False)
    orphan = reported(tmp_path, "orphan")
    assert orphan["ppid"] == 1
    outside = next(pid for pid in children(container.init) if harness.alive(pid))
    with os.fdopen(os.pidfd_open(outside)) as watched:
        os.kill(container.init, signal.SIGTERM)
        assert container.output() == "ends\n" and container.outer.returncode == 0
        assert select.select([watched], [], [], harness.PATIENCE)[0]
    assert not (tmp_path / "pid").exists()


@namespaces
def test_docker_exec_sees_process_1_and_can_reload_it(tmp_path: Path) -> None:
    program = """
        with daemonkit.detached(pidfile="pid", stdout="log", working_directory=".") as d:
            report()
            while True:
                print("tick")
                time.sleep(0.01)
    """
    container = Container(harness.write(tmp_path, program))
    done = container.execute("s = daemonkit.status('pid'); print(s.running, s.pid)")
    assert (done.stdout, done.stderr) == ("True 1\n", "")
    (tmp_path / "log").rename(tmp_path / "log.1")
    assert container.execute("daemonkit.send_signal('pid', signal.SIGHUP)").returncode == 0
    eventually(lambda: (tmp_path / "log").read_text().startswith("tick\n"))
    # With process 1 the container ends, and with it whoever asked for that.
    container.execute("daemonkit.stop('pid')")
    assert container.output() == "" and container.outer.returncode == 0
    assert not (tmp_path / "pid").exists()


# --- log rotation ---------------------------------------------------------------------------------------------------

logrotate = pytest.mark.skipif(not shutil.which("logrotate"), reason="logrotate is not installed")
ROTATIONS = 10
LINES = 100_000

# Numbered lines as fast as it can, by turns to stdout and to stderr, until it is told to stop (and at least LINES).
WRITER = f"""
    with daemonkit.detached(pidfile="pid", stdout="app.log", stderr=daemonkit.STDOUT, working_directory=".") as d:
        report()
        number = 0
        while number < {LINES} or not os.path.exists("stop"):
            for _ in range(500):
                print("line", number, "of the log")
                print("line", number + 1, "of the log", file=sys.stderr)
                number += 2
        report("written", lines=number)
"""


def _rotate(directory: Path, *directives: str) -> None:
    """Rotate once, whatever logrotate thinks of its time."""
    lines = "\n".join(("rotate 99", "missingok", "nocompress", *directives))
    (directory / "logrotate.conf").write_text(f"{directory}/app.log {{\n{lines}\n}}\n")
    done = subprocess.run(
        ["logrotate", "--force", "--state", directory / "state", directory / "logrotate.conf"],
        capture_output=True,
        text=True,
        timeout=harness.PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def _rotated_while_written(directory: Path, *directives: str) -> tuple[list[list[int | str]], int]:
    """Rotate a log while it is written; return what the files hold, oldest first, and how many lines were written.

    A line is given by its number, and by its text if it is not a line as written.
    """
    harness.run(directory, WRITER)
    daemon = reported(directory)["pid"]
    log = directory / "app.log"
    for number in range(1, ROTATIONS + 1):
        # Each rotation finds something to rotate, and the writer at it.
        eventually(lambda: log.stat().st_size > 0)
        _rotate(directory, *directives)
        assert (directory / f"app.log.{number}").exists()
    assert harness.alive(daemon)
    (directory / "stop").touch()
    assert ended(daemon) == 0
    files = [directory / f"app.log.{number}" for number in range(ROTATIONS, 0, -1)] + [log]
    return [_lines(path.read_bytes().decode()) for path in files], reported(directory, "written")["lines"]


def _lines(text: str) -> list[int | str]:
    numbers = re.compile(r"line (\d+) of the log\n")
    return [int(found[1]) if (found := numbers.fullmatch(line)) else line for line in text.splitlines(keepends=True)]


@logrotate
@pytest.mark.parametrize("create", ["create", "nocreate"])
def test_rename_and_sighup_loses_and_doubles_no_line(tmp_path: Path, create: str) -> None:
    reopen = "import daemonkit, signal; daemonkit.send_signal('pid', signal.SIGHUP)"
    files, written = _rotated_while_written(
        tmp_path, create, "postrotate", f'cd "{tmp_path}" && "{sys.executable}" -c "{reopen}"', "endscript"
    )
    assert written >= LINES
    lines = [line for file in files for line in file]
    assert not [line for line in lines if isinstance(line, str)]
    # In their order even, but for the moment in which one of the two streams is in the new file and one in the old.
    assert len(lines) == written and sorted(lines) == list(range(written))
    assert sum(bool(file) for file in files) > ROTATIONS // 2


@logrotate
def test_copytruncate_loses_only_what_is_written_between_its_copy_and_its_cut(tmp_path: Path) -> None:
    """What logrotate(8) says of it, and no more: the log is in append mode, so that no hole is left before new lines."""
    files, written = _rotated_while_written(tmp_path, "copytruncate")
    assert not any(isinstance(line, str) and "\0" in line for file in files for line in file)
    for file in files[:-1]:
        # logrotate may have copied the last line half written; the cut then took the rest.
        if file and isinstance(file[-1], str):
            assert not file[-1].endswith("\n")
            file.pop()
    lines = [line for file in files for line in file]
    assert not [line for line in lines if isinstance(line, str)]
    # In order, none twice, to the very last; and what is lost is lost where one file ends and the next one begins.
    assert all(earlier < later for earlier, later in itertools.pairwise(lines))
    assert lines[0] == 0 and lines[-1] == written - 1
    for file in files:
        assert file == list(range(file[0], file[0] + len(file))) if file else True
