"""spawn_detached(): what 0, 1 and 2 of the program are, and its input."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import harness
import pytest
from harness import ended, eventually, pid_in, run
from launches import (
    SLOW,
    call,
    caller,
    kill,
    seen,
    spawned,
)

if TYPE_CHECKING:
    from pathlib import Path

SAY = "['sh', '-c', 'echo out; echo err >&2; cat']"


def test_the_null_device_is_the_default_and_devnull_says_so(tmp_path: Path) -> None:
    for options in ("", ", stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL", ", stderr=STDOUT"):
        pid = spawned(tmp_path, "SLEEP" + options)
        assert set(seen(pid)["fds"].values()) == {"/dev/null"}
        kill(pid)


@pytest.mark.parametrize("slow", ["", SLOW], ids=["", "cwd, umask"])
def test_logs_are_appended_to_whoever_else_writes_and_both_may_be_one(tmp_path: Path, slow: str) -> None:
    (tmp_path / "old").write_text("kept\n")
    (tmp_path / "in").write_text("in\n")
    pid = spawned(tmp_path, f"{SAY}, stdin='in', stdout=b'old', stderr=__import__('pathlib').Path('new'){slow}")
    assert ended(pid) == 0
    assert (tmp_path / "old").read_text() == "kept\nout\nin\n" and (tmp_path / "new").read_text() == "err\n"
    for options in (", stdout='one', stderr=STDOUT", ", stdout='one', stderr='one'"):
        assert ended(spawned(tmp_path, SAY + options + slow)) == 0
    assert (tmp_path / "one").read_text() == "out\nerr\n" * 2
    pid = spawned(tmp_path, "SLEEP, stdout='old', stderr='new'" + slow)
    flags = seen(pid)["flags"]
    assert all(flags[fd] & os.O_APPEND and not flags[fd] & os.O_NONBLOCK for fd in "12")
    assert not any(flags[fd] & os.O_CLOEXEC for fd in "012")
    kill(pid)


def test_a_new_log_is_0640_less_the_umask_and_an_old_one_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "old").touch(0o600)
    modes = {}
    for name, mask, options in (
        ("plain", 0o022, ""),
        ("private", 0o077, ""),
        ("open", 0o000, ""),
        ("given", 0o022, ", umask=0o077"),
        ("wider", 0o077, ", umask=0o022"),
        ("old", 0o022, ", umask=0"),
    ):
        assert ended(spawned(tmp_path, f"['true'], stdout='{name}'{options}", before=f"os.umask({mask})")) == 0
        modes[name] = oct((tmp_path / name).stat().st_mode & 0o7777)
    assert modes == {
        "plain": "0o640",
        "private": "0o600",
        "open": "0o640",
        "given": "0o600",
        "wider": "0o640",
        "old": "0o600",
    }


def test_paths_of_streams_and_pidfile_are_the_callers_and_not_relative_to_cwd(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "in").write_text("mine")
    pid = spawned(tmp_path, "SLEEP, cwd='sub', stdin='in', stdout='out', stderr='err', pidfile='pid'")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["err", "in", "out", "pid", "program.py", "sub"]
    assert list((tmp_path / "sub").iterdir()) == [] and pid_in(tmp_path / "pid") == pid
    assert seen(pid)["fds"]["0"] == str(tmp_path / "in")
    kill(pid)


def test_files_descriptors_and_sockets_as_streams(tmp_path: Path) -> None:
    told = call(
        tmp_path,
        """
        with open("in", "w+") as given, open("out", "w") as out:
            given.write("skipped|read"); given.seek(8)
            left, right = socket.socketpair()
            p = spawn(["sh", "-c", "echo out; echo err >&2; cat"], stdin=given, stdout=out.fileno(), stderr=left)
            left.close()
            assert p.wait() == 0 and p.stdin is p.stdout is p.stderr is None
            assert (right.recv(99), right.recv(99)) == (b"err\\n", b"")  # and its end: no copy is left
        reading, writing = os.pipe()
        os.set_blocking(reading, False); os.set_blocking(writing, False)
        p = spawn(["sh", "-c", "cat; echo done"], stdin=reading, stdout=writing)
        os.close(writing) if p.wait() is not None else None
        assert not os.get_blocking(reading)  # the caller's own, as before
        right.close(); os.close(reading)
        tell(fds=own(), code=p.returncode)
    """,
    )
    assert (tmp_path / "out").read_text() == "out\nread" and (tmp_path / "in").read_text() == "skipped|read"
    assert isinstance(told["code"], int)


def test_streams_may_be_swapped(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        caller("""
        assert spawn(["sh", "-c", "echo out; echo err >&2"], stdout=2, stderr=1).wait() == 0
        assert spawn(["sh", "-c", "echo out; echo err >&2"], stdout=2, stderr=1, cwd="/", umask=0).wait() == 0
        assert spawn(["sh", "-c", "echo both; echo both >&2"], stdout=2, stderr=STDOUT).wait() == 0
        assert spawn(["sh", "-c", "echo as it is; echo as it is >&2"], stdout=INHERIT, stderr=INHERIT).wait() == 0
        assert spawn(["sh", "-c", "echo one; echo one >&2"], stdout=INHERIT, stderr=STDOUT).wait() == 0
    """),
    )
    assert (done.returncode, done.stdout) == (0, "err\nerr\nas it is\none\none\n"), done
    assert done.stderr == "out\nout\nboth\nboth\nas it is\n"


def test_inherit_reads_what_is_left_of_the_callers_input(tmp_path: Path) -> None:
    assert _fed(tmp_path) == "second\n"


def _fed(directory: Path) -> str:
    program = harness.write(
        directory,
        caller("""
        assert os.read(0, 6) == b"first\\n"
        assert spawn(["cat"], stdin=INHERIT, stdout=INHERIT).wait() == 0
    """),
    )
    (directory / "fed").write_text("first\nsecond\n")
    with (directory / "fed").open() as fed:
        return subprocess.run(
            [sys.executable, program], cwd=directory, stdin=fed, capture_output=True, text=True, check=True
        ).stdout


@pytest.mark.parametrize("slow", ["", SLOW, ", pidfile='pid'"], ids=["", "cwd, umask", "pidfile"])
def test_pipes_as_popen_has_them(tmp_path: Path, slow: str) -> None:
    call(
        tmp_path,
        f"""
        p = spawn(["sh", "-c", "cat; echo err >&2; exit 4"], stdin=PIPE, stdout=PIPE, stderr=PIPE{slow})
        assert p.stdin.write(b"to and fro") == 10
        p.stdin.close()
        with p.stdout, p.stderr:
            assert (p.stdout.read(), p.stderr.read()) == (b"to and fro", b"err\\n")
        assert p.wait() == 4
        q = spawn(["sh", "-c", "echo out; echo err >&2"], stdout=PIPE, stderr=STDOUT)
        assert q.stdin is None and q.stderr is None
        with q.stdout:
            assert q.stdout.readline() == b"out\\n" and q.stdout.read() == b"err\\n"
        r = spawn(["cat"], stdin=PIPE, stdout=PIPE)
        assert not os.get_inheritable(r.stdin.fileno()) and not os.get_inheritable(r.stdout.fileno())
        assert all(not seen(r.pid)["flags"][fd] & os.O_NONBLOCK for fd in "012")
        r.stdin.close(); r.stdout.close()
        assert r.wait() == 0
    """,
        flags=("-X", "dev", "-W", "error"),
    )


def test_a_fifo_as_a_stream_is_opened_without_waiting_for_its_other_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    pid = spawned(tmp_path, "['sh', '-c', 'cat > got; exec sleep 1000'], stdin='fifo'")
    assert eventually(lambda: harness.alive(pid))
    kill(pid)


@pytest.mark.parametrize("size", [0, 1, 65536, 65537, 10_000_000])
@pytest.mark.parametrize("slow", ["", SLOW + ", pidfile='pid'"], ids=["", "cwd, umask, pidfile"])
def test_input_is_complete_though_the_caller_ends_at_once(tmp_path: Path, size: int, slow: str) -> None:
    """The program reads none of it before the caller is gone."""
    os.mkfifo(tmp_path / "go")
    done = run(
        tmp_path,
        caller(f"""
        data = (bytes(range(256)) * ({size} // 256 + 1))[:{size}]
        p = spawn(["sh", "-c", "cat go; cat > got.new; mv got.new got; exec sleep 1000"], input=data{slow})
        assert p.stdin is None
        os.write(1, str(p.pid).encode())
        os._exit(0)
    """),
    )
    pid = int(done.stdout)
    (tmp_path / "go").open("w").close()
    eventually((tmp_path / "got").exists)
    assert (tmp_path / "got").read_bytes() == (bytes(range(256)) * (size // 256 + 1))[:size]
    kill(pid)


def test_input_that_nobody_reads_holds_nobody_up(tmp_path: Path) -> None:
    told = call(
        tmp_path,
        """
        p = spawn(["true"], input=bytes(10_000_000))
        code = p.wait()
        before = len(own())
        codes = [spawn(["sh", "-c", "exec 0<&-; exit 3"], input=bytes(1_000_000)).wait() for _ in range(20)]
        tell(code=code, codes=codes, more=len(own()) - before, threads=threading.active_count(), pgid=os.getpgid(0))
    """,
    )
    assert told["code"] == 0 and told["codes"] == [3] * 20 and told["more"] <= 1 and told["threads"] == 1


def test_a_socket_given_as_a_stream_keeps_its_kind() -> None:
    """In this very process, whose sockets are as any program's."""
    import daemonkit

    one, two = socket.socketpair()
    with one, two:
        p = daemonkit.spawn_detached(["sleep", "1000"], stdin=one, stdout=one)
        assert seen(p.pid)["fds"]["0"] == seen(p.pid)["fds"]["1"] == os.readlink(f"/proc/self/fd/{one.fileno()}")
        p.kill()
        assert p.wait() == -signal.SIGKILL
