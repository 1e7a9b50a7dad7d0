"""detached(): how a daemon ends: SIGTERM and other signals, sys.exit, an exception."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
from harness import ended, eventually, reported, run, stop

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
    assert (tmp_path / "log").read_text() == "inner finally True\nouter finally True\nexit handler\n"


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


@pytest.mark.parametrize("number", ["TERM", "HUP"])
def test_a_signal_that_comes_while_the_interpreter_ends_changes_nothing(tmp_path: Path, number: str) -> None:
    """Python has taken its handlers away by then; whoever sends SIGTERM until the process is gone sends one there."""
    run(
        tmp_path,
        f"""
        with daemonkit.detached(pidfile="pid", working_directory="."):
            class Late:
                def __del__(self, kill=os.kill, pid=os.getpid(), number=int(signal.SIG{number})):
                    kill(pid, number)
            sys.late = Late()
            report()
    """,
    )
    assert ended(reported(tmp_path)["pid"]) == 0
    assert not (tmp_path / "pid").exists()


GROUPS = {
    "trio": "import trio as library; group = library.open_nursery",
    "anyio": "import anyio as library; group = library.create_task_group",
}


@pytest.mark.parametrize("detach", [True, False], ids=["detached", "in the foreground"])
@pytest.mark.parametrize("library", GROUPS)
def test_sigterm_in_a_task_group_ends_it_with_0_and_is_no_crash(tmp_path: Path, library: str, detach: bool) -> None:  # noqa: FBT001 - a parameter of the test
    pytest.importorskip(library)
    done = run(
        tmp_path,
        f"""
        {GROUPS[library]}
        logging.basicConfig(filename="logging")
        async def main():
            async with group() as outer, group() as inner:
                inner.start_soon(library.sleep, 1000)
                await library.sleep(0)
                report()
                os.kill(os.getpid(), signal.SIGTERM)
                await library.sleep(1000)
        with daemonkit.detached(pidfile="pid", stderr="err", working_directory=".", detach_process={detach}):
            library.run(main)
    """,
    )
    assert done.returncode == 0
    if detach:
        assert ended(reported(tmp_path)["pid"]) == 0
    assert (tmp_path / "err").read_text() == (tmp_path / "logging").read_text() == ""
    assert not (tmp_path / "pid").exists()


IN_THE_END = """
        def in_the_end():
            "Tell whether the interpreter waits for the threads: its outermost frame is not the program's then."
            frame = sys._current_frames()[threading.main_thread().ident]
            while frame.f_back: frame = frame.f_back
            return frame.f_code.co_name == "_shutdown"
"""
WAITING = {
    "a thread": "threading.Thread(target=wait).start()",
    "an executor": "import concurrent.futures; concurrent.futures.ThreadPoolExecutor(1).submit(wait)",
}


@pytest.mark.parametrize("start", WAITING.values(), ids=WAITING)
def test_sigterm_is_no_error_where_the_body_is_over_and_its_threads_go_on(tmp_path: Path, start: str) -> None:
    run(
        tmp_path,
        f"""
        import atexit
        {IN_THE_END}
        def wait():
            while not in_the_end(): time.sleep(0.01)
            report()
            while True: time.sleep(0.1)
        atexit.register(print, "exit handler")
        with daemonkit.detached(pidfile="pid", stdout="log", stderr=daemonkit.STDOUT, working_directory="."):
            {start}
    """,
    )
    assert stop(reported(tmp_path)["pid"]) == 0
    assert (tmp_path / "log").read_text() == "exit handler\n"
    assert not (tmp_path / "pid").exists()


@pytest.mark.parametrize("own", [True, False], ids=["a hook of the program's own", "the interpreter's hook"])
def test_other_errors_are_still_shown_where_sigterm_ends_the_wait_for_threads(tmp_path: Path, own: bool) -> None:  # noqa: FBT001 - a parameter of the test
    hook = "sys.unraisablehook = lambda one: print('hook:', repr(one.exc_value), flush=True)"
    run(
        tmp_path,
        f"""
        import atexit
        class Bad:
            def __del__(self): raise ValueError("bad")
        atexit.register(Bad)
        {hook if own else ""}
        {IN_THE_END}
        def wait():
            while not in_the_end(): time.sleep(0.01)
            report()
            while True: time.sleep(0.1)
        with daemonkit.detached(stdout="log", stderr=daemonkit.STDOUT, working_directory="."):
            threading.Thread(target=wait).start()
    """,
    )
    assert stop(reported(tmp_path)["pid"]) == 0
    text = (tmp_path / "log").read_text()
    assert text == "hook: ValueError('bad')\n" if own else "ValueError: bad" in text
    assert "SystemExit" not in text


def test_an_exit_hides_nothing_where_the_body_goes_on(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        class Bad:
            def __del__(self): sys.exit("bad")
        with daemonkit.detached(stderr="log", working_directory="."):
            try:
                report()
                wait()
            finally:
                Bad()
    """,
    )
    assert stop(reported(tmp_path)["pid"]) == 0
    assert "SystemExit: bad" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("detach", [True, False], ids=["detached", "in the foreground"])
def test_an_exit_with_a_bad_status_in_a_task_group_is_no_good_end(tmp_path: Path, detach: bool) -> None:  # noqa: FBT001 - a parameter of the test
    done = run(
        tmp_path,
        f"""
        with daemonkit.detached(stderr="err", working_directory=".", detach_process={detach}):
            report()
            raise BaseExceptionGroup("in a task", [SystemExit(3)])
    """,
    )
    assert (ended(reported(tmp_path)["pid"]) if detach else done.returncode) == 1
    assert "SystemExit: 3" in (tmp_path / "err").read_text()


LOGGING = {
    "no logging set up": "",
    "a handler on stderr": "logging.basicConfig()",
    "a handler on stdout, the same file": "logging.basicConfig(stream=sys.stdout)",
    "a handler on the same file by its name": "logging.basicConfig(filename='log')",
    "a handler on another file": "logging.basicConfig(filename='other')",
    "handlers on both": "logging.basicConfig(); logging.getLogger().addHandler(logging.FileHandler('other'))",
    "a handler of the logger's own": "logging.basicConfig(); logging.getLogger('daemonkit').addHandler(logging.FileHandler('other'))",
    "logging disabled": "logging.disable(logging.CRITICAL)",
    "a handler that passes on to another": (
        "import logging.handlers\n        "
        "logging.getLogger().addHandler(logging.handlers.MemoryHandler(9, target=logging.StreamHandler()))"
    ),
    "a handler that passes on to a file": (
        "import logging.handlers\n        file = logging.FileHandler('other')\n        "
        "file.setFormatter(logging.Formatter(logging.BASIC_FORMAT))\n        "
        "logging.getLogger().addHandler(logging.handlers.MemoryHandler(9, target=file))"
    ),
    "no last resort": "logging.lastResort = None",
    "a handler that takes nothing": "h = logging.StreamHandler(); logging.getLogger().addHandler(h); h.setLevel(60)",
    "a handler that filters": "h = logging.StreamHandler(); logging.getLogger().addHandler(h); h.addFilter(lambda r: False)",
    "a logger that filters": "logging.getLogger('daemonkit').addFilter(lambda r: False)",
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
    assert "in <module>" in log
    assert not (tmp_path / "pid").exists()
    if "'other'" in setup:
        other = (tmp_path / "other").read_text()
        assert (
            other.count("process ") == other.count("\nValueError: the body broke") == 1 and "ends: ValueError" in other
        )
        assert "CRITICAL:daemonkit:" in other or "basicConfig();" in setup


def test_an_exception_goes_on_to_an_outer_except_and_to_the_excepthook(tmp_path: Path) -> None:
    """As with `DaemonContext`: whoever cares for a crash outside of the `with` (mail, Sentry) hears of it."""
    run(
        tmp_path,
        """
        sys.excepthook = lambda kind, value, _: print("excepthook", kind.__name__, value)
        try:
            with daemonkit.detached(stdout="log", stderr=daemonkit.STDOUT, working_directory="."):
                report()
                1 / 0
        except ArithmeticError as error:
            print("except", error)
            raise
    """,
    )
    assert ended(reported(tmp_path)["pid"]) == 1
    assert (tmp_path / "log").read_text() == "except division by zero\nexcepthook ZeroDivisionError division by zero\n"


def test_a_logging_handler_that_breaks_does_not_take_the_place_of_the_exception(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        class Broken(logging.Handler):
            def emit(self, record):
                raise OSError("the log server is gone")
        logging.getLogger().addHandler(Broken())
        try:
            with daemonkit.detached(stderr="log", working_directory="."):
                report()
                1 / 0
        except ArithmeticError as error:
            assert error.__context__ is None
            sys.exit(7)
    """,
    )
    assert ended(reported(tmp_path)["pid"]) == 7
    assert (tmp_path / "log").read_text().count("OSError: the log server is gone") == 1


def test_an_exception_that_is_caught_outside_is_no_crash_of_the_process(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        try:
            with daemonkit.detached(stderr="log", working_directory="."):
                report()
                1 / 0
        except ArithmeticError:
            sys.exit(7)
    """,
    )
    assert ended(reported(tmp_path)["pid"]) == 7
    assert (tmp_path / "log").read_text() == ""


OWN = """
    def on_hup(*_): open("hup", "w").close()
    def on_term(*_): open("term", "w").close(); sys.exit(5)
    signal.signal(signal.SIGHUP, on_hup)
    signal.signal(signal.SIGTERM, on_term)
    signal.signal(signal.SIGUSR1, on_hup)
    with daemonkit.detached(working_directory="."{more}):
        report(kept=[signal.getsignal(n) in (on_hup, on_term) for n in (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1)])
        wait()
"""


def test_handlers_that_the_program_had_set_itself_stay(tmp_path: Path) -> None:
    run(tmp_path, OWN.format(more=""))
    facts = reported(tmp_path)
    assert facts["kept"] == [True, True, True]
    os.kill(facts["pid"], signal.SIGHUP)
    eventually((tmp_path / "hup").exists)
    assert stop(facts["pid"]) == 5
    assert (tmp_path / "term").exists()


@pytest.mark.parametrize("key", ["'SIGTERM'", "signal.SIGTERM"])
def test_a_signal_that_is_named_takes_the_place_of_a_handler_and_the_others_stay(tmp_path: Path, key: str) -> None:
    run(tmp_path, OWN.format(more=f", signal_map={{{key}: 'terminate'}}"))
    facts = reported(tmp_path)
    assert facts["kept"] == [True, False, True]
    assert stop(facts["pid"]) == 0


def test_ignored_signals_are_no_handlers_of_the_program_s_own(tmp_path: Path) -> None:
    """As under nohup(1), which ignores SIGHUP."""
    run(
        tmp_path,
        """
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with daemonkit.detached(working_directory="."):
            report()
            wait()
    """,
    )
    facts = reported(tmp_path)
    assert facts["caught"] >> signal.SIGHUP - 1 & 1
    assert stop(facts["pid"]) == 0


def test_the_signal_map_is_laid_over_the_default_one(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        seen = []
        with daemonkit.detached(signal_map={"SIGHUP": lambda *_: seen.append(1)}, working_directory=".") as d:
            os.kill(os.getpid(), signal.SIGHUP)
            report(seen=seen, keys=[int(key) for key in d.signal_map])
            wait()
    """,
    )
    facts = reported(tmp_path)
    assert facts["seen"] == [1] and len(set(facts["keys"])) == len(facts["keys"])
    assert facts["ignored"] >> signal.SIGTSTP - 1 & 1
    assert stop(facts["pid"]) == 0


def test_an_entry_that_was_taken_out_of_the_signal_map_stays_out(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        for number in (signal.SIGTSTP, signal.SIGHUP): signal.signal(number, signal.default_int_handler)
        d = daemonkit.detached(detach_process=False)
        del d.signal_map[signal.SIGTSTP], d.signal_map[signal.SIGHUP]
        with d:
            print(signal.getsignal(signal.SIGHUP) is signal.getsignal(signal.SIGTSTP) is signal.default_int_handler)
    """,
    )
    assert (done.returncode, done.stdout) == (0, "True\n"), done


def test_a_second_context_in_the_foreground_reopens_its_own_logs(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        for name in ("first", "second"):
            with daemonkit.detached(detach_process=False, stdout=name, working_directory="."):
                os.rename(name, name + ".1")
                os.kill(os.getpid(), signal.SIGHUP)
                print(name)
    """,
    )
    assert done.returncode == 0
    assert (tmp_path / "first").read_text() == "first\n" and (tmp_path / "second").read_text() == "second\n"


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
