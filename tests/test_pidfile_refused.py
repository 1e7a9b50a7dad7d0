"""Pidfiles that cannot be taken: an error that names the file, and everything is left as it was."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from typing import TYPE_CHECKING

import lockfile
import pytest
from harness import DEAD, pid_in, run

from daemonkit import AlreadyRunningError, PidFile
from daemonkit._pidfile import hold as hold_module

if TYPE_CHECKING:
    from pathlib import Path

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the user or the root directory")


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


def test_who_may_not_write_to_the_directory_gets_the_path_and_changes_nothing(public: Path) -> None:
    (public / "closed").mkdir()
    (public / "closed" / "stale").write_text(f"{DEAD}\n")
    (public / "closed" / "private").write_text(f"{DEAD}\n")
    (public / "closed" / "private").chmod(0)
    (public / "closed").chmod(0o555)
    done = run(
        public,
        """
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


def test_too_few_descriptors_are_an_error_that_names_the_file_and_leaves_everything_as_it_was(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        f"""
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


def test_a_mutex_that_nobody_lets_go_of_is_an_error_and_no_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a process was stopped in those few calls."""
    monkeypatch.setattr(hold_module, "_MUTEX_PATIENCE", 0.05)
    path = tmp_path / "pid"
    path.write_text(f"{DEAD}\n")
    with path.open("r+") as left_open:
        hold_module._lock(left_open.fileno(), __import__("fcntl").F_WRLCK, 0, 1)
        with pytest.raises(lockfile.LockFailed, match="is locked by a process that does not hold it"):
            PidFile(path).acquire()
        assert path.read_text() == f"{DEAD}\n"
    with PidFile(path):
        assert pid_in(path) == os.getpid()
