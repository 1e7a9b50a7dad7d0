"""An app's life, driven as a person or a script does: `start`, `status`, `stop`, `delete`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from harness import PATIENCE, alive, eventually
from shell import COMMAND, FIELDS, QUICK, one_line

if TYPE_CHECKING:
    from shell import Shell


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


def test_a_second_start_of_a_name_says_who_runs_it_and_changes_nothing(shell: Shell) -> None:
    shell.start("web")
    before = (shell.home / "web.json").read_text()
    done = shell("start", "web", *QUICK, "--", "sleep", "7", status=1)
    runs = f"daemonkit: web runs already, as process {shell.report('web')['pid']}"
    assert done.stderr == f"{runs}; change it with: daemonkit reload web {' '.join(QUICK)} -- sleep 7\n"
    done = shell("start", "web", "-i", 2, status=1)
    assert done.stderr == f"{runs}; change it with: daemonkit reload web -i 2\n"
    done = shell("start", "web", "--env", "WORD=secret", status=1)
    assert done.stderr == f"{runs}; change it with: daemonkit reload web [options]\n"
    assert shell("start", "web", status=1).stderr == f"{runs}; stop it first: daemonkit stop web\n"
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


def test_a_short_job_that_ends_well_is_done(shell: Shell) -> None:
    shell("start", "job", "--", "true")
    assert shell.report("job")["state"] == "done"


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


def test_a_command_and_a_directory_of_any_bytes_survive(shell: Shell) -> None:
    folder = shell.folder / os.fsdecode(b"caf\xe9 $x %n")
    folder.mkdir()
    argument = os.fsdecode(b"\xff\"' \n$HOME")
    shell.start("web", command=("sh", "-c", 'printf %s "$1" >>seen; exec sleep 1000', "sh", argument), cwd=folder)
    shell("restart", "web")
    assert (folder / "seen").read_bytes() == os.fsencode(argument) * 2


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


def test_signals_without_a_name_have_numbers(shell: Shell) -> None:
    trap = "import signal, sys; signal.signal(signal.SIGRTMIN + 1, lambda *_: sys.exit(5)); print('set', flush=True); signal.pause()"
    shell.start("web", "--stop-signal", "RTMIN+1", command=(sys.executable, "-c", trap))
    eventually(lambda: "set" in shell("logs", "web").stdout)
    shell("stop", "web")
    assert "ended with status 5" in shell("logs", "web").stdout


def test_an_app_that_is_being_started_is_listed_and_can_be_stopped(shell: Shell) -> None:
    command = [*COMMAND, "start", "web", "--wait-ready", "--start-timeout", "1000", "--", "sleep", "1000"]
    starter = subprocess.Popen(command, env=shell.environment, stderr=subprocess.PIPE, text=True)
    eventually(lambda: json.loads(shell("ls", "--json").stdout))
    (report,) = json.loads(shell("ls", "--json").stdout)
    assert (report["name"], report["state"], report["up"]) == ("web", "starting", 0)
    shell("stop", "--all")
    assert "web did not start" in one_line(starter.communicate(timeout=PATIENCE)[1])
    assert starter.returncode == 1


def test_a_start_that_its_watchdog_ends_says_so(shell: Shell) -> None:
    done = shell("start", "web", "--watchdog", 0.2, "--", "sleep", "1000", status=1)
    assert "did not send WATCHDOG=1 in time" in one_line(done.stderr)
