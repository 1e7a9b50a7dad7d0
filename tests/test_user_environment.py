"""Another user has HOME, USER, LOGNAME and SHELL of its own; and what is not mapped in a user namespace is refused."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from harness import let_everybody_in, run

if TYPE_CHECKING:
    from pathlib import Path

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the user")
NAMES = ("HOME", "USER", "LOGNAME", "SHELL")

PRELUDE = """
os.environ.update(HOME="/root", USER="root", LOGNAME="root", SHELL="/bin/zsh", OTHER="kept")
def tell():
    with open("told", "w") as file: file.write("\\0".join(f"{name}={value}" for name, value in os.environ.items()))
    assert os.path.expanduser("~") == os.environ["HOME"]
program = ["/usr/bin/env", "-0"]
"""
DOORS = {
    "detached": """
        with daemonkit.detached(working_directory=".", wait_ready=True, {user}) as d: tell(); d.ready()
    """,
    "detached in the foreground": """
        with daemonkit.detached(working_directory=".", detach_process=False, {user}): tell()
    """,
    "spawn_detached": "assert daemonkit.spawn_detached(program, stdout='told', {user}).wait() == 0",
    "spawn_detached, SIGHUP ignored": """
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert daemonkit.spawn_detached(program, stdout='told', {user}).wait() == 0
    """,
    "supervise": "assert daemonkit.supervise(program, stdout='told', min_uptime=0.01, restart='never', {user}).exitcode == 0",
    "supervise, a callable": "assert daemonkit.supervise(tell, min_uptime=0.01, restart='never', {user}).exitcode == 0",
}


def told(directory: Path, door: str, user: str) -> dict[str, str | None]:
    let_everybody_in(directory)
    if door.startswith("detached"):
        user = user.replace("user=", "uid=").replace("group=", "gid=")
    lines = DOORS[door].format(user=user).replace("\n        ", "\n")
    done = run(directory, PRELUDE + lines)
    assert (done.returncode, done.stderr) == (0, ""), done
    found = dict(entry.split("=", 1) for entry in (directory / "told").read_text().rstrip("\0").split("\0"))
    assert found["OTHER"] == "kept"
    return {name: found.get(name) for name in NAMES}


@root_only
@pytest.mark.parametrize("door", DOORS)
def test_another_user_is_at_home_in_its_own_directory(tmp_path: Path, door: str) -> None:
    environment = told(tmp_path, door, "user='daemon'")
    entry = pwd.getpwnam("daemon")
    assert environment == dict(zip(NAMES, (entry.pw_dir, "daemon", "daemon", entry.pw_shell), strict=True))


@root_only
@pytest.mark.parametrize("door", DOORS)
def test_a_number_without_an_entry_is_not_at_home_with_root(tmp_path: Path, door: str) -> None:
    environment = told(tmp_path, door, "user=61234, group=61234")
    assert environment == {"HOME": "/", "USER": None, "LOGNAME": None, "SHELL": None}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("user", ["", "user=os.getuid()", "user=os.getuid(), group=os.getgid()"])
def test_the_same_user_keeps_its_environment(tmp_path: Path, door: str, user: str) -> None:
    environment = told(tmp_path, door, user)
    assert environment == {"HOME": "/root", "USER": "root", "LOGNAME": "root", "SHELL": "/bin/zsh"}


@root_only
@pytest.mark.parametrize("door", [door for door in DOORS if not door.startswith("detached")])
def test_an_environment_that_is_given_is_left_alone(tmp_path: Path, door: str) -> None:
    environment = told(tmp_path, door, "user='daemon', env={'OTHER': 'kept', 'HOME': '/given'}")
    assert environment == {"HOME": "/given", "USER": None, "LOGNAME": None, "SHELL": None}


UNMAPPED = {
    "daemonkit.spawn_detached(['true'], user='daemon')": "user: 1 is not mapped",
    "daemonkit.spawn_detached(['true'], group='games')": "group: 60 is not mapped",
    "daemonkit.spawn_detached(['true'], extra_groups=['games'])": "60 is not mapped",
    "daemonkit.spawn_detached(['true'], extra_groups=[])": "setgroups: deny",
    "daemonkit.supervise(['true'], user='daemon', restart='never')": "user: 1 is not mapped",
    "daemonkit.detached(uid='daemon').open()": "uid: 1 is not mapped",
    "daemonkit.detached(gid='games', detach_process=False).open()": "gid: 60 is not mapped",
}


@pytest.mark.parametrize("call", UNMAPPED)
def test_what_is_not_mapped_in_a_user_namespace_is_refused_before_anything_starts(tmp_path: Path, call: str) -> None:
    wrapper = ("unshare", "--user", "--map-root-user")
    if not shutil.which("unshare") or subprocess.run([*wrapper, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces here")
    done = run(
        tmp_path,
        f"""
        try:
            {call}
        except Exception as error:
            print(type(error).__name__, error, sep="|")
        try:
            print("children", os.waitpid(-1, os.WNOHANG))
        except ChildProcessError:
            pass
    """,
        wrapper=wrapper,
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    kind, _, message = done.stdout.partition("|")
    assert kind == "PermissionError" and UNMAPPED[call] in message and message.count("\n") == 1, done.stdout
