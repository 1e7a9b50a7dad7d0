"""spawn_detached() as another user: never with a group of root."""

from __future__ import annotations

import json
import os
import pwd
from typing import TYPE_CHECKING, Any

import pytest
from harness import let_everybody_in, pid_in, run
from launches import (
    call,
    caller,
    judged,
    kill,
    root_only,
    script,
    seen,
    spawned,
)

if TYPE_CHECKING:
    from pathlib import Path


@root_only
@pytest.mark.parametrize(
    ("options", "gid", "groups"),
    [
        ("user='daemon'", None, None),
        ("user=1", None, None),
        ("user='games'", None, None),
        ("user='daemon', cwd='/', umask=0o77", None, None),
        ("user='daemon', group='games'", "games", None),
        ("user=1, group=12345", 12345, None),
        ("user=61234, group=61235", 61235, []),
        ("user='daemon', extra_groups=[]", None, []),
        ("user='daemon', extra_groups=[7, 'games', 12345]", None, [7, "games", 12345]),
        ("user=1, group='games', extra_groups=('mail',)", "games", ["mail"]),
    ],
)
def test_roots_groups_never_leak(tmp_path: Path, options: str, gid: Any, groups: Any) -> None:
    import grp

    def number(group: Any) -> int:
        return grp.getgrnam(group).gr_gid if isinstance(group, str) else int(group)

    let_everybody_in(tmp_path)
    pid = spawned(tmp_path, f"SLEEP, {options}, stdout='log', pidfile='pid'", before="os.setgroups([0, 4, 27])")
    facts = seen(pid)
    expected_gid = None if gid is None else number(gid)
    uid = facts["uid"][0]
    assert uid in {1, 61234, pwd.getpwnam("games").pw_uid} and facts["uid"] == [uid] * 4
    if uid != 61234:
        user = pwd.getpwuid(uid)
        expected_gid = user.pw_gid if expected_gid is None else expected_gid
        expected = os.getgrouplist(user.pw_name, expected_gid) if groups is None else map(number, groups)
    else:
        expected = []
    assert facts["gid"] == [expected_gid] * 4
    assert facts["groups"] == sorted(set(expected))
    assert not {0, 4, 27} & {*facts["groups"], *facts["gid"]}
    assert pid_in(tmp_path / "pid") == pid == seen(pid)["sid"]
    refused = run(tmp_path, caller("spawn(SLEEP, pidfile='pid')"))
    assert f"is held by process {pid}" in refused.stderr
    kill(pid)


@root_only
def test_a_user_without_an_entry_never_has_roots_groups(tmp_path: Path) -> None:
    done = run(tmp_path, caller("os.setgroups([0, 4, 27])\ntell(pid=spawn(SLEEP, user=61234).pid)"))
    if done.returncode == 0:
        facts = seen(pid := json.loads(done.stdout)["pid"])
        assert facts["uid"] == [61234] * 4 and not {0, 4, 27} & {*facts["groups"], *facts["gid"]}
        kill(pid)
    else:
        assert "LookupError" in done.stderr and "61234" in done.stderr


@root_only
def test_a_group_alone_and_the_caller_keeps_its_own(tmp_path: Path) -> None:
    told = call(
        tmp_path,
        """
        before = seen("self")
        p, q = spawn(SLEEP, group=12345), spawn(SLEEP, user="daemon")
        after = seen("self")
        assert all(before[key] == after[key] for key in ("uid", "gid", "groups", "umask", "cwd"))
        tell(pids=[p.pid, q.pid], gid=seen(p.pid)["gid"], uid=seen(p.pid)["uid"])
    """,
    )
    assert told["gid"] == [12345] * 4 and told["uid"] == [0] * 4
    kill(*told["pids"])


@root_only
def test_a_program_that_the_user_may_not_run_is_named(tmp_path: Path) -> None:
    let_everybody_in(tmp_path)
    script(tmp_path / "roots", "#!/bin/sh\n", 0o700)
    result = judged(tmp_path, {"['./roots']": ""}, "user")["['./roots']"]
    assert result[0] == "PermissionError" and result[2] == "roots"
