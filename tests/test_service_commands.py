"""A service's command line, driven as a user drives it: each command twice, in each state, under argparse, click, typer."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness
import pytest
from harness import Terminal, alive, ended, eventually, let_everybody_in, pid_in, stop

import daemonkit
from daemonkit._pidfile.holder import Holder
from daemonkit._service import underway

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

APP = """\
import os, sys, time
import daemonkit

HERE = os.path.dirname(os.path.abspath(__file__))

def main(daemon):
    open(HERE + "/began", "w").close()
    while os.path.exists(HERE + "/hold"):
        time.sleep(0.01)
    exec(os.environ.get("DO", ""))
    daemon.ready("at work")
    exec(os.environ.get("THEN", ""))
    print("at work")
    while True:
        time.sleep(0.1)

service = daemonkit.Service(
    main, pidfile=HERE + "/app.pid", stdout=HERE + "/app.log", stderr=daemonkit.STDOUT, wait_ready=True, stop_timeout=STOP
)
"""
ENDS = {
    "itself": "if __name__ == '__main__':\n    sys.exit(service.main())\n",
    "argparse": """
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("command", choices=list(service.commands))
if __name__ == "__main__":
    sys.exit(service.commands[parser.parse_args().command]())
""",
    "click": """
import click
@click.group()
def cli():
    "My program."
for name, command in service.commands.items():
    cli.command(name)(command)
if __name__ == "__main__":
    cli()
""",
    "typer": """
import typer
cli = typer.Typer()
for name, command in service.commands.items():
    cli.command(name)(command)
if __name__ == "__main__":
    cli()
""",
}


class App:
    """A program with commands in a directory of its own, and what a shell sees of it."""

    def __init__(
        self, directory: Path, end: str = "itself", user: int | None = None, env: Mapping[str, str] = os.environ
    ) -> None:
        self.directory, self.user, self.env, self.python = directory, user, env, sys.executable
        self.pidfile, self.log, self.program = (directory / f"app.{kind}" for kind in ("pid", "log", "py"))
        self.program.write_text(APP.replace("STOP", "10.0") + ENDS[end])
        if user is not None:
            if os.geteuid() != 0 or not (python := harness.python_for_everybody()):
                pytest.skip("this takes root, and a Python that other users can execute")
            self.python = python
            let_everybody_in(directory)
            os.chown(directory, user, user)
            directory.chmod(0o755)

    def options(self, **more: object) -> dict[str, Any]:
        environment = {**self.env, **{name: str(value) for name, value in more.items()}, "PYTHONWARNINGS": "error"}
        return {
            "cwd": "/",
            "env": environment,
            "stdin": subprocess.DEVNULL,
            "text": True,
            "user": self.user,
            "group": self.user,
        }

    def __call__(self, *arguments: str, **environment: object) -> tuple[int, str, str]:
        """Type a command, from another directory; its streams are read to their end, so a leak hangs."""
        command = [self.python, self.program, *arguments]
        done = subprocess.run(
            command, capture_output=True, check=False, timeout=harness.PATIENCE, **self.options(**environment)
        )
        assert "Traceback" not in done.stderr + done.stdout
        return done.returncode, done.stdout, done.stderr

    def begin(self, *arguments: str, **environment: object) -> subprocess.Popen[str]:
        """Type a command and do not wait for it."""
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([self.python, self.program, *arguments], **pipe, **self.options(**environment))

    def starting(self) -> subprocess.Popen[str]:
        """Begin a start and hold it up."""
        (self.directory / "hold").touch()
        (self.directory / "began").unlink(missing_ok=True)
        program = self.begin("start")
        eventually((self.directory / "began").exists)
        return program

    def go_on(self) -> None:
        (self.directory / "hold").unlink()


@pytest.fixture(params=["itself", "argparse", "click", "typer"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[App]:
    pytest.importorskip(request.param if request.param in {"click", "typer"} else "argparse")
    yield App(tmp_path, request.param)
    end_of(tmp_path / "app.pid")


@pytest.fixture(params=["root", "an ordinary user"])
def plain(request: pytest.FixtureRequest, tmp_path: Path, everybody: dict[str, str]) -> Iterator[App]:
    yield App(tmp_path) if request.param == "root" else App(tmp_path, user=65534, env=everybody)
    end_of(tmp_path / "app.pid")


def end_of(pidfile: Path) -> None:
    if pid := daemonkit.status(pidfile).pid:
        os.kill(pid, signal.SIGKILL)
        ended(pid)


def waits(program: subprocess.Popen[str]) -> None:
    """Return once a start waits for another one: it has tried itself, and watches the other's process."""
    files = Path(f"/proc/{program.pid}/fd")

    def has_a_pidfd() -> bool:
        return "pidfd" in str([os.readlink(fd) for fd in files.iterdir()])

    # In this order: the first may be that of its own helper, which is gone when there are no children; not the last.
    eventually(lambda: has_a_pidfd() and not harness.children(program.pid) and has_a_pidfd())


@pytest.mark.timeout(300)  # 24 commands, each of which loads click or typer
def test_each_command_twice_from_another_directory(app: App) -> None:
    for _ in range(2):
        assert app("status") == (3, "not running\n", "")
        assert app("stop") == (0, "not running\n", "")
        assert app("reload") == (3, "", "app: not running\n")
    code, out, err = app("start")
    pid = pid_in(app.pidfile)
    assert (code, out, err) == (0, f"started as process {pid}\n", "")
    for _ in range(2):
        assert app("start") == (0, f"already running as process {pid}\n", "")
        assert app("status") == (0, f"running as process {pid}\n", "")
        app.log.rename(app.log.with_suffix(".old"))
        assert app("reload") == (0, "", "")
        eventually(app.log.exists)
    for _ in range(2):
        old, (code, out, err) = pid, app("restart")
        pid = pid_in(app.pidfile)
        assert (code, out, err) == (0, f"stopped\nstarted as process {pid}\n", "") and ended(old) == 0
    assert app("stop") == (0, "stopped\n", "") and ended(pid) == 0
    assert app("stop") == (0, "not running\n", "") and not app.pidfile.exists()
    assert app("restart")[:2] == (0, f"not running\nstarted as process {pid_in(app.pidfile)}\n")


def test_each_command_after_a_kill(plain: App) -> None:
    for command, shown in (
        ("status", (3, "not running\n", "")),
        ("stop", (0, "not running\n", "")),
        ("reload", (3, "", "app: not running\n")),
        ("start", (0, "started as process", "")),
        ("restart", (0, "not running\nstarted as process", "")),
    ):
        assert plain("start")[0] == 0
        pid = pid_in(plain.pidfile)
        assert stop(pid, signal.SIGKILL) == -signal.SIGKILL and plain.pidfile.exists()
        code, out, err = plain(command)
        assert (code, re.sub(r"(process) \d+\n", r"\1", out), err) == shown


@pytest.mark.long
def test_each_command_while_a_start_is_under_way(plain: App) -> None:
    for command in ("status", "start", "stop", "restart"):
        first = plain.starting()
        pid = pid_in(plain.pidfile)
        if command == "status":
            assert plain("status") == (0, f"starting as process {pid}\n", "")
        if command in {"status", "start"}:
            second = plain.begin("start")
            waits(second)
            plain.go_on()
            assert second.communicate(timeout=harness.PATIENCE) == (f"already running as process {pid}\n", "")
            assert second.returncode == 0
            assert first.communicate(timeout=harness.PATIENCE) == (f"started as process {pid}\n", "")
            assert plain("stop")[0] == 0
        else:
            other = plain.begin(command)
            out, err = first.communicate(timeout=harness.PATIENCE)
            assert (first.returncode, out, err.count("\n")) == (1, "", 1) and err.startswith("app: ")
            plain.go_on()
            assert other.communicate(timeout=harness.PATIENCE)[0].startswith("stopped\n") and other.returncode == 0
            plain("stop")
        assert not alive(pid)


def test_a_second_start_is_told_that_the_first_has_failed(plain: App) -> None:
    first = plain.starting()
    second = plain.begin("start")
    pid = pid_in(plain.pidfile)
    waits(second)
    os.kill(pid, signal.SIGKILL)
    assert second.communicate(timeout=harness.PATIENCE) == ("", "app: another start was under way, and it has failed\n")
    assert second.returncode == 1
    assert first.communicate(timeout=harness.PATIENCE)[1].count("\n") == 1 and first.returncode == 1


def test_a_start_is_not_told_that_it_runs_already_where_that_ended_in_this_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inject the race: the other one ends while this start looks whether it is still starting."""
    app = App(tmp_path)
    assert app("start")[0] == 0
    pid = pid_in(app.pidfile)
    monkeypatch.setattr(underway, "watcher_of", lambda daemon: stop(daemon, signal.SIGKILL) and None)
    with pytest.raises(daemonkit.StartError, match=f"it ran as process {pid}, which has ended just now"):
        daemonkit.Service(lambda: None, pidfile=app.pidfile, detach_process=True).start()


def test_a_start_that_cleans_up_after_its_daemon_is_not_taken_for_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inject the race: the starting process holds the pidfile again while the second start looks."""
    daemon = Holder(4194300, 0, locked_by_daemonkit=True, daemon=True)
    starter = Holder(4194299, 0, locked_by_daemonkit=True)
    holders = [daemon, daemon, starter, starter, starter, None]
    monkeypatch.setattr(underway, "find_holder", lambda _path: holders.pop(0))
    monkeypatch.setattr(underway, "watcher_of", lambda _daemon: 4194298)
    assert underway.wait_for_start("app.pid", daemon.pid) and holders == []


def test_each_command_where_another_user_runs_it(tmp_path: Path, everybody: dict[str, str]) -> None:
    app = App(tmp_path, user=65534, env=everybody)
    assert app("start")[0] == 0
    pid = pid_in(app.pidfile)
    other = App(tmp_path, user=1, env=everybody)
    os.chown(tmp_path, 65534, 65534)
    for _ in range(2):
        assert other("status") == (0, f"running as process {pid}\n", "")
        assert other("start") == (0, f"already running as process {pid}\n", "")
        for command in ("stop", "restart", "reload"):
            code, out, err = other(command)
            assert (code, out) == (1, "") and err.startswith(f"app: process {pid} belongs to another user")
    assert alive(pid) and app("stop") == (0, "stopped\n", "")
    code, out, err = other("start")
    assert (code, out, err.count("\n")) == (1, "", 1) and "Permission denied" in err


def test_the_commands_of_another_tools_daemon(plain: App) -> None:
    with subprocess.Popen(["sleep", "1000"]) as stranger:
        plain.pidfile.write_text(f"{stranger.pid}\n")
        for _ in range(2):
            assert plain("status") == (0, f"running as process {stranger.pid}\n", "")
            assert plain("start") == (0, f"already running as process {stranger.pid}\n", "")
            for command in ("stop", "restart", "reload"):
                code, out, err = plain(command)
                assert (code, out, err.count("\n")) == (1, "", 1) and "another tool" in err
        assert stranger.poll() is None
        stranger.kill()


FAILURES = {
    "an exception": ("raise RuntimeError('the database is down')", 1, "app: the database is down\n"),
    "over two lines": ("raise RuntimeError('the database\\n  is down')", 1, "app: the database is down\n"),
    "a file": ("open('/nosuch/file')", 1, "app: /nosuch/file: No such file or directory\n"),
    "a name": ("import nosuch", 1, "app: No module named 'nosuch'\n"),
    "a key": ("{}['host']", 1, "app: KeyError: 'host'\n"),
    "nothing": ("raise ValueError", 1, "app: ValueError\n"),
    "a text": ("sys.exit('bad config')", 1, "bad config\n"),
    "a status": ("sys.exit(7)", 7, "app: it ended with status 7 before it was ready\n"),
    "status 0": ("sys.exit(0)", 1, "app: it ended with status 0 before it was ready\n"),
    "a group": ("raise ExceptionGroup('unhandled errors', [OSError(98, 'in use')])", 1, "app: in use\n"),
    "groups in a group": (
        "inner = ExceptionGroup('', [KeyError('host'), ValueError()]); raise ExceptionGroup('', [inner, ValueError()])",
        1,
        "app: KeyError: 'host' (and 2 more)\n",
    ),
    "late": ("time.sleep(0.2); 1 / 0", 1, "app: division by zero\n"),
    "click": ("import click; raise click.ClickException('no such table')", 1, "app: no such table\n"),
    "click's usage": ("import click; raise click.UsageError('no such table')", 2, "app: no such table\n"),
    "typer's exit": ("import typer; raise typer.Exit(5)", 5, "app: it ended with status 5 before it was ready\n"),
}


@pytest.mark.parametrize("command", ["start", "restart", "run"])
@pytest.mark.parametrize("name", FAILURES)
def test_a_start_that_fails_is_one_line_and_its_status(tmp_path: Path, name: str, command: str) -> None:
    do, code, line = FAILURES[name]
    for module in re.findall(r"import (click|typer)", do):
        pytest.importorskip(module)
    app = App(tmp_path)
    assert app(command, DO=do) == (code, "not running\n" if command == "restart" else "", line)
    assert app("status") == (3, "not running\n", "") and not app.pidfile.exists()


def test_an_exit_in_a_group_is_told_as_an_exit(tmp_path: Path) -> None:
    do = "raise BaseExceptionGroup('', [SystemExit(3), ValueError()])"
    assert App(tmp_path)("start", DO=do) == (1, "", "app: SystemExit: 3 (and 1 more)\n")


def test_debug_shows_the_daemons_traceback(tmp_path: Path) -> None:
    app = App(tmp_path)
    for arguments in (["start", "--debug"], ["--debug", "start"], ["--debug", "run"]):
        done = subprocess.run(
            [sys.executable, app.program, *arguments], capture_output=True, check=False, **app.options(DO="1 / 0")
        )
        assert done.returncode == 1 and done.stderr.startswith("Traceback (most recent call last)")
        assert "in main" in done.stderr and done.stderr.endswith(
            "ZeroDivisionError: division by zero\napp: division by zero\n"
        )


@pytest.mark.parametrize("arguments", [[], ["begin"], ["start", "now"], ["--nosuch", "start"]])
def test_usage_is_status_2_and_starts_nothing(tmp_path: Path, arguments: list[str]) -> None:
    app = App(tmp_path)
    code, out, err = app(*arguments)
    assert (code, out) == (2, "") and err.startswith("usage: app.py ") and not app.pidfile.exists()


@pytest.mark.parametrize("end", ["itself", "click", "typer"])
def test_help_has_every_command(tmp_path: Path, end: str) -> None:
    code, out, _ = App(tmp_path, end)("--help")
    assert code == 0
    for name in ("start", "stop", "restart", "reload", "status", "run"):
        assert re.search(rf"\b{name} +\W* *[A-Z]\w+ ", out), f"{name} and what it does"


def test_main_returns_the_status_to_a_caller_that_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def work(daemon: daemonkit.DetachedContext) -> None:
        daemon.ready()
        while True:
            signal.pause()

    service = daemonkit.Service(work, pidfile=tmp_path / "x.pid", stderr=tmp_path / "log", wait_ready=True, name="mine")
    assert service.main(["status"]) == 3 and service.main(["start"]) == 0 and service.main(["status"]) == 0
    pid = service.status().pid
    with pytest.raises(SystemExit) as caught:
        service.commands["reload"]() or service.commands["stop"]() or service.commands["status"]()  # type: ignore[func-returns-value]
    assert caught.value.code == 3 and service.main(["nosuch"]) == 2 and service.main(["reload"]) == 3
    shown = capsys.readouterr()
    assert shown.out == f"not running\nstarted as process {pid}\nrunning as process {pid}\nstopped\nnot running\n"
    assert "mine: not running\n" in shown.err


def test_a_stop_that_ends_in_sigkill_says_so_in_one_line(tmp_path: Path) -> None:
    app = App(tmp_path)
    app.program.write_text(app.program.read_text().replace("10.0", "0.3"))
    then = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    assert app("start", THEN=then)[0] == 0
    pid = pid_in(app.pidfile)
    assert app("stop") == (0, "killed: it did not end within 0.3 s\n", "") and ended(pid) == -signal.SIGKILL


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("kind", ["closed", "full", "a pipe that nobody reads"])
def test_nobody_to_tell_it_to_changes_no_status(tmp_path: Path, stream: str, kind: str) -> None:
    app = App(tmp_path)
    reader, writer = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    close = ["sh", "-c", f'exec "$@" {1 if stream == "stdout" else 2}>&-', "sh"] if kind == "closed" else []
    where = {stream: full if kind == "full" else writer} if kind != "closed" else {}
    try:
        for command, code in (("status", 3), ("reload", 3), ("start", 0), ("start", 0), ("status", 0), ("stop", 0)):
            line = [*close, sys.executable, str(app.program), command]
            streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **where}
            done = subprocess.run(line, check=False, timeout=harness.PATIENCE, text=True, **streams)
            assert (done.returncode, "Traceback" in f"{done.stdout}{done.stderr}") == (code, False)
    finally:
        os.close(writer)
        os.close(full)
        end_of(app.pidfile)


# --- run: a terminal ------------------------------------------------------------------------------------------------


def test_run_on_a_terminal_has_its_input_and_output_and_ctrl_c_ends_it_with_130(tmp_path: Path) -> None:
    app = App(tmp_path)
    app.program.write_text(app.program.read_text().replace('exec(os.environ.get("THEN", ""))', "print(input('? '))"))
    terminal = Terminal([sys.executable, app.program, "run"], tmp_path)
    terminal.read("? ")
    assert pid_in(app.pidfile) == terminal.pid
    assert app("status") == (0, f"running as process {terminal.pid}\n", "")
    assert app("start") == (0, f"already running as process {terminal.pid}\n", "")
    terminal.type("typed\n")
    terminal.read("at work")
    terminal.type("\x03")
    rest = terminal.read()
    assert "Traceback" not in rest and ended(terminal.pid) == 130
    terminal.hang_up()
    assert not app.pidfile.exists() and not app.log.exists()


def test_run_is_ended_by_stop_and_a_crash_of_it_shows_its_traceback(tmp_path: Path) -> None:
    app = App(tmp_path)
    program = app.begin("run")
    eventually(lambda: daemonkit.status(app.pidfile))
    eventually((tmp_path / "began").exists)
    assert app("stop") == (0, "stopped\n", "")
    assert program.communicate(timeout=harness.PATIENCE)[1] == "" and program.returncode == 0
    program = app.begin("run", THEN="1 / 0")
    assert program.communicate(timeout=harness.PATIENCE)[1].count("Traceback") == 1 and program.returncode == 1
    program = app.begin("run", THEN="sys.exit(4)")
    assert program.communicate(timeout=harness.PATIENCE) == ("", "") and program.returncode == 4


def test_ctrl_c_while_start_waits_ends_it_with_130_and_one_line(tmp_path: Path) -> None:
    app = App(tmp_path)
    (tmp_path / "hold").touch()
    terminal = Terminal([sys.executable, app.program, "start"], tmp_path)
    eventually((tmp_path / "began").exists)
    terminal.type("\x03")
    assert terminal.read().replace("^C", "").strip() == "app: interrupted" and ended(terminal.pid) == 130
    terminal.hang_up()
    assert app("status") == (3, "not running\n", "") and not app.pidfile.exists()


def test_the_name_is_the_programs_own(tmp_path: Path) -> None:
    app = App(tmp_path)
    package = tmp_path / "package"
    package.mkdir()
    shutil.copy(app.program, package / "__main__.py")
    line = [sys.executable, "-m", "package", "reload"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (3, "package: not running\n")


def test_the_help_of_a_service_without_a_name_has_the_programs_own(tmp_path: Path) -> None:
    code, out, _ = App(tmp_path)("--help")
    assert code == 0 and "Start app, stop it, and see" in out and "\n  app.py start\n" in out and "None" not in out


def test_a_programs_threads_and_children_that_will_be_missing_in_the_daemon_are_named(tmp_path: Path) -> None:
    app = App(tmp_path)
    extra = "import threading\nthreading.Thread(target=time.sleep, args=(1000,), name='poller', daemon=True).start()\n"
    app.program.write_text(app.program.read_text().replace("service =", f"{extra}service ="))
    options = {**app.options(), "env": app.env}
    done = subprocess.run([sys.executable, app.program, "start"], capture_output=True, check=False, **options)
    assert done.returncode == 0 and "RuntimeWarning: these threads will not exist in the daemon: poller" in done.stderr
    assert app("stop")[0] == 0
