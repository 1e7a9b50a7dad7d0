"""detached(): which descriptors the daemon keeps."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import harness
import pytest
from harness import ended, reported, run, stop

if TYPE_CHECKING:
    from pathlib import Path


def test_what_it_was_handed_is_given_up_and_what_it_opened_itself_is_kept(tmp_path: Path) -> None:
    handed, other = os.pipe()
    try:
        run(
            tmp_path,
            """
            own = open("own", "w")
            logging.basicConfig(filename="logging")
            left, right = socket.socketpair()
            with daemonkit.detached(working_directory="."):
                own.write("kept")
                own.flush()
                left.send(b"x")
                logging.warning("kept too")
                report(own=own.fileno(), read=right.recv(1).decode())
                wait()
        """,
            pass_fds=(handed,),
        )
    finally:
        os.close(handed)
        os.close(other)
    facts = reported(tmp_path)
    assert facts["fds"][handed] == {"path": "/dev/null", "inheritable": False}
    assert facts["own"] in facts["fds"] and facts["read"] == "x"
    assert (tmp_path / "own").read_text() == "kept" and "kept too" in (tmp_path / "logging").read_text()
    stop(facts["pid"])


OPENED = {
    "a dup2": "r, w = os.pipe(); fd = os.dup2(w, 700, inheritable=True); ok = lambda: os.write(fd, b'x') == 1",
    "a pipe": "r, w = os.pipe2(0); ok = lambda: os.write(w, b'x') == 1 and os.read(r, 1) == b'x'",
    "a listening socket": "s = socket.create_server(('127.0.0.1', 0)); s.set_inheritable(True)\n"
    "def ok():\n    c = socket.create_connection(s.getsockname()); return s.accept() is not None",
    "inotify": "import ctypes; fd = ctypes.CDLL(None).inotify_init(); ctypes.CDLL(None).inotify_add_watch(fd, b'.', 0x100)\n"
    "def ok():\n    open('new', 'w').close(); return len(os.read(fd, 4096)) > 0",
    "an event descriptor": "fd = os.eventfd(0, 0)\nos.set_inheritable(fd, True)\ndef ok(): return os.eventfd_write(fd, 1) is None",
    "an epoll": "import select; fd = select.epoll(flags=0); os.set_inheritable(fd.fileno(), True); ok = lambda: fd.poll(0) == []",
    "a subprocess's pipe": "import subprocess; p = subprocess.Popen('cat', stdin=-1, stdout=-1)\n"
    "for f in (p.stdin, p.stdout): os.set_inheritable(f.fileno(), True)\n"
    "def ok():\n    return p.communicate(b'x')[0] == b'x'",
    "a terminal of its own": "import pty; m, t = pty.openpty(); os.set_inheritable(m, True); os.set_inheritable(t, True)\n"
    "def ok():\n    os.write(t, b'x'); return os.read(m, 1) == b'x'",
    "a file": "f = open('file', 'w+'); os.set_inheritable(f.fileno(), True)\n"
    "def ok():\n    f.write('x'); f.flush(); return f.seek(0) == 0 and f.read() == 'x'",
    "a directory": "fd = os.open('.', os.O_RDONLY); os.set_inheritable(fd, True); ok = lambda: 'program.py' in os.listdir(fd)",
    "shared memory": "from multiprocessing import shared_memory; fd = os.memfd_create('m', 0); ok = lambda: os.write(fd, b'x') == 1",
}


@pytest.mark.parametrize("detach", [True, False], ids=["detached", "in the foreground"])
@pytest.mark.parametrize("opened", OPENED.values(), ids=OPENED)
def test_what_the_program_opened_without_close_on_exec_works_in_the_body(
    tmp_path: Path,
    opened: str,
    detach: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    body = f"import warnings; warnings.simplefilter('ignore', RuntimeWarning)\n{opened}\n"
    body += f"with daemonkit.detached(working_directory='.', detach_process={detach}): report(works=ok())\n"
    assert run(tmp_path, body).returncode == 0
    facts = reported(tmp_path)
    assert facts["works"] is True
    if detach:
        assert ended(facts["pid"]) == 0


BEFORE = {
    "a regular file": ("f = os.open('data', os.O_RDWR | os.O_CREAT); os.set_inheritable(f, True)", True),
    "a file that it locked itself": (
        "import fcntl; f = os.open('data', os.O_RDWR | os.O_CREAT); os.set_inheritable(f, True); fcntl.flock(f, 2)",
        True,
    ),
    "an inotify descriptor": ("import ctypes; f = ctypes.CDLL(None).inotify_init()", True),
    "a directory": ("f = os.open('.', os.O_RDONLY); os.set_inheritable(f, True)", True),
    "the source of random numbers": ("f = os.open('/dev/urandom', os.O_RDONLY); os.set_inheritable(f, True)", True),
    "a pipe": ("f, other = os.pipe(); os.set_inheritable(f, True)", False),
    "a socket": ("import socket; s = socket.socket(); f = s.fileno(); os.set_inheritable(f, True)", False),
    "a terminal": ("import pty; m, f = pty.openpty(); os.set_inheritable(f, True)", False),
}


@pytest.mark.parametrize(("before", "kept"), BEFORE.values(), ids=BEFORE)
def test_of_what_was_open_at_the_import_only_what_somebody_can_wait_for_is_given_up(
    tmp_path: Path,
    before: str,
    kept: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    program = tmp_path / "late.py"
    program.write_text(
        f"import os\n{before}\nfile = os.readlink(f'/proc/self/fd/{{f}}')\nos.environ['FILE'] = f'{{f}} {{file}}'\n"
        + harness.PRELUDE
        + "with daemonkit.detached(working_directory='.'): report(file=os.environ['FILE'])\n"
    )
    subprocess.run([sys.executable, program], cwd=tmp_path, check=True, timeout=harness.PATIENCE)
    facts = reported(tmp_path)
    ended(facts["pid"])
    number, _, file = facts["file"].partition(" ")
    assert facts["fds"][int(number)]["path"] == (file if kept else "/dev/null")


@pytest.mark.parametrize("detach", [True, False], ids=["detached", "in the foreground"])
@pytest.mark.parametrize("lock", ["lock", "."], ids=["a file", "a directory"])
def test_a_lock_of_flock_1_is_given_up(tmp_path: Path, lock: str, detach: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """As in a crontab: `flock -n lock app.py` is to hold the lock as long as app.py runs, and not its daemon."""
    body = f"with daemonkit.detached(working_directory='.', detach_process={detach}):\n    report()\n    wait()"
    program = harness.write(tmp_path, body)
    with subprocess.Popen(["flock", "-n", lock, sys.executable, program], cwd=tmp_path) as job:
        facts = reported(tmp_path)
        assert str(tmp_path / lock) not in [entry["path"] for entry in facts["fds"].values()]
        if detach:
            assert job.wait(harness.PATIENCE) == 0
            assert subprocess.run(["flock", "-n", lock, "true"], cwd=tmp_path, check=False).returncode == 0
            assert stop(facts["pid"]) == 0
        else:
            os.kill(facts["pid"], signal.SIGTERM)
            assert job.wait(harness.PATIENCE) == 0


def test_a_handed_number_that_the_program_gave_to_another_file_is_kept(tmp_path: Path) -> None:
    handed, other = os.pipe()
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, handed)
        stack.callback(os.close, other)
        run(
            tmp_path,
            f"""
            os.close({handed})
            own = os.open("own", os.O_RDWR | os.O_CREAT)
            os.dup2(own, {handed}, inheritable=True)
            with daemonkit.detached(working_directory="."):
                report(wrote=os.write({handed}, b"x"))
        """,
            pass_fds=(handed,),
        )
    facts = reported(tmp_path)
    ended(facts["pid"])
    assert facts["fds"][handed]["path"] == str(tmp_path / "own") and (tmp_path / "own").read_text() == "x"


def test_an_object_that_still_writes_to_a_number_that_was_given_up_reaches_no_other_file(tmp_path: Path) -> None:
    reader, handed = os.pipe()
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, reader)
        stack.callback(os.close, handed)
        run(
            tmp_path,
            f"""
            old = os.fdopen({handed}, "w", buffering=1)
            with daemonkit.detached(working_directory="."):
                files = [open(f"{{n}}", "w") for n in range(3)]
                old.write("secret\\n")
                report()
        """,
            pass_fds=(handed,),
        )
    ended(reported(tmp_path)["pid"])
    assert [(tmp_path / f"{n}").read_text() for n in range(3)] == ["", "", ""]


def test_a_handed_number_beyond_a_lowered_limit_is_closed(tmp_path: Path) -> None:
    handed, other = os.pipe()
    high = os.dup2(handed, 900)
    with contextlib.ExitStack() as stack:
        for fd in (handed, other, high):
            stack.callback(os.close, fd)
        done = run(
            tmp_path,
            """
            import resource
            resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
            with daemonkit.detached(working_directory="."):
                report()
        """,
            pass_fds=(high,),
        )
    assert done.returncode == 0, done.stderr
    facts = reported(tmp_path)
    ended(facts["pid"])
    assert high not in facts["fds"]


def test_files_preserve_keeps_what_it_was_handed(tmp_path: Path) -> None:
    handed, other = os.pipe()
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, handed)
        stack.callback(os.close, other)
        with_preserve = f"with daemonkit.detached(files_preserve=[{handed}], working_directory='.'): report()"
        run(tmp_path, with_preserve, pass_fds=(handed,))
    facts = reported(tmp_path)
    ended(facts["pid"])
    assert facts["fds"][handed]["path"].startswith("pipe:")


@pytest.mark.parametrize("saved", ["os.dup(1)", "os.dup2(1, 40, inheritable=False)"])
def test_a_copy_of_what_stdout_was_at_first_is_given_up_though_a_log_has_taken_its_place(
    tmp_path: Path, saved: str
) -> None:
    done = run(
        tmp_path,
        f"""
        saved = {saved}
        os.dup2(os.open("log", os.O_WRONLY | os.O_CREAT), 1)
        os.dup2(1, 2)
        with daemonkit.detached(working_directory="."):
            report()
            wait()
    """,
    )  # run() reads stdout and stderr to their ends
    assert done.returncode == 0
    assert stop(reported(tmp_path)["pid"]) == 0


def test_lmdb_opened_before_keeps_its_pages(tmp_path: Path) -> None:
    pytest.importorskip("lmdb")
    run(
        tmp_path,
        """
        import lmdb
        env = lmdb.open("db")
        with daemonkit.detached(working_directory="."):
            users = open("users.txt", "w+")
            users.write("alice\\nbob\\n"); users.flush()
            with env.begin(write=True) as transaction:
                transaction.put(b"k", b"v" * 3000)
            with env.begin() as transaction:
                report(value=len(transaction.get(b"k")), users=os.path.getsize("users.txt"))
    """,
    )
    facts = reported(tmp_path)
    assert ended(facts["pid"]) == 0
    assert (facts["value"], facts["users"]) == (3000, 10)


@pytest.mark.parametrize("order", ["import daemonkit first", "open the file first"])
def test_hdf5_opened_before_keeps_its_data(tmp_path: Path, order: str) -> None:
    h5py = pytest.importorskip("h5py")
    opening = "import h5py; f = h5py.File('data.h5', 'w')\n"
    program = tmp_path / "program.py"
    body = f"{harness.PRELUDE}\n{opening}" if order.startswith("import") else f"{opening}\n{harness.PRELUDE}"
    program.write_text(
        body
        + textwrap.dedent("""
        import warnings; warnings.simplefilter("ignore", RuntimeWarning)
        with daemonkit.detached(working_directory="."):
            other = open("other", "w")
            f["numbers"] = list(range(1000))
            f.close()
            report(other=os.path.getsize("other"))
    """)
    )
    subprocess.run([sys.executable, program], cwd=tmp_path, check=True, timeout=harness.PATIENCE)
    facts = reported(tmp_path)
    assert ended(facts["pid"]) == 0
    with h5py.File(tmp_path / "data.h5", "r") as file:
        assert file["numbers"][:].sum() == 499500 and facts["other"] == 0


def test_copies_of_the_callers_streams_are_closed_so_that_its_reader_sees_the_end(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        copies = [os.dup(1), os.dup(2)]
        with daemonkit.detached(working_directory=".", pidfile="pid"):
            report()
            wait()
    """,
    )  # run() reads both pipes to their end: a copy kept open would hang it
    facts = reported(tmp_path)
    assert done.returncode == 0
    assert not [entry for entry in facts["fds"].values() if entry["path"].startswith("pipe:")]
    stop(facts["pid"])


def test_the_other_end_of_a_pipe_that_is_stdout_is_no_copy_of_it(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        reader, writer = os.pipe()
        os.dup2(writer, 1)
        os.write(writer, b"from the caller")
        os.close(writer)
        with daemonkit.detached(working_directory="."):
            report(read=os.read(reader, 100).decode())
            wait()
    """,
    )
    facts = reported(tmp_path)
    assert facts["read"] == "from the caller"
    stop(facts["pid"])


def test_close_fds_all_keeps_files_preserve_and_the_lock_alone(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        gone, kept, number = open("gone", "w"), open("kept", "w"), os.open("number", os.O_CREAT | os.O_WRONLY)
        preserve = [kept, number]
        with daemonkit.detached(close_fds="all", files_preserve=preserve, stdout="log", pidfile="pid", working_directory="."):
            report(kept=[kept.fileno(), number], preserve=len(preserve), held=daemonkit.PidFile("pid").read_pid())
            wait()
    """,
    )
    facts = reported(tmp_path)
    paths = [os.path.basename(entry["path"]) for entry in facts["fds"].values()]
    assert "gone" not in paths and set(facts["kept"]) <= set(facts["fds"])
    assert facts["preserve"] == 2 and facts["held"] == facts["pid"]
    assert len(facts["fds"]) <= 3 + 2 + 2 + 2  # streams, preserved, lock and directory; the listing and the report
    stop(facts["pid"])
