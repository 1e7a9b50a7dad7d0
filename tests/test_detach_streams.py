"""detached(): what 0, 1 and 2 become, and the logs."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import harness
import pytest
from harness import ended, eventually, pid_in, reported, run, stop

if TYPE_CHECKING:
    from pathlib import Path


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
