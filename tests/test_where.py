"""Where the program runs decides whether it detaches."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import harness
import pytest
from harness import Terminal, ended, eventually, pid_in, reported, run, stop

namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare"), reason="a PID namespace takes root and unshare(1)"
)

SERVICE = """
    with daemonkit.detached(pidfile="pid", working_directory=".", wait_ready=True) as d:
        print("on stdout")
        d.ready("listening on 8080")
        report(detached=d.detached)
        wait()
"""


def _foreground(program: Path, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(program)],
        cwd=program.parent,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_with_notify_socket_it_stays_and_says_when_it_is_ready(tmp_path: Path, kind: str) -> None:
    address = str(tmp_path / "notify") if kind == "path" else f"@daemonkit-{tmp_path.name}-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address.replace("@", "\0", 1) if kind == "abstract" else address)
        manager.settimeout(harness.PATIENCE)
        with _foreground(harness.write(tmp_path, SERVICE), {"NOTIFY_SOCKET": address}) as service:
            assert manager.recv(4096) == b"READY=1\nSTATUS=listening on 8080"
            facts = reported(tmp_path)
            assert facts["pid"] == service.pid == pid_in(tmp_path / "pid") and facts["detached"] is False
            assert facts["fds"][1]["path"].startswith("pipe:") and facts["fds"][0]["path"] == "/dev/null"
            service.terminate()
            assert service.wait(harness.PATIENCE) == 0
            assert service.stdout and service.stdout.read() == "on stdout\n"
    assert not (tmp_path / "pid").exists()


def test_a_start_that_fails_in_the_foreground_says_why_to_the_manager(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(harness.PATIENCE)
        done = run(
            tmp_path,
            """
            with daemonkit.detached(pidfile="pid", wait_ready=True):
                raise ValueError("no\\ndatabase")
        """,
            env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")},
        )
        assert manager.recv(4096) == b"STATUS=failed to start: ValueError: no database"
    assert done.returncode == 1 and done.stderr.count("Traceback (most recent call last)") == 1
    assert not (tmp_path / "pid").exists()


def test_a_manager_that_can_not_be_reached_is_a_warning(tmp_path: Path) -> None:
    program = harness.write(tmp_path, "logging.basicConfig(filename='log')\n" + harness.textwrap.dedent(SERVICE))
    with _foreground(program, {"NOTIFY_SOCKET": str(tmp_path / "nobody")}) as service:
        assert reported(tmp_path)["detached"] is False
        service.terminate()
        assert service.wait(harness.PATIENCE) == 0
    assert "can't be reached" in (tmp_path / "log").read_text()


def test_executed_by_systemd_itself_it_stays(tmp_path: Path) -> None:
    program = harness.write(
        tmp_path, "os.environ['SYSTEMD_EXEC_PID'] = str(os.getpid())\n" + harness.textwrap.dedent(SERVICE)
    )
    with _foreground(program) as service:
        assert reported(tmp_path)["pid"] == service.pid
        service.terminate()
        assert service.wait(harness.PATIENCE) == 0


def test_a_descendant_of_what_systemd_executed_detaches(tmp_path: Path) -> None:
    run(tmp_path, SERVICE, env={**os.environ, "SYSTEMD_EXEC_PID": str(os.getpid())})
    facts = reported(tmp_path)
    assert facts["detached"] is True
    stop(facts["pid"])


def test_a_socket_on_stdin_decides_nothing(tmp_path: Path) -> None:
    left, right = socket.socketpair()
    with left, right:
        run(tmp_path, SERVICE, stdin=left)
        facts = reported(tmp_path)
        assert facts["detached"] is True and facts["fds"][0]["path"] == "/dev/null"
        left.close()
        assert right.recv(1) == b""  # nobody in the daemon keeps it
    stop(facts["pid"])


@pytest.mark.parametrize("choice", [True, False])
def test_detach_process_overrules(tmp_path: Path, choice: bool) -> None:  # noqa: FBT001 - a parameter of the test
    program = harness.write(tmp_path, SERVICE.replace("wait_ready=True", f"detach_process={choice}"))
    with _foreground(program, {"NOTIFY_SOCKET": "/nowhere"} if choice else None) as service:
        facts = reported(tmp_path)
        assert facts["detached"] is choice and (facts["pid"] == service.pid) is not choice
        assert stop(facts["pid"]) == 0 if choice else service.terminate() is None


def test_in_the_foreground_streams_that_are_given_are_used(tmp_path: Path) -> None:
    program = harness.write(
        tmp_path,
        """
        with daemonkit.detached(detach_process=False, stdout="log", stderr=daemonkit.STDOUT, working_directory="."):
            print("out"); print("err", file=sys.stderr)
    """,
    )
    with _foreground(program) as service:
        assert service.wait(harness.PATIENCE) == 0
        assert service.stdout and service.stdout.read() == ""
    assert (tmp_path / "log").read_text() == "out\nerr\n"


def test_in_the_foreground_a_held_pidfile_and_a_crash_are_statuses_too(tmp_path: Path) -> None:
    with _foreground(harness.write(tmp_path, SERVICE), {"NOTIFY_SOCKET": "/nowhere"}) as service:
        reported(tmp_path)
        second = run(tmp_path, SERVICE, env={**os.environ, "NOTIFY_SOCKET": "/nowhere"})
        assert second.returncode == 1 and f"held by process {service.pid}" in second.stderr
        service.terminate()
    crash = run(
        tmp_path,
        """
        with daemonkit.detached(detach_process=False, pidfile="pid"):
            raise ValueError("x")
    """,
    )
    assert crash.returncode == 1 and crash.stderr.count("\nValueError: x") == 1
    assert not (tmp_path / "pid").exists()


def test_sockets_passed_by_systemd_are_kept_and_other_inherited_descriptors_are_not(tmp_path: Path) -> None:
    program = harness.write(
        tmp_path,
        """
        with daemonkit.detached(working_directory=".", detach_process=False):
            report(pid_told=os.environ["LISTEN_PID"])
    """,
    )
    done = subprocess.run(
        ["sh", "-c", f'LISTEN_PID=$$ LISTEN_FDS=1 exec "{sys.executable}" "{program}" 3</dev/zero 9</dev/zero'],
        cwd=tmp_path,
        check=False,
        timeout=harness.PATIENCE,
    )
    facts = reported(tmp_path)
    assert done.returncode == 0 and facts["pid_told"] == str(facts["pid"])
    assert facts["fds"][3]["path"] == "/dev/zero"
    assert [entry["path"] for entry in facts["fds"].values()].count("/dev/zero") == 1


@namespaces
def test_process_1_stays(tmp_path: Path) -> None:
    wrapper = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    program = harness.write(
        tmp_path,
        """
        with daemonkit.detached(pidfile="pid", working_directory=".") as d:
            signal.alarm(20)
            report(detached=d.detached)
            while not os.path.exists("go"): time.sleep(0.01)
            raise ValueError("and its status is seen")
    """,
    )
    with subprocess.Popen(
        [*wrapper, sys.executable, str(program)], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as service:
        facts = reported(tmp_path)
        assert (facts["pid"], facts["detached"]) == (1, False)
        assert pid_in(tmp_path / "pid") == 1
        (tmp_path / "go").touch()
        assert service.wait(harness.PATIENCE) == 1
        assert service.stderr and service.stderr.read().count("\nValueError: and its status") == 1


@namespaces
def test_the_child_of_process_1_without_a_terminal_stays(tmp_path: Path) -> None:
    """As with `docker run image sh -c "python app.py; true"`."""
    program = harness.write(tmp_path, SERVICE)
    command = ("setsid", "--wait", "unshare", "--pid", "--fork", "--mount-proc", "--kill-child",
               "sh", "-c", f'"{sys.executable}" "{program}"; echo status $?')  # fmt: skip
    with subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as shell:
        facts = reported(tmp_path)
        assert facts["ppid"] == 1 and facts["detached"] is False
        inner = next(pid for pid in _descendants(shell.pid) if _runs(pid, "program.py") and not _runs(pid, "sh"))
        os.kill(inner, signal.SIGTERM)
        out, _ = shell.communicate(timeout=harness.PATIENCE)
        assert out == "on stdout\nstatus 0\n"


@namespaces
def test_a_shell_as_process_1_with_a_terminal_does_not_keep_it_in_the_foreground(tmp_path: Path) -> None:
    """As with `docker run -it image bash`, and the program typed there."""
    program = harness.write(tmp_path, SERVICE)
    terminal = Terminal(["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-i"], tmp_path)
    try:
        terminal.type(f'"{sys.executable}" "{program}"; echo "status=$?"\n')
        terminal.read("status=0")
        facts = reported(tmp_path)
        assert facts["detached"] is True and facts["tty"] == 0
        terminal.type(f"kill {facts['pid']}\n")
        eventually(lambda: not (tmp_path / "pid").exists())
        terminal.type("exit\n")
        terminal.read()
    finally:
        terminal.hang_up()
        ended(terminal.pid)


def _descendants(pid: int) -> list[int]:
    return [deeper for child in harness.children(pid) for deeper in (child, *_descendants(child))]


def _runs(pid: int, name: str) -> bool:
    command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return any(Path(os.fsdecode(part)).name == name for part in command)


@namespaces
@pytest.mark.skipif(not shutil.which("nsenter"), reason="nsenter(1) is not installed")
def test_a_parent_outside_of_the_namespace_and_no_terminal_keep_it_in_the_foreground(tmp_path: Path) -> None:
    """As with Kubernetes' shared PID namespace, or `docker run --pid=container:`."""
    program = harness.write(tmp_path, SERVICE)
    with subprocess.Popen(["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "sleep", "60"]) as outer:
        pause = eventually(lambda: harness.children(outer.pid))[0]
        inside = f'cd "{tmp_path}"; exec setsid "{sys.executable}" "{program}"'
        command = ["nsenter", "--target", str(pause), "--pid", "--mount", "sh", "-c", inside]
        with subprocess.Popen(
            command, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        ) as main:
            facts = reported(tmp_path)
            assert facts["ppid"] == 0 and facts["detached"] is False
            os.kill([main.pid, *_descendants(main.pid)][-1], signal.SIGTERM)
            assert main.communicate(timeout=harness.PATIENCE)[0] == "on stdout\n" and main.returncode == 0
        outer.kill()  # unshare(1) ignores SIGTERM while it waits


SUPERVISED = """
    import subprocess
    if "grandchild" in sys.argv:
        with daemonkit.detached(working_directory=".") as d:
            report("grandchild", detached=d.detached)
    elif "instance" in sys.argv:
        subprocess.run([sys.executable, __file__, "grandchild"], check=True)
        with daemonkit.detached(working_directory=".", pidfile="pid") as d:
            report(detached=d.detached)
    else:
        daemonkit.supervise([sys.executable, __file__, "instance"], restart="never", cwd=".")
"""


def test_executed_by_supervise_itself_it_stays_and_what_that_program_starts_detaches(tmp_path: Path) -> None:
    assert run(tmp_path, SUPERVISED).returncode == 0
    assert reported(tmp_path)["detached"] is False
    grandchild = reported(tmp_path, "grandchild")
    assert grandchild["detached"] is True
    eventually(lambda: not harness.alive(grandchild["pid"]))


def test_a_callable_of_supervise_stays_too(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        def instance():
            with daemonkit.detached(working_directory=".", pidfile="pid") as d:
                report(detached=d.detached)
        daemonkit.supervise(instance, restart="never")
    """,
    )
    assert done.returncode == 0, done.stderr
    assert reported(tmp_path)["detached"] is False


@pytest.mark.parametrize("given", ["", ", stdin=daemonkit.DEVNULL"])
def test_in_the_foreground_stdin_stays_with_what_was_read_ahead_unless_it_is_given(tmp_path: Path, given: str) -> None:
    done = run(
        tmp_path,
        f"""
        first = sys.stdin.readline()
        with daemonkit.detached(detach_process=False{given}):
            print([first, *sys.stdin])
    """,
        stdin=None,
        input="one\ntwo\n",
    )
    assert done.stdout == ("['one\\n']\n" if given else "['one\\n', 'two\\n']\n")


def test_in_the_foreground_an_exception_arrives_as_itself(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        class Mine(Exception): pass
        for ready in (False, True):
            try:
                with daemonkit.detached(detach_process=False, pidfile="pid", wait_ready=ready, working_directory="."):
                    raise Mine
            except Mine:
                print("caught", os.path.exists("pid"))
    """,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "caught False\ncaught False\n", "")


@pytest.mark.parametrize("detach", [True, False], ids=["detached", "in the foreground"])
def test_a_body_that_forgets_ready_is_told(tmp_path: Path, detach: bool) -> None:  # noqa: FBT001 - a parameter of the test
    done = run(
        tmp_path,
        f"""
        with daemonkit.detached(detach_process={detach}, pidfile="pid", wait_ready=True):
            pass
    """,
    )
    assert done.returncode == 1 and "StartError: the " in done.stderr
    assert done.stderr.endswith("the body ended without calling ready()\n")
    assert not (tmp_path / "pid").exists()
