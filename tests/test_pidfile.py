"""PidFile from outside: what it holds, what it refuses, what it tells."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import harness
import lockfile
import pytest
from harness import ended, eventually, pid_in, run
from lockfile.pidlockfile import PIDLockFile

from daemonkit import AlreadyRunningError, PidFile
from daemonkit._pidfile import hold as hold_module
from daemonkit._pidfile.holder import find_holder
from daemonkit._system.process import identity, namespace_id

if TYPE_CHECKING:
    from collections.abc import Iterator

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the user or the root directory")
CONTENDED = int(os.environ.get("DAEMONKIT_CONTENDED", "60"))
DEAD = 4194303  # the highest pid there can be: nobody's here


@pytest.fixture
def sleeper() -> Iterator[int]:
    """Return the pid of a living stranger."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process.pid
        process.kill()


def _holder(directory: Path, body: str = "wait()") -> int:
    """Start a program that holds `pid`; return its pid once it does."""
    program = harness.write(directory, f"lock = daemonkit.PidFile('pid')\nlock.acquire()\nreport('holding')\n{body}")
    (directory / "holding").unlink(missing_ok=True)
    started = subprocess.Popen([sys.executable, str(program)], cwd=directory)
    started.returncode = 0  # reaped below by number: Popen need not care
    eventually((directory / "holding").exists)
    return started.pid


def test_it_is_a_pid_lock_file_with_its_methods_and_errors(tmp_path: Path) -> None:
    lock = PidFile(tmp_path / "pid")
    assert isinstance(lock, PIDLockFile)
    with lock as entered:
        assert entered is lock and lock.is_locked() and lock.i_am_locking() and lock.read_pid() == os.getpid()
        with pytest.raises(lockfile.AlreadyLocked):
            PidFile(tmp_path / "pid").acquire()
        with pytest.raises(lockfile.LockTimeout):
            PidFile(tmp_path / "pid", timeout=0.05).acquire()
        with pytest.raises(AlreadyRunningError):
            PidFile(tmp_path / "pid", timeout=-1).acquire()
    assert not lock.is_locked() and not lock.i_am_locking() and lock.read_pid() is None
    with pytest.raises(lockfile.NotLocked):
        lock.release()


def test_the_file_has_the_pid_a_newline_and_mode_0644_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with PidFile(tmp_path / "pid"):
            assert (tmp_path / "pid").read_text() == f"{os.getpid()}\n"
            assert (tmp_path / "pid").stat().st_mode & 0o7777 == 0o644
    finally:
        os.umask(before)
    assert os.listdir(tmp_path) == []


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
    holder = _holder(tmp_path)
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
    holder = _holder(tmp_path, f"{inheritable}{keep}\nreport(child=child)\nwait()")
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
    holder = _holder(tmp_path)
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


def test_a_pid_lock_file_of_this_process_is_respected(tmp_path: Path) -> None:
    with PIDLockFile(str(tmp_path / "pid")), pytest.raises(AlreadyRunningError):
        PidFile(tmp_path / "pid").acquire()


@pytest.mark.parametrize("odd", ["link", "dangling", "directory", "fifo", "socket"])
def test_links_and_odd_files_are_refused_and_left_alone(tmp_path: Path, odd: str) -> None:
    path = tmp_path / odd
    (tmp_path / "target").write_text("1\n")
    with contextlib.ExitStack() as stack:
        match odd:
            case "link":
                path.symlink_to(tmp_path / "target")
            case "dangling":
                path.symlink_to(tmp_path / "nowhere")
            case "directory":
                path.mkdir()
            case "fifo":
                os.mkfifo(path)
            case "socket":
                stack.enter_context(socket.socket(socket.AF_UNIX)).bind(str(path))
        before = sorted(os.listdir(tmp_path))
        for call in (PidFile(path).acquire, PidFile(path).read_pid, PidFile(path).is_locked, PidFile(path).break_lock):
            with pytest.raises(OSError, match=odd) as caught:
                call()
            assert caught.value.filename == str(path)
    assert sorted(os.listdir(tmp_path)) == before
    assert (tmp_path / "target").read_text() == "1\n"


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        PidFile(tmp_path / "missing" / "pid").acquire()
    assert caught.value.filename == str(tmp_path / "missing" / "pid")
    assert PidFile(tmp_path / "missing" / "pid").read_pid() is None


def test_a_bad_timeout_is_refused(tmp_path: Path) -> None:
    for timeout in ("1", True, object()):
        with pytest.raises(TypeError, match="timeout"):
            PidFile(tmp_path / "pid", timeout=timeout)  # type: ignore[arg-type]


def test_break_lock(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    PidFile(path).break_lock()
    path.write_text(f"{DEAD}\n")
    PidFile(path).break_lock()
    assert not path.exists()
    lock = PidFile(path)
    lock.acquire()
    PidFile(path).break_lock()
    assert not path.exists()
    with pytest.raises(lockfile.NotLocked):
        lock.release()
    holder = _holder(tmp_path)
    with pytest.raises(AlreadyRunningError):
        PidFile(path).break_lock()
    assert pid_in(path) == holder
    os.kill(holder, signal.SIGKILL)
    ended(holder)


def test_a_forked_child_can_not_release_and_leaves_a_with_block_silently(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        import lockfile
        with daemonkit.PidFile("pid") as lock:
            child = os.fork()
            if child == 0:
                try:
                    lock.release()
                except lockfile.NotMyLock:
                    print("not mine", lock.i_am_locking(), lock.read_pid() == os.getppid(), flush=True)
                sys.exit(0)
            print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), open("pid").read() == f"{os.getpid()}\\n", flush=True)
    """,
    )
    assert (done.stdout, done.stderr) == ("not mine False True\nchild 0 True\n", "")


def test_a_file_removed_by_hand_is_no_reason_to_fail_at_the_end(tmp_path: Path) -> None:
    first, second = PidFile(tmp_path / "pid"), PidFile(tmp_path / "pid")
    first.acquire()
    (tmp_path / "pid").unlink()
    assert not first.i_am_locking() and not first.is_locked()
    with second:
        first.release()
        assert pid_in(tmp_path / "pid") == os.getpid()  # the second one's file is left alone
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_waiting_ends_when_the_holder_does(tmp_path: Path, end: int) -> None:
    holder = _holder(tmp_path, "signal.signal(signal.SIGTERM, lambda *_: (lock.release(), report('released')))\nwait()")
    taken: list[int | None] = []

    def take() -> None:
        with PidFile(tmp_path / "pid", timeout=None) as lock:
            taken.append(lock.read_pid())

    thread = threading.Thread(target=take)
    thread.start()
    os.kill(holder, end)
    thread.join(harness.PATIENCE)
    assert taken == [os.getpid()]
    os.kill(holder, signal.SIGKILL)
    ended(holder)


@root_only
def test_a_read_lock_of_a_user_who_may_only_read_confuses_nobody(tmp_path: Path) -> None:
    holder = _holder(tmp_path)
    with (tmp_path / "pid").open() as file:
        import fcntl

        ask = PidFile(tmp_path / "pid")
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, __import__("struct").pack("hhqqi", fcntl.F_RDLCK, 0, 1, holder - 1, 0))
        assert ask.read_pid() == holder
    os.kill(holder, signal.SIGKILL)
    ended(holder)


def test_file_systems_without_unnamed_files_leave_no_debris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inject the fault: no such file system is at hand."""
    real = os.open

    def no_tmpfile(path: str, flags: int, *args: int, **options: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "Operation not supported")
        return real(path, flags, *args, **options)

    monkeypatch.setattr("daemonkit._pidfile.hold.os.open", no_tmpfile)
    (tmp_path / "pid").write_text(f"{DEAD}\n")
    with PidFile(tmp_path / "pid") as lock:
        assert os.listdir(tmp_path) == ["pid"] and lock.read_pid() == os.getpid()
        with pytest.raises(AlreadyRunningError):
            PidFile(tmp_path / "pid").acquire()
    assert os.listdir(tmp_path) == []


@root_only
def test_where_the_directory_is_not_writable_any_more_the_file_is_emptied(tmp_path: Path) -> None:
    for parent in [tmp_path, *tmp_path.parents][:4]:
        parent.chmod(0o755)
    done = run(
        tmp_path,
        """
        with daemonkit.PidFile("pid") as lock:
            os.setresuid(65534, 65534, 65534)
        print(repr(open("pid").read()), lock.read_pid())
    """,
    )
    assert done.stdout == "'' None\n", done.stderr
    with PidFile(tmp_path / "pid"):
        assert pid_in(tmp_path / "pid") == os.getpid()


@root_only
def test_a_chroot_in_between_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "jail").mkdir()
    done = run(
        tmp_path,
        """
        with daemonkit.PidFile("pid") as lock:
            os.chroot("jail"); os.chdir("/")
            print(lock.i_am_locking())
    """,
    )
    assert done.stdout == "True\n", done.stderr
    assert not (tmp_path / "pid").exists()


@root_only
@pytest.mark.skipif(not shutil.which("unshare"), reason="a PID namespace takes unshare(1)")
def test_a_hand_over_between_numbers_of_different_lengths(tmp_path: Path) -> None:
    """From 99 to 101 and back from 300 to 7: a reader of the raw file never sees anything else."""
    done = run(
        tmp_path,
        """
        def fork_as(number):
            with open("/proc/sys/kernel/ns_last_pid", "w") as last: last.write(str(number - 1))
            return os.fork()
        from daemonkit._pidfile import hold as _pidfile
        seen = set()
        for caller, heir in ((99, 1001), (3000, 70)):
            child = fork_as(caller)
            if child == 0:
                lock = daemonkit.PidFile(f"pid{caller}"); lock.acquire()
                with _pidfile.locks_inherited():
                    daemon = fork_as(heir)
                if daemon == 0:
                    _pidfile.adopt_locks()
                    text = open(f"pid{caller}").read()
                    os.write(1, f"{caller} {os.getpid()} {text!r} {daemonkit.PidFile(f'pid{caller}').read_pid()}\\n".encode())
                    os._exit(0)
                os.waitpid(daemon, 0)
                os._exit(0)
            os.waitpid(child, 0)
    """,
        wrapper=("unshare", "--pid", "--fork", "--mount-proc", "--kill-child"),
    )
    assert done.stdout == "99 1001 '1001\\n' 1001\n3000 70 '70\\n' 70\n", done.stderr


# --- other processes, other users, scarce resources ------------------------------------------------------------------


@pytest.fixture
def public() -> Iterator[Path]:
    """Yield a directory that every user can reach: pytest's own are this user's alone."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


# An ordinary user may not be able to reach the interpreter's files, so what is needed is loaded before the change.
ORDINARY = """
    import errno, lockfile
    daemonkit.PidFile, daemonkit.AlreadyRunningError
    def become_ordinary():
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
    def attempt(call):
        try:
            return call()
        except OSError as error:
            return type(error).__name__, os.path.basename(error.filename or "")
        except daemonkit.AlreadyRunningError as error:
            return type(error).__name__, error.pid
"""


def test_a_lock_of_another_process_is_not_mine_to_release(tmp_path: Path) -> None:
    holder = _holder(tmp_path)
    lock = PidFile(tmp_path / "pid")
    with pytest.raises(lockfile.NotMyLock):
        lock.release()
    assert lock.is_locked() and not lock.i_am_locking() and pid_in(tmp_path / "pid") == holder
    harness.stop(holder, signal.SIGKILL)


def test_a_timeout_given_to_acquire_is_the_one_that_counts(tmp_path: Path) -> None:
    holder = _holder(tmp_path, "signal.signal(signal.SIGTERM, lambda *_: (lock.release(), report('released')))\nwait()")
    with pytest.raises(lockfile.LockTimeout) as caught:
        PidFile(tmp_path / "pid", timeout=None).acquire(timeout=0.05)
    assert isinstance(caught.value.__cause__, AlreadyRunningError) and caught.value.__cause__.pid == holder
    with pytest.raises(AlreadyRunningError):
        PidFile(tmp_path / "pid", timeout=None).acquire(timeout=0)
    os.kill(holder, signal.SIGTERM)
    lock = PidFile(tmp_path / "pid")
    lock.acquire(timeout=harness.PATIENCE)
    assert pid_in(tmp_path / "pid") == os.getpid()
    lock.release()
    harness.stop(holder, signal.SIGKILL)


def test_a_relative_path_is_the_one_that_it_was_when_it_was_given(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        lock = daemonkit.PidFile("pid")
        os.mkdir("elsewhere")
        os.chdir("elsewhere")
        with lock:
            os.chdir("/")
            print(lock.path == os.path.dirname(os.path.abspath(sys.argv[0])) + "/pid", os.path.exists(lock.path))
        print(os.path.exists(lock.path))
    """,
    )
    assert done.stdout == "True True\nFalse\n", done


def test_who_may_not_write_to_the_directory_gets_the_path_and_changes_nothing(public: Path) -> None:
    (public / "closed").mkdir()
    (public / "closed" / "stale").write_text(f"{DEAD}\n")
    (public / "closed" / "private").write_text(f"{DEAD}\n")
    (public / "closed" / "private").chmod(0)
    (public / "closed").chmod(0o555)
    done = run(
        public,
        ORDINARY
        + """
    become_ordinary()
    for name in "new", "stale", "private":
        print(attempt(daemonkit.PidFile("closed/" + name).acquire))
    print(attempt(daemonkit.PidFile("closed/stale").break_lock))
    print(daemonkit.PidFile("closed/new").read_pid(), daemonkit.PidFile("closed/stale").read_pid())
    print(attempt(daemonkit.PidFile("closed/private").read_pid))
    """,
    )
    (public / "closed").chmod(0o755)
    assert done.stdout.splitlines() == [
        "('PermissionError', 'new')",
        "('PermissionError', 'stale')",
        "('PermissionError', 'private')",
        "('PermissionError', 'stale')",
        "None None",
        "('PermissionError', 'private')",
    ], done.stderr
    assert sorted(os.listdir(public / "closed")) == ["private", "stale"]
    assert (public / "closed" / "stale").read_text() == f"{DEAD}\n"


@root_only
def test_who_may_only_read_another_users_pidfile_still_learns_who_holds_it(public: Path) -> None:
    (public / "open").mkdir()
    (public / "open").chmod(0o777)  # a new file could be made here, the holder's can't be opened for writing
    for directory in (public, public / "open"):
        with PidFile(directory / "pid"):
            done = run(
                public,
                ORDINARY
                + f"""
    become_ordinary()
    lock = daemonkit.PidFile({str(directory / "pid")!r})
    print(lock.read_pid(), lock.is_locked(), attempt(lock.acquire), attempt(lock.break_lock)[0])
    """,
            )
            me = os.getpid()
            assert pid_in(directory / "pid") == me
        assert done.stdout == f"{me} True ('AlreadyRunningError', {me}) AlreadyRunningError\n", done


def test_a_readers_lock_wherever_it_can_get_one_deceives_nobody(public: Path) -> None:
    """Who may only read a file may have fcntl(2) lock it for reading: all but the bytes that the holder has."""
    lock = PidFile(public / "pid")
    lock.acquire()
    pid, started = identity()
    end = (1 << 62) + 5 + (namespace_id() << 3)
    program = harness.write(
        public,
        ORDINARY
        + f"""
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


def test_too_few_descriptors_are_an_error_that_names_the_file_and_leaves_everything_as_it_was(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        ORDINARY
        + f"""
    import fcntl, resource
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    lock = daemonkit.PidFile("pid")
    with lock:
        pass  # whatever is loaded at first use is loaded now
    lowest = fcntl.fcntl(0, fcntl.F_DUPFD, 0)
    os.close(lowest)
    for stale in False, True:
        for spare in range(6):
            if stale:
                open("pid", "w").write("{DEAD}\\n")
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + spare, most))
            result, reading = attempt(lock.acquire), attempt(lock.read_pid)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
            if result is None:
                result = lock.read_pid() == os.getpid()
                lock.release()
            elif stale and read("pid") != "{DEAD}\\n":
                print("changed")
            again = fcntl.fcntl(0, fcntl.F_DUPFD, 0)
            os.close(again)
            print(spare, result, reading == result or spare > 0, again == lowest, sorted(os.listdir(".")))
            if stale and os.path.exists("pid"):
                os.unlink("pid")
    """,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 12, done
    failed = "('OSError', 'pid') True True"
    assert lines[0] == f"0 {failed} ['program.py']" and lines[6] == f"0 {failed} ['pid', 'program.py']"
    assert lines[5] == "5 True True True ['program.py']" and lines[11] == lines[5]
    assert all(failed in line or " True True True ['program.py']" in line for line in lines)


@root_only
@pytest.mark.skipif(not shutil.which("unshare"), reason="a small file system of its own takes unshare(1)")
@pytest.mark.parametrize("unnamed", [True, False], ids=["with O_TMPFILE", "without O_TMPFILE"])
def test_a_full_disk_is_an_error_that_names_the_file_and_leaves_no_debris(tmp_path: Path, *, unnamed: bool) -> None:
    (tmp_path / "disk").mkdir()
    done = run(
        tmp_path,
        f"""
        import subprocess
        from daemonkit._pidfile import hold as _pidfile
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "none", "disk"], check=True)
        if not {unnamed}:
            plain = os.open
            def no_tmpfile(path, flags, *args, **options):
                if flags & os.O_TMPFILE == os.O_TMPFILE:
                    raise OSError(95, "Operation not supported")
                return plain(path, flags, *args, **options)
            _pidfile.os.open = no_tmpfile
        with open("disk/filler", "wb", buffering=0) as filler:
            filler.write(b"x" * 4096)
        lock = daemonkit.PidFile("disk/pid")
        try:
            lock.acquire()
        except OSError as error:
            print(error.errno, os.path.basename(error.filename), os.listdir("disk"))
        os.truncate("disk/filler", 0)
        with lock:
            print(sorted(os.listdir("disk")), read("disk/pid") == f"{{os.getpid()}}\\n")
    """,
        wrapper=("unshare", "--mount"),
    )
    assert done.stdout == "28 pid ['filler']\n['filler', 'pid'] True\n", done


# --- contention -----------------------------------------------------------------------------------------------------

CONTENDER = """
    import random
    os.read(0, 1)
    try:
        lock = daemonkit.PidFile("pid")
        lock.acquire()
    except daemonkit.AlreadyRunningError as error:
        os.write(1, f"lost {os.getpid()} {error.pid}\\n".encode())
    else:
        os.write(1, f"won {os.getpid()}\\n".encode())
        wait()
"""


def test_of_any_number_of_starters_one_wins_and_no_reader_sees_a_wrong_file(tmp_path: Path) -> None:
    """Rounds of four starters over the stale file of the last winner, which was killed; a reader hammers the file."""
    program = harness.write(tmp_path, CONTENDER)
    readings: set[bytes] = set()
    done = threading.Event()

    def hammer() -> None:
        while not done.is_set():
            with contextlib.suppress(FileNotFoundError):
                fd = os.open(tmp_path / "pid", os.O_RDONLY)
                readings.add(os.read(fd, 100))
                os.close(fd)

    reader = threading.Thread(target=hammer)
    reader.start()
    winners: list[int] = []
    try:
        winners.extend(_one_round(tmp_path, program) for _ in range(CONTENDED // 4))
    finally:
        done.set()
        reader.join()
    assert readings <= {b"%d\n" % pid for pid in winners}
    assert len(winners) == CONTENDED // 4
    assert sorted(os.listdir(tmp_path)) == ["pid", "program.py"]


def _one_round(directory: Path, program: Path) -> int:
    starters = [
        subprocess.Popen(
            [sys.executable, program], cwd=directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for starter in starters:
        assert starter.stdin
        starter.stdin.write("x")
        starter.stdin.flush()
    said = [starter.stdout.readline().split() for starter in starters if starter.stdout]
    (winner,) = [int(words[1]) for words in said if words[0] == "won"]
    assert [int(words[2]) for words in said if words[0] == "lost"] == [winner] * 3
    assert pid_in(directory / "pid") == winner
    os.kill(winner, signal.SIGKILL)
    for starter in starters:
        starter.communicate()
    return winner


def test_holders_that_die_while_others_start(tmp_path: Path) -> None:
    """Churn: starters come and are killed at random; nobody ever holds beside another, and the last start works."""
    program = harness.write(
        tmp_path,
        """
        import fcntl
        lock = daemonkit.PidFile("pid", timeout=5)
        lock.acquire()
        alone = os.open("alone", os.O_RDWR | os.O_CREAT)
        fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails if there are two
        os.write(1, b"held\\n")
        time.sleep(0.01)
        fcntl.flock(alone, fcntl.LOCK_UN)
        lock.release()
    """,
    )
    chance = random.Random(4)
    for _ in range(CONTENDED // 6):
        churn = [
            subprocess.Popen(
                [sys.executable, program], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
            for _ in range(4)
        ]
        with contextlib.suppress(TimeoutError, subprocess.TimeoutExpired):
            churn[0].wait(chance.uniform(0.05, 0.2))
        churn[1].kill()
        for process in churn:
            _, err = process.communicate(timeout=harness.PATIENCE)
            assert process.returncode in {0, -9}, err
    with PidFile(tmp_path / "pid"):
        assert sorted(os.listdir(tmp_path)) == ["alone", "pid", "program.py"]


STORM = """
    import random
    rounds, chance = int(sys.argv[1]), random.Random(11)
    daemonkit.PidFile, daemonkit.AlreadyRunningError  # loaded once: a start is one fork then
    told, tell = os.pipe()
    living = set()

    def fork(work):
        pid = os.fork()
        if pid == 0:
            try:
                work()
            except BaseException as error:
                os.write(tell, f"error {os.getpid()} {error!r}\\n".encode())
            os._exit(0)
        living.add(pid)
        return pid

    def kill(pid):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        living.remove(pid)

    def start(gate):
        os.close(gate[1])
        os.read(gate[0], 1)  # the end of file: all are there
        lock = daemonkit.PidFile("pid")
        try:
            lock.acquire()
        except daemonkit.AlreadyRunningError as error:
            os.write(tell, f"lost {os.getpid()} {error.pid}\\n".encode())
        else:
            os.write(tell, f"won {os.getpid()} 0\\n".encode())
            wait()

    def hammer(number, stop):
        os.close(stop[1])
        os.set_blocking(stop[0], False)
        texts, pids, lock = set(), set(), daemonkit.PidFile("pid")
        while True:
            try:
                if not os.read(stop[0], 1):
                    break
            except BlockingIOError:
                pass
            for _ in range(20):
                with contextlib.suppress(FileNotFoundError):
                    fd = os.open("pid", os.O_RDONLY)
                    texts.add(os.read(fd, 100).decode())
                    os.close(fd)
                pids.add(lock.read_pid())
        with open(f"reader{number}", "w") as file:
            json.dump([sorted(texts), sorted(pids - {None})], file)

    unread = ""
    def said():
        global unread
        while "\\n" not in unread:
            unread += os.read(told, 4096).decode()
        line, _, unread = unread.partition("\\n")
        word, pid, named = line.split(maxsplit=2)
        assert word != "error", line
        return word, int(pid), int(named)

    def play(holder):
        # One round of four starters; return who holds then, and whoever may have held meanwhile.
        gate = os.pipe()
        if holder and chance.random() < 0.7:
            kill(holder)
            holder = None
        starters = [fork(lambda: start(gate)) for _ in range(4)]
        victims = {starters[0]} if chance.random() < 0.3 else set()
        os.close(gate[0])
        os.close(gate[1])
        for pid in (victims | {holder}) - {None}:
            for _ in range(chance.randrange(20000)):
                pass
            kill(pid)
        heard = {}
        while set(starters) - victims - set(heard):
            word, pid, named = said()
            if pid in starters:  # not the last word of a victim of the round before
                heard[pid] = word, named
        won = {pid for pid, (word, _) in heard.items() if word == "won"}
        lost = {pid: named for pid, (word, named) in heard.items() if word == "lost"}
        for pid in set(lost) - victims:
            os.waitpid(pid, 0)
            living.remove(pid)
        winners = won - victims
        assert len(winners) <= 1, heard
        assert winners or victims or holder, ("nobody won over a stale file", heard)
        may = won | victims | ({holder} - {None})
        assert set(lost.values()) <= may, (may, heard)
        winner = min(winners, default=None)
        if winner:
            assert read("pid") == f"{winner}\\n" and daemonkit.PidFile("pid").read_pid() == winner, (winner, read("pid"))
        return winner, won | victims

    try:
        with open("pid", "w") as file:
            file.write("4194303\\n")
        stop = os.pipe()
        readers = [fork(lambda: hammer(number, stop)) for number in range(3)]
        holder, held, wins = None, {4194303}, 0
        for _ in range(rounds):
            holder, more = play(holder)
            held |= more
            wins += holder is not None
        if holder:
            kill(holder)
        os.close(stop[0])
        os.close(stop[1])
        for reader in readers:
            os.waitpid(reader, 0)
            living.remove(reader)
        for number in range(3):
            texts, pids = json.loads(read(f"reader{number}"))
            assert set(texts) <= {f"{pid}\\n" for pid in held}, set(texts) - {f"{pid}\\n" for pid in held}
            assert set(pids) <= held - {4194303}, set(pids) - held
        with daemonkit.PidFile("pid"):
            print(json.dumps({"wins": wins, "left": sorted(os.listdir("."))}))
    finally:
        for pid in list(living):
            kill(pid)
"""


@pytest.mark.timeout(120 + CONTENDED)
def test_a_storm_of_forked_starters_with_holders_and_starters_killed_at_any_moment(tmp_path: Path) -> None:
    """Rounds of four starts that begin in one instant; three readers look at the raw file and at read_pid() all along."""
    rounds = max(100, CONTENDED)
    done = run(tmp_path, STORM, rounds, timeout=60 + rounds)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["wins"] > rounds / 2
    assert result["left"] == ["pid", "program.py", "reader0", "reader1", "reader2"]


# --- lockfile's own compliance tests ------------------------------------------------------------------------------


def _compliance_module(directory: Path) -> object:
    """Fetch lockfile's source distribution and load its compliance tests; they are not in the wheel."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--no-binary",
        ":all:",
    ]
    done = subprocess.run([*command, "-d", directory, "lockfile==0.12.2"], capture_output=True, text=True, check=False)
    archives = list(directory.glob("lockfile-*.tar.gz"))
    if not archives:
        pytest.skip(
            f"lockfile's source distribution can't be fetched: {done.stdout[-600:]} {done.stderr.strip()[-300:]}"
        )
    with tarfile.open(archives[0]) as archive:
        member = archive.extractfile("lockfile-0.12.2/test/compliancetest.py")
        assert member
        (directory / "compliancetest.py").write_bytes(member.read())
    spec = importlib.util.spec_from_file_location("compliancetest", directory / "compliancetest.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore:setDaemon:DeprecationWarning")
def test_lockfiles_own_compliance_tests_pass_wherever_they_pass_for_pid_lock_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = _compliance_module(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def passed(kind: type) -> dict[str, str]:
        results = {}
        for name in sorted(dir(module.ComplianceTest)):  # type: ignore[attr-defined]
            if not name.startswith("test_"):
                continue
            case = module.ComplianceTest()  # type: ignore[attr-defined]
            case.class_to_test = kind
            case.setup()
            try:
                getattr(case, name)()
                results[name] = "passed"
            except Exception as error:
                results[name] = repr(error)
            finally:
                case.teardown()
        return results

    theirs, ours = passed(PIDLockFile), passed(PidFile)
    assert [name for name, result in theirs.items() if result == "passed"]
    assert {name: ours[name] for name, result in theirs.items() if result == "passed" and ours[name] != "passed"} == {}


# --- one for each bug that was found --------------------------------------------------------------------------------


def test_a_strangers_record_lock_makes_it_no_holder(tmp_path: Path) -> None:
    """The holder reads its own pidfile, which drops its record lock; a stranger takes one of its own."""
    holder = _holder(tmp_path, "open('pid').close(); report('dropped')\nwait()")
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
@pytest.mark.skipif(not shutil.which("unshare"), reason="a PID namespace takes unshare(1)")
def test_a_holder_in_another_pid_namespace_holds(tmp_path: Path) -> None:
    holder = _holder(tmp_path)
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


def test_a_mutex_that_nobody_lets_go_of_is_an_error_and_no_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a process was stopped in those few calls."""
    monkeypatch.setattr(hold_module, "_MUTEX_PATIENCE", 0.05)
    path = tmp_path / "pid"
    path.write_text(f"{DEAD}\n")
    with path.open("r+") as left_open:
        hold_module._lock(left_open.fileno(), __import__("fcntl").F_WRLCK, 0, 1)
        with pytest.raises(lockfile.LockFailed, match="another process keeps it locked"):
            PidFile(path).acquire()
        assert path.read_text() == f"{DEAD}\n"
    with PidFile(path):
        assert pid_in(path) == os.getpid()


def test_threads_on_different_paths_do_not_disturb_each_other(tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def churn(name: str) -> None:
        try:
            for _ in range(300):
                with PidFile(tmp_path / name) as lock:
                    assert lock.read_pid() == os.getpid()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=churn, args=(f"{n}.pid",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [] and os.listdir(tmp_path) == []


def test_it_serves_as_the_pidfile_of_a_plain_daemon_context(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        import daemon
        home = os.getcwd()
        with daemon.DaemonContext(pidfile=daemonkit.PidFile("pid"), detach_process=True):
            report(home + "/report", held=daemonkit.PidFile(home + "/pid").read_pid())
            wait()
    """,
    )
    facts = harness.reported(tmp_path)
    assert facts["held"] == facts["pid"] == pid_in(tmp_path / "pid")
    harness.stop(facts["pid"])
    eventually(lambda: not (tmp_path / "pid").exists())


# --- other namespaces, and signal handlers that raise ---------------------------------------------------------------

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
INSIDE = "its number is that of another PID namespace (a container): stop it there"


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


INTERRUPTED = """
    class Hit(Exception):
        pass

    def hit(*_):
        raise Hit

    def open_now():
        return len(os.listdir("/proc/self/fd"))

    signal.signal(signal.SIGALRM, hit)
    with daemonkit.PidFile("warm.pid"):
        pass
    daemonkit.spawn_detached(["true"], pidfile="warm.pid").wait()
    chance, before, hits, lock, p = random.Random(7), open_now(), 0, None, None
    for _ in range(TRIES):
        try:
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-5, LONGEST))
            START
            signal.setitimer(signal.ITIMER_REAL, 0)
        except Hit:
            hits += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        AFTER
    print(hits > 20, open_now() - before < hits / 5, hits, open_now() - before)
"""


@pytest.mark.parametrize(
    ("start", "after", "longest", "tries"),
    [
        (
            'lock = daemonkit.PidFile("app.pid"); lock.acquire()',
            'lock and lock.i_am_locking() and lock.release(); assert not os.path.exists("app.pid")',
            4e-4,
            2000,
        ),
        (
            'p = daemonkit.spawn_detached(["sleep", "9"], pidfile="app.pid")',
            'p and (p.kill(), p.wait()); p = None; assert not daemonkit.status("app.pid")',
            4e-3,
            150,
        ),
    ],
    ids=["acquire", "spawn"],
)
def test_a_signal_handler_that_raises_leaves_no_lock_behind(
    tmp_path: Path, start: str, after: str, longest: float, tries: int
) -> None:
    """At whatever step: Ctrl-C, a deadline."""
    program = INTERRUPTED.replace("START", start).replace("AFTER", after)
    program = program.replace("LONGEST", str(longest)).replace("TRIES", str(tries))
    done = run(tmp_path, "    import random\n" + program)
    assert done.stdout.startswith("True True "), (done.stdout, done.stderr)


@pytest.mark.parametrize("calls", range(7))
def test_a_launcher_that_is_killed_as_it_hands_the_lock_over_leaves_it_with_the_program_alone(
    tmp_path: Path, calls: int
) -> None:
    """Not with nobody, and not with what the program starts."""
    program = """
        from daemonkit._pidfile import hold as _pidfile
        hand_over, lock = _pidfile.Hold.name_holder, _pidfile._lock

        def counted(*args):
            global left
            lock(*args)
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        def killed(self, *args):
            global left
            left = CALLS
            _pidfile._lock = counted
            hand_over(self, *args)
            os.kill(os.getpid(), signal.SIGKILL)

        _pidfile.Hold.name_holder = killed
        daemonkit.spawn_detached(["sh", "-c", "sleep 1000 & echo $$ $! > pids; exec sleep 999"], pidfile="app.pid")
    """
    assert run(tmp_path, program.replace("CALLS", str(calls))).returncode == -signal.SIGKILL
    main, child = map(int, eventually(lambda: (text := (tmp_path / "pids")).exists() and text.read_text().split()))
    lock = PidFile(tmp_path / "app.pid")
    assert lock.read_pid() == main
    with pytest.raises(AlreadyRunningError):
        lock.acquire()
    os.kill(main, signal.SIGKILL)
    eventually(lambda: lock.read_pid() != main)
    assert lock.read_pid() is None
    os.kill(child, signal.SIGKILL)


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
