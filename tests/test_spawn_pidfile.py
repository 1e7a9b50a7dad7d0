"""spawn_detached(pidfile=): it names the program on return, and is held for life."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import harness
import pytest
from harness import eventually, pid_in, run
from launches import (
    SLOW,
    call,
    caller,
    is_file,
    kill,
    seen,
    spawned,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("way", ["'pid'", "b'pid'", "__import__('pathlib').Path('pid')", "daemonkit.PidFile('pid')"])
@pytest.mark.parametrize("slow", ["", SLOW], ids=["", "cwd, umask"])
def test_the_pidfile_names_the_program_on_return_and_a_second_one_is_refused(
    tmp_path: Path, way: str, slow: str
) -> None:
    os.umask(0o022)
    told = call(
        tmp_path,
        f"""
        os.umask(0o077)
        p = spawn(SLEEP, pidfile={way}{slow}, stdout="log")
        file = read("pid")
        held = daemonkit.PidFile("pid").read_pid()
        before = os.stat("pid"), os.stat("log")
        for again in ({way}, "./pid", os.path.abspath("pid")):
            try:
                spawn(SLEEP, pidfile=again, stdout="other")
            except daemonkit.AlreadyRunningError as error:
                assert (error.pid, error.path) == (p.pid, os.path.abspath("pid")), vars(error)
                assert str(p.pid) in str(error)
            else:
                assert False, "a second one"
        assert not os.path.exists("other") and before == (os.stat("pid"), os.stat("log"))
        assert not daemonkit.PidFile("pid").i_am_locking()
        tell(pid=p.pid, file=file, held=held, fds=seen(p.pid)["fds"])
    """,
    )
    pid = told["pid"]
    assert told["file"] == f"{pid}\n" and told["held"] == pid
    assert (tmp_path / "pid").stat().st_mode & 0o7777 == 0o644
    rest = set(told["fds"]) - {"0", "1", "2"}
    assert len(rest) == 1 and is_file(pid, *rest, tmp_path / "pid")
    second = run(tmp_path, caller("spawn(SLEEP, pidfile='pid')"))  # the first caller is gone
    assert second.returncode == 1 and f"{tmp_path}/pid is held by process {pid}" in second.stderr
    assert pid_in(tmp_path / "pid") == pid
    kill(pid)
    third = spawned(tmp_path, "SLEEP, pidfile='pid'")
    assert pid_in(tmp_path / "pid") == third != pid
    kill(third)


def test_the_callers_death_does_not_free_it(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        caller("""
        p = spawn(SLEEP, pidfile="pid")
        os.write(1, str(p.pid).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    """),
    )
    pid = int(done.stdout)
    assert done.returncode == -signal.SIGKILL
    assert "is held by process" in run(tmp_path, caller("spawn(SLEEP, pidfile='pid')")).stderr
    assert pid_in(tmp_path / "pid") == pid
    kill(pid)


@pytest.mark.parametrize("slow", ["", SLOW], ids=["", "cwd, umask"])
def test_a_caller_that_dies_the_moment_the_program_runs_leaves_no_second_one_a_way_in(
    tmp_path: Path, slow: str
) -> None:
    """The program itself kills it, perhaps before it could hand the lock over."""
    command = "['sh', '-c', 'kill -9 $PPID; echo $$ > me.new; mv me.new me; exec sleep 1000']"
    for _ in range(10):
        (tmp_path / "me").unlink(missing_ok=True)
        done = run(tmp_path, caller(f"spawn({command}, pidfile='pid'{slow})\nwait()"))
        assert done.returncode == -signal.SIGKILL, done.stderr
        program = int(eventually((tmp_path / "me").read_text))
        assert harness.alive(program)
        second = run(tmp_path, caller("p = spawn(['true'], pidfile='pid'); p.wait()"))
        kill(program)
        assert "is held by process" in second.stderr, "a second one was started while the first runs"


@pytest.mark.parametrize("slow", ["", SLOW], ids=["", "cwd, umask"])
def test_a_descendant_does_not_prolong_it(tmp_path: Path, slow: str) -> None:
    command = "['sh', '-c', 'sleep 1000 & echo $! > child.new; mv child.new child; wait']"
    told = call(
        tmp_path,
        f"""
        p = spawn({command}, pidfile="pid"{slow})
        while not os.path.exists("child"): select.select([], [], [], 0.01)
        p.kill()
        select.select([p], [], [])  # ended, and not reaped: a zombie holds nothing
        assert daemonkit.PidFile("pid").read_pid() is None
        q = spawn(SLEEP, pidfile="pid")
        tell(pid=q.pid, old=p.pid, held=daemonkit.PidFile("pid").read_pid())
    """,
    )
    child = int((tmp_path / "child").read_text())
    assert harness.alive(child) and told["held"] == told["pid"] == pid_in(tmp_path / "pid")
    assert "is held by process" in run(tmp_path, caller("spawn(SLEEP, pidfile='pid')")).stderr
    kill(child, told["pid"])


def test_a_program_that_closes_what_it_inherited_still_counts_as_its_holder(tmp_path: Path) -> None:
    """As nginx or a DaemonContext does: the kernel's lock is gone, the file names a process that lives."""
    closing = 'for n in 3 4 5 6 7 8 9; do eval "exec $n>&-"; done; touch closed; exec sleep 1000'
    pid = spawned(tmp_path, f"['bash', '-c', {closing!r}], pidfile='pid'") if shutil.which("bash") else 0
    if not pid:
        pytest.skip("takes bash")
    eventually((tmp_path / "closed").exists)
    eventually(lambda: len(seen(pid)["fds"]) == 3)
    assert "is held by process" in run(tmp_path, caller("spawn(SLEEP, pidfile='pid')")).stderr
    assert pid_in(tmp_path / "pid") == pid
    kill(pid)


def test_programs_that_end_at_once_leave_it_free_each_time(tmp_path: Path) -> None:
    call(
        tmp_path,
        """
        for n in range(60):
            options = (dict(), dict(cwd="/", umask=0))[n % 2]
            p = spawn(["true"], pidfile="pid", **options)
            assert p.wait() == 0
            assert daemonkit.PidFile("pid").read_pid() is None
        assert not own().get("4") or len(own()) < 6
    """,
    )
    with daemonkit_pidfile(tmp_path / "pid") as lock:
        assert lock.read_pid() == os.getpid()


def daemonkit_pidfile(path: Path) -> Any:
    import daemonkit

    return daemonkit.PidFile(path)


def test_a_pid_file_that_waits_gets_it_when_the_holder_ends(tmp_path: Path) -> None:
    call(
        tmp_path,
        """
        import lockfile
        first = spawn(["sh", "-c", "while ! test -e go; do sleep 0.01; done"], pidfile="pid")
        try:
            spawn(SLEEP, pidfile=daemonkit.PidFile("pid", timeout=0.05), stdout="log")
        except lockfile.LockTimeout:
            assert not os.path.exists("log")
        else:
            assert False
        threading.Timer(0.1, lambda: open("go", "w").close()).start()
        second = spawn(["true"], pidfile=daemonkit.PidFile("pid", timeout=None))
        assert first.wait() == 0 and second.wait() == 0
    """,
    )


def test_a_lock_that_the_caller_holds_itself_is_held(tmp_path: Path) -> None:
    call(
        tmp_path,
        """
        lock = daemonkit.PidFile("pid")
        with lock:
            for again in (lock, "pid"):
                try:
                    spawn(SLEEP, pidfile=again)
                except daemonkit.AlreadyRunningError as error:
                    assert error.pid == os.getpid() and error.path == os.path.abspath("pid")
                else:
                    assert False
            assert read("pid") == f"{os.getpid()}\\n" and lock.i_am_locking()
            p = spawn(SLEEP)  # and what it spawns otherwise has no copy of it
            assert set(seen(p.pid)["fds"]) == {"0", "1", "2"}
            p.kill(); p.wait()
        assert spawn(["true"], pidfile=lock).wait() == 0
    """,
    )


def test_the_object_that_was_handed_in_is_not_the_callers_lock(tmp_path: Path) -> None:
    told = call(
        tmp_path,
        """
        import lockfile
        lock = daemonkit.PidFile("pid")
        p = spawn(SLEEP, pidfile=lock)
        assert lock.is_locked() and not lock.i_am_locking() and lock.read_pid() == p.pid
        for method, error in (("release", lockfile.NotMyLock), ("break_lock", daemonkit.AlreadyRunningError), ("acquire", lockfile.AlreadyLocked)):
            try:
                getattr(lock, method)()
            except error:
                pass
            else:
                assert False, method
        child = os.fork()
        if child == 0:
            assert lock.read_pid() == p.pid
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        tell(pid=p.pid)
    """,
    )
    assert pid_in(tmp_path / "pid") == told["pid"]
    kill(told["pid"])


def test_of_many_starters_at_once_exactly_one_wins(tmp_path: Path) -> None:
    program = harness.write(
        tmp_path,
        caller("""
        while not os.path.exists("go"): pass
        try:
            print("won", spawn(SLEEP, pidfile="pid").pid, os.getpid())
        except daemonkit.AlreadyRunningError as error:
            print("lost", error.pid, os.getpid())
    """),
    )
    starters = [
        subprocess.Popen([sys.executable, program], cwd=tmp_path, stdout=subprocess.PIPE, text=True) for _ in range(6)
    ]
    (tmp_path / "go").touch()
    said = [starter.communicate()[0].split() for starter in starters]
    winners = [(int(pid), int(starter)) for verdict, pid, starter in said if verdict == "won"]
    assert len(winners) == 1 and len(said) == 6
    assert {int(pid) for verdict, pid, _ in said if verdict == "lost"} <= set(winners[0])
    assert pid_in(tmp_path / "pid") == winners[0][0]
    kill(winners[0][0])


def test_a_reader_finds_a_living_holder_at_every_moment_of_a_start(tmp_path: Path) -> None:
    """Of the starting caller first, then of the program; never an empty or partial file."""
    call(
        tmp_path,
        """
        stopping, odd, reads = False, [], 0
        def watch():
            global reads
            while not stopping:
                try:
                    text = read("pid")
                except FileNotFoundError:
                    continue
                reads += 1
                if not (text.endswith("\\n") and text.strip().isdigit()): odd.append(text)
        thread = threading.Thread(target=watch); thread.start()
        for n in range(60):
            p = spawn(SLEEP, pidfile="pid")
            assert read("pid") == f"{p.pid}\\n"
            p.kill(); p.wait()
        stopping = True
        thread.join()
        assert reads and not odd, odd
    """,
        timeout=60,
    )


def test_a_start_during_which_the_clock_ticks_is_named_right_too(tmp_path: Path) -> None:
    """Then the start time is looked up, and not told by the clock."""
    call(
        tmp_path,
        """
        from daemonkit._spawn import spawn as module
        from daemonkit._system.process import identity_of
        for ticking in (True, False):
            if ticking: now, module.ticks = module.ticks, iter(range(1000)).__next__
            else: module.ticks = now
            p = spawn(["sleep", "1000"], pidfile="pid")
            status = daemonkit.status("pid")
            assert status.pid == p.pid and status._ticks == identity_of(p.pid).started, ticking
            p.kill(); p.wait()
            assert not daemonkit.status("pid")
    """,
    )
