"""What an app keeps of the shell it was started in: the environment, the interpreter, the directory."""

from __future__ import annotations

import json
import os
import resource
import sys
import venv
from typing import TYPE_CHECKING

import pytest
from harness import eventually
from shell import QUICK, one_line

import daemonkit

if TYPE_CHECKING:
    from pathlib import Path

    from shell import Shell

SEEN = ("sh", "-c", 'echo "$TODAY $ASKED" >>seen; exec sleep 1000')


def seen(shell: Shell) -> list[str]:
    return (shell.folder / "seen").read_text().splitlines()


def bare(shell: Shell) -> dict[str, str]:
    """Return the environment of cron."""
    return {
        "HOME": "/",
        "LOGNAME": "root",
        "SHELL": "/bin/sh",
        "PATH": "/usr/bin:/bin",
        "DAEMONKIT_HOME": str(shell.home),
    }


@pytest.mark.parametrize("again", [("restart", "web"), ("stop", "web"), ("reload", "web")])
def test_an_app_keeps_the_environment_it_was_started_in(shell: Shell, again: tuple[str, ...]) -> None:
    shell.start("web", "--env", "ASKED=yes", command=SEEN, env={**shell.environment, "TODAY": "monday"})
    shell(*again, env=bare(shell))
    if again[0] == "stop":
        shell("start", "web", env=bare(shell))
    assert seen(shell) == ["monday yes"] * 2


def test_a_crash_changes_the_environment_as_little(shell: Shell) -> None:
    shell.start("web", command=SEEN, env={**shell.environment, "TODAY": "monday"})
    os.kill(shell.instances("web")[0], 9)
    eventually(lambda: seen(shell) == ["monday "] * 2)


@pytest.mark.parametrize("verb", ["start", "restart"])
def test_update_env_takes_the_present_environment_and_keeps_what_was_asked_for(shell: Shell, verb: str) -> None:
    shell.start("web", "--env", "ASKED=yes", command=SEEN, env={**shell.environment, "TODAY": "monday"})
    if verb == "start":
        shell("stop", "web")
    shell(verb, "web", "--update-env", env={**shell.environment, "TODAY": "tuesday"})
    shell("restart", "web")
    assert seen(shell) == ["monday yes", *["tuesday yes"] * 2]


def test_env_is_laid_over_what_the_app_has(shell: Shell) -> None:
    shell.start("web", "--env", "TODAY=monday", "--env", "ASKED=yes", command=SEEN)
    shell("stop", "web")
    shell("start", "web", "--env", "ASKED=no")
    assert seen(shell) == ["monday yes", "monday no"]


def test_what_may_be_secret_is_readable_by_its_user_alone(shell: Shell) -> None:
    shell.start("web", env={**shell.environment, "PASSWORD": "s3cret"}, umask=0)
    for path in shell.home.iterdir():
        assert "s3cret" not in path.read_text() or path.stat().st_mode & 0o777 == 0o600
    assert "s3cret" in (shell.home / "web.json").read_text()


def test_an_environment_file_is_read_and_env_wins(shell: Shell) -> None:
    pytest.importorskip("dotenv")
    (shell.folder / ".env").write_text("TODAY='a \"day\"'\nexport ASKED=file # really\n")
    shell.start("web", "--env-file", ".env", "--env", "ASKED=yes", command=SEEN)
    (shell.folder / ".env").unlink()
    shell("restart", "web", env=bare(shell))
    assert seen(shell) == ['a "day" yes'] * 2


@pytest.mark.parametrize("text", [None, "A=1\nnothing here\n"])
def test_an_environment_file_that_is_missing_or_wrong_starts_nothing(shell: Shell, text: str | None) -> None:
    pytest.importorskip("dotenv")
    if text:
        (shell.folder / "odd.env").write_text(text)
    said = one_line(shell("start", "web", "--env-file", "odd.env", "--", "sleep", "9", status=1).stderr)
    assert "odd.env" in said and ("line 2" in said if text else "No such file" in said)
    assert not list(shell.home.glob("web*"))


def test_a_restart_from_a_shell_without_the_virtual_environment_runs_the_same_python(shell: Shell) -> None:
    venv.create(shell.folder / "venv", symlinks=True)
    path = f"{shell.folder}/venv/bin:{os.environ['PATH']}"
    program = "import sys, time; print(sys.prefix, file=open('seen', 'a'), flush=True); time.sleep(1000)"
    shell.start("web", command=("python", "-c", program), env={**shell.environment, "PATH": path})
    shell("restart", "web", env=bare(shell))
    assert seen(shell) == [str(shell.folder / "venv")] * 2


def test_programs_write_their_lines_at_once_unless_the_environment_says_otherwise(shell: Shell) -> None:
    program = (sys.executable, "-c", "import os, time; print(os.environ['PYTHONUNBUFFERED']); time.sleep(1000)")
    environment = {name: value for name, value in shell.environment.items() if name != "PYTHONUNBUFFERED"}
    shell.start("web", command=program, env=environment)
    eventually(lambda: "1" in shell("logs", "web").stdout.splitlines())
    shell.start("own", "--env", "PYTHONUNBUFFERED=yes", command=program)
    eventually(lambda: "yes" in shell("logs", "own").stdout.splitlines())


def test_variables_that_mean_one_process_are_not_kept(shell: Shell) -> None:
    own = {"NOTIFY_SOCKET": "/no/such", "LISTEN_FDS": "1", "DAEMONKIT_INSTANCE": "7", "WATCHDOG_USEC": "1"}
    shell.start("web", env={**shell.environment, **own})
    assert not own.keys() & json.loads((shell.home / "web.json").read_text())["environment"].keys()


# --- the directory ------------------------------------------------------------------------------------------------


def release(shell: Shell, number: int) -> Path:
    folder = shell.folder / "releases" / str(number)
    folder.mkdir(parents=True)
    (folder / "app").write_text(f"#!/bin/sh\necho {number} >>{shell.folder}/seen\nexec sleep 1000\n")
    (folder / "app").chmod(0o755)
    return folder


@pytest.mark.parametrize("how", ["--cwd", "$PWD"])
@pytest.mark.parametrize("verb", ["reload", "restart", "crash"])
def test_a_link_to_a_release_is_followed_at_each_start(shell: Shell, how: str, verb: str) -> None:
    current = shell.folder / "current"
    current.symlink_to(release(shell, 1))
    if how == "--cwd":
        shell.start("web", "--cwd", "current", command=("./app",))
    else:
        shell.start("web", command=("./app",), cwd=current, env={**shell.environment, "PWD": str(current)})
    assert shell.report("web")["cwd"] == str(current)
    current.unlink()
    current.symlink_to(release(shell, 2))
    os.kill(shell.instances("web")[0], 9) if verb == "crash" else shell(verb, "web")
    eventually(lambda: seen(shell) == ["1", "2"])


@pytest.mark.parametrize("verb", ["reload", "restart", "crash"])
def test_a_directory_that_was_unpacked_anew_serves_the_next_run(shell: Shell, verb: str) -> None:
    folder = release(shell, 1)
    shell.start("web", command=("./app",), cwd=folder)
    folder.rename(shell.folder / "old")
    release(shell, 2).rename(folder)
    os.kill(shell.instances("web")[0], 9) if verb == "crash" else shell(verb, "web")
    eventually(lambda: seen(shell) == ["1", "2"])


def test_a_pwd_that_is_another_directory_is_not_believed(shell: Shell) -> None:
    shell.start("web", env={**shell.environment, "PWD": "/"})
    assert shell.report("web")["cwd"] == str(shell.folder)


CORE = ("sh", "-c", "grep 'Max core' /proc/self/limits >core.tmp; mv core.tmp core; exec sleep 1000")


@pytest.mark.parametrize("way", ["start", "spawn"])
def test_a_program_has_the_callers_limits_of_core_dumps(shell: Shell, way: str) -> None:
    """A daemon of Python's own may write none, as its memory may hold secrets; what it runs is the user's matter."""
    options = ["web", *QUICK] if way == "start" else ["--pidfile", "core.pid"]
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    soft = 4096 if hard == resource.RLIM_INFINITY else hard
    shell(way, *options, "--", *CORE, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (soft, hard)))
    try:
        said = eventually((shell.folder / "core").read_text).split()
        assert said[4:6] == ["unlimited" if one == resource.RLIM_INFINITY else str(one) for one in (soft, hard)]
    finally:
        if way == "spawn":
            daemonkit.stop(shell.folder / "core.pid")
