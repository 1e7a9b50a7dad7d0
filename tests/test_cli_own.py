"""Nothing of the user's is deleted, doubled or killed by surprise: `delete`, `run NAME`, a unit, apps inside of apps."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness import PATIENCE, alive, eventually
from shell import COMMAND, QUICK, one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shell import Shell

D = shlex.join(COMMAND)


# --- delete -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--log", "--stdout", "--stderr"])
def test_delete_leaves_a_log_that_the_user_named_and_what_stands_beside_it(shell: Shell, option: str) -> None:
    old = shell.folder / "audit.log.1"
    old.write_text("of last year\n")
    shell.start("web", option, "audit.log", command=("sh", "-c", "echo audited; echo so >&2; exec sleep 1000"))
    eventually(lambda: (shell.folder / "audit.log").read_text())
    shell("delete", "web")
    assert (shell.folder / "audit.log").read_text() and old.read_text() == "of last year\n"
    assert list(shell.home.iterdir()) == []


def test_two_apps_with_one_log_do_not_empty_each_others(shell: Shell) -> None:
    for name in ("a", "b"):
        shell.start(name, "--log", "both.log", command=("sh", "-c", f"echo from {name}; exec sleep 1000"))
    eventually(lambda: {"from a", "from b"} <= set((shell.folder / "both.log").read_text().splitlines()))
    shell("delete", "a")
    assert {"from a", "from b"} <= set((shell.folder / "both.log").read_text().splitlines())
    assert shell.report("b")["up"] == 1


def test_a_log_named_in_the_home_of_the_apps_stays_too(shell: Shell) -> None:
    shell.home.mkdir(mode=0o700)
    shell.start("web", "--log", shell.home / "mine.log")
    shell("delete", "web")
    assert [path.name for path in shell.home.iterdir()] == ["mine.log"]


def test_unknown_apps_are_not_to_be_started(shell: Shell) -> None:
    for verb in ("delete", "logs", "stop", "restart", "reload", "status"):
        said = one_line(shell(verb, "nosuch", status=3 if verb == "status" else 1).stderr)
        assert "there is no app nosuch" in said and "start" not in said


# --- run NAME, and a unit -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(shell: Shell, *words: object, name: str = "web") -> Iterator[subprocess.Popen[bytes]]:
    """Run an app in the foreground meanwhile; its output is in the file `out`."""
    with open(shell.folder / "out", "wb") as out:
        process = subprocess.Popen(
            [*COMMAND, "run", *map(str, words)], cwd=shell.folder, env=shell.environment, stdout=out, stderr=out
        )
    try:
        eventually(lambda: shell.report(name)["state"] == "running")
        yield process
    finally:
        process.terminate()
        assert process.wait(PATIENCE) == 0


SERVE = ("--", "sh", "-c", "echo served; exec sleep 1000")


@pytest.mark.long
def test_run_with_a_name_is_that_app(shell: Shell) -> None:
    with running(shell, "web", "-i", 2, *QUICK, *SERVE) as process:
        report = shell.report("web")
        assert (report["pid"], report["up"]) == (process.pid, 2)
        assert "runs already" in one_line(shell("start", "web", *SERVE, status=1).stderr)
        assert "runs already" in one_line(shell("run", "web", *SERVE, status=1).stderr)
        assert shell("logs", "web").stdout.count("served") == 2
        eventually(lambda: (shell.folder / "out").read_text().count("served") == 2)
        before = set(shell.instances("web"))
        shell("reload", "web")
        assert before.isdisjoint(shell.instances("web"))
        assert "foreground" in one_line(shell("restart", "web", status=1).stderr)
        assert shell.report("web")["pid"] == process.pid
        shell("stop", "web")
        assert process.wait(PATIENCE) == 0
    assert "it is stopped" in (shell.folder / "out").read_text()  # to the last line
    shell("start", "web")
    assert shell.report("web")["up"] == 2


def test_run_of_a_known_app_is_it_as_it_was(shell: Shell) -> None:
    shell.start("web", "-i", 2, "--env", "A=1", command=SERVE[1:])
    assert "runs already" in one_line(shell("run", "web", status=1).stderr)
    shell("stop", "web")
    with running(shell, "web", "--env", "B=2"):
        assert shell.report("web")["wanted"] == 2
    shell("start", "web")
    assert "runs already" in one_line(shell("run", "web", status=1).stderr)


@pytest.mark.long
def test_a_run_that_nobody_reads_goes_on(shell: Shell) -> None:
    program = "while :; do echo a line; sleep 0.01; done"
    process = subprocess.Popen(
        [*COMMAND, "run", "web", *QUICK, "--", "sh", "-c", program], env=shell.environment, stdout=subprocess.PIPE, cwd=shell.folder
    )  # fmt: skip
    assert process.stdout
    process.stdout.readline()
    process.stdout.close()
    eventually(lambda: shell.report("web")["state"] == "running")
    size = (shell.home / "web.log").stat().st_size
    eventually(lambda: (shell.home / "web.log").stat().st_size > size + 1000)
    process.terminate()
    assert process.wait(PATIENCE) == 0


def test_a_unit_is_the_app(shell: Shell) -> None:
    shell.start("web", "-i", 2, "--env", "SAY=a b", command=SERVE[1:], env={**shell.environment, "SEEN": "yes"})
    (line,) = [line for line in shell("unit", "web").stdout.splitlines() if line.startswith("ExecStart=")]
    words = shlex.split(line.removeprefix("ExecStart="))
    assert words[:4] == [sys.executable, "-m", "daemonkit", "run"]
    done = subprocess.run(words, env=shell.environment, cwd=shell.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "runs already" in one_line(done.stderr)
    shell("stop", "web")
    with running(shell, *words[4:]):
        pid = shell.instances("web")[0]
        environment = Path(f"/proc/{pid}/environ").read_text().split("\0")
        assert "SEEN=yes" in environment  # what it was started in, although the unit does not have it
        assert "runs already" in one_line(shell("start", "web", status=1).stderr)


# --- apps inside of apps ------------------------------------------------------------------------------------------

AGENT = 'while :; do if [ -e do ]; then sh -c "$(mv do doing; cat doing)" >said 2>&1; echo $? >rc; fi; sleep 0.05; done'


def tell(shell: Shell, line: str) -> tuple[int, str]:
    """Have the agent type a line."""
    (shell.folder / "rc").unlink(missing_ok=True)
    (shell.folder / "do.new").write_text(line)
    (shell.folder / "do.new").rename(shell.folder / "do")
    eventually(lambda: (shell.folder / "rc").read_text().strip())
    return int((shell.folder / "rc").read_text()), (shell.folder / "said").read_text()


@pytest.mark.long
@pytest.mark.parametrize("verb", ["start", "restart", "spawn"])
@pytest.mark.parametrize("end", ["crash", "stop"])
def test_what_an_app_starts_outlives_it(shell: Shell, verb: str, end: str) -> None:
    shell.start("agent", command=("sh", "-c", AGENT))
    shell.start("web")
    if verb == "start":
        shell("stop", "web")
    words = "spawn --pidfile job.pid -- sleep 1000" if verb == "spawn" else f"{verb} web"
    status, said = tell(shell, f"{D} {words}")
    assert status == 0, said
    pid = int(said) if verb == "spawn" else shell.report("web")["pid"]
    instances = shell.instances("web")
    if end == "crash":
        os.kill(shell.instances("agent")[0], signal.SIGKILL)
        eventually(lambda: shell.report("agent")["restarts"] == 1)
    else:
        shell("stop", "agent")
    assert alive(pid) and all(map(alive, instances))
    if verb == "spawn":
        os.kill(pid, signal.SIGKILL)
    else:
        assert shell.report("web")["pid"] == pid and "DAEMONKIT_INSTANCE" not in (shell.home / "web.json").read_text()


@pytest.mark.parametrize("how", ["", "setsid -w ", "env -i PATH=$PATH DAEMONKIT_HOME=$DAEMONKIT_HOME "])
def test_an_app_that_restarts_itself_is_refused_and_reload_works(shell: Shell, how: str) -> None:
    shell.start("agent", command=("sh", "-c", AGENT))
    pids = shell.report("agent")["pid"], *shell.instances("agent")
    for verb in ("restart", "delete"):
        status, said = tell(shell, f"{how}{D} {verb} agent")
        assert status == 1 and "process of its own" in one_line(said) and ("reload" in said or verb == "delete")
    assert (shell.report("agent")["pid"], *shell.instances("agent")) == pids
    (shell.folder / "do").write_text(f"{how}{D} reload agent")
    eventually(lambda: shell.instances("agent") not in ([], [*pids[1:]]))
    assert shell.report("agent")["pid"] == pids[0]


def test_an_app_started_inside_may_restart_the_one_it_was_started_in(shell: Shell) -> None:
    shell.start("agent", command=("sh", "-c", AGENT))
    other = shell.folder / "other"
    other.mkdir()
    status, said = tell(shell, f"cd other && {D} start other {shlex.join(QUICK)} -- sh -c {shlex.quote(AGENT)}")
    assert status == 0, said
    pid = shell.report("agent")["pid"]
    (other / "do").write_text(f"{D} restart agent")
    eventually((other / "rc").read_text)
    assert (other / "rc").read_text() == "0\n" and shell.report("agent")["pid"] != pid
