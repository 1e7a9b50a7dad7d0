"""What the `daemonkit` command says, and its exit statuses: help, usage, errors, where it finds its apps."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from harness import PATIENCE
from shell import COMMAND, FIELDS, QUICK, one_line

import daemonkit

if TYPE_CHECKING:
    from shell import Shell


BASE = "import sys; sys.modules.update(dict.fromkeys(['rich', 'psutil', 'argcomplete', 'dotenv'])); from daemonkit.cli import main; sys.exit(main())"


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
        (("start", "../web", "--", "true"), "invalid name"),
        (("start", "", "--", "true"), "invalid name"),
        (("stop", "a/b"), "invalid name"),
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
        ("start", "web", "sh", "x"),
        ("start", "web", "no-such-python", "x.py"),
        ("run",),
        ("spawn",),
        ("stop",),
        ("stop", "web", "--all"),
        ("ls", "--", "true"),
        ("logs", "web", "-n", "-5"),
    ],
)
def test_usage_errors_are_status_2(shell: Shell, command: tuple[str, ...]) -> None:
    assert re.search("see: daemonkit .*--help|--help lists", one_line(shell(*command, status=2).stderr))
    assert not shell.home.exists()


def test_status_of_what_does_not_run_or_exist_is_3(shell: Shell) -> None:
    shell("status", "nope", status=3)
    shell("status", "nope", "--json", status=3)
    shell.start("web")
    shell("status", "web")
    shell("stop", "web")
    shell("status", "web", status=3)


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
        assert done.returncode == 1 and "removed" in one_line(done.stderr)
    assert typed("start", "web", *QUICK, "--cwd", "/", "--", "sleep", "1000").returncode == 0


@pytest.mark.parametrize("option", ["-i 0", "-i -1", "--min-uptime 0", "--min-uptime nan", "--umask 1000", "--umask -1",
                                    "--log-max-bytes 0", "--backoff 1,0.5", "--stop-timeout -1", "--max-restarts -1",
                                    "--stop-signal 99", "--stop-signal RTMAX+1", "--stop-signal X"])  # fmt: skip
def test_numbers_out_of_range_are_usage_errors(shell: Shell, option: str) -> None:
    assert "invalid" in shell("start", "web", *option.split(), "--", "true", status=2).stderr
    assert not shell.home.exists()


@pytest.mark.parametrize("name", ["USR2", "SIGUSR2", "12", "sigusr2"])
def test_signals_have_many_names(shell: Shell, name: str) -> None:
    shell.start("web", "--stop-signal", name)
    assert json.loads((shell.home / "web.json").read_text())["stop_signal"] == "SIGUSR2"


def test_each_command_has_a_page_of_help_with_an_example(shell: Shell) -> None:
    commands = [
        "start",
        "run",
        "spawn",
        "ls",
        "status",
        "stop",
        "restart",
        "reload",
        "delete",
        "logs",
        "top",
        "unit",
        "up",
        "down",
        "import",
        "scale",
        "signal",
    ]
    page = shell("--help").stdout
    for command in commands:
        text = shell(command, "--help").stdout
        what, example, _ = text.split("\n\n", 2)
        assert command in page and what.endswith(".") and example.startswith(f"  daemonkit {command}")
        assert len(text.splitlines()) <= 70
    assert shell("--version").stdout == f"daemonkit {daemonkit.__version__}\n"


def test_a_traceback_only_with_debug(shell: Shell) -> None:
    shell("unit", "web", status=1)
    done = subprocess.run(
        [*COMMAND, "--debug", "unit", "web"], env=shell.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "Traceback" in done.stderr


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


@pytest.mark.parametrize(
    ("line", "status"), [("ls web", 2), ("ls --", 2), ("status", 2), ("status --json", 2), ("status web mail", 2),
                         ("status --help", 0), ("ls -h", 0), ("status web -- a", 2), ("--debug ls", 0), ("status --json web", 3)]
)  # fmt: skip
def test_status_of_odd_lines(shell: Shell, line: str, status: int) -> None:
    shell(*line.split(), status=status)


def test_a_base_install_has_cpu_memory_and_colours(shell: Shell) -> None:
    shell.start("web")
    done = subprocess.run(
        [sys.executable, "-c", BASE, "status", "web", "--json"], env=shell.environment, capture_output=True, text=True, check=False
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert list(report) == FIELDS and report["cpu"] >= 0 and report["memory"] > 1 << 20
    (instance,) = report["instances"]
    assert instance["cpu"] >= 0 and 0 < instance["memory"] < report["memory"]


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
