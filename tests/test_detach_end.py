"""detached(): how a daemon ends: SIGTERM and other signals, sys.exit, an exception."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
from harness import ended, reported, run, stop

if TYPE_CHECKING:
    from pathlib import Path


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
