"""detached(): which descriptors the daemon keeps."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from harness import reported, run, stop

if TYPE_CHECKING:
    from pathlib import Path


def test_inherited_descriptors_are_closed_and_the_programs_own_are_kept(tmp_path: Path) -> None:
    handed, other = os.pipe()
    try:
        run(
            tmp_path,
            f"""
            import resource
            own = open("own", "w")
            os.dup2({handed}, 900)
            resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
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
    assert handed not in facts["fds"] and 900 not in facts["fds"]
    assert facts["own"] in facts["fds"] and facts["read"] == "x"
    assert (tmp_path / "own").read_text() == "kept" and "kept too" in (tmp_path / "logging").read_text()
    stop(facts["pid"])


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
