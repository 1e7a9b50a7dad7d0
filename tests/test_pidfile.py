"""PidFile from outside: the file, and what its methods do."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from typing import TYPE_CHECKING

import harness
import lockfile
import pytest
from harness import DEAD, ended, eventually, pid_in, run, start_holder
from lockfile.pidlockfile import PIDLockFile

from daemonkit import AlreadyRunningError, PidFile

if TYPE_CHECKING:
    from pathlib import Path

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the user or the root directory")


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
    holder = start_holder(tmp_path)
    with pytest.raises(AlreadyRunningError):
        PidFile(path).break_lock()
    assert pid_in(path) == holder
    os.kill(holder, signal.SIGKILL)
    ended(holder)


def test_a_lock_of_another_process_is_not_mine_to_release(tmp_path: Path) -> None:
    holder = start_holder(tmp_path)
    lock = PidFile(tmp_path / "pid")
    with pytest.raises(lockfile.NotMyLock):
        lock.release()
    assert lock.is_locked() and not lock.i_am_locking() and pid_in(tmp_path / "pid") == holder
    harness.stop(holder, signal.SIGKILL)


def test_a_timeout_given_to_acquire_is_the_one_that_counts(tmp_path: Path) -> None:
    holder = start_holder(
        tmp_path, "signal.signal(signal.SIGTERM, lambda *_: (lock.release(), report('released')))\nwait()"
    )
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


def test_a_bad_timeout_is_refused(tmp_path: Path) -> None:
    for timeout in ("1", True, object()):
        with pytest.raises(TypeError, match="timeout"):
            PidFile(tmp_path / "pid", timeout=timeout)  # type: ignore[arg-type]


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_waiting_ends_when_the_holder_does(tmp_path: Path, end: int) -> None:
    holder = start_holder(
        tmp_path, "signal.signal(signal.SIGTERM, lambda *_: (lock.release(), report('released')))\nwait()"
    )
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
            print(lock.i_am_locking(), lock.is_locked(), lock.read_pid() == os.getpid())
    """,
    )
    assert done.stdout == "True True True\n", done.stderr
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


@pytest.mark.long
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
