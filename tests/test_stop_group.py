"""stop(group=True): what is left of a process's own group is asked, waited for and ended, and no stranger is."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import harness
import pytest
from harness import alive, eventually, reported, run

import daemonkit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# A member that says by its files that it lives, and that it was asked.
MEMBER = """
import os, signal, sys, time
name, answer = sys.argv[1:]
def asked(*_):
    open(name + ".asked", "w").close()
    if answer == "ends":
        sys.exit()
signal.signal(signal.SIGTERM, asked)
with open(name + ".new", "w") as file:
    file.write(str(os.getpid()))
os.rename(name + ".new", name + ".pid")
while True:
    time.sleep(0.1)
"""


@pytest.fixture(autouse=True)
def _member(tmp_path: Path) -> Iterator[None]:
    """Provide the program, and end what the test leaves of it."""
    (tmp_path / "member.py").write_text(MEMBER)
    yield
    for path in tmp_path.glob("*.pid"):
        with contextlib.suppress(OSError, ValueError):
            pid = int(path.read_text())
            if b"member.py" in harness.Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)


def _pid(directory: Path, name: str) -> int:
    return int(eventually((directory / f"{name}.pid").read_text))


def _member_command(name: str, answer: str = "ends") -> str:
    return f"{sys.executable} member.py {name} {answer}"


def _pipeline(directory: Path, *answers: str) -> tuple[Any, list[int]]:
    names = [f"part{n}" for n in range(len(answers))]
    script = " | ".join(map(_member_command, names, answers))
    process = daemonkit.spawn_detached(["sh", "-c", script], cwd=directory, pidfile=directory / "app.pid")
    return process, [_pid(directory, name) for name in names]


def _is_free(directory: Path) -> bool:
    with daemonkit.PidFile(directory / "app.pid") as lock:
        return lock.i_am_locking()


def test_a_pipeline_is_asked_and_waited_for(tmp_path: Path) -> None:
    process, pids = _pipeline(tmp_path, "ends", "ends")
    assert daemonkit.stop(tmp_path / "app.pid", group=True) is True
    assert not any(map(alive, [process.pid, *pids])) and _is_free(tmp_path)
    assert all((tmp_path / f"part{n}.asked").exists() for n in range(2))


def test_a_pipeline_is_left_alone_without_it(tmp_path: Path) -> None:
    process, pids = _pipeline(tmp_path, "ends", "ends")
    assert daemonkit.stop(tmp_path / "app.pid") is True
    assert not alive(process.pid) and all(map(alive, pids))


@pytest.mark.parametrize("answers", [("ends", "stays"), ("stays", "ends"), ("stays", "stays")])
def test_what_does_not_end_on_request_is_killed_and_the_answer_is_false(
    tmp_path: Path, answers: tuple[str, str]
) -> None:
    process, pids = _pipeline(tmp_path, *answers)
    assert daemonkit.stop(tmp_path / "app.pid", timeout=0.5, group=True) is False
    assert not any(map(alive, [process.pid, *pids])) and _is_free(tmp_path)
    assert all((tmp_path / f"part{n}.asked").exists() for n in range(2))


def test_without_kill_the_error_names_who_goes_on(tmp_path: Path) -> None:
    _, pids = _pipeline(tmp_path, "ends", "stays")
    with pytest.raises(daemonkit.StopTimeoutError, match=r"did not end within 0\.5 s") as caught:
        daemonkit.stop(tmp_path / "app.pid", timeout=0.5, kill=False, group=True)
    assert caught.value.pid == pids[1] and alive(pids[1]) and not alive(pids[0])


CHILDREN = """
    import subprocess
    with daemonkit.detached(pidfile="app.pid", working_directory="." OPTIONS):
        for name, answer, new in (("child", "ends", False), ("stubborn", "STUBBORN", False), ("gone", "ends", True)):
            subprocess.Popen([sys.executable, "member.py", name, answer], start_new_session=new)
        while not all(os.path.exists(name + ".pid") for name in ("child", "stubborn", "gone")): time.sleep(0.01)
        report()
        wait()
"""


@pytest.mark.parametrize("stubborn", ["ends", "stays"])
def test_the_children_of_a_daemon_are_ended_and_what_left_its_group_is_not(tmp_path: Path, stubborn: str) -> None:
    run(tmp_path, CHILDREN.replace("OPTIONS", "").replace("STUBBORN", stubborn))
    daemon = reported(tmp_path)["pid"]
    pids = {name: _pid(tmp_path, name) for name in ("child", "stubborn", "gone")}
    assert daemonkit.stop(tmp_path / "app.pid", timeout=1, group=True) is (stubborn == "ends")
    assert not any(map(alive, [daemon, pids["child"], pids["stubborn"]])) and _is_free(tmp_path)
    assert (tmp_path / "child.asked").exists() and alive(pids["gone"]) and not (tmp_path / "gone.asked").exists()


def test_what_is_begun_while_it_ends_is_ended_too(tmp_path: Path) -> None:
    """By a handler of the daemon, and by a member that is asked."""
    body = """
        import subprocess
        def last(*_):
            subprocess.Popen([sys.executable, "member.py", "late", "ends"])
            while not os.path.exists("late.pid"): time.sleep(0.01)
            sys.exit()
        with daemonkit.detached(pidfile="app.pid", working_directory=".", signal_map={"SIGTERM": last}):
            subprocess.Popen([sys.executable, "member.py", "early", "ends"])
            while not os.path.exists("early.pid"): time.sleep(0.01)
            report()
            wait()
    """
    run(tmp_path, body)
    reported(tmp_path)
    assert daemonkit.stop(tmp_path / "app.pid", group=True) is True
    assert not alive(_pid(tmp_path, "early")) and not alive(_pid(tmp_path, "late"))
    assert (tmp_path / "late.asked").exists()


def test_a_pipeline_that_has_only_just_begun_leaves_nothing(tmp_path: Path) -> None:
    """The shell may be about to fork when it is asked."""
    for _ in range(20):
        script = "sleep 1000 | sleep 1001 | sleep 1002"
        process = daemonkit.spawn_detached(["sh", "-c", script], pidfile=tmp_path / "app.pid")
        assert daemonkit.stop(tmp_path / "app.pid", group=True) is True
        eventually(lambda process=process: not _alive_in_group(process.pid))
        process.wait(harness.PATIENCE)


def _alive_in_group(group: int) -> list[int]:
    found = []
    for entry in harness.Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and os.getpgid(int(entry.name)) == group and alive(int(entry.name)):
                found.append(int(entry.name))
    return found


def test_a_group_that_another_live_process_leads_is_left_alone(tmp_path: Path) -> None:
    """In the foreground, as a part of a shell's job: the neighbours are not its own."""
    body = """
        with daemonkit.PidFile("app.pid"):
            report("held")
            wait()
    """
    harness.write(tmp_path, body)
    script = f"{_member_command('neighbour')} & {sys.executable} program.py; echo $? >after; exec sleep 1000"
    with subprocess.Popen(["sh", "-c", script], cwd=tmp_path, start_new_session=True) as shell:
        reported(tmp_path, "held")
        neighbour = _pid(tmp_path, "neighbour")
        assert daemonkit.stop(tmp_path / "app.pid", group=True) is True
        assert eventually((tmp_path / "after").read_text) == "143\n"
        assert alive(neighbour) and not (tmp_path / "neighbour.asked").exists() and shell.poll() is None
        shell.kill()


def test_a_daemons_child_that_stops_its_whole_group_lives_to_see_it(tmp_path: Path) -> None:
    body = """
        import subprocess
        with daemonkit.detached(pidfile="app.pid", working_directory="."):
            if os.fork():
                report()
                wait()
            subprocess.Popen([sys.executable, "member.py", "sister", "ends"])
            while not (os.path.exists("report") and os.path.exists("sister.pid")): time.sleep(0.01)
            how = daemonkit.stop("app.pid", group=True)
            report("stopped", how=how)
    """
    run(tmp_path, body)
    daemon = reported(tmp_path)["pid"]
    assert reported(tmp_path, "stopped")["how"] is True
    assert not alive(daemon) and not alive(_pid(tmp_path, "sister"))


@pytest.mark.skipif(os.geteuid() != 0, reason="a PID namespace of one's own takes root")
def test_a_strangers_group_that_was_given_the_same_number_is_not_signalled(tmp_path: Path) -> None:
    """In a PID namespace, where ns_last_pid says which number is the next: the holder ends, and a stranger comes."""
    body = """
        import subprocess
        from daemonkit import _control
        p = daemonkit.spawn_detached(["sleep", "1000"], pidfile="app.pid")
        number, real, strangers = p.pid, _control.ProcessGroup.end, []

        def end(self, *arguments):
            p.wait()  # it is gone, and its number free
            time.sleep(0.05)
            while not strangers or strangers[-1].pid != number:
                with open("/proc/sys/kernel/ns_last_pid", "w") as file: file.write(str(number - 1))
                strangers.append(subprocess.Popen(["sh", "-c", "sleep 1000 & wait"], start_new_session=True))
            while not read(f"/proc/{number}/task/{number}/children").strip(): pass
            return real(self, *arguments)

        _control.ProcessGroup.end = end
        print(daemonkit.stop("app.pid", group=True), number == strangers[-1].pid)
        sleeper = int(read(f"/proc/{number}/task/{number}/children"))
        print(os.getpgid(sleeper) == number, read(f"/proc/{sleeper}/stat").rpartition(")")[2].split()[0] in "RSD")
        os.killpg(number, 9)
        for stranger in strangers: stranger.kill()
    """
    done = run(tmp_path, body, wrapper=("unshare", "--pid", "--fork", "--mount-proc", "--kill-child"))
    assert done.stdout == "True True\nTrue True\n", done


def test_a_bad_group_is_refused(tmp_path: Path) -> None:
    process, _ = _pipeline(tmp_path, "ends")
    with pytest.raises(TypeError, match="group must be True or False"):
        daemonkit.stop(tmp_path / "app.pid", group="yes")  # type: ignore[arg-type]
    assert process.running and not select.select([process], [], [], 0)[0]
    process.kill()
    process.wait(harness.PATIENCE)
