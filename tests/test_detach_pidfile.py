"""detached(): the pidfile is held until the process ends, and no longer."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
from harness import ended, pid_in, reported, run, stop

import daemonkit

if TYPE_CHECKING:
    from pathlib import Path

WORKING = """
    def work():
        while not os.path.exists("done"): time.sleep(0.01)
        report("worked")
    try:
        with daemonkit.detached(pidfile="pid", working_directory=".", stderr="err"):
            threading.Thread(target=work).start()
            report()
            {end}
    finally:
        report("left")
"""


@pytest.mark.parametrize("end", ["wait()", "sys.exit(3)", "raise ValueError('x')", "pass"])
def test_it_is_held_while_threads_finish_their_work(tmp_path: Path, end: str) -> None:
    run(tmp_path, WORKING.format(end=end))
    facts = reported(tmp_path)
    if end == "wait()":
        os.kill(facts["pid"], signal.SIGTERM)
    reported(tmp_path, "left")
    assert daemonkit.status(tmp_path / "pid").pid == facts["pid"]
    second = run(tmp_path, "with daemonkit.detached(pidfile='pid'): pass")
    assert second.returncode == 1 and f"held by process {facts['pid']}" in second.stderr
    (tmp_path / "done").touch()
    expected = {"wait()": 0, "pass": 0, "sys.exit(3)": 3}.get(end, 1)
    assert ended(facts["pid"]) == expected
    assert not (tmp_path / "pid").exists() and (tmp_path / "worked").exists()


def test_it_is_held_while_exit_handlers_run_that_were_registered_after_the_import(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        import atexit
        def look(name): report(name, held=daemonkit.PidFile(home + "/pid").read_pid())
        home = os.getcwd()
        atexit.register(look, "before the with")
        with daemonkit.detached(pidfile="pid", working_directory="."):
            atexit.register(look, "in the body")
        atexit.register(look, "after the with")
    """,
    )
    for name in ("after the with", "in the body", "before the with"):
        facts = reported(tmp_path, name)
        assert facts["held"] == facts["pid"], name
    assert ended(facts["pid"]) == 0
    assert not (tmp_path / "pid").exists()


def test_it_goes_in_the_end_also_where_the_package_is_loaded_anew(tmp_path: Path) -> None:
    """As IPython's autoreload does it."""
    run(
        tmp_path,
        """
        import importlib
        with daemonkit.detached(pidfile="pid", working_directory="."):
            importlib.reload(daemonkit)
            report()
    """,
    )
    assert ended(reported(tmp_path)["pid"]) == 0
    assert not (tmp_path / "pid").exists()


def test_close_frees_it_at_once(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        with daemonkit.detached(pidfile="pid", working_directory=".") as d:
            d.close()
            report(there=os.path.exists("pid"))
            wait()
    """,
    )
    facts = reported(tmp_path)
    assert facts["there"] is False
    stop(facts["pid"])


def test_in_the_foreground_it_goes_with_the_body(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        with daemonkit.detached(pidfile="pid", working_directory=".", detach_process=False):
            print(os.path.exists("pid"))
        print(os.path.exists("pid"))
    """,
    )
    assert done.stdout == "True\nFalse\n"


@pytest.mark.parametrize("end", ["os._exit(4)", "threading.Thread(target=os._exit, args=(4,)).start(); wait()"])
def test_an_end_without_exit_handlers_leaves_it_free(tmp_path: Path, end: str) -> None:
    run(
        tmp_path,
        f"""
        with daemonkit.detached(pidfile="pid", working_directory="."):
            report()
            {end}
    """,
    )
    assert ended(reported(tmp_path)["pid"]) == 4
    assert not daemonkit.status(tmp_path / "pid")
    with daemonkit.PidFile(tmp_path / "pid"):
        assert pid_in(tmp_path / "pid") == os.getpid()


def test_another_tool_s_pidfile_is_held_as_long(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        from lockfile.pidlockfile import PIDLockFile
        def work():
            while not os.path.exists("done"): time.sleep(0.01)
        with daemonkit.detached(pidfile=PIDLockFile(os.path.abspath("pid")), working_directory="."):
            threading.Thread(target=work).start()
        report()
    """,
    )
    pid = reported(tmp_path)["pid"]
    assert pid_in(tmp_path / "pid") == pid
    (tmp_path / "done").touch()
    assert ended(pid) == 0
    assert not (tmp_path / "pid").exists()
