"""detached(): another user, another root directory."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import daemon
import harness
import lockfile
import pytest
from harness import ended, eventually, pid_in, reported, run, stop

import daemonkit

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the user, the root directory or mounts")


@root_only
def test_a_change_of_user_takes_that_users_groups_and_its_files(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o777)
    run(
        tmp_path,
        """
        os.setgroups([0, 4, 27])
        with daemonkit.detached(uid="daemon", pidfile="pid", stdout="log", working_directory="out") as d:
            report()
            wait()
    """,
    )
    facts = reported(tmp_path / "out")
    import pwd

    user = pwd.getpwnam("daemon")
    assert facts["uid"] == [user.pw_uid] * 3 and facts["gid"] == [user.pw_gid] * 3
    assert facts["groups"] == sorted(os.getgrouplist("daemon", user.pw_gid))
    assert (tmp_path / "log").stat().st_uid == user.pw_uid
    assert stop(facts["pid"]) == 0
    assert (tmp_path / "pid").read_text() == ""  # the directory is root's: emptied, not removed


@root_only
@pytest.mark.parametrize(("options", "groups"), [("initgroups=False", []), ("gid='games'", None), ("gid=12345", None)])
def test_roots_groups_never_leak(tmp_path: Path, options: str, groups: list[int] | None) -> None:
    tmp_path.chmod(0o777)
    run(
        tmp_path,
        f"""
        os.setgroups([0, 4, 27])
        with daemonkit.detached(uid="daemon", {options}, working_directory="."):
            report()
            wait()
    """,
    )
    facts = reported(tmp_path)
    assert not {0, 4, 27} & set(facts["groups"])
    if groups is not None:
        assert facts["groups"] == groups
    stop(facts["pid"])


@root_only
def test_a_chroot_in_between_changes_nothing_for_pidfile_and_logs(tmp_path: Path) -> None:
    jail = tmp_path / "jail"
    (jail / "work").mkdir(parents=True)
    run(
        tmp_path,
        """
        with daemonkit.detached(chroot_directory="jail", working_directory="/work", pidfile="pid", stdout="jail/log") as d:
            print("one")
            os.rename("/log", "/log.1")
            d.reopen()
            print("two")
            report("/work/report", cwd_seen=os.getcwd()) if os.path.exists("/proc") else open("/work/done", "w").close()
            wait()
    """,
    )
    eventually((jail / "work" / "done").exists)
    pid = pid_in(tmp_path / "pid")
    assert os.readlink(f"/proc/{pid}/root") == str(jail) and os.readlink(f"/proc/{pid}/cwd") == str(jail / "work")
    assert (jail / "log.1").read_text() == "one\n" and (jail / "log").read_text() == "two\n"
    assert stop(pid) == 0
    assert not (tmp_path / "pid").exists()


@root_only
def test_uid_alone_brings_its_group_also_where_the_user_stays(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        os.setresgid(5, 5, 5)
        with daemonkit.detached(uid="root", working_directory="."):
            report()
    """,
    )
    facts = reported(tmp_path)
    assert facts["gid"] == [0, 0, 0]
    ended(facts["pid"])


# Programs whose Python and packages lie in a folder that the daemon's user can't enter, or outside of its new root.
EVERYTHING = """
    import warnings
    with daemonkit.detached({change}, pidfile="app.pid", stdout="app.log", stderr="app.err", wait_ready=True) as d:
        said = {{}}
        def call(name, function):
            try:
                said[name] = str(function())
            except BaseException as error:
                said[name] = f"{{type(error).__name__}}: {{error}}"
        call("status", lambda: daemonkit.status("/none.pid").running)
        call("started", lambda: daemonkit.status("/none.pid").started)
        call("attach", lambda: daemonkit.attach("/none.pid"))
        sleeping = daemonkit.spawn_detached(["/bin/sleep", "60"])
        call("wait", lambda: sleeping.wait(0.01))
        sleeping.kill()
        call("spawn", lambda: daemonkit.spawn_detached(["/bin/false"]).wait())
        call("cwd", lambda: daemonkit.spawn_detached(["/bin/true"], cwd="/").wait())
        call("absent", lambda: daemonkit.spawn_detached(["/absent"]))
        call("supervise", lambda: daemonkit.supervise(["/bin/true"], restart="never").exitcode)
        call("service", lambda: daemonkit.Service(print, pidfile="/none.pid").status().running)
        print(json.dumps(said))
        warnings.warn("a warning", stacklevel=1)
        logging.getLogger("daemonkit").warning("a record %s", 1)
        d.ready()
        {end}
"""


def _closed_python(directory: Path) -> dict[str, str]:
    """Return an environment in which the package is found in a folder that only root can enter."""
    closed = directory / "closed"
    closed.mkdir(mode=0o700)
    for package in (daemonkit, lockfile, daemon):
        shutil.copytree(Path(package.__file__).parent, closed / package.__name__)
    return {**os.environ, "PYTHONPATH": str(closed)}


@root_only
@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGHUP); wait()", "raise ValueError(len(said) + 1)"])
@pytest.mark.parametrize("change", ["uid='daemon'", "chroot_directory='jail'"])
def test_nothing_is_imported_after_a_change_of_user_or_root(tmp_path: Path, change: str, end: str) -> None:
    harness.let_everybody_in(tmp_path)
    environment = _closed_python(tmp_path)
    if "jail" in change:
        _jail(tmp_path / "jail")
    done = run(tmp_path, EVERYTHING.format(change=change, end=end), env=environment, timeout=2 * harness.PATIENCE)
    assert done.returncode == 0, done.stderr
    if "raise" not in end:
        assert stop(pid_in(tmp_path / "app.pid")) == 0
    eventually(lambda: not daemonkit.status(tmp_path / "app.pid"))
    said = json.loads((tmp_path / "app.log").read_text())
    assert (said.pop("attach")).startswith("NotRunningError: ")
    assert said.pop("wait").startswith("TimeoutExpired: ")
    assert said.pop("absent").startswith("FileNotFoundError: ")
    expected = {"status": "False", "started": "None", "spawn": "1", "cwd": "0", "supervise": "0"}
    assert said == {**expected, "service": "False"}
    errors = (tmp_path / "app.err").read_text()
    assert "No module named" not in errors and "a warning" in errors and "a record 1" in errors
    assert ("\nValueError: 10\n" in errors) == ("raise" in end)


@root_only
@pytest.mark.parametrize("change", ["uid='daemon'", "chroot_directory='jail'"])
def test_a_start_that_fails_after_a_change_of_user_or_root_tells_its_cause(tmp_path: Path, change: str) -> None:
    harness.let_everybody_in(tmp_path)
    environment = _closed_python(tmp_path)
    (tmp_path / "jail").mkdir()
    done = run(
        tmp_path,
        f"""
        with daemonkit.detached({change}, pidfile="app.pid", wait_ready=True):
            absent = len("x") + undefined
    """,
        env=environment,
    )
    assert done.returncode == 1 and "StartError: the daemon ended with status 1" in done.stderr
    assert done.stderr.count("NameError: name 'undefined' is not defined") == 2 and "No module" not in done.stderr


def _jail(root: Path) -> None:
    """Make a root directory with the few programs that a test runs, and what they are linked to."""
    for program in ("sh", "sleep", "true", "false"):
        path = Path(shutil.which(program) or "")
        told = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
        for file in [f"/bin/{program}", *re.findall(r"(/\S+) \(0x", told)]:
            (root / file[1:]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path if file.startswith("/bin/") and file.endswith(program) else file, root / file[1:])
    (root / "dev").mkdir()
    os.mknod(root / "dev" / "null", 0o20666, os.makedev(1, 3))
    (root / "dev" / "null").chmod(0o666)
    (root / "proc").mkdir()
