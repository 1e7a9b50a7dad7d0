"""The `daemonkit` command, driven as a person or a script does."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import select
import shutil
import signal
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from harness import PATIENCE, Terminal, alive, eventually, let_everybody_in, python_for_everybody

import daemonkit
from daemonkit import cli
from daemonkit._supervise import pump as pump_module
from daemonkit.cli import _app, _keep, _parser

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COMMAND = [sys.executable, "-m", "daemonkit"]
FIELDS = ["name", "state", "up", "wanted", "pid", "restarts", "uptime", "cpu", "memory"]
QUICK = ["--min-uptime", "0.05"]
"""An app counts as up soon."""


class Shell:
    """Somebody with a home for apps of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.environment = {**os.environ, "DAEMONKIT_HOME": str(self.home)}

    def __call__(self, *arguments: object, status: int | None = 0, **options: Any) -> subprocess.CompletedProcess[str]:
        """Type a command."""
        done = subprocess.run(
            [*COMMAND, *map(str, arguments)],
            **{"cwd": self.folder, "env": self.environment, "stdin": subprocess.DEVNULL, **options},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert status is None or done.returncode == status, (done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in done.stdout + done.stderr
        return done

    def start(self, name: str, *options: object, command: tuple[object, ...] = ("sleep", "1000"), **more: Any) -> None:
        self("start", name, *QUICK, *options, "--", *command, **more)

    def report(self, name: str) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(self("status", name, "--json", status=None).stdout)
        return report

    def state(self, name: str) -> dict[str, Any]:
        state: dict[str, Any] = json.loads((self.home / f"{name}.state").read_text())
        return state

    def instances(self, name: str) -> list[int]:
        return [pid for one in self.state(name)["instances"] for pid in one["up"]]


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    yield shell
    for pidfile in shell.home.glob("*.pid"):
        with contextlib.suppress(daemonkit.NotRunningError, OSError):
            daemonkit.stop(pidfile)


def one_line(text: str) -> str:
    """Return the only line, which is the command's own."""
    assert text.startswith("daemonkit: ") and text.count("\n") == 1, text
    return text


# --- start, stop and what is between ------------------------------------------------------------------------------


def test_an_app_from_start_to_delete(shell: Shell) -> None:
    shell.start("web", "-i", 3)
    report = shell.report("web")
    assert list(report) == FIELDS
    assert (report["state"], report["up"], report["wanted"], report["restarts"]) == ("running", 3, 3, 0)
    assert alive(report["pid"]) and report["pid"] == int((shell.home / "web.pid").read_text())
    assert 0 <= report["uptime"] < PATIENCE
    assert json.loads(shell("ls", "--json").stdout)[0]["pid"] == report["pid"]
    instances = shell.instances("web")
    assert len(instances) == 3 and all(map(alive, instances))
    shell("stop", "web")
    assert not any(map(alive, [report["pid"], *instances]))
    stopped = shell.report("web")
    assert (stopped["state"], stopped["up"], stopped["pid"], stopped["uptime"]) == ("stopped", 0, None, None)
    shell("stop", "web")
    shell("start", "web")
    assert shell.report("web")["up"] == 3
    shell("delete", "web")
    assert list(shell.home.iterdir()) == []
    assert json.loads(shell("ls", "--json").stdout) == []


def test_all_that_it_has_is_private(shell: Shell) -> None:
    shell.start("web", umask=0)
    assert shell.home.stat().st_mode & 0o777 == 0o700
    for path in shell.home.iterdir():
        assert path.stat().st_mode & 0o022 == 0, path


def test_an_instance_that_is_killed_is_restarted_and_counted(shell: Shell) -> None:
    shell.start("web", "-i", 2, "--restart", "always")
    os.kill(shell.instances("web")[0], signal.SIGKILL)
    eventually(lambda: shell.report("web")["restarts"] == 1 and shell.report("web")["up"] == 2)


def test_a_second_start_of_a_name_says_who_runs_it_and_changes_nothing(shell: Shell) -> None:
    shell.start("web")
    before = (shell.home / "web.json").read_text()
    done = shell("start", "web", *QUICK, "--", "sleep", "7", status=1)
    assert str(shell.report("web")["pid"]) in one_line(done.stderr)
    assert (shell.home / "web.json").read_text() == before


def test_of_two_starts_at_once_one_wins_and_the_other_says_who_did(shell: Shell) -> None:
    command = [*COMMAND, "start", "web", *QUICK, "--", "sleep", "1000"]
    both = [
        subprocess.Popen(command, env=shell.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=PATIENCE)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 1]
    assert str(shell.report("web")["pid"]) in one_line("".join(said))


def test_a_program_that_dies_at_its_start_is_told_with_its_last_lines(shell: Shell) -> None:
    done = shell("start", "bad", "--", "sh", "-c", "echo begun; echo no database >&2; exit 3", status=1)
    *program, own = done.stderr.splitlines(keepends=True)
    assert program[:2] == ["begun\n", "no database\n"]
    assert set(program) == set(program[:2])  # it may have been restarted already
    assert "bad" in one_line(own) and "status 3" in own and str(shell.home / "bad.log") in own
    assert shell("status", "bad", status=3).stderr.count("\n") == 1
    assert not (shell.home / "bad.pid").exists() and not (shell.home / "bad.json").exists()


def test_a_start_that_fails_leaves_the_app_as_it_was_known(shell: Shell) -> None:
    shell.start("web")
    shell("stop", "web")
    before = (shell.home / "web.json").read_text()
    shell("start", "web", "--", "false", status=1)
    assert (shell.home / "web.json").read_text() == before


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("start", "web", "--", "no-such-program"), "not found"),
        (("start", "web", "--cwd", "/no/such", "--", "true"), "/no/such"),
        (("start", "web", "--user", "nobody-like-this", "--", "true"), "nobody-like-this"),
        (("start", "web", "--listen", "127.0.0.1:x", "--", "true"), "127.0.0.1:x"),
        (("start", "web", "--log", "/no/such/log", "--", "true"), "/no/such/log"),
        (("start", "web"), "no app web"),
        (
            ("start", "web", "--wait-ready", "--start-timeout", "0.1", "--", "sleep", "1000"),
            "instance 0 was not ready within 0.1 s",
        ),
        (("stop", "web"), "no app web"),
        (("restart", "web"), "no app web"),
        (("reload", "web"), "no app web"),
        (("delete", "web"), "no app web"),
        (("logs", "web"), "no app web"),
        (("unit", "web"), "no app web"),
        (("start", "../web", "--", "true"), "no name"),
        (("start", "", "--", "true"), "no name"),
        (("stop", "a/b"), "no name"),
        (("spawn", "--", "no-such-program"), "no-such-program"),
        (("run", "--", "no-such-program"), "no-such-program"),
    ],
)
def test_what_fails_is_one_line_and_status_1(shell: Shell, command: tuple[str, ...], said: str) -> None:
    done = shell(*command, status=1)
    assert said in one_line(done.stderr)
    assert not list(shell.home.glob("*.json"))


@pytest.mark.parametrize(
    "command",
    [
        (),
        ("no-such-command",),
        ("start",),
        ("start", "web", "--no-such-option"),
        ("start", "web", "-i", "many", "--", "true"),
        ("start", "web", "--restart", "sometimes", "--", "true"),
        ("start", "web", "--env", "novalue", "--", "true"),
        ("start", "web", "--"),
        ("start", "web", "python", "x.py"),
        ("run",),
        ("spawn",),
        ("stop",),
        ("stop", "web", "--all"),
        ("ls", "--", "true"),
        ("logs", "web", "-n", "-5"),
    ],
)
def test_usage_errors_are_status_2(shell: Shell, command: tuple[str, ...]) -> None:
    assert "usage:" in shell(*command, status=2).stderr
    assert not shell.home.exists()


def test_status_of_what_does_not_run_or_exist_is_3(shell: Shell) -> None:
    shell("status", "nope", status=3)
    shell("status", "nope", "--json", status=3)
    shell.start("web")
    shell("status", "web")
    shell("stop", "web")
    shell("status", "web", status=3)


def test_a_short_job_that_ends_well_counts_as_done(shell: Shell) -> None:
    shell("start", "job", "--", "true")
    assert shell.report("job")["state"] == "stopped"


def test_a_supervisor_that_was_killed_is_stopped_whatever_the_state_says(shell: Shell) -> None:
    shell.start("web", "-i", 2)
    pid, instances = shell.report("web")["pid"], shell.instances("web")
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not any(map(alive, [pid, *instances])))
    assert shell.state("web")["instances"][0]["up"]
    report = shell.report("web")
    assert (report["state"], report["up"], report["pid"]) == ("stopped", 0, None)
    shell("start", "web")
    assert shell.report("web")["up"] == 2


@pytest.mark.parametrize("text", ["", "{", "[]", '{"instances": 5}', '{"instances": [{"up": 5}]}', "\0\xff"])
def test_a_state_that_is_damaged_makes_no_wrong_statement(shell: Shell, text: str) -> None:
    shell.start("web")
    (shell.home / "web.state").write_text(text)
    report = shell.report("web")
    assert (report["state"], report["up"], report["wanted"]) == ("running", None, 1)
    assert "?/1" in shell("ls").stdout


@pytest.mark.parametrize("text", ['{"command": ["x"], "instances": [1]}', "[" * 200_000, "\xff"])
def test_one_damaged_file_does_not_keep_the_others_from_being_listed(shell: Shell, text: str) -> None:
    shell.start("web")
    (shell.home / "bad.json").write_text(text, encoding="latin-1")
    (shell.home / "bad.state").write_text(text, encoding="latin-1")
    assert [(one["name"], one["state"]) for one in json.loads(shell("ls", "--json").stdout)] == [
        ("bad", "stopped"),
        ("web", "running"),
    ]


def test_a_supervisor_that_has_said_nothing_yet_is_starting(shell: Shell) -> None:
    shell.start("web")
    state = shell.state("web")
    shell("stop", "web")
    old = shell.state("web")
    shell("start", "web")
    assert state["supervisor"] != shell.state("web")["supervisor"]
    for text in (json.dumps(old), None):  # of the run before; of an app that has not been up yet
        (shell.home / "web.state").write_text(text) if text else (shell.home / "web.state").unlink()
        if not text:
            (shell.home / "web.json").unlink()
        report = shell.report("web")
        assert (report["state"], report["up"]) == ("starting", 0) and report["pid"]


def test_settings_that_are_damaged_are_told_and_can_be_given_anew(shell: Shell) -> None:
    shell.start("web")
    (shell.home / "web.json").write_text("{")
    assert "damaged" in one_line(shell("restart", "web", status=1).stderr)
    assert shell.report("web")["state"] == "running"
    shell("stop", "web")
    shell.start("web")


def test_each_option_reaches_the_program(shell: Shell) -> None:
    program = """if True:
        import json, os, signal, socket
        json.dump({
            "cwd": os.getcwd(), "instance": os.environ["DAEMONKIT_INSTANCE"], "colour": os.environ["COLOUR"],
            "umask": os.umask(0), "cpus": len(os.sched_getaffinity(0)),
            "port": socket.socket(fileno=3).getsockname()[0],
        }, open("facts.new", "w"))
        os.rename("facts.new", "facts")
        signal.pause()
    """
    (shell.folder / "there").mkdir()
    shell.start(
        "web", "--cwd", "there", "--env", "COLOUR=a=b c", "--umask", "027", "--cpu-affinity", "spread",
        "--listen", "127.0.0.1:0", "--stop-signal", "INT", "--stop-timeout", "5", "--success-codes", "0,130",
        "--backoff", "0.2,3", "--max-restarts", "4", "--max-memory", "1G", "--start-timeout", "9",
        command=(sys.executable, "-c", program),
    )  # fmt: skip
    facts = json.loads(eventually((shell.folder / "there" / "facts").read_text))
    assert facts == {
        "cwd": str(shell.folder / "there"), "instance": "0", "colour": "a=b c", "umask": 0o027, "cpus": 1,
        "port": "127.0.0.1",
    }  # fmt: skip
    shell("stop", "web")


def test_restart_takes_todays_environment_and_the_variables_that_were_asked_for(shell: Shell) -> None:
    command = ("sh", "-c", 'echo "$TODAY $ASKED" >>seen; exec sleep 1000')
    shell.start("web", "--env", "ASKED=yes", command=command, env={**shell.environment, "TODAY": "monday"})
    shell("restart", "web", env={**shell.environment, "TODAY": "tuesday"})
    assert (shell.folder / "seen").read_text() == "monday yes\ntuesday yes\n"
    shell("stop", "web")
    shell("restart", "web")
    assert shell.report("web")["state"] == "running"


def test_a_command_and_a_directory_of_any_bytes_survive(shell: Shell) -> None:
    folder = shell.folder / os.fsdecode(b"caf\xe9 $x %n")
    folder.mkdir()
    argument = os.fsdecode(b"\xff\"' \n$HOME")
    shell.start("web", command=("sh", "-c", 'printf %s "$1" >>seen; exec sleep 1000', "sh", argument), cwd=folder)
    shell("restart", "web")
    assert (folder / "seen").read_bytes() == os.fsencode(argument) * 2


# --- reload, logs -------------------------------------------------------------------------------------------------


def test_reload_returns_once_each_instance_is_a_new_one(shell: Shell) -> None:
    shell.start("web", "-i", 3)
    before = set(shell.instances("web"))
    shell("reload", "web")
    after = set(shell.instances("web"))
    assert len(after) == 3 and before.isdisjoint(after) and not any(map(alive, before))


def test_a_reload_that_fails_says_so_and_the_old_run_stays(shell: Shell) -> None:
    (shell.folder / "good").touch()
    shell.start("web", command=("sh", "-c", "test -e good && exec sleep 1000; exit 5"))
    before = shell.instances("web")
    (shell.folder / "good").unlink()
    assert "not reloaded" in one_line(shell("reload", "web", status=1).stderr)
    assert shell.instances("web") == before and alive(before[0])


def test_a_reload_whose_end_nothing_tells_does_not_wait_for_it(shell: Shell) -> None:
    shell.start("web")
    (shell.home / "web.state").write_text("rubbish")
    assert "is told to reload, but not when it is done" in one_line(shell("reload", "web", status=1).stderr)


def test_logs_shows_the_last_lines(shell: Shell) -> None:
    shell.start("web", command=("sh", "-c", "for i in 1 2 3 4 5; do echo line $i; done; exec sleep 1000"))
    shown = shell("logs", "web", "-n", 100).stdout
    assert re.findall(r"^line \d$", shown, re.MULTILINE) == [f"line {i}" for i in range(1, 6)]
    assert "has started" in shown and "is up" in shown
    assert shell("logs", "web", "-n", 1).stdout == shown.splitlines(keepends=True)[-1]
    assert shell("logs", "web", "-n", 0).stdout == ""


def test_logs_shows_the_end_of_a_long_log_of_any_bytes(shell: Shell) -> None:
    shell.start("web")
    eventually(lambda: "is up" in (shell.home / "web.log").read_text())  # the last that it has to say
    lines = [b"%06d %s" % (number, b"\xff" * (number % 300)) for number in range(5000)]
    for end in (b"", b"\n"):
        (shell.home / "web.log").write_bytes(b"\n".join(lines) + end)
        for count in (1, 2, 700, 4999, 5000, 6000):
            done = subprocess.run(
                [*COMMAND, "logs", "web", "-n", str(count)], env=shell.environment, capture_output=True, check=True
            )
            assert done.stdout == b"\n".join(lines[-count:]) + end, count


def test_logs_follows_a_log_that_is_rotated_several_times_between_two_looks(shell: Shell) -> None:
    go = shell.folder / "go"
    program = f"until [ -e {go} ]; do sleep 0.02; done; i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done"
    shell.start(
        "web", "--log-max-bytes", 2000, "--log-backups", 100, command=("sh", "-c", f"{program}; exec sleep 1000")
    )
    with open(shell.folder / "seen", "wb") as seen:
        follower = subprocess.Popen([*COMMAND, "logs", "web", "-f"], env=shell.environment, stdout=seen)
    try:
        eventually(lambda: b"is up" in (shell.folder / "seen").read_bytes())
        go.touch()
        eventually(lambda: b"line 2999\n" in (shell.folder / "seen").read_bytes())
    finally:
        follower.send_signal(signal.SIGINT)
        assert follower.wait(PATIENCE) == 0
    found = re.findall(rb"^line (\d+)$", (shell.folder / "seen").read_bytes(), re.MULTILINE)
    assert list(map(int, found)) == list(range(3000))


@pytest.mark.parametrize("how", ["rotated", "truncated"])
def test_logs_follows_across_rotation_and_truncation(shell: Shell, how: str) -> None:
    log = shell.folder / "log"
    shell.start("web", "--log", log)
    command = [*COMMAND, "logs", "web", "-f", "-n", "0"]
    follower = subprocess.Popen(command, env=shell.environment, stdout=subprocess.PIPE, bufsize=0)
    assert follower.stdout
    os.set_blocking(follower.stdout.fileno(), False)
    seen = bytearray()

    def arrives(line: str) -> bool:
        seen.extend(follower.stdout.read() or b"")  # type: ignore[union-attr]  # it is a pipe
        return line.encode() in seen

    def add(line: str) -> None:
        with log.open("a") as file:
            file.write(f"{line}\n")

    try:
        eventually(lambda: [add("begin"), arrives("begin")][-1])
        for number in range(60):
            if number in {20, 40}:
                eventually(lambda: arrives("line 39\n" if number == 40 else "line 19\n"))  # noqa: B023 - called at once
                if how == "rotated":
                    log.rename(shell.folder / f"log.{number}")
                else:
                    os.truncate(log, 0)
                    add(f"anew {number}")
                    eventually(lambda: arrives(f"anew {number}\n"))  # noqa: B023 - called at once
            add(f"line {number}")
        eventually(lambda: arrives("line 59\n"))
    finally:
        follower.send_signal(signal.SIGINT)
        assert follower.wait(PATIENCE) == 0
        follower.stdout.close()
    assert re.findall(r"^line \d+$", seen.decode(), re.MULTILINE) == [f"line {number}" for number in range(60)]


def test_a_log_with_a_limit_is_rotated_and_deleted_with_the_app(shell: Shell) -> None:
    loop = "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; exec sleep 1000"
    shell.start("web", "--log-max-bytes", "4K", "--log-backups", 20, command=("sh", "-c", loop))
    eventually(lambda: any("line 1999" in path.read_text() for path in shell.home.glob("web.log*")))
    parts = list(shell.home.glob("web.log*"))
    lines = [line for path in parts for line in path.read_text().splitlines() if line.startswith("line")]
    assert len(parts) > 2 and sorted(lines) == sorted(f"line {i}" for i in range(2000))
    shell("delete", "web")
    assert list(shell.home.iterdir()) == []


# --- the other commands -------------------------------------------------------------------------------------------


def test_spawn_prints_the_pid_of_what_it_launched(shell: Shell) -> None:
    done = shell("spawn", "--pidfile", "job.pid", "--log", "job.log", "--", "sh", "-c", "echo hello; exec sleep 1000")
    pid = int(done.stdout)
    assert alive(pid) and os.getsid(pid) == pid
    eventually(lambda: (shell.folder / "job.log").read_text() == "hello\n")
    assert str(pid) in one_line(shell("spawn", "--pidfile", "job.pid", "--", "true", status=1).stderr)
    daemonkit.stop(shell.folder / "job.pid")


def test_what_is_started_again_while_it_is_deleted_keeps_its_pidfile(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell.start("web")
    monkeypatch.setenv("DAEMONKIT_HOME", str(shell.home))
    app = _app.App("web")  # as it is once delete has found that nothing runs, and somebody starts it
    pid = shell.report("web")["pid"]
    with pytest.raises(daemonkit.AlreadyRunningError):
        app.forget()
    assert shell.report("web")["pid"] == pid
    assert {"web.pid", "web.json", "web.log", "web.state"} <= {path.name for path in shell.home.iterdir()}


# --- where little is as it should be ------------------------------------------------------------------------------


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_closed_streams_change_nothing_else(shell: Shell, closed: str) -> None:
    def typed(line: str) -> int:
        command = f"{' '.join(COMMAND)} {line} {closed}"
        return subprocess.run(
            command, shell=True, cwd=shell.folder, env=shell.environment, check=False, timeout=PATIENCE,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        ).returncode  # fmt: skip

    assert typed(f"start web {' '.join(QUICK)} -- sleep 1000") == 0
    assert [typed(line) for line in ("ls", "status web", "logs web", "reload web")] == [0, 0, 0, 0]
    assert typed("status nobody") == 3 and typed("stop nobody") == 1
    assert typed("stop web") == 0 and not shell.report("web")["pid"]


@pytest.mark.parametrize("line", ["ls", "ls --json", "--version", "--help", "status web", "unit web", "logs web"])
def test_output_that_can_not_be_written_is_a_failure_in_one_line(shell: Shell, line: str) -> None:
    shell.start("web")
    environment = {name: value for name, value in shell.environment.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w", encoding="ascii") as full:
        done = subprocess.run(
            [*COMMAND, *line.split()], env=environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1 and "No space left" in one_line(done.stderr)


def test_a_directory_that_was_removed_is_told_as_that(shell: Shell) -> None:
    gone = shell.folder / "gone"
    gone.mkdir()
    program = f"import os, subprocess, sys; os.rmdir({str(gone)!r}); sys.exit(subprocess.run({COMMAND!r} + sys.argv[1:]).returncode)"

    def typed(*arguments: str) -> subprocess.CompletedProcess[str]:
        gone.mkdir(exist_ok=True)
        return subprocess.run(
            [sys.executable, "-c", program, *arguments],
            cwd=gone, env=shell.environment, capture_output=True, text=True, check=False, timeout=PATIENCE,
        )  # fmt: skip

    for line in (
        ("start", "web", "--log", "x", "--", "sleep", "9"),
        ("start", "web", "--", "sleep", "9"),
        ("spawn", "--log", "x", "--", "sleep", "9"),
        ("run", "--stdin", "x", "--", "sleep", "9"),
    ):
        done = typed(*line)
        assert done.returncode == 1 and "has been removed" in one_line(done.stderr)
    assert typed("start", "web", *QUICK, "--cwd", "/", "--", "sleep", "1000").returncode == 0


def test_settings_that_are_a_directory_are_told_and_disturb_no_others(shell: Shell) -> None:
    shell.start("web")
    (shell.home / "bad.json").mkdir()
    for verb in ("start", "restart", "unit"):
        assert "damaged" in one_line(shell(verb, "bad", status=1).stderr)
    shell("stop", "--all")
    assert not shell.report("web")["pid"]


def test_a_pidfile_that_another_tool_holds_is_left_alone(shell: Shell) -> None:
    shell.start("web")
    shell("stop", "web")
    with subprocess.Popen(["sleep", "1000"]) as stranger:
        try:
            eventually(lambda: (shell.home / "web.pid").write_text(f"{stranger.pid}\n") and shell.report("web")["pid"])
            for verb in ("stop", "delete", "restart", "start"):
                assert "another tool's process" in one_line(shell(verb, "web", status=1).stderr)
            assert stranger.poll() is None and (shell.home / "web.pid").read_text() == f"{stranger.pid}\n"
        finally:
            stranger.kill()


def test_one_pidfile_that_is_none_does_not_keep_the_others_from_being_listed(shell: Shell) -> None:
    shell.start("web")
    (shell.home / "bad.pid").symlink_to("/etc/passwd")
    (shell.home / "bad.json").write_text("{}")
    done = shell("ls", status=1)
    assert "web   running" in done.stdout and "bad.pid: a symbolic link" in one_line(done.stderr)


def test_restart_stops_nothing_that_it_could_not_start_again(shell: Shell) -> None:
    (shell.folder / "room").mkdir()
    shell.start("web", "--cwd", "room")
    pid = shell.report("web")["pid"]
    (shell.folder / "room").rmdir()
    assert "room: No such file" in one_line(shell("restart", "web", status=1).stderr)
    assert shell.report("web")["pid"] == pid


# --- what a start and a reload say ---------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--stdout", "--stderr", "--log"])
def test_a_failed_start_shows_the_last_lines_wherever_they_went(shell: Shell, option: str) -> None:
    done = shell(
        "start",
        "web",
        "--restart",
        "never",
        option,
        "out",
        "--",
        "sh",
        "-c",
        "echo last; echo words >&2; exit 3",
        status=1,
    )
    assert sorted(done.stderr.splitlines()[:-1]) == ["last", "words"]


def test_a_failed_start_shows_the_last_lines_of_a_log_that_was_rotated(shell: Shell) -> None:
    loop = "i=0; while [ $i -lt 40 ]; do echo the line that has the number $i; i=$((i+1)); done; exit 4"
    done = shell("start", "web", "--restart", "never", "--log-max-bytes", "1000", "--", "sh", "-c", loop, status=1)
    assert done.stderr.splitlines()[:-1] == [f"the line that has the number {i}" for i in range(30, 40)]


def test_logs_shows_the_last_lines_also_of_what_the_log_was_rotated_to(shell: Shell) -> None:
    shell.start("web", command=("true",))
    for number, text in (("", "7\n8\n"), (".1", "4\n5\n6\n"), (".2", "1\n2\n3\n")):
        (shell.home / f"web.log{number}").write_text(text)
    for count, shown in ((0, ""), (2, "7 8"), (3, "6 7 8"), (7, "2 3 4 5 6 7 8"), (9, "1 2 3 4 5 6 7 8")):
        assert shell("logs", "web", "-n", count).stdout.split() == shown.split()


def test_settings_are_kept_as_they_were_given(shell: Shell) -> None:
    shell.start("web", "--log-max-bytes", "1K", "--log", "a.log")
    settings = json.loads((shell.home / "web.json").read_text())
    assert settings["log"] == str(shell.folder / "a.log") and not {"stdout", "stderr"} & set(settings)
    assert "--stdout" not in shell("unit", "web").stdout
    shell("restart", "web")
    assert json.loads((shell.home / "web.json").read_text()) == settings


def test_a_program_that_has_done_its_work_is_told_as_that(shell: Shell) -> None:
    for _ in range(5):
        assert shell("start", "web", "--", "true").stdout == "web: done\n"


def test_with_wait_ready_a_program_must_say_so(shell: Shell) -> None:
    done = shell("start", "web", "--wait-ready", "--", "true", status=1)
    assert "ended with status 0 before it was up" in one_line(done.stderr)


def test_a_start_that_is_under_way_is_told_as_that(shell: Shell) -> None:
    with subprocess.Popen(
        [*COMMAND, "start", "web", "--wait-ready", "--", "sleep", "1000"], env=shell.environment, stderr=subprocess.PIPE, text=True
    ) as start:  # fmt: skip
        eventually(lambda: (shell.home / "web.state").exists())
        assert shell.report("web")["state"] == "starting"
        for verb in ("restart", "unit"):
            assert "still starting" in one_line(shell(verb, "web", status=1).stderr)
        shell("stop", "web")
        assert start.wait(PATIENCE) == 1 and "did not start" in one_line(start.stderr.read() if start.stderr else "")


FLAG = "[ -e flag ] && exit 6; sleep 0.6; touch flag; exit 6"


def test_reload_of_what_is_not_up_tells_whether_it_came_up(shell: Shell) -> None:
    shell.start("web", "--backoff", "20,1,20", command=("sh", "-c", FLAG))
    eventually(lambda: (shell.folder / "flag").exists() and not shell.instances("web"))
    assert "did not come up" in one_line(shell("reload", "web", status=1).stderr)


def test_reload_of_a_start_that_is_under_way_waits_for_new_runs(shell: Shell) -> None:
    program = "import os, socket, time; time.sleep(0.7); s = socket.socket(1, 2); s.sendto(b'READY=1', '\\0' + os.environ['NOTIFY_SOCKET'][1:]); time.sleep(1000)"
    with subprocess.Popen(
        [*COMMAND, "start", "web", "--wait-ready", "--", sys.executable, "-c", program],
        env=shell.environment, stdout=subprocess.DEVNULL,
    ) as start:  # fmt: skip
        eventually(lambda: (shell.home / "web.state").exists() and shell.state("web")["instances"][0]["runs"])
        first = shell.state("web")["instances"][0]["runs"]
        shell("reload", "web")
        assert len(shell.instances("web")) == 1 and shell.instances("web") != first
        assert start.wait(PATIENCE) == 0


@pytest.mark.parametrize("moment", [0.3, 1.5])
def test_run_that_is_stopped_ends_with_0_up_or_not(shell: Shell, moment: float) -> None:
    with subprocess.Popen(
        [*COMMAND, "run", "--", "sleep", "1000"], env=shell.environment, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr
        while "started" not in process.stderr.readline():
            pass
        select.select([process.stderr], [], [], moment)
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
        assert process.wait(PATIENCE) == 0 and "failed" not in said


@pytest.mark.parametrize("option", ["-i 0", "-i -1", "--min-uptime 0", "--min-uptime nan", "--umask 1000", "--umask -1",
                                    "--log-max-bytes 0", "--backoff 1,0.5", "--stop-timeout -1", "--max-restarts -1",
                                    "--stop-signal 99", "--stop-signal RTMAX+1", "--stop-signal X"])  # fmt: skip
def test_numbers_out_of_range_are_usage_errors(shell: Shell, option: str) -> None:
    assert "is no" in shell("start", "web", *option.split(), "--", "true", status=2).stderr
    assert not shell.home.exists()


@pytest.mark.parametrize("name", ["USR2", "SIGUSR2", "12", "sigusr2"])
def test_signals_have_many_names(shell: Shell, name: str) -> None:
    shell.start("web", "--stop-signal", name)
    assert json.loads((shell.home / "web.json").read_text())["stop_signal"] == "SIGUSR2"


def test_signals_without_a_name_have_numbers(shell: Shell) -> None:
    trap = "import signal, sys; signal.signal(signal.SIGRTMIN + 1, lambda *_: sys.exit(5)); print('set', flush=True); signal.pause()"
    shell.start("web", "--stop-signal", "RTMIN+1", command=(sys.executable, "-c", trap))
    eventually(lambda: "set" in shell("logs", "web").stdout)
    shell("stop", "web")
    assert "ended with status 5" in shell("logs", "web").stdout


def test_delete_leaves_a_device_that_an_app_logs_to(shell: Shell) -> None:
    device = shell.folder / "null"
    try:
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("needs root, to make a device")
    shell.start("web", "--log", device)
    shell("delete", "web")
    assert device.is_char_device()


def test_delete_takes_nothing_of_an_app_whose_name_looks_like_a_rotated_log(shell: Shell) -> None:
    shell.start("web")
    shell.start("web.log.1")
    (shell.home / "web.log.1").write_text("rotated")
    (shell.home / "web.log.2024.gz").write_text("put there by somebody")
    shell("delete", "web")
    assert shell.report("web.log.1")["up"] == 1
    assert not (shell.home / "web.log.1").exists() and (shell.home / "web.log.2024.gz").exists()


def test_the_log_of_a_start_that_failed_can_be_seen_and_deleted(shell: Shell) -> None:
    shell.start("web", command=("sh", "-c", "echo no database; exit 3"), status=1)
    assert "no database" in shell("logs", "web").stdout
    shell("delete", "web")
    assert list(shell.home.iterdir()) == []
    shell("delete", "web", status=1)


def test_run_is_the_same_in_the_foreground(shell: Shell) -> None:
    done = shell("run", *QUICK, "-i", 2, "--", "sh", "-c", "echo hello $DAEMONKIT_INSTANCE")
    assert sorted(done.stdout.splitlines()) == ["hello 0", "hello 1"]
    shell("run", "--restart", "never", "--", "sh", "-c", "exit 4", status=1)
    process = subprocess.Popen(
        [*COMMAND, "run", *QUICK, "--", "sleep", "1000"], stderr=subprocess.PIPE, text=True, cwd=shell.folder
    )
    assert process.stderr
    for line in process.stderr:
        if "is up" in line:
            break
    process.terminate()
    assert process.wait(PATIENCE) == 0
    process.stderr.close()
    assert not shell.home.exists()


def test_a_unit_that_systemd_accepts(shell: Shell) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    shell.start("web", "-i", 2, "--env", 'SAY=a "b" $c %d', "--umask", "027", "--max-memory", "1M")
    unit = shell("unit", "web").stdout
    path = shell.folder / "web.service"
    path.write_text(unit)
    done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Type=notify" in unit and "--instances=2" in unit and "--umask=27" in unit


def test_a_unit_finds_the_same_program_as_the_same_user(shell: Shell) -> None:
    shell.start("web", "--start-timeout", 1000, "--stop-timeout", 2_000_000)
    unit = shell("unit", "web", env={**shell.environment, "PATH": "/opt/venv/bin:/usr/bin"}).stdout.splitlines()
    assert "Environment=PATH=/opt/venv/bin:/usr/bin" in unit
    assert "TimeoutStartSec=1005" in unit and "TimeoutStopSec=2000005" in unit
    assert not any(line.startswith("User=") for line in unit) or os.geteuid()


def test_a_unit_of_an_app_that_is_never_killed_waits_for_ever(shell: Shell) -> None:
    shell.start("web", "--stop-timeout", "inf")
    assert "TimeoutStopSec=infinity" in shell("unit", "web").stdout.splitlines()


def test_several_apps_at_once(shell: Shell) -> None:
    for name in ("a", "b", "c"):
        shell.start(name)
    assert "no app x" in one_line(shell("stop", "a", "x", "b", status=1).stderr)
    assert [one["state"] for one in json.loads(shell("ls", "--json").stdout)] == ["stopped", "stopped", "running"]
    shell("restart", "--all")
    assert {one["state"] for one in json.loads(shell("ls", "--json").stdout)} == {"running"}
    shell("delete", "--all")
    assert list(shell.home.iterdir()) == []


def test_each_command_has_a_page_of_help_with_an_example(shell: Shell) -> None:
    commands = ["start", "run", "spawn", "ls", "status", "stop", "restart", "reload", "delete", "logs", "top", "unit"]
    page = shell("--help").stdout
    for command in commands:
        text = shell(command, "--help").stdout
        assert command in page and f"daemonkit {command}" in text.partition("examples:")[2]
        assert len(text.splitlines()) <= 60
    assert shell("--version").stdout == f"daemonkit {daemonkit.__version__}\n"


def test_a_traceback_only_with_debug(shell: Shell) -> None:
    shell("unit", "web", status=1)
    done = subprocess.run(
        [*COMMAND, "--debug", "unit", "web"], env=shell.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "Traceback" in done.stderr


# --- where it is used ---------------------------------------------------------------------------------------------


def test_from_another_directory_and_without_home(shell: Shell) -> None:
    shell.start("web")
    bare = {"DAEMONKIT_HOME": str(shell.home), "PATH": os.environ["PATH"]}
    assert shell("status", "web", cwd="/", env=bare)
    shell("restart", "web", cwd="/", env=bare)
    shell("stop", "web", cwd="/", env=bare)


def test_where_apps_live_by_default(shell: Shell) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DAEMONKIT", "XDG_"))}
    for more, home in (
        ({"HOME": str(shell.folder)}, shell.folder / ".local" / "state" / "daemonkit"),
        ({"XDG_STATE_HOME": str(shell.folder / "xdg")}, shell.folder / "xdg" / "daemonkit"),
    ):
        shell("start", "job", "--", "true", env={**environment, **more})
        assert (home / "job.json").exists() and home.stat().st_mode & 0o777 == 0o700


def test_a_home_that_others_can_write_is_refused(shell: Shell) -> None:
    shell.home.mkdir()
    shell.home.chmod(0o777)
    assert str(shell.home) in one_line(shell("start", "web", "--", "true", status=1).stderr)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become an ordinary user")
def test_as_an_ordinary_user(shell: Shell, everybody: dict[str, str]) -> None:
    python = python_for_everybody()
    if not python:
        pytest.skip("there is no Python 3.11 or later that another user can execute")
    let_everybody_in(shell.folder)
    shell.environment["PYTHONPATH"] = everybody["PYTHONPATH"]

    def somebody(uid: int, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, "-m", "daemonkit", *arguments],
            user=uid, group=uid, extra_groups=[], cwd=shell.folder, env=shell.environment,
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    done = somebody(65534, "start", "web", *QUICK, "-i", "2", "--", "sleep", "1000")
    assert (done.returncode, done.stderr) == (0, "")
    assert shell.home.stat().st_uid == 65534 and shell.report("web")["up"] == 2
    stranger = somebody(65533, "stop", "web")
    assert stranger.returncode == 1 and one_line(stranger.stderr) and shell.report("web")["up"] == 2
    assert somebody(65534, "delete", "web").returncode == 0


FULL = """
mount -t tmpfs -o size=64k,mode=700 tmpfs {home} || exit 77
D="{python} -m daemonkit"
$D start web --min-uptime 0.05 -- sleep 1000 || exit 1
cat /dev/zero >{home}/filler 2>/dev/null
$D start other --min-uptime 0.05 -- sleep 1000; echo start $?
killed=$(sed 's/.*"up": .\\([0-9]*\\).*/\\1/' {home}/web.state)
kill -9 $killed
timeout {patience} sh -c "while grep -q '\\[$killed\\]' {home}/web.state 2>/dev/null; do sleep 0.05; done"; echo believed $?
$D status web; echo status $?
timeout {patience} $D reload web; echo reload $?
$D stop web; echo stop $?
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small file system")
def test_a_full_disk_is_an_error_and_disturbs_no_running_app(shell: Shell) -> None:
    shell.home.mkdir(mode=0o700)
    script = FULL.format(home=shell.home, python=sys.executable, patience=PATIENCE)
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], env=shell.environment, capture_output=True, text=True, check=False
    )
    if done.returncode == 77:
        pytest.skip("no tmpfs can be mounted here")
    assert "start 1\n" in done.stdout and "status 0\n" in done.stdout and "stop 0\n" in done.stdout, done
    assert "believed 0\n" in done.stdout, done  # not for ever that the killed one is up
    first, *others = done.stderr.splitlines()
    assert "No space left" in first
    if "reload 0\n" not in done.stdout:
        assert "reload 1\n" in done.stdout and "is told to reload" in one_line(f"{others[0]}\n")


def test_ctrl_c_during_a_start_leaves_nothing_and_says_so(shell: Shell) -> None:
    terminal = Terminal(
        ["env", f"DAEMONKIT_HOME={shell.home}", *COMMAND, "start", "web", "--wait-ready", "--", "sleep", "1000"],
        shell.folder,
    )
    try:
        terminal.read("starting web")
        terminal.type("\x03")
        assert "interrupted; web was not started" in terminal.read()
        assert os.waitstatus_to_exitcode(os.waitpid(terminal.pid, 0)[1]) == 130
    finally:
        terminal.hang_up()
    assert not list(shell.home.glob("*.pid")) and not list(shell.home.glob("*.json"))


@pytest.mark.parametrize(("verb", "said"), [("stop", "is being stopped\r\n"), ("restart", "will not be started again")])
def test_ctrl_c_during_a_stop_says_that_it_goes_on(shell: Shell, verb: str, said: str) -> None:
    shell.start("web", "--stop-timeout", 2, command=("sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"))
    terminal = Terminal(["env", f"DAEMONKIT_HOME={shell.home}", *COMMAND, verb, "web"], shell.folder)
    try:
        terminal.read("stopping web")
        terminal.type("\x03")
        assert said in terminal.read()
        assert os.waitstatus_to_exitcode(os.waitpid(terminal.pid, 0)[1]) == 130
    finally:
        terminal.hang_up()
    eventually(lambda: shell.report("web")["pid"] is None)


def test_what_is_told_on_a_terminal_takes_the_place_of_the_progress(shell: Shell) -> None:
    words = ["start", "web", "--wait-ready", "--start-timeout", "1.5", "--", "sh", "-c", "echo words; exec sleep 1000"]
    terminal = Terminal(["env", f"DAEMONKIT_HOME={shell.home}", *COMMAND, *words], shell.folder)
    try:
        shown = terminal.read()
        os.waitpid(terminal.pid, 0)
    finally:
        terminal.hang_up()
    assert "starting web" in shown
    for line in ("words", "daemonkit: web did not start"):
        before = shown[: shown.index(line)]
        assert before.endswith((f"\r{' ' * len('starting web ...')}\r", "\n"))


def test_an_interrupt_that_only_the_command_gets_ends_the_start(shell: Shell) -> None:
    command = [*COMMAND, "start", "web", "--wait-ready", "--start-timeout", "1000", "--", "sleep", "1000"]
    starter = subprocess.Popen(command, env=shell.environment, stderr=subprocess.PIPE, text=True)
    eventually(lambda: json.loads(shell("ls", "--json").stdout or "[]"))
    starter.send_signal(signal.SIGINT)
    assert "interrupted; web was not started" in one_line(starter.communicate(timeout=PATIENCE)[1])
    assert starter.returncode == 130
    assert json.loads(shell("ls", "--json").stdout) == []


def test_an_app_that_is_being_started_is_listed_and_can_be_stopped(shell: Shell) -> None:
    command = [*COMMAND, "start", "web", "--wait-ready", "--start-timeout", "1000", "--", "sleep", "1000"]
    starter = subprocess.Popen(command, env=shell.environment, stderr=subprocess.PIPE, text=True)
    eventually(lambda: json.loads(shell("ls", "--json").stdout))
    (report,) = json.loads(shell("ls", "--json").stdout)
    assert (report["name"], report["state"], report["up"]) == ("web", "starting", 0)
    shell("stop", "--all")
    assert "web did not start" in one_line(starter.communicate(timeout=PATIENCE)[1])
    assert starter.returncode == 1


def test_a_terminal_gets_colour_unless_no_color_says_otherwise(shell: Shell) -> None:
    pytest.importorskip("rich")
    shell.start("web")
    seen = {}
    for no_color in ("", "1"):
        words = ["env", f"NO_COLOR={no_color}", "TERM=xterm-256color", f"DAEMONKIT_HOME={shell.home}"]
        terminal = Terminal([*words, *COMMAND, "ls"], shell.folder)
        try:
            seen[no_color] = terminal.read()
            os.waitpid(terminal.pid, 0)
        finally:
            terminal.hang_up()
    assert "running" in seen[""] and "running" in seen["1"]
    assert "\x1b[32m" in seen[""] and "\x1b" not in seen["1"]
    assert "\x1b" not in shell("ls").stdout


def test_top_shows_the_table_until_ctrl_c(shell: Shell) -> None:
    pytest.importorskip("rich")
    shell.start("web", "-i", 2)
    terminal = Terminal(["env", "TERM=xterm", f"DAEMONKIT_HOME={shell.home}", *COMMAND, "top"], shell.folder)
    try:
        assert "web" in terminal.read("2/2")
        terminal.type("\x03")
        assert os.waitstatus_to_exitcode(os.waitpid(terminal.pid, 0)[1]) == 0
    finally:
        terminal.hang_up()
    assert "needs a terminal" in one_line(shell("top", status=1).stderr)


def test_top_that_is_terminated_leaves_the_terminal_as_it_was(shell: Shell) -> None:
    pytest.importorskip("rich")
    shell.start("web")
    terminal = Terminal(["env", "TERM=xterm", f"DAEMONKIT_HOME={shell.home}", *COMMAND, "top"], shell.folder)
    try:
        assert "\x1b[?1049h" in terminal.read("1/1")
        os.kill(terminal.pid, signal.SIGTERM)
        assert "\x1b[?1049l" in terminal.read()
        assert os.waitstatus_to_exitcode(os.waitpid(terminal.pid, 0)[1]) == 143
    finally:
        terminal.hang_up()


BASE = "import sys; sys.modules.update(dict.fromkeys(['rich', 'psutil', 'argcomplete'])); from daemonkit.cli import main; sys.exit(main())"


@pytest.mark.parametrize("line", ["ls", "ls --json", "status web", "status web --json"])
def test_the_quick_way_to_ls_and_status_is_the_same_as_the_long_one(line: str) -> None:
    quick, long = vars(cli._quick(line.split())), vars(_parser.parse(line.split()))
    assert quick == {"name": "", **{name: value for name, value in long.items() if name in quick}}


@pytest.mark.parametrize(
    ("line", "status"), [("ls web", 2), ("ls --", 2), ("status", 2), ("status --json", 2), ("status web mail", 2),
                         ("status --help", 0), ("ls -h", 0), ("status web -- a", 2), ("--debug ls", 0), ("status --json web", 3)]
)  # fmt: skip
def test_all_other_lines_are_argparses(shell: Shell, line: str, status: int) -> None:
    shell(*line.split(), status=status)


def test_a_base_install_has_all_but_top(shell: Shell) -> None:
    def base(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", BASE, *arguments], env=shell.environment, capture_output=True, text=True, check=False
        )

    shell.start("web")
    assert "web" in base("ls").stdout
    report = json.loads(base("status", "web", "--json").stdout)
    assert list(report) == FIELDS and report["cpu"] is None and report["memory"] is None
    done = base("top")
    assert done.returncode == 1 and "daemonkit[cli]" in one_line(done.stderr)


def test_with_the_extra_cpu_and_memory_are_told(shell: Shell) -> None:
    pytest.importorskip("psutil")
    shell.start("web")
    report = shell.report("web")
    assert report["cpu"] >= 0 and report["memory"] > 1 << 20


def test_completion_offers_commands_and_options(shell: Shell) -> None:
    pytest.importorskip("argcomplete")

    def complete(line: str) -> list[str]:
        environment = {
            **shell.environment,
            "_ARGCOMPLETE": "1",
            "COMP_LINE": line,
            "COMP_POINT": str(len(line)),
            "_ARGCOMPLETE_STDOUT_FILENAME": str(shell.folder / "out"),
            "_ARGCOMPLETE_IFS": " ",
        }
        (shell.folder / "out").write_text("")
        subprocess.run([sys.executable, "-m", "daemonkit"], env=environment, capture_output=True, check=False)
        return (shell.folder / "out").read_text().split()

    assert {"start", "stop", "status"} <= set(complete("daemonkit st"))
    assert "--instances" in complete("daemonkit start web --ins")
    shell.start("web")
    assert complete("daemonkit stop w") == ["web"] == complete("daemonkit logs w")


def test_what_the_supervisor_says_is_rotated_with_the_log(shell: Shell) -> None:
    """Also of an app that says nothing itself."""
    shell.start("web", "--log-max-bytes", "1K", "--log-backups", 2, "--restart", "always", command=("sleep", "0.1"))
    eventually(lambda: (shell.home / "web.log.2").exists())
    shell("stop", "web")
    for path in shell.home.glob("web.log*"):
        text = path.read_text()
        assert len(text) <= 1024 and all(line.startswith("daemonkit: ") for line in text.splitlines()), text


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/etc/passwd"), os.mkdir])
def test_what_is_no_pidfile_keeps_no_other_app_from_being_shown_and_stopped(shell: Shell, make: Any) -> None:
    shell.start("web")
    make(shell.home / "odd.pid")
    done = shell("ls", status=1)
    assert "web" in done.stdout and "odd.pid" in one_line(done.stderr)
    done = shell("stop", "--all", status=1)
    assert "odd.pid" in done.stderr and shell.report("web")["state"] == "stopped"


def test_a_start_that_its_watchdog_ends_says_so(shell: Shell) -> None:
    done = shell("start", "web", "--watchdog", 0.2, "--", "sleep", "1000", status=1)
    assert "did not send WATCHDOG=1 in time" in one_line(done.stderr)


def test_a_foreground_app_under_nohup_outlives_its_terminal(shell: Shell) -> None:
    program = f"exec nohup {' '.join(COMMAND)} run --min-uptime 0.05 -- sleep 1000"
    terminal = Terminal(["sh", "-c", program], shell.folder)
    log = shell.folder / "nohup.out"
    eventually(lambda: log.exists() and "is up" in log.read_text())
    terminal.hang_up()
    select.select([], [], [], 0.3)
    assert alive(terminal.pid)
    os.kill(terminal.pid, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(terminal.pid, 0)[1]) == 0
    assert "SIGKILL" not in log.read_text()


def test_a_full_disk_that_cuts_a_line_short_lets_nobody_wait_and_splits_nobodys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "log")
    log, handler = pump_module.Log(path, 10_000, 5, None, None), _keep.LogHandler(path)
    pump = pump_module.Pump(log, shared=True)
    real, calls = os.write, iter(range(1000))

    def write(fd: int, data: bytes) -> int:
        if fd == log.fd and next(calls) % 2:
            raise OSError(errno.ENOSPC, "no room")
        return real(fd, bytes(data)[: 3 if fd == log.fd else None])

    def say(text: str) -> None:
        handler.emit(logging.LogRecord("daemonkit", logging.INFO, "", 0, text, (), None))

    monkeypatch.setattr(logging, "raiseExceptions", False)
    monkeypatch.setattr(os, "write", write)
    say("cut short")
    assert (tmp_path / "log").read_text() == "cut" and log.held_by is None
    real(pump.writer, b"an instance's\n")
    assert not pump.pump() and log.held_by is pump
    say("kept")
    monkeypatch.setattr(os, "write", real)
    pump.pump()
    say("after that")
    assert (tmp_path / "log").read_text() == "cutan instance's\nkept\nafter that\n"
    pump.close()
    log.close()
