"""detached(): another user, another root directory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from harness import ended, eventually, pid_in, reported, run, stop

if TYPE_CHECKING:
    from pathlib import Path

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
