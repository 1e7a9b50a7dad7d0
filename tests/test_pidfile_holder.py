"""Who counts as the holder of a pidfile, and who does not."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import harness
import pytest
from harness import DEAD, ended, eventually, pid_in, run, start_holder

import daemonkit
from daemonkit import AlreadyRunningError, PidFile
from daemonkit._pidfile.holder import find_holder
from daemonkit._system.process import identity, namespace_id

if TYPE_CHECKING:
    from collections.abc import Iterator

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the user or the root directory")


@pytest.fixture
def sleeper() -> Iterator[int]:
    """Return the pid of a living stranger."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process.pid
        process.kill()


@pytest.mark.parametrize(
    "content", ["", "rubbish\n", f"{DEAD}\n", "0\n", "-1\n", "9" * 30, "99999999\n", "\0\0\0\n", "12 34\n"]
)
def test_a_file_that_names_nobody_is_free(tmp_path: Path, content: str) -> None:
    (tmp_path / "pid").write_text(content)
    lock = PidFile(tmp_path / "pid")
    assert lock.read_pid() is None and not lock.is_locked()
    assert (tmp_path / "pid").read_text() == content  # looking changed nothing
    with lock:
        assert pid_in(tmp_path / "pid") == os.getpid()


def test_a_killed_holder_leaves_a_dead_number_and_no_obstacle(tmp_path: Path) -> None:
    holder = start_holder(tmp_path)
    assert PidFile(tmp_path / "pid").read_pid() == holder
    with pytest.raises(AlreadyRunningError) as caught:
        PidFile(tmp_path / "pid").acquire()
    assert (caught.value.pid, caught.value.path) == (holder, str(tmp_path / "pid"))
    os.kill(holder, signal.SIGKILL)
    assert ended(holder) == -9
    assert pid_in(tmp_path / "pid") == holder
    with PidFile(tmp_path / "pid") as lock:
        assert lock.read_pid() == os.getpid()


@pytest.mark.parametrize("left", ["exec", "fork"])
def test_a_descendant_that_keeps_the_lock_open_does_not_keep_it_held(tmp_path: Path, left: str) -> None:
    keep = {
        "exec": "import subprocess; h = lock._hold; child = subprocess.Popen(['sleep', '600'], pass_fds=[h.fd]).pid",
        "fork": "import ctypes; child = ctypes.PyDLL(None).fork()\nif child == 0: os.execvp('sleep', ['sleep', '600'])",
    }[left]
    inheritable = "os.set_inheritable(lock._hold.fd, True)\n"
    holder = start_holder(tmp_path, f"{inheritable}{keep}\nreport(child=child)\nwait()")
    child = harness.reported(tmp_path)["child"]
    inode = (tmp_path / "pid").stat().st_ino
    os.kill(holder, signal.SIGKILL)
    ended(holder)
    assert any(line.split()[5].endswith(f":{inode}") for line in Path("/proc/locks").read_text().splitlines())
    lock = PidFile(tmp_path / "pid")
    assert lock.read_pid() is None
    with lock:
        assert pid_in(tmp_path / "pid") == os.getpid() == PidFile(tmp_path / "pid").read_pid()
    os.kill(child, signal.SIGKILL)
    ended(child)


def test_text_edited_by_hand_deceives_nobody(tmp_path: Path, sleeper: int) -> None:
    holder = start_holder(tmp_path)
    for text in (f"{sleeper}\n", "", "rubbish"):
        (tmp_path / "pid").write_text(text)
        assert PidFile(tmp_path / "pid").read_pid() == holder
        with pytest.raises(AlreadyRunningError) as caught:
            PidFile(tmp_path / "pid").acquire()
        assert caught.value.pid == holder
    os.kill(holder, signal.SIGKILL)
    ended(holder)


def test_another_tools_living_process_counts_as_holder_and_a_recycled_number_does_not(
    tmp_path: Path, sleeper: int
) -> None:
    path = tmp_path / "pid"
    path.write_text(f"{sleeper}\n")
    lock = PidFile(path)
    assert lock.is_locked() and lock.read_pid() == sleeper
    with pytest.raises(AlreadyRunningError, match="it seems to belong to another tool") as caught:
        lock.acquire()
    assert caught.value.pid == sleeper
    with pytest.raises(AlreadyRunningError):
        lock.break_lock()
    os.utime(path, (1, 1))  # written long before that process started: its number was given out again
    assert not lock.is_locked()
    with lock:
        assert pid_in(path) == os.getpid()


def test_a_file_that_is_dated_in_the_future_is_stale(tmp_path: Path, sleeper: int) -> None:
    """After a power cut a clock without a battery is behind, and the number belongs to somebody else by now."""
    path = tmp_path / "pid"
    lock = PidFile(path)
    for ahead in (1, 1800, 10**9):
        path.write_text(f"{sleeper}\n")
        os.utime(path, (time.time() + ahead,) * 2)
        assert lock.read_pid() is None and not lock.is_locked() and not daemonkit.status(path)
        with pytest.raises(daemonkit.NotRunningError, match="is not held"):
            daemonkit.stop(path)
        with lock:
            assert pid_in(path) == os.getpid()
    path.write_text(f"{sleeper}\n")
    os.utime(path, (time.time() + 1800,) * 2)
    with daemonkit.spawn_detached(["cat"], stdin=-1, pidfile=path).stdin:  # type: ignore[union-attr]  # a pipe
        assert daemonkit.status(path).pid == pid_in(path) != sleeper


# Whatever it begins while the file names it: `begin` returns when that is done.
OWN_NUMBER = {
    "acquire": "daemonkit.PidFile('pid').acquire()",
    "break_lock": "lock = daemonkit.PidFile('pid'); lock.break_lock(); assert not os.path.exists('pid'); lock.acquire()",
    "detached": "daemonkit.detached(pidfile='pid', working_directory='.').open()",
    "foreground": "daemonkit.detached(pidfile='pid', working_directory='.', detach_process=False).open()",
    "spawn": "daemonkit.spawn_detached(['sh', '-c', 'echo $$ >spawned; exec sleep 600'], pidfile='pid')",
}


@pytest.mark.parametrize("begin", OWN_NUMBER.values(), ids=OWN_NUMBER)
@pytest.mark.parametrize("who", ["its wrapper wrote it", "it executed itself anew"])
def test_a_program_that_finds_its_own_number_starts(tmp_path: Path, who: str, begin: str) -> None:
    body = f"""
        me, number = os.getpid(), int(read("pid"))
        assert number == me and daemonkit.PidFile("pid").read_pid() is None and not daemonkit.status("pid")
        {begin}
        report(number=number, was=me)
        wait()
    """
    if who == "its wrapper wrote it":
        wrapper: tuple[object, ...] = ("sh", "-c", 'echo $$ >pid; exec "$@"', "sh")
    else:
        wrapper = (sys.executable, harness.write(tmp_path, EXECUTING, "first.py"))
    program = harness.write(tmp_path, body)
    with subprocess.Popen([*map(str, wrapper), sys.executable, str(program)], cwd=tmp_path) as started:
        facts = harness.reported(tmp_path)
        held = pid_in(tmp_path / "pid")
        try:
            assert facts["number"] == facts["was"] == started.pid
            assert daemonkit.status(tmp_path / "pid").pid == held
            if "spawned" in begin:
                eventually(lambda: (tmp_path / "spawned").exists() and (tmp_path / "spawned").read_text())
            assert held == (pid_in(tmp_path / "spawned") if "spawned" in begin else facts["pid"])
        finally:
            for pid in {held, facts["pid"]}:
                os.kill(pid, signal.SIGKILL)


EXECUTING = """
    daemonkit.PidFile("pid").acquire()
    os.execv(sys.argv[1], sys.argv[1:])
"""


def test_a_daemon_that_executes_itself_anew_goes_on_as_the_holder(tmp_path: Path) -> None:
    body = """
        home = os.path.dirname(os.path.abspath(__file__))
        with daemonkit.detached(pidfile=home + "/pid", stdout=home + "/log", stderr=daemonkit.STDOUT):
            if "again" not in sys.argv:
                os.execv(sys.executable, [sys.executable, __file__, "again"])
            report(home + "/report")
            wait()
    """
    program = harness.write(tmp_path, body)
    subprocess.run([sys.executable, str(program)], cwd=tmp_path, check=True)
    facts = harness.reported(tmp_path)
    eventually(lambda: daemonkit.status(tmp_path / "pid").pid == facts["pid"] == pid_in(tmp_path / "pid"))
    assert daemonkit.stop(tmp_path / "pid") and not (tmp_path / "pid").exists()
    assert (tmp_path / "log").read_text() == ""


def test_a_pid_lock_file_of_another_process_is_respected(tmp_path: Path) -> None:
    body = """
        from lockfile.pidlockfile import PIDLockFile
        with PIDLockFile("pid"):
            report()
            sys.stdin.read()
    """
    program = harness.write(tmp_path, body)
    with subprocess.Popen([sys.executable, str(program)], cwd=tmp_path, stdin=subprocess.PIPE) as other:
        harness.reported(tmp_path)
        with pytest.raises(AlreadyRunningError):
            PidFile(tmp_path / "pid").acquire()
        assert pid_in(tmp_path / "pid") == other.pid == daemonkit.status(tmp_path / "pid").pid


@pytest.mark.parametrize("kind", ["lockf", "flock"])
def test_another_tool_that_locks_its_pidfile_itself_is_respected(tmp_path: Path, kind: str) -> None:
    """Stevens' daemons lock the whole file with lockf, those that use libbsd's pidfile with flock."""
    program = harness.write(
        tmp_path,
        f"""
        import fcntl
        file = open("pid", "w")
        fcntl.{kind}(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        print(os.getpid(), file=file, flush=True)
        print("locked", flush=True)
        sys.stdin.read()
    """,
    )
    command = [sys.executable, str(program)]
    with subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as tool:
        assert tool.stdout and tool.stdout.readline() == "locked\n"
        lock = PidFile(tmp_path / "pid")
        assert lock.is_locked() and lock.read_pid() == tool.pid
        for call in (lock.acquire, lock.break_lock):
            with pytest.raises(AlreadyRunningError, match="it seems to belong to another tool") as caught:
                call()
            assert caught.value.pid == tool.pid
        holder = find_holder(str(tmp_path / "pid"))
        assert holder and not holder.locked_by_daemonkit  # what daemonkit has not locked it must never signal
        assert pid_in(tmp_path / "pid") == tool.pid


def test_a_strangers_record_lock_makes_it_no_holder(tmp_path: Path) -> None:
    """The holder reads its own pidfile, which drops its record lock; a stranger takes one of its own."""
    holder = start_holder(tmp_path, "open('pid').close(); report('dropped')\nwait()")
    eventually((tmp_path / "dropped").exists)
    stranger = harness.write(
        tmp_path,
        """
        import fcntl
        file = open("pid", "r+")
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 100, 0)
        report("locked")
        wait()
    """,
        "stranger.py",
    )
    with subprocess.Popen([sys.executable, stranger], cwd=tmp_path) as other:
        eventually((tmp_path / "locked").exists)
        assert PidFile(tmp_path / "pid").read_pid() == holder
        os.kill(holder, signal.SIGKILL)
        ended(holder)
        assert PidFile(tmp_path / "pid").read_pid() is None
        other.kill()


@root_only
def test_a_read_lock_of_a_user_who_may_only_read_confuses_nobody(tmp_path: Path) -> None:
    holder = start_holder(tmp_path)
    with (tmp_path / "pid").open() as file:
        import fcntl

        ask = PidFile(tmp_path / "pid")
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, __import__("struct").pack("hhqqi", fcntl.F_RDLCK, 0, 1, holder - 1, 0))
        assert ask.read_pid() == holder
    os.kill(holder, signal.SIGKILL)
    ended(holder)


def test_a_readers_lock_wherever_it_can_get_one_deceives_nobody(public: Path) -> None:
    """Who may only read a file may have fcntl(2) lock it for reading: all but the bytes that the holder has."""
    lock = PidFile(public / "pid")
    lock.acquire()
    pid, started = identity()
    end = (1 << 62) + 5 + (namespace_id() << 3)
    program = harness.write(
        public,
        f"""
    import fcntl
    become_ordinary()
    file = open("pid")
    for start, end in (0, {pid}), ({pid + 2 * started}, {identity().token}), ({end}, {end + 1000}):
        fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB, end - start, start)
    print("locked", flush=True)
    sys.stdin.read()
    """,
        "stranger.py",
    )
    command = [sys.executable, str(program)]
    with subprocess.Popen(command, cwd=public, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as stranger:
        assert stranger.stdout and stranger.stdout.readline() == "locked\n"
        done = run(public, "lock = daemonkit.PidFile('pid')\nprint(lock.read_pid(), lock.is_locked())")
        assert done.stdout == f"{os.getpid()} True\n", done
        lock.release()
        with lock:  # a new file: the stranger's lock is on the old one
            assert pid_in(public / "pid") == os.getpid()


def test_who_locks_what_is_behind_the_lock_takes_it_from_nobody(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        import fcntl, struct, subprocess
        from daemonkit._pidfile import ranges
        from daemonkit._system.process import namespace_id
        lock = daemonkit.PidFile("app.pid")
        lock.acquire()
        behind = ranges.end_of_lock(ranges.State.DAEMON)
        code = f'''if True:
            import fcntl, struct, sys
            file = open("app.pid")
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("hhqqi", fcntl.F_RDLCK, 0, {behind}, 0, 0))
            print(flush=True)
            sys.stdin.read()
        '''
        try:
            with daemonkit.detached(wait_ready=True, working_directory="."):
                reader = subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, start_new_session=True)
                reader.stdout.readline()
                os.dup2(reader.stdin.fileno(), 99)
                raise ValueError
        except daemonkit.StartError:
            print(lock.i_am_locking(), lock.read_pid() == os.getpid())
    """,
    )
    assert done.stdout == "True True\n", done


@root_only
def test_who_may_only_read_another_users_pidfile_still_learns_who_holds_it(public: Path) -> None:
    (public / "open").mkdir()
    (public / "open").chmod(0o777)  # a new file could be made here, the holder's can't be opened for writing
    for directory in (public, public / "open"):
        with PidFile(directory / "pid"):
            done = run(
                public,
                f"""
    become_ordinary()
    lock = daemonkit.PidFile({str(directory / "pid")!r})
    print(lock.read_pid(), lock.is_locked(), attempt(lock.acquire), attempt(lock.break_lock)[0])
    """,
            )
            me = os.getpid()
            assert pid_in(directory / "pid") == me
        assert done.stdout == f"{me} True ('AlreadyRunningError', {me}) AlreadyRunningError\n", done


@root_only
@pytest.mark.skipif(not shutil.which("unshare"), reason="a PID namespace takes unshare(1)")
def test_a_holder_in_another_pid_namespace_holds(tmp_path: Path) -> None:
    holder = start_holder(tmp_path)
    done = run(
        tmp_path,
        """
        try:
            daemonkit.PidFile("pid").acquire()
        except daemonkit.AlreadyRunningError as error:
            print(error.pid)
    """,
        wrapper=("unshare", "--pid", "--fork", "--mount-proc", "--kill-child"),
    )
    assert done.stdout == f"{holder}\n", done
    os.kill(holder, signal.SIGKILL)
    ended(holder)


TWICE = """
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            try:
                p = daemonkit.spawn_detached(["sleep", "60"], pidfile=sys.argv[1])
                stack.callback(p.kill)
                print("started", flush=True)
            except daemonkit.AlreadyRunningError as error:
                print("refused", daemonkit.status(sys.argv[1]).running, str(error).partition("; ")[2], flush=True)
        sys.stdin.readline()
"""


INSIDE = "it is in another PID namespace (a container): stop it there"


def _starters(directory: Path, *wrappers: tuple[str, ...]) -> list[str]:
    """Have a pidfile's program started twice by a process behind each of the wrappers, while all of them live."""
    program = harness.write(directory, TWICE, "starter.py")
    said = []
    with contextlib.ExitStack() as stack:
        for wrapper in wrappers:
            command = [*wrapper, sys.executable, str(program), str(directory / "pid")]
            starter = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.enter_context(starter)
            stack.callback(starter.stdin.close)
            said += [starter.stdout.readline().rstrip("\n") for _ in range(2)]
    return said


@root_only
@pytest.mark.parametrize("proc", [("--mount-proc",), ()], ids=["own-proc", "outer-proc"])
def test_a_file_that_is_held_in_another_pid_namespace_is_held(tmp_path: Path, proc: tuple[str, ...]) -> None:
    """Its number means another process here, or none; with the outer /proc even in there."""
    within = ("unshare", "--pid", "--fork", *proc)
    for wrappers in (within, ()), ((), within):
        first, second, *others = _starters(tmp_path, *wrappers)
        assert first == "started" and second.startswith("refused True stop it with daemonkit.stop("), second
        assert others == [f"refused True {INSIDE}"] * 2
        (tmp_path / "pid").unlink()


@root_only
def test_a_file_that_is_held_in_another_time_namespace_is_held(tmp_path: Path) -> None:
    """Start times are others there."""
    first, *others = _starters(tmp_path, (), ("unshare", "--time", "--boottime", "100000"))
    assert first == "started"
    assert [said.split()[0] for said in others] == ["refused"] * 3
