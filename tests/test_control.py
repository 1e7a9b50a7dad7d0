"""Looking after a daemon by its pidfile: whoever holds the lock, and nobody else."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import select
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import harness
import pytest
from harness import PATIENCE, alive, ended, eventually, pid_in, reported, run, state

import daemonkit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOLD = """
    with daemonkit.detached(pidfile="app.pid", stdout="log", stderr=daemonkit.STDOUT, working_directory="."):
        report()
        wait()
"""


def _daemon(directory: Path, body: str = HOLD) -> int:
    done = run(directory, body)
    assert done.returncode == 0, done.stderr
    return int(reported(directory)["pid"])


@contextlib.contextmanager
def _busy(directory: Path) -> Iterator[tuple[int, int]]:
    """Run a daemon that ignores SIGTERM, with a child in its group that does too."""
    pid = _daemon(
        directory,
        """
        with daemonkit.detached(pidfile="app.pid", working_directory=".", signal_map={"SIGTERM": None}):
            child = os.fork()
            if child:
                report(child=child)
            wait()
    """,
    )
    child = int(reported(directory)["child"])
    try:
        yield pid, child
    finally:
        for one in (pid, child):
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(one, 0)


def test_status_of_a_daemon_tells_its_pid_and_since_when(tmp_path: Path) -> None:
    before = datetime.now(UTC)
    pid = _daemon(tmp_path)
    status = daemonkit.status(tmp_path / "app.pid")
    assert status and status.running and status.pid == pid
    assert status.started is not None and status.started.tzinfo is not None
    assert before - timedelta(seconds=1) <= status.started <= datetime.now(UTC) + timedelta(seconds=1)
    assert daemonkit.status(daemonkit.PidFile(tmp_path / "app.pid")) == status
    assert pickle.loads(pickle.dumps(status)) == status and f"pid={pid}" in repr(status)
    with pytest.raises(dataclasses.FrozenInstanceError):
        status.pid = 1  # type: ignore[misc]
    assert daemonkit.stop(tmp_path / "app.pid") is True
    assert status.started is not None  # of that moment, not of this one
    gone = daemonkit.status(tmp_path / "app.pid")
    assert not gone and (gone.running, gone.pid, gone.started) == (False, None, None)
    assert ended(pid) == 0


def test_status_only_reads(tmp_path: Path) -> None:
    path = tmp_path / "app.pid"
    path.write_text("99999999\n")
    path.chmod(0o444)
    before = path.stat(), sorted(os.listdir(tmp_path))
    assert not daemonkit.status(path)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before[0].st_mtime_ns, before[0].st_ino)
    assert sorted(os.listdir(tmp_path)) == before[1]
    assert not daemonkit.status(tmp_path / "none.pid")
    (tmp_path / "link.pid").symlink_to(path)
    with pytest.raises(OSError, match="symbolic link"):
        daemonkit.status(tmp_path / "link.pid")


@pytest.mark.parametrize("call", ["attach", "send_signal", "stop"])
def test_nothing_runs_is_an_error_of_its_own(tmp_path: Path, call: str) -> None:
    arguments = (signal.SIGTERM,) if call == "send_signal" else ()
    for text in (None, "", "rubbish\n", "99999999\n", f"{2**22 - 1}\n"):
        if text is not None:
            (tmp_path / "app.pid").write_text(text)
        with pytest.raises(daemonkit.NotRunningError, match="is not held: nothing is running") as caught:
            getattr(daemonkit, call)(tmp_path / "app.pid", *arguments)
        assert caught.value.path == str(tmp_path / "app.pid") and isinstance(caught.value, ProcessLookupError)
        assert text is None or (tmp_path / "app.pid").read_text() == text


@pytest.mark.parametrize("call", ["attach", "send_signal", "stop"])
def test_another_tools_process_is_shown_but_never_signalled(tmp_path: Path, call: str) -> None:
    with subprocess.Popen(["sleep", "60"]) as stranger:
        (tmp_path / "app.pid").write_text(f"{stranger.pid}\n")
        assert daemonkit.status(tmp_path / "app.pid").pid == stranger.pid
        arguments = (signal.SIGKILL,) if call == "send_signal" else ()
        with pytest.raises(daemonkit.NotRunningError, match=f"process {stranger.pid}.*another tool's"):
            getattr(daemonkit, call)(tmp_path / "app.pid", *arguments)
        assert stranger.poll() is None
        stranger.kill()


def test_an_edited_pidfile_signals_the_holder_and_not_whom_it_names(tmp_path: Path) -> None:
    pid = _daemon(tmp_path)
    with subprocess.Popen(["sleep", "60"]) as stranger:
        (tmp_path / "app.pid").write_text(f"{stranger.pid}\n")
        assert daemonkit.status(tmp_path / "app.pid").pid == pid
        assert daemonkit.stop(tmp_path / "app.pid") is True
        assert ended(pid) == 0 and stranger.poll() is None
        stranger.kill()


def test_a_holder_that_is_replaced_between_look_and_signal_is_looked_at_again(tmp_path: Path) -> None:
    """The pid is made to belong to another process in between, as a recycled one would."""
    pid = _daemon(tmp_path)
    with subprocess.Popen(["sleep", "60"]) as stranger:
        done = run(
            tmp_path,
            f"""
            from daemonkit import _control
            def recycled(pid):
                os.kill(pid, signal.SIGKILL)
                while daemonkit.status("app.pid"): pass
                return os.pidfd_open({stranger.pid})
            _control.open_pidfd = recycled
            try:
                daemonkit.send_signal("app.pid", signal.SIGTERM)
            except daemonkit.NotRunningError as error:
                print(error.path)
        """,
        )
        assert done.stdout.strip() == str(tmp_path / "app.pid"), done.stderr
        assert stranger.poll() is None
        stranger.kill()
    assert ended(pid) == -signal.SIGKILL


def test_attach_gives_a_handle_that_sees_the_end(tmp_path: Path) -> None:
    pid = _daemon(tmp_path)
    handle = daemonkit.attach(tmp_path / "app.pid")
    assert handle.pid == pid and handle.running and handle.poll() is None
    assert select.select([handle], [], [], 0)[0] == []
    with pytest.raises(subprocess.TimeoutExpired):
        handle.wait(0.01)
    handle.terminate()
    assert select.select([handle], [], [], PATIENCE)[0] == [handle]
    # Adopted by this process, a subreaper, it is its child; its status is told, and left to be taken.
    assert handle.wait(PATIENCE) == 0 and not handle.running
    assert ended(pid) == 0


def test_attach_from_a_stranger_sees_the_end_too(tmp_path: Path) -> None:
    pid = _daemon(tmp_path)
    done = run(
        tmp_path,
        """
        handle = daemonkit.attach("app.pid")
        handle.terminate()
        status = handle.wait(30)
        print(handle.running, status, handle.returncode)
    """,
    )
    assert ended(pid) == 0
    assert done.stdout.split()[0] == "False" and done.stdout.split()[1] in {"None", "0"}


def test_send_signal_reaches_the_holder(tmp_path: Path) -> None:
    pid = _daemon(tmp_path)
    (tmp_path / "log").rename(tmp_path / "log.1")
    daemonkit.send_signal(tmp_path / "app.pid", signal.SIGHUP)
    eventually((tmp_path / "log").exists)
    daemonkit.stop(tmp_path / "app.pid")
    assert ended(pid) == 0


def test_stop_returns_when_it_is_gone_and_the_file_is_free(tmp_path: Path) -> None:
    pid = _daemon(tmp_path)
    assert daemonkit.stop(tmp_path / "app.pid") is True
    assert not alive(pid) and not (tmp_path / "app.pid").exists()
    assert ended(pid) == 0


def test_stop_kills_what_does_not_listen_and_its_group_with_it(tmp_path: Path) -> None:
    with _busy(tmp_path) as (pid, child):
        assert daemonkit.stop(tmp_path / "app.pid", timeout=0.2) is False
        assert not alive(pid) and not daemonkit.status(tmp_path / "app.pid")
        eventually(lambda: not alive(child))
        with daemonkit.PidFile(tmp_path / "app.pid") as lock:
            assert lock.read_pid() == os.getpid()


def test_a_signal_to_the_group_of_a_daemon_reaches_it_and_its_children(tmp_path: Path) -> None:
    """It leads no group: the leader of its own was the middle process, which is gone."""
    with _busy(tmp_path) as (pid, child):
        assert os.getpgid(pid) == os.getpgid(child) != pid
        daemon = daemonkit.attach(tmp_path / "app.pid")
        daemon.send_signal(0, group=True)
        daemon.send_signal(signal.SIGKILL, group=True)
        assert daemon.wait_for_end(PATIENCE)
        eventually(lambda: not alive(child))
        daemon.send_signal(signal.SIGKILL, group=True)  # as to what has ended: nothing


def test_a_signal_to_a_group_that_another_live_process_leads_reaches_the_holder_alone(tmp_path: Path) -> None:
    body = 'report()\nwith daemonkit.PidFile("app.pid"):\n    report("held")\n    wait()\n'
    harness.write(tmp_path, body)
    script = f"{sys.executable} program.py; echo $? > after"
    with subprocess.Popen(["sh", "-c", script], cwd=tmp_path, start_new_session=True) as shell:
        try:
            reported(tmp_path, "held")
            daemonkit.attach(tmp_path / "app.pid").send_signal(signal.SIGKILL, group=True)
            assert shell.wait(PATIENCE) == 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
    assert (tmp_path / "after").read_text() == "137\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="a PID namespace takes root")
def test_a_group_whose_leader_is_outside_of_the_namespace_is_not_taken_for_ones_own(tmp_path: Path) -> None:
    """It is 0 there, which would mean the group of whoever signals."""
    done = run(
        tmp_path,
        """
        import subprocess
        heard = []
        signal.signal(signal.SIGUSR1, lambda *_: heard.append(1))
        with daemonkit.PidFile("app.pid"):
            assert os.getpgid(0) == 0
            code = "import daemonkit; daemonkit.attach('app.pid').send_signal(10, group=True)"
            print(subprocess.run([sys.executable, "-c", code], start_new_session=True).returncode, heard)
    """,
        wrapper=("unshare", "--pid", "--fork", "--mount-proc"),
    )
    assert done.stdout == "0 [1]\n", done.stderr


def test_a_daemons_child_that_stops_it_lives_to_see_it(tmp_path: Path) -> None:
    """Though it is in the group that is killed."""
    pid = _daemon(
        tmp_path,
        """
        with daemonkit.detached(pidfile="app.pid", working_directory=".", signal_map={"SIGTERM": None}):
            if os.fork():
                report()
                wait()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while not os.path.exists("report"): time.sleep(0.01)
            report("stopped", how=daemonkit.stop("app.pid", timeout=0.1))
    """,
    )
    told = reported(tmp_path, "stopped")
    assert told["how"] is False
    assert ended(pid) == -signal.SIGKILL and ended(told["pid"]) == 0


LEADERLESS = """
    import ctypes, threading
    number = {"x86_64": 60, "aarch64": 93}[os.uname().machine]
    with daemonkit.detached(pidfile="app.pid", working_directory="."):
        report()
        threading.Thread(target=time.sleep, args=[600]).start()
        ctypes.CDLL(None).syscall(number, 0)  # _exit(2), which ends this thread alone
"""


def test_a_daemon_whose_first_thread_has_ended_still_runs(tmp_path: Path) -> None:
    """For the kernel its first thread is a zombie then, and all there is of the process lives on in the others."""
    pid = _daemon(tmp_path, LEADERLESS)
    try:
        eventually(lambda: state(pid) == "Z")
        assert daemonkit.status(tmp_path / "app.pid").pid == pid
        with pytest.raises(daemonkit.AlreadyRunningError):
            daemonkit.PidFile(tmp_path / "app.pid").acquire()
        daemon = daemonkit.attach(tmp_path / "app.pid")
        assert daemon.running
    finally:
        os.kill(pid, signal.SIGKILL)
    assert daemon.wait_for_end(PATIENCE) and ended(pid) == -signal.SIGKILL
    assert not daemonkit.status(tmp_path / "app.pid")


def test_another_tools_process_whose_first_thread_has_ended_still_runs(tmp_path: Path) -> None:
    pid = _daemon(tmp_path, LEADERLESS.replace('pidfile="app.pid", ', ""))
    try:
        eventually(lambda: state(pid) == "Z")
        (tmp_path / "other.pid").write_text(f"{pid}\n")
        assert daemonkit.status(tmp_path / "other.pid").pid == pid
    finally:
        os.kill(pid, signal.SIGKILL)
    assert ended(pid) == -signal.SIGKILL
    assert not daemonkit.status(tmp_path / "other.pid")


def test_stop_without_kill_says_what_goes_on_running(tmp_path: Path) -> None:
    with _busy(tmp_path) as (pid, child):
        with pytest.raises(daemonkit.StopTimeoutError, match=r"within 0\.1 s") as caught:
            daemonkit.stop(tmp_path / "app.pid", timeout=0.1, kill=False)
        assert caught.value.pid == pid and isinstance(caught.value, TimeoutError)
        assert alive(pid) and alive(child) and pid_in(tmp_path / "app.pid") == pid


def test_stop_can_ask_by_another_signal(tmp_path: Path) -> None:
    pid = _daemon(tmp_path)
    assert daemonkit.stop(tmp_path / "app.pid", signal=signal.SIGINT) is True
    assert ended(pid) == -signal.SIGINT  # as a KeyboardInterrupt that leaves a program


def test_stop_kills_no_group_that_another_live_process_leads(tmp_path: Path) -> None:
    """In the foreground it is a member of the job of whoever started it."""
    body = """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with daemonkit.detached(pidfile="app.pid", working_directory=".", detach_process=False, signal_map={"SIGTERM": None}):
            report()
            wait()
    """
    harness.write(tmp_path, body)
    script = f"trap '' TERM; {sys.executable} program.py; echo survived > after"
    with subprocess.Popen(["sh", "-c", script], cwd=tmp_path, start_new_session=True) as shell:
        reported(tmp_path)
        assert daemonkit.stop(tmp_path / "app.pid", timeout=0.1) is False
        assert shell.wait(PATIENCE) == 0
    assert (tmp_path / "after").read_text() == "survived\n"


def test_stop_needs_no_init_that_reaps_in_time(tmp_path: Path) -> None:
    """The daemon's end is its end, though it stay a zombie: this process, its adoptive parent, does not reap it."""
    pid = _daemon(tmp_path)
    assert daemonkit.stop(tmp_path / "app.pid") is True
    assert state(pid) == "Z" and not daemonkit.status(tmp_path / "app.pid")
    assert ended(pid) == 0


def test_two_that_stop_the_same_are_both_told_the_truth(tmp_path: Path) -> None:
    pid = _daemon(tmp_path)
    code = f"import daemonkit; print(daemonkit.stop({str(tmp_path / 'app.pid')!r}))"
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=-1, text=True) for _ in range(2)]
    results = [process.communicate(timeout=PATIENCE) for process in both]
    # The later SIGTERM may find a Python that is at its very end and has put its handlers back.
    assert ended(pid) in (0, -signal.SIGTERM) and not (tmp_path / "app.pid").exists()
    assert {"True\n"} <= {out for out, _ in results}
    assert all(out == "True\n" or "NotRunningError" in err for out, err in results)


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user takes root")
def test_another_users_daemon_is_shown_but_not_signalled(tmp_path: Path) -> None:
    for parent in [tmp_path, *tmp_path.parents][:4]:
        parent.chmod(0o755)
    pid = _daemon(tmp_path)
    done = run(
        tmp_path,
        """
        become_ordinary()
        print(daemonkit.status("app.pid").pid)
        try:
            daemonkit.stop("app.pid")
        except PermissionError as error:
            print(error)
    """,
    )
    assert done.stdout.split("\n")[0] == str(pid), done.stderr
    assert "another user" in done.stdout and alive(pid)
    daemonkit.stop(tmp_path / "app.pid")
    assert ended(pid) == 0


@pytest.mark.parametrize("bad", [None, 3, 1.5, b"", "", "a\0b"])
def test_a_bad_path_is_refused(bad: object) -> None:
    for call in (daemonkit.status, daemonkit.attach, daemonkit.stop):
        with pytest.raises((TypeError, ValueError), match="pidfile"):
            call(bad)  # type: ignore[arg-type]


def test_bad_arguments_are_refused_and_nothing_is_signalled(tmp_path: Path) -> None:
    pid = _daemon(tmp_path)
    for options in ({"timeout": "5"}, {"timeout": float("nan")}, {"kill": 1}, {"signal": "TERM"}, {"signal": 999}):
        with pytest.raises((TypeError, ValueError, OSError)):
            daemonkit.stop(tmp_path / "app.pid", **options)  # type: ignore[arg-type]
    assert alive(pid)
    daemonkit.stop(tmp_path / "app.pid")
    assert ended(pid) == 0


def test_a_program_that_was_spawned_with_a_pidfile_is_looked_after_the_same_way(tmp_path: Path) -> None:
    process = daemonkit.spawn_detached(["sleep", "60"], pidfile=tmp_path / "b.pid")
    status = daemonkit.status(tmp_path / "b.pid")
    assert status.pid == process.pid and status.started is not None
    assert daemonkit.stop(tmp_path / "b.pid") is True
    assert process.wait(PATIENCE) == -signal.SIGTERM and not daemonkit.status(tmp_path / "b.pid")


@pytest.mark.skipif(os.geteuid() != 0, reason="a PID namespace of one's own takes root")
def test_a_stranger_that_was_given_the_holders_number_is_never_signalled(tmp_path: Path) -> None:
    """In a PID namespace, where ns_last_pid says which number is the next."""
    done = run(
        tmp_path,
        """
        import subprocess
        holder = daemonkit.spawn_detached(["sleep", "1000"], pidfile="app.pid")
        first = holder.pid
        holder.kill(); holder.wait()
        time.sleep(0.1)  # clocks tick: a process that starts within 20 ms counts as the one that the file names
        def next_is(pid):
            with open("/proc/sys/kernel/ns_last_pid", "w") as file: file.write(str(pid - 1))
        for _ in range(100):
            next_is(first)
            stranger = subprocess.Popen(["sleep", "1000"])
            if stranger.pid == first: break
            stranger.kill(); stranger.wait()
        assert stranger.pid == first and read("app.pid") == f"{first}\\n"
        print(daemonkit.status("app.pid"))
        for call in (daemonkit.stop, lambda p: daemonkit.send_signal(p, signal.SIGKILL), lambda p: daemonkit.attach(p).kill()):
            try:
                call("app.pid")
            except daemonkit.NotRunningError as error:
                print("refused")
        holder.kill(); holder.terminate(); holder.send_signal(signal.SIGKILL, group=True)
        print(stranger.poll())
        stranger.kill(); stranger.wait()
    """,
        wrapper=("unshare", "--pid", "--fork", "--mount-proc"),
    )
    assert done.stdout.splitlines() == [
        "Status(running=False, pid=None, started=None)",
        "refused",
        "refused",
        "refused",
        "None",
    ], done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="a pidfile of another user's takes root")
def test_a_pidfile_that_another_user_owns_makes_root_signal_nobody(tmp_path: Path) -> None:
    """Whoever owns the file can write any number into it, and even lock it: as another tool would."""
    for parent in [tmp_path, *tmp_path.parents][:4]:
        parent.chmod(0o755)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    os.chown(theirs, 65534, 65534)
    with subprocess.Popen(["sleep", "60"]) as stranger:
        done = run(
            tmp_path,
            f"""
            import fcntl
            become_ordinary()
            file = open("theirs/app.pid", "w")
            print({stranger.pid}, file=file, flush=True)
            sys.stdout.flush()
            if os.fork() == 0:
                os.closerange(0, 3)
                fcntl.lockf(file, fcntl.LOCK_EX)
                with open("theirs/locked.new", "w") as locked: locked.write(str(os.getpid()))
                os.rename("theirs/locked.new", "theirs/locked")
                wait()
        """,
        )
        assert done.returncode == 0, done.stderr
        locker = int(eventually((theirs / "locked").read_text))
        for call in (daemonkit.stop, daemonkit.attach):
            with pytest.raises(daemonkit.NotRunningError):
                call(theirs / "app.pid")
        assert stranger.poll() is None and alive(locker)
        os.kill(locker, signal.SIGKILL)
        ended(locker)
        stranger.kill()


def test_stop_kills_nobody_else_in_a_group_whose_leader_is_gone(tmp_path: Path) -> None:
    """A job of a shell that has ended, which the holder is a part of and not the owner."""
    body = """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with daemonkit.PidFile("app.pid"):
            report("held")
            wait()
    """
    harness.write(tmp_path, body)
    script = f"{sys.executable} program.py >/dev/null & sleep 60 >/dev/null & echo $!"
    shell = subprocess.run(["sh", "-c", script], cwd=tmp_path, start_new_session=True, stdout=-1, check=True)
    neighbour = os.pidfd_open(int(shell.stdout))
    reported(tmp_path, "held")
    assert daemonkit.stop(tmp_path / "app.pid", timeout=0.1) is False
    assert not select.select([neighbour], [], [], 0.3)[0], "somebody else was killed"
    signal.pidfd_send_signal(neighbour, signal.SIGKILL)
    os.close(neighbour)


def test_the_start_is_the_same_each_time_it_is_read(tmp_path: Path) -> None:
    with daemonkit.PidFile(tmp_path / "app.pid"):
        status = daemonkit.status(tmp_path / "app.pid")
        starts = {status.started for _ in range(2000)}
        starts |= {daemonkit.status(tmp_path / "app.pid").started for _ in range(2000)}
    assert len(starts) == 1


def test_stop_kills_the_children_of_a_daemon_that_takes_its_pidfile_in_the_body(tmp_path: Path) -> None:
    body = """
        import subprocess
        with daemonkit.detached(working_directory="."), daemonkit.PidFile("app.pid"):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            open("app.pid").close()  # which drops a record lock: the other one is to tell the same
            report(child=subprocess.Popen(["sleep", "1000"]).pid)
            wait()
    """
    run(tmp_path, body)
    facts = reported(tmp_path)
    assert daemonkit.stop(tmp_path / "app.pid", timeout=0.2) is False
    eventually(lambda: not alive(facts["child"]))
