"""`daemonkit up` makes what runs as the file says, touches nothing else, and may be typed again and again."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness import Terminal, alive, eventually
from shell import COMMAND, Shell, one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

QUICK = "[defaults]\nmin_uptime = 0.05\n"
THREE = (
    QUICK
    + """
[apps.mail]
command = "sleep 1003"
after = ["web"]
[apps.db]
command = "sleep 1001"
[apps.web]
command = "sleep 1002"
instances = 2
after = ["db"]
"""
)


class Site(Shell):
    """A shell in a folder with an app file."""

    def write(self, text: str, name: str = "daemonkit.toml") -> None:
        (self.folder / name).write_text(text)

    def up(self, *arguments: object, **options: object) -> list[str]:
        """Type `up`; return its lines without counts and pids."""
        done = self("up", *arguments, **options)
        assert done.stderr == ""
        lines = done.stdout.splitlines()
        return [line.partition(",")[0] for line in lines]

    def pids(self) -> dict[str, int]:
        """Return the supervisors."""
        found = {}
        for path in self.home.glob("[a-z]*.pid"):
            if report := self.report(path.stem)["pid"]:
                found[path.stem] = report
        return found


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site("delete", "--all", status=None)


def test_up_starts_all_in_order_and_a_second_one_does_nothing(site: Site) -> None:
    site.write(THREE)
    assert site.up() == ["db: started", "web: started", "mail: started"]
    before = site.pids()
    assert len(before) == 3
    files = {path: path.stat().st_mtime_ns for path in site.home.iterdir()}
    assert site.up() == ["db: is as it should be", "web: is as it should be", "mail: is as it should be"]
    assert site.pids() == before
    assert {path: path.stat().st_mtime_ns for path in site.home.iterdir()} == files


@pytest.mark.long
def test_only_what_has_changed_is_touched(site: Site) -> None:
    site.write(THREE)
    site.up()
    before = site.pids()
    site.write(THREE.replace("instances = 2", "instances = 3"))
    assert [line.split(" (")[1] for line in site.up() if "(" in line] == ["instances)"]
    assert site.report("web")["up"] == 3
    after = site.pids()
    assert (after["db"], after["mail"]) == (before["db"], before["mail"])


def test_a_change_that_does_not_come_up_is_named_and_what_was_there_stays(site: Site) -> None:
    site.write(THREE)
    site.up()
    before = site.instances("web")
    site.write(THREE.replace('"sleep 1002"', "\"sh -c 'exit 3'\""))
    done = site("up", status=1)
    assert "daemonkit: web was not reloaded: " in done.stderr
    assert done.stderr.endswith("daemonkit: not as daemonkit.toml says: web\n")
    assert site.instances("web") == before
    site.write(THREE)
    assert site.up() == ["db: is as it should be", "web: is as it should be", "mail: is as it should be"]


@pytest.mark.long
def test_what_somebody_has_stopped_or_killed_or_changed_by_hand_is_put_right(site: Site) -> None:
    site.write(THREE)
    site.up()
    before = site.pids()
    site("stop", "web")
    os.kill(before["mail"], signal.SIGKILL)
    eventually(lambda: not alive(before["mail"]))
    assert site.up() == ["db: is as it should be", "web: started", "mail: started"]


def test_a_dry_run_says_what_would_be_done_and_does_nothing(site: Site) -> None:
    site.write(THREE)
    assert site.up("--dry-run") == ["db: would be started", "web: would be started", "mail: would be started"]
    assert not site.home.exists()
    site.up("db")
    site.write(THREE.replace("1001", "1009"))
    before = site.pids()
    assert site.up("-n")[0] == "db: would be changed (command)"
    site.write("[apps.web]\ncommand = 'sleep 1002'\n")
    assert site.up("-n", "--prune")[0] == "db: would be stopped and forgotten"
    assert site.pids() == before


@pytest.mark.long
def test_up_name_also_brings_up_what_it_comes_after(site: Site) -> None:
    site.write(THREE)
    assert site.up("web") == ["db: started", "web: started"]
    assert [*site.pids()] == ["db", "web"] or set(site.pids()) == {"db", "web"}
    assert "there is no app wbe in it; it has mail, db, web" in one_line(site("up", "mail", "wbe", status=1).stderr)
    assert "mail" not in site.pids()


def test_what_has_gone_from_the_file_is_named_and_with_prune_forgotten(site: Site) -> None:
    site.write(THREE)
    site.up()
    site.write(QUICK + "[apps.db]\ncommand = 'sleep 1001'\n")
    lines = site("up").stdout.splitlines()
    forget = "is no longer in daemonkit.toml; daemonkit up --prune stops and forgets it, daemonkit delete"
    assert {line.partition(";")[0] for line in lines} == {
        "mail: is no longer in daemonkit.toml",
        "web: is no longer in daemonkit.toml",
        "db: is as it should be, 1/1 up",
    }
    assert f"web: {forget} web too" in lines
    assert len(site.pids()) == 3
    assert sorted(site.up("--prune")) == [
        "db: is as it should be",
        "mail: stopped and forgotten",
        "web: stopped and forgotten",
    ]
    assert {path.name for path in site.home.iterdir()} >= {"db.json"}
    assert not [*site.home.glob("web.*"), *site.home.glob("mail.*")]


def test_a_name_that_is_not_the_files_own_is_refused_before_anything_is_done(site: Site) -> None:
    site.start("web")
    site.write(THREE)
    said = one_line(site("up", status=1).stderr)
    assert said == (
        f"daemonkit: web was made by daemonkit start, not by {site.folder}/daemonkit.toml; "
        "rename it there, or first: daemonkit delete web\n"
    )
    site("delete", "web")
    (site.folder / "other").mkdir()
    site.write(THREE, "other/daemonkit.toml")
    site.up("-f", "other/daemonkit.toml", "db")
    before = site.pids()
    said = one_line(site("up", status=1).stderr)
    assert said.startswith(f"daemonkit: db belongs to {site.folder}/other/daemonkit.toml, not to ")
    assert site.pids() == before


def test_a_file_that_is_reached_by_another_name_is_the_same_file(site: Site) -> None:
    (site.folder / "release").mkdir()
    site.write(THREE, "release/daemonkit.toml")
    (site.folder / "current").symlink_to("release")
    site.up("-f", "current/daemonkit.toml", "db")
    before = site.pids()
    assert site.up("-f", "current/daemonkit.toml", "db") == ["db: is as it should be"]
    assert site.pids() == before
    assert site.up("-f", "release/daemonkit.toml", "db")[0].endswith(" (cwd)")
    assert site("down", "-f", "current/daemonkit.toml").stdout == "db: stopped\n"


BROKEN = THREE.replace('"sleep 1002"', "\"sh -c 'echo no database; exit 3'\"").replace(
    "instances = 2", 'restart = "never"'
)


def test_what_does_not_come_up_is_named_and_the_others_run(site: Site) -> None:
    site.write(BROKEN + "[apps.cron]\ncommand = 'sleep 1004'\n")
    done = site("up", status=1)
    lines = done.stderr.splitlines()
    assert lines[0] == "no database"
    assert lines[1].startswith("daemonkit: web did not start: instance 0 ended with status 3 before it was up")
    assert lines[2:] == [
        "daemonkit: mail is left as it was: it comes after web, which is not up",
        "daemonkit: not as daemonkit.toml says: web, mail",
    ]
    assert set(site.pids()) == {"db", "cron"}
    site.write(THREE + "[apps.cron]\ncommand = 'sleep 1004'\n")
    assert sorted(site.up()) == ["cron: is as it should be", "db: is as it should be", "mail: started", "web: started"]


@pytest.mark.parametrize("text", ["[apps.web\n", "[apps.web]\ncommand = 'a'\nafter = ['x']\n", THREE + "colour = 1\n"])
def test_a_bad_file_changes_nothing(site: Site, text: str) -> None:
    site.write(THREE)
    site.up("db")
    before = site.pids()
    site.write(text)
    for command in (["up"], ["up", "--prune"], ["up", "db"], ["up", "-n"]):
        assert f"{site.folder}/daemonkit.toml: " in one_line(site(*command, status=1).stderr)
    assert site.pids() == before


def test_without_a_file_the_message_says_which_are_looked_for(site: Site) -> None:
    said = "daemonkit: there is no daemonkit.toml and no Procfile here; give one with -f FILE\n"
    assert one_line(site("up", status=1).stderr) == said
    assert one_line(site("up", "-f", "nosuch.toml", status=1).stderr).endswith(
        "nosuch.toml: No such file or directory\n"
    )


def test_a_changed_environment_file_is_a_change_and_another_shell_is_none(site: Site) -> None:
    site.write(
        QUICK + "[apps.a]\ncommand = ['sh', '-c', 'echo got $WORD $OTHER; exec sleep 1000']\nenv_file = '.env'\n"
    )
    site.write("WORD=one\n", ".env")
    site.up()
    assert site.up() == ["a: is as it should be"]
    site.environment["OTHER"] = "more"
    assert site.up() == ["a: is as it should be"]
    site.write("WORD=two\n", ".env")
    assert "(env)" in site.up()[0]
    eventually(lambda: "got two" in site("logs", "a", "-n", "99").stdout)


def test_a_procfile_too(site: Site) -> None:
    site.write("web: echo web on $PORT; exec sleep 1001\nworker: echo $STAGE | cat; exec sleep 1002\n", "Procfile")
    site.write("STAGE=live\n", ".env")
    assert sorted(site.up()) == ["web: started", "worker: started"]
    eventually(lambda: "web on 5000" in site("logs", "web").stdout and "live" in site("logs", "worker").stdout)
    assert sorted(site.up()) == ["web: is as it should be", "worker: is as it should be"]


# --- down -------------------------------------------------------------------------------------------------------------


SLOW_TO_STOP = """
[apps.{name}]
command = ["sh", "-c", "trap 'sleep 0.2; echo {name} >>order; exit 0' TERM; touch {name}.up; while :; do sleep 0.02; done"]
after = {after}
"""


@pytest.mark.long
def test_down_stops_all_the_last_first_also_without_the_file(site: Site) -> None:
    site.write(
        QUICK + "".join(SLOW_TO_STOP.format(name=n, after=a) for n, a in {"a": [], "b": ["a"], "c": ["b"]}.items())
    )
    site.start("stranger")
    for remove in (False, True):
        site.up()
        for name in "abc":
            eventually((site.folder / f"{name}.up").exists)
        (site.folder / "order").write_text("")
        if remove:
            (site.folder / "daemonkit.toml").unlink()
        done = site("down", *(["-f", "daemonkit.toml"] if remove else []))
        assert done.stdout.splitlines() == ["c: stopped", "b: stopped", "a: stopped"]
        assert (site.folder / "order").read_text().split() == ["c", "b", "a"]
        assert set(site.pids()) == {"stranger"}
    assert site("down", "-f", "daemonkit.toml").stdout.splitlines() == [f"{n}: does not run" for n in "cba"]
    site("delete", "a", "b", "c")
    assert "no app of " in site("down", "-f", "daemonkit.toml").stderr


# --- order ------------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_thirty_apps_with_a_random_order_each_begin_after_what_they_come_after(site: Site) -> None:
    rng = random.Random(4)
    names = [f"app{number}" for number in range(30)]
    after = {
        name: rng.sample(names[:index], min(index, rng.choice([0, 1, 1, 2, 3]))) for index, name in enumerate(names)
    }
    shuffled = rng.sample(names, 30)
    site.write(
        QUICK
        + "".join(
            f"[apps.{name}]\ncommand = ['sh', '-c', 'echo {name} >>order; exec sleep 1000']\nafter = {after[name]}\n"
            for name in shuffled
        )
    )
    up = typed(site, "up")
    assert up.communicate(timeout=100)[1] == ""
    order = (site.folder / "order").read_text().split()
    assert sorted(order) == sorted(names)
    assert all(order.index(other) < order.index(name) for name in names for other in after[name])
    assert set(site.up()) == {f"{name}: is as it should be" for name in names}


MEETING = """
import os, socket, sys, time
open(sys.argv[1], "w").close()
while not all(map(os.path.exists, sys.argv[1:])):
    time.sleep(0.01)
socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"READY=1", os.environ["NOTIFY_SOCKET"].replace("@", "\\0"))
time.sleep(1000)
"""


def test_apps_that_do_not_come_after_each_other_start_side_by_side(site: Site) -> None:
    site.write(MEETING, "meeting.py")
    for name, other in (("a", "b"), ("b", "a")):
        with (site.folder / "daemonkit.toml").open("a") as file:
            file.write(f"[apps.{name}]\ncommand = ['python3', 'meeting.py', '{name}', '{other}']\nwait_ready = true\n")
    assert sorted(site.up()) == ["a: started", "b: started"]


# --- interrupted ------------------------------------------------------------------------------------------------------

NEVER_READY = (
    QUICK
    + "[apps.a]\ncommand = 'sleep 1001'\n[apps.b]\ncommand = 'sleep 1002'\nwait_ready = true\n[apps.c]\ncommand = 'sleep 1003'\nafter = ['b']\n"
)


def typed(site: Site, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *arguments], cwd=site.folder, env=site.environment, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


@pytest.mark.parametrize("whole_group", [True, False])
def test_ctrl_c_leaves_what_is_up_and_says_what_is_missing(site: Site, *, whole_group: bool) -> None:
    site.write(NEVER_READY)
    up = typed(site, "up")
    assert up.stdout and up.stdout.readline().startswith("a: started")
    eventually((site.home / "b.pid").exists)
    (os.killpg if whole_group else os.kill)(up.pid, signal.SIGINT)
    _, said = up.communicate(timeout=30)
    assert up.returncode == 130
    assert said.splitlines()[-1] == "daemonkit: interrupted; not as the file says: b, c; go on with daemonkit up"
    assert set(site.pids()) == {"a"}
    site.write(NEVER_READY.replace("wait_ready = true\n", ""))
    assert sorted(site.up()) == ["a: is as it should be", "b: started", "c: started"]


def test_on_a_terminal_each_app_has_a_line_while_it_is_started(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.write(NEVER_READY.replace("'sleep 1002'", "['python3', 'meeting.py', 'b', 'go']"))
    site.write(MEETING, "meeting.py")
    monkeypatch.setenv("DAEMONKIT_HOME", str(site.home))
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal([*COMMAND, "up"], site.folder)
    try:
        assert "c: waits" in terminal.read("b: is starting, 1 s") + terminal.read("c: waits")
        site.write("", "go")
        seen = terminal.read("c: started, 1/1 up")
        assert "b: started, 1/1 up" in seen
        seen = terminal.read()
        assert "waits" not in seen
    finally:
        assert os.waitstatus_to_exitcode(os.waitpid(terminal.pid, 0)[1]) == 0
        terminal.hang_up()


def test_two_at_once_the_second_says_who_is_at_it_and_waits(site: Site) -> None:
    site.write(NEVER_READY.replace("'sleep 1002'", "['python3', 'meeting.py', 'b', 'go']"))
    site.write(MEETING, "meeting.py")
    first = typed(site, "up")
    eventually((site.folder / "b").exists)
    second = typed(site, "up")
    assert second.stderr
    said = second.stderr.readline()
    assert (
        said
        == f"daemonkit: {site.folder}/daemonkit.toml is being brought up or down by process {first.pid}; waiting for it\n"
    )
    site.write("", "go")
    assert first.communicate(timeout=30)[1] == ""
    assert "started" not in second.communicate(timeout=30)[0]
    assert (first.returncode, second.returncode) == (0, 0)


@pytest.mark.long
def test_after_a_kill_at_any_moment_up_makes_it_so(site: Site) -> None:
    rng = random.Random()
    site.write(THREE)
    for turn in range(12):
        up = typed(site, "up")
        with contextlib.suppress(subprocess.TimeoutExpired):
            up.wait(rng.uniform(0.02, 0.5))
        up.kill()
        up.communicate(timeout=30)
        site.write(THREE.replace("instances = 2", f"instances = {1 + turn % 3}"))
        site("up")
        reports = {name: site.report(name) for name in ("db", "web", "mail")}
        assert {name: report["up"] for name, report in reports.items()} == {"db": 1, "web": 1 + turn % 3, "mail": 1}
        assert len(site.pids()) == 3
        expected = ["1001", *["1002"] * (1 + turn % 3), "1003"]
        eventually(lambda expected=expected: sleeps(site.folder) == expected, f"{expected}, not {sleeps(site.folder)}")
        if turn % 3 == 0:
            site("down")
            eventually(lambda: not sleeps(site.folder))


def sleeps(folder: Path) -> list[str]:
    """Return what sleeps in a folder, and for how long."""
    found = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if (process / "cwd").readlink() == folder and (process / "comm").read_text() == "sleep\n":
                found.append((process / "cmdline").read_text().split("\0")[1])
    return sorted(found)


def test_ls_shows_the_apps_of_a_file_together(site: Site) -> None:
    site.start("alone")
    site.write(THREE)
    site.up()
    lines = [line.split()[0] if line else "" for line in site("ls").stdout.splitlines()]
    assert lines == ["NAME", "alone", "", f"{site.folder}/daemonkit.toml:", "db", "mail", "web"]
    lines = site("status", "web").stdout.splitlines()
    assert lines[1].startswith("web ") and f"file       {site.folder}/daemonkit.toml" in lines


def test_another_shells_environment_is_taken_where_it_is_asked_for(site: Site) -> None:
    site.write(QUICK + "[apps.a]\ncommand = ['sh', '-c', 'echo got $OTHER; exec sleep 1000']\n")
    site.environment["OTHER"] = "one"
    site.up()
    assert site.up("--update-env") == ["a: is as it should be"]
    site.environment["OTHER"] = "two"
    assert site.up() == ["a: is as it should be"]
    assert site.up("--update-env")[0].endswith(" (environment)")
    assert site.up("--update-env") == ["a: is as it should be"]
    eventually(lambda: "got two" in site("logs", "a", "-n", "99").stdout)


def test_what_a_file_said_is_recalled_only_while_nothing_that_it_depends_on_has_changed(site: Site) -> None:
    site.write(QUICK + "[apps.a]\ncommand = 'sleep 1000'\nstdin = '~/words'\n")
    for name in ("one", "two"):
        (site.folder / name).mkdir()
        site.write("", f"{name}/words")
    site.environment["HOME"] = str(site.folder / "one")
    site.up()
    [kept] = site.home.glob(".*.read")
    assert kept.stat().st_mode & 0o777 == 0o600
    assert site.up() == ["a: is as it should be"]
    site.environment["HOME"] = str(site.folder / "two")
    assert site.up("-n") == ["a: would be changed (stdin)"]
    kept.write_text("rubbish")
    assert site.up("-n") == ["a: would be changed (stdin)"]


def test_without_python_dotenv_the_message_says_what_to_install(site: Site) -> None:
    site.write("[apps.a]\ncommand = 'sleep 1000'\nenv_file = '.env'\n")
    site.write("A=1\n", ".env")
    site.write("raise ImportError\n", "dotenv.py")
    site.environment["PYTHONPATH"] = str(site.folder)
    said = one_line(site("up", status=1).stderr)
    assert said.endswith(f"without python-dotenv; install it: {sys.executable} -m pip install python-dotenv\n")


def test_what_is_done_at_once_is_told_as_done(site: Site) -> None:
    site.write("".join(f"[apps.a{number}]\ncommand = 'true'\n" for number in range(6)))
    assert sorted(site("up").stdout.splitlines()) == [f"a{number}: started, done" for number in range(6)]
