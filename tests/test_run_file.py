"""`daemonkit run -f FILE`: all apps of a file in the foreground, as one program."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness import PATIENCE, Terminal, alive, children, eventually, state
from shell import COMMAND, Shell, one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

QUICK = "[defaults]\nmin_uptime = 0.05\nstop_timeout = 5\n"
APP = """
[apps.{name}]
command = ["sh", "-c", "trap 'echo {name} ends; exit 0' TERM; echo {name} begins; while :; do sleep 0.02; done"]
after = {after}
"""
THREE = (
    QUICK
    + APP.format(name="mail", after=["web"])
    + APP.format(name="db", after=[])
    + APP.format(name="web", after=["db"])
)


class Site(Shell):
    """A shell in a folder with an app file that is run in the foreground."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.processes: list[subprocess.Popen[str]] = []

    def write(self, text: str) -> None:
        (self.folder / "daemonkit.toml").write_text(text)

    def run(self, *arguments: str, wrapper: tuple[str, ...] = (), **variables: str) -> subprocess.Popen[str]:
        """Type `run -f daemonkit.toml`; its output goes to the files out and err."""
        with (self.folder / "out").open("wb") as out, (self.folder / "err").open("wb") as err:
            process = subprocess.Popen(
                [*wrapper, *COMMAND, "run", "-f", "daemonkit.toml", *arguments], cwd=self.folder, text=True,
                env={**self.environment, **variables}, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def lines(self, name: str = "out") -> list[str]:
        """Return what it has written, without the supervisors' own lines."""
        lines = (self.folder / name).read_text().splitlines()
        return [re.sub(r" +\| ", " | ", line) for line in lines if "| daemonkit: " not in line]

    def shows(self, *expected: str) -> None:
        """Wait for lines."""
        eventually(lambda: set(expected) <= set(self.lines()), f"{expected} in {self.lines()}")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    for process in site.processes:
        process.kill()
        process.wait()
    site("delete", "--all", status=None)


BEGUN = ["db | db begins", "web | web begins", "mail | mail begins"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_they_start_in_order_and_stop_the_last_one_first(site: Site, number: int) -> None:
    site.write(THREE)
    run = site.run()
    site.shows(*BEGUN)
    assert site.lines() == BEGUN
    eventually(lambda: site.report("mail")["state"] == "running")
    run.send_signal(number)
    assert run.wait(PATIENCE) == 0
    assert site.lines()[3:] == ["mail | mail ends", "web | web ends", "db | db ends"]
    assert not site.lines("err") or set(site.lines("err")) <= {f"{name} | Terminated" for name in ("db", "web", "mail")}


@pytest.mark.long
def test_the_other_commands_see_them_and_a_second_one_is_refused(site: Site) -> None:
    site.write(THREE)
    run = site.run()
    eventually(lambda: site.report("mail")["state"] == "running")
    assert site.report("db")["up"] == 1
    pid = site.report("db")["pid"]
    said = one_line(site("run", "-f", "daemonkit.toml", status=1).stderr)
    assert (
        said
        == f"daemonkit: mail runs already, as process {site.report('mail')['pid']}; stop it first: daemonkit stop mail\n"
    )
    assert site("up").stdout.splitlines() == [f"{name}: is as it should be, 1/1 up" for name in ("db", "web", "mail")]
    site("stop", "web")
    site.shows("web | web ends")
    assert site.report("db")["pid"] == pid, "the others run on"
    run.terminate()
    assert run.wait(PATIENCE) == 0


def test_a_name_that_is_not_the_files_own_is_refused(site: Site) -> None:
    site.start("web")
    site.write(THREE)
    assert "web was made by daemonkit start" in one_line(site("run", "-f", "daemonkit.toml", status=1).stderr)
    assert not (site.home / "db.json").exists()


def test_on_a_terminal_each_name_has_a_colour(site: Site) -> None:
    site.write(THREE)
    for key, value in site.environment.items():
        os.environ[key] = value
    terminal = Terminal([*COMMAND, "run", "-f", "daemonkit.toml"], site.folder)
    try:
        shown = terminal.read("mail begins")
        assert "\x1b[33mdb   | \x1b[0mdb begins" in shown and "\x1b[36mmail | \x1b[0mmail begins" in shown
        terminal.type("\x03")
        assert terminal.read("db ends").index("mail ends") >= 0
        terminal.read()
    finally:
        del os.environ["DAEMONKIT_HOME"]
        os.waitpid(terminal.pid, 0)
        terminal.hang_up()


def test_ready_is_told_once_all_are_up(site: Site) -> None:
    site.write(THREE)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(site.folder / "notify"))
        manager.settimeout(PATIENCE)
        run = site.run(NOTIFY_SOCKET=str(site.folder / "notify"))
        assert manager.recv(1000) == b"READY=1\nSTATUS=3 up"
        assert sorted(site.lines()) == sorted(BEGUN)
        assert all(site.report(name)["state"] == "running" for name in ("db", "web", "mail"))
        run.terminate()
        assert run.wait(PATIENCE) == 0


ONCE = '\n[apps.{name}]\ncommand = ["sh", "-c", "sleep {seconds}; echo {name} is done; exit {status}"]\nrestart = "never"\nafter = {after}\n'


def test_until_all_it_ends_when_none_is_left_and_a_failure_is_status_1(site: Site) -> None:
    site.write(
        QUICK
        + ONCE.format(name="a", seconds=0.1, status=0, after=[])
        + ONCE.format(name="b", seconds=0.2, status=0, after=["a"])
    )
    assert site.run().wait(PATIENCE) == 0
    assert site.lines() == ["a | a is done", "b | b is done"]
    site.write(
        QUICK
        + ONCE.format(name="a", seconds=0, status=3, after=[])
        + "wait_ready = true\n"
        + ONCE.format(name="b", seconds=0.1, status=0, after=[])
        + ONCE.format(name="c", seconds=0, status=0, after=["a"])
    )
    assert site.run("--until", "all").wait(PATIENCE) == 1
    assert sorted(site.lines()) == ["a | a is done", "b | b is done"]
    assert "daemonkit: c is not started: it comes after a, which is not up" in site.lines("err")


@pytest.mark.parametrize("status", [0, 1, 3])
def test_until_any_the_end_of_one_ends_all_with_its_status(site: Site, status: int) -> None:
    site.write(THREE + ONCE.format(name="job", seconds=0.5, status=status, after=["mail"]))
    assert site.run("--until", "any").wait(PATIENCE) == status
    assert site.lines()[-4:] == ["job | job is done", "mail | mail ends", "web | web ends", "db | db ends"]
    assert f"daemonkit: job has ended with status {status}" in site.lines("err")


@pytest.mark.long
def test_sighup_reads_the_file_anew_and_touches_only_what_differs(site: Site) -> None:
    site.write(THREE)
    run = site.run()
    eventually(lambda: site.report("mail")["state"] == "running")
    before = {name: site.report(name)["pid"] for name in ("db", "web", "mail")}
    site.write("[apps.x\n")
    run.send_signal(signal.SIGHUP)
    eventually(lambda: any("everything stays as it is" in line for line in site.lines("err")))
    changed = (
        QUICK + APP.format(name="db", after=[]) + APP.format(name="web", after=["db"]).replace("begins", "begins anew")
    )
    site.write(changed + APP.format(name="new", after=["web"]))
    run.send_signal(signal.SIGHUP)
    site.shows("mail | mail ends", "web | web ends", "web | web begins anew", "new | new begins")
    eventually(lambda: site.report("new")["state"] == "running")
    assert {name: site.report(name)["pid"] for name in ("db", "web")} == {"db": before["db"], "web": before["web"]}
    assert not alive(before["mail"])
    run.terminate()
    assert run.wait(PATIENCE) == 0
    assert site.lines()[-3:] == ["new | new ends", "web | web ends", "db | db ends"]


def test_sighup_while_an_earlier_change_is_rolled_in_is_not_lost(site: Site) -> None:
    words = QUICK + "[apps.a]\ncommand = ['sh', '-c', 'echo {word}; exec sleep 1000']\n"
    site.write(words.format(word="one"))
    run = site.run()
    for word in ("two", "three", "four"):
        site.shows(f"a | {'one' if word == 'two' else 'two'}")  # the first comes at once after the start
        site.write(words.format(word=word))
        run.send_signal(signal.SIGHUP)
    site.shows("a | four")
    run.terminate()
    assert run.wait(PATIENCE) == 0
    assert not [line for line in site.lines("err") if line.startswith("daemonkit: a was not")]


def test_what_the_file_has_again_while_it_stops_is_started_anew(site: Site) -> None:
    slow = APP.format(name="b", after=[]).replace(
        "echo b ends;", "echo b ends; while [ -e wait ]; do sleep 0.02; done;"
    )
    site.write(QUICK + APP.format(name="a", after=[]) + slow)
    (site.folder / "wait").touch()
    run = site.run()
    site.shows("a | a begins", "b | b begins")
    site.write(QUICK + APP.format(name="a", after=[]))
    run.send_signal(signal.SIGHUP)
    site.shows("b | b ends")
    site.write(QUICK + APP.format(name="a", after=[]) + slow)
    run.send_signal(signal.SIGHUP)
    eventually(lambda: "SIGHUP" not in pending(run.pid))
    (site.folder / "wait").unlink()
    eventually(lambda: site.lines().count("b | b begins") == 2)
    run.terminate()
    assert run.wait(PATIENCE) == 0


def pending(pid: int) -> set[str]:
    """Return the signals that a process has not taken yet."""
    [mask] = re.findall(r"ShdPnd:\t(\w+)", (Path("/proc") / str(pid) / "status").read_text())
    return {one.name for one in signal.Signals if int(mask, 16) >> (one - 1) & 1}


def test_a_file_whose_name_is_not_utf8_is_read_anew_too(site: Site) -> None:
    folder = os.fsencode(site.folder) + b"/\xff"
    os.mkdir(folder)
    with open(folder + b"/daemonkit.toml", "w") as file:
        file.write(QUICK + APP.format(name="a", after=[]))
    site.folder = Path(os.fsdecode(folder))
    run = site.run()
    site.shows("a | a begins")
    with open(folder + b"/daemonkit.toml", "a") as file:
        file.write("colour = 1\n")
    run.send_signal(signal.SIGHUP)
    eventually(lambda: b"\xff/daemonkit.toml: [apps.a] colour: unknown key" in (site.folder / "err").read_bytes())
    run.terminate()
    assert run.wait(PATIENCE) == 0


def test_a_change_that_does_not_come_up_leaves_what_was_there(site: Site) -> None:
    site.write(QUICK + APP.format(name="a", after=[]))
    run = site.run()
    eventually(lambda: site.report("a")["state"] == "running")
    before = site.instances("a")
    site.write(QUICK + "[apps.a]\ncommand = ['sh', '-c', 'exit 3']\nstart_timeout = 1\nwait_ready = true\n")
    run.send_signal(signal.SIGHUP)
    eventually(lambda: any(line.startswith("daemonkit: a was not reloaded: ") for line in site.lines("err")))
    assert site.instances("a") == before
    run.terminate()
    assert run.wait(PATIENCE) == 0


def test_a_second_sigterm_kills_at_once(site: Site) -> None:
    deaf = (
        '[apps.a]\ncommand = ["sh", "-c", "trap : TERM; echo on; while :; do sleep 0.02; done"]\nstop_timeout = 600\n'
    )
    site.write(deaf)
    run = site.run()
    site.shows("a | on")
    run.terminate()
    eventually(lambda: state(run.pid) == "S")
    with pytest.raises(subprocess.TimeoutExpired):
        run.wait(0.3)
    run.terminate()
    run.wait(PATIENCE)


def test_a_second_sigterm_kills_those_too_that_wait_for_others_to_stop(site: Site) -> None:
    deaf = (
        '[apps.{}]\ncommand = ["sh", "-c", "trap : TERM; echo on; while :; do sleep 0.02; done"]\nstop_timeout = 600\n'
    )
    site.write(QUICK + deaf.format("a") + deaf.format("b") + "after = ['a']\n")
    run = site.run()
    site.shows("a | on", "b | on")
    run.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        run.wait(0.3)
    run.terminate()
    run.wait(PATIENCE)


def test_it_stops_when_its_terminal_goes(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.write(THREE)
    for key, value in site.environment.items():
        monkeypatch.setenv(key, value)
    terminal = Terminal([*COMMAND, "run", "-f", "daemonkit.toml"], site.folder)
    terminal.read("mail begins")
    supervisors = children(terminal.pid)
    terminal.hang_up()
    assert os.waitstatus_to_exitcode(os.waitpid(terminal.pid, 0)[1]) == 0
    assert not any(map(alive, supervisors))


def test_killed_it_leaves_nothing(site: Site) -> None:
    site.write(THREE)
    run = site.run()
    eventually(lambda: site.report("mail")["state"] == "running")
    supervisors = children(run.pid)
    instances = [pid for name in ("db", "web", "mail") for pid in site.instances(name)]
    run.kill()
    run.wait()
    eventually(lambda: not any(map(alive, [*supervisors, *instances])))


def test_children_that_others_left_to_it_are_reaped(site: Site) -> None:
    site.write(THREE)
    run = site.run(
        wrapper=("sh", "-c", 'sleep 0.3 & exec "$0" "$@"')
    )  # which leaves it a child, as process 1 gets them
    site.shows(*BEGUN)
    eventually(lambda: not any(state(pid) == "Z" for pid in children(run.pid)) and len(children(run.pid)) == 3)
    run.terminate()
    assert run.wait(PATIENCE) == 0


def test_no_line_is_lost_split_or_mixed(site: Site) -> None:
    talker = '\n[apps.{name}]\ncommand = ["sh", "-c", "for i in $(seq 300); do echo {name}-$i-{long}; done; printf rest; echo {name} >&2"]\nrestart = "never"\n'
    site.write(QUICK + "".join(talker.format(name=name, long=name * 3000) for name in ("a", "bb", "ccc")))
    assert site.run().wait(PATIENCE) == 0
    lines = site.lines()
    for name in ("a", "bb", "ccc"):
        own = [line.removeprefix(f"{name} | ") for line in lines if line.startswith(f"{name} | ")]
        assert own == [*[f"{name}-{i}-{name * 3000}" for i in range(1, 301)], "rest"]
    assert len(lines) == 903


def test_lines_of_several_instances_are_whole_whatever_they_write_at_once(site: Site) -> None:
    site.write(
        "[apps.a]\ninstances = 3\nrestart = 'never'\n"
        "command = ['sh', '-c', 'for i in 1 2 3 4 5; do printf one$DAEMONKIT_INSTANCE; sleep 0.02; printf two; sleep 0.02; echo; done']\n"
    )
    assert site.run().wait(PATIENCE) == 0
    assert sorted(site.lines()) == [f"a | one{i}two" for i in range(3) for _ in range(5)]


def test_where_nothing_can_be_written_the_apps_run_all_the_same(site: Site) -> None:
    site.write(THREE)
    run = site.run(DAEMONKIT_HOME="/proc/none")
    site.shows(*BEGUN)
    said = "/proc/none: No such file or directory; the apps run, but ls, status and stop do not see them"
    assert site.lines("err")[0] == f"daemonkit: {said}"
    run.terminate()
    assert run.wait(PATIENCE) == 0
    assert site.lines()[3:] == ["mail | mail ends", "web | web ends", "db | db ends"]


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="to mount a file system takes root")
def test_where_the_home_for_apps_can_not_be_written_to_they_run_all_the_same(site: Site) -> None:
    site.write(THREE)
    site.home.mkdir(mode=0o700)
    mount = (
        'mount -t tmpfs -o mode=700 none "$DAEMONKIT_HOME" && mount -o remount,ro "$DAEMONKIT_HOME" && exec "$0" "$@"'
    )
    run = site.run(wrapper=("unshare", "--mount", "sh", "-c", mount))
    site.shows(*BEGUN)
    assert site.lines("err")[0].endswith(
        "it can't be written to; the apps run, but ls, status and stop do not see them"
    )
    run.terminate()
    assert run.wait(PATIENCE) == 0


@pytest.mark.long
def test_a_reader_that_has_stopped_reading_does_not_keep_it_from_stopping(site: Site) -> None:
    site.write('[apps.a]\ncommand = ["sh", "-c", "yes"]\nstop_timeout = 1\n')
    reader, writer = os.pipe()
    run = subprocess.Popen(
        [*COMMAND, "run", "-f", "daemonkit.toml"], cwd=site.folder, env=site.environment, stdout=writer, stderr=writer
    )
    site.processes.append(run)  # type: ignore[arg-type]
    os.close(writer)
    eventually(lambda: site.report("a")["state"] == "running")
    run.terminate()
    run.wait(PATIENCE)
    with contextlib.suppress(OSError):
        os.close(reader)
