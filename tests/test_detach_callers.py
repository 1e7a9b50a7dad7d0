"""detached(): callers that are refused or warned."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import harness
import pytest
from harness import alive, ended, eventually, reported, run, stop

if TYPE_CHECKING:
    from pathlib import Path


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


def test_a_forked_childs_own_main_thread_is_not_warned_of(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        import threading
        if os.fork():
            os.wait()
            raise SystemExit(0)
        with daemonkit.detached(working_directory=".", stderr="err"):
            report()
            wait()
    """,
        flags=("-W", "error"),
    )
    assert (done.returncode, done.stderr) == (0, "")
    stop(reported(tmp_path)["pid"])


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


LOOPS = {
    "trio": "import trio\n{main}\ntrio.run(main)",
    "twisted": "from twisted.internet import reactor\n{main}\n"
    "def step():\n    try: main().send(None)\n    except StopIteration: reactor.stop()\n"
    "reactor.callWhenRunning(step); reactor.run()",
}


@pytest.mark.parametrize("library", LOOPS)
def test_the_running_loop_of_another_library_is_refused_and_a_loaded_one_is_not(tmp_path: Path, library: str) -> None:
    pytest.importorskip(library)
    main = (
        "async def main():\n"
        "    try:\n        with daemonkit.detached(): pass\n"
        "    except RuntimeError as error: print(error)"
    )
    body = LOOPS[library].format(main=main) + "\nwith daemonkit.detached(working_directory='.'): report()\n"
    done = run(tmp_path, body)
    assert done.stdout.startswith("an event loop runs in this thread") and done.returncode == 0, done
    assert ended(reported(tmp_path)["pid"]) == 0


GUARD = """
    import concurrent.futures, multiprocessing
    def square(number): return number * number
    with daemonkit.detached({options}stderr="err", working_directory="."):
        context = multiprocessing.get_context("{method}")
        {use}
        report(result=result, again=open("err").read())
"""
USES = {
    "a process": "p = context.Process(target=square, args=(3,)); p.start(); p.join(); result = p.exitcode",
    "an executor": "result = 0\n        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:\n"
    "            try: pool.submit(square, 3).result()\n            except Exception as error: result = type(error).__name__",
}


@pytest.mark.parametrize("options", ["pidfile='pid', ", "", "detach_process=False, "])
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_child_of_multiprocessing_that_imports_the_main_program_is_no_second_daemon(
    tmp_path: Path, method: str, use: str, options: str
) -> None:
    run(tmp_path, GUARD.format(method=method, use=USES[use], options=options))
    facts = reported(tmp_path)
    assert facts["result"] in {1, "BrokenProcessPool"}
    assert "RuntimeError: a child of multiprocessing imports the main program again" in facts["again"]
    assert 'if __name__ == "__main__":' in facts["again"]
    if "detach_process" not in options:
        assert ended(facts["pid"]) == 0


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.parametrize("copy", ["billiard", "multiprocess"])
def test_so_it_is_where_a_copy_of_multiprocessing_starts_the_child(tmp_path: Path, copy: str, method: str) -> None:
    """Celery uses billiard, pathos uses multiprocess."""
    pytest.importorskip(copy)
    # A forkserver that imports the main program first, as that of multiprocess, ends with the child's error.
    use = f"result = None\n        try: {USES['a process']}\n        except EOFError: pass"
    body = GUARD.format(method=method, use=use, options="pidfile='pid', ")
    run(tmp_path, body.replace("multiprocessing", f"{copy} as multiprocessing", 1))
    facts = reported(tmp_path)
    assert "RuntimeError: a child of multiprocessing imports the main program again" in facts["again"]
    ended(facts["pid"])


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_with_the_guard_multiprocessing_works_in_the_body(tmp_path: Path, method: str) -> None:
    run(
        tmp_path,
        f"""
        import multiprocessing
        def square(number): return number * number
        if __name__ == "__main__":
            with daemonkit.detached(pidfile="pid", stderr="err", working_directory="."):
                with multiprocessing.get_context("{method}").Pool(1) as pool:
                    report(result=pool.map(square, [3]))
    """,
    )
    facts = reported(tmp_path)
    assert facts["result"] == [9]
    assert ended(facts["pid"]) == 0


@pytest.mark.parametrize("library", ["zmq", "grpc"])
def test_the_threads_of_a_c_library_are_named_too(tmp_path: Path, library: str) -> None:
    pytest.importorskip(library)
    start = {
        "zmq": "import zmq; s = zmq.Context().socket(zmq.PUSH); s.bind('tcp://127.0.0.1:0')",
        "grpc": "import grpc; c = grpc.insecure_channel('127.0.0.1:1'); grpc.channel_ready_future(c); time.sleep(0.3)",
    }[library]
    done = run(
        tmp_path,
        f"""
        {start}
        print(len(os.listdir("/proc/self/task")))
        with daemonkit.detached(working_directory="."):
            report()
            os._exit(0)
    """,
    )
    assert int(done.stdout) > 1
    assert "RuntimeWarning: these threads will not exist in the daemon: " in done.stderr
    if library == "zmq":
        assert "ZMQbg" in done.stderr
    ended(reported(tmp_path)["pid"])


def test_a_thread_without_a_name_is_counted_and_one_that_was_joined_is_not(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        import _thread
        if len(sys.argv) > 1: _thread.start_new_thread(time.sleep, (60,))
        for _ in range(20):
            thread = threading.Thread(target=int); thread.start(); thread.join()
        with daemonkit.detached(working_directory="."):
            report()
    """,
        "unnamed",
    )
    assert "will not exist in the daemon: 1 of C libraries; start them in the body" in done.stderr


def test_a_forked_child_that_becomes_a_daemon_is_warned_of_nothing(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        if pid := os.fork():
            sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        with daemonkit.detached(working_directory="."):
            report()
    """,
    )
    assert (done.returncode, done.stderr) == (0, "")
    eventually(lambda: not alive(reported(tmp_path)["pid"]))
    eventually(lambda: not alive(reported(tmp_path)["pid"]))


def test_joined_threads_are_not_warned_of(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        for _ in range(20):
            thread = threading.Thread(target=int); thread.start(); thread.join()
        with daemonkit.detached(working_directory=".", detach_process=True):
            report()
    """,
    )
    assert done.stderr == ""
    ended(reported(tmp_path)["pid"])


def test_child_processes_are_named_in_a_warning(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        import subprocess
        child = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        gone = subprocess.Popen(["true"]); gone.wait()
        zombie = subprocess.Popen(["true"]); os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
        print(child.pid)
        with daemonkit.detached(working_directory="."):
            report()
    """,
    )
    child = int(done.stdout)
    assert f"will not be the daemon's children: sleep (process {child}); start them in the body" in done.stderr
    assert done.stderr.count("Warning") == 1 and "program.py" in done.stderr
    os.kill(child, signal.SIGKILL)
    ended(reported(tmp_path)["pid"])


@pytest.mark.parametrize("keep", ["p = ", ""], ids=["the handle kept", "the handle dropped"])
def test_what_spawn_detached_has_launched_is_not_warned_of(tmp_path: Path, keep: str) -> None:
    done = run(
        tmp_path,
        f"""
        {keep}daemonkit.spawn_detached(["sleep", "60"], pidfile="sleep.pid")
        with daemonkit.detached(working_directory="."):
            report()
            daemonkit.stop("sleep.pid")
    """,
        flags=("-W", "error"),
    )
    assert (done.returncode, done.stderr) == (0, "")
    ended(reported(tmp_path)["pid"])


LOST = {
    "a lock by lockf(3)": ("import fcntl; f = open('one.lock', 'w'); fcntl.lockf(f, fcntl.LOCK_EX)", ["one.lock"]),
    "a database of SQLite": (
        "import sqlite3; c = sqlite3.connect('w.db'); c.execute('pragma journal_mode=wal'); c.execute('create table t (a)')",
        ["w.db", "w.db-shm"],
    ),
    "an environment of LMDB": ("import lmdb; e = lmdb.open('db')", ["lock.mdb"]),
    "an alarm": ("signal.alarm(1000)", ["signal.alarm()"]),
    "a timer of CPU time": ("signal.setitimer(signal.ITIMER_VIRTUAL, 1000)", ["signal.setitimer()"]),
    "a profiler's timer": ("signal.setitimer(signal.ITIMER_PROF, 1000)", ["signal.setitimer()"]),
    "a lock by flock(2)": ("import fcntl; f = open('one.lock', 'w'); fcntl.flock(f, fcntl.LOCK_EX)", []),
}


@pytest.mark.parametrize("kind", LOST)
def test_locks_and_timers_that_a_fork_does_not_pass_on_are_named_in_a_warning(tmp_path: Path, kind: str) -> None:
    before, named = LOST[kind]
    if "lmdb" in before:
        pytest.importorskip("lmdb")
    done = run(tmp_path, f"{before}\nwith daemonkit.detached(working_directory='.'): report()\n")
    ended(reported(tmp_path)["pid"])
    assert done.stderr.count("RuntimeWarning: the daemon will not have the ") == bool(named), done.stderr
    assert all(name in done.stderr for name in named), done.stderr


def test_a_resource_tracker_that_keeps_the_output_open_is_told_with_the_way_out(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        from multiprocessing import shared_memory
        memory = shared_memory.SharedMemory(create=True, size=100)
        with daemonkit.detached(working_directory=".", stderr="err"):
            memory.close()
            memory.unlink()
            report()
    """,
    )  # run() reads to the end, so it waits for the daemon's
    assert "resource tracker (process " in done.stderr and "until the daemon ends" in done.stderr
    assert done.stderr.count("Warning") == 1
    ended(reported(tmp_path)["pid"])
    assert (tmp_path / "err").read_text() == ""


def test_a_resource_tracker_that_nobody_waits_for_is_not_told(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as out:
        run(
            tmp_path,
            """
            from multiprocessing import shared_memory
            memory = shared_memory.SharedMemory(create=True, size=100)
            with daemonkit.detached(working_directory="."):
                memory.close()
                memory.unlink()
                report()
        """,
            stdout=out,
            stderr=out,
        )
    ended(reported(tmp_path)["pid"])
    assert (tmp_path / "out").read_text() == ""


TESTS = """
import daemonkit, os, pytest, subprocess, sys

def test_refused(tmp_path):
    with pytest.raises(RuntimeError, match="detach_process=True says that it is meant"):
        with daemonkit.detached(pidfile=tmp_path / "pid"):
            open(tmp_path / "never", "w").close()
    assert os.listdir(tmp_path) == []

def test_in_the_foreground(tmp_path):
    with daemonkit.detached(pidfile=tmp_path / "pid", detach_process=False, working_directory="."):
        assert daemonkit.status(tmp_path / "pid")

def test_as_a_process(tmp_path):
    program = "import daemonkit, sys\\nwith daemonkit.detached(pidfile=sys.argv[1]): sys.stdin.read(); import time; time.sleep(60)"
    subprocess.run([sys.executable, "-c", program, tmp_path / "pid"], check=True)
    assert daemonkit.stop(tmp_path / "pid")

def test_a_fixture_is_refused_too(fixture): pass

@pytest.fixture
def fixture():
    with pytest.raises(RuntimeError, match="this test run"):
        daemonkit.detached().open()
"""


def test_a_test_that_runs_in_pytest_itself_is_refused_and_a_program_that_it_starts_is_not(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", "test_it.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=harness.PATIENCE)
    assert "4 passed" in done.stdout, done.stdout


def test_in_a_test_it_can_be_meant(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        harness.PRELUDE
        + "def test():\n    with daemonkit.detached(working_directory='.', detach_process=True):\n        report(); os._exit(0)\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=harness.PATIENCE)
    assert done.returncode == 0
    ended(reported(tmp_path)["pid"])


def test_a_notebook_is_told_what_to_use(tmp_path: Path) -> None:
    pytest.importorskip("ipykernel")
    pytest.importorskip("nbclient")
    cell = "import daemonkit\ntry:\n    daemonkit.detached().open()\nexcept RuntimeError as error:\n    print(error)"
    done = run(
        tmp_path,
        f"""
        import nbclient, nbformat
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell({cell!r})])
        nbclient.NotebookClient(notebook, kernel_name="python3").execute()
        print(notebook.cells[0].outputs[0].text)
    """,
    )
    assert "spawn_detached() or supervise() a script instead" in done.stdout, done


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
