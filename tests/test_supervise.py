"""Supervising, seen from outside: real processes, real signals, real sockets."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness
import pytest
from harness import PATIENCE, alive, children, eventually, run

import daemonkit
from daemonkit._supervise import guardian as guardian_module
from daemonkit._supervise import pump as pump_module

if TYPE_CHECKING:
    from collections.abc import Iterator

# Each line of "events" is one event; "summary" is what supervise() returned.
SUPERVISE = """
import dataclasses
def supervise(*args, **options):
    log = open("events", "a", 1)
    def on_event(event):
        log.write(json.dumps(dataclasses.asdict(event)) + "\\n")
    summary = daemonkit.supervise(*args, on_event=on_event, **options)
    with open("summary.new", "w") as file:
        json.dump(dataclasses.asdict(summary), file)
    os.rename("summary.new", "summary")
    return summary
"""
# A program that appends its pid to a file named for its instance, and goes on.
BEAT = "echo $$ >> started.$DAEMONKIT_INSTANCE; exec sleep 1000"


class Supervisor:
    """A program that supervises, as a child of this process."""

    def __init__(self, directory: Path, body: str, **options: Any) -> None:
        """Start it."""
        self.directory = directory
        program = harness.write(directory, SUPERVISE + body)
        self.errors = directory / "errors"
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(program)], cwd=directory, stdin=subprocess.DEVNULL, stderr=errors, **options
            )
        self.pid = self.process.pid

    def events(self, kind: str = "", instance: int | None = None) -> list[dict[str, Any]]:
        """Return the events so far."""
        path = self.directory / "events"
        lines = path.read_text().splitlines() if path.exists() else []
        return [
            event
            for event in map(json.loads, lines)
            if kind in {"", event["kind"]} and instance in {None, event["instance"]}
        ]

    def until(self, kind: str, count: int = 1, instance: int | None = None) -> list[dict[str, Any]]:
        """Wait for that many events of a kind."""
        return eventually(
            lambda: (found := self.events(kind, instance)) and len(found) >= count and found, f"{count} x {kind}"
        )

    @property
    def worker(self) -> int:
        """The worker's pid."""
        return next(pid for pid in children(self.pid) if os.getsid(pid) == pid)

    def stop(self, number: int = signal.SIGTERM) -> dict[str, Any]:
        """End it, and return its summary."""
        self.process.send_signal(number)
        assert self.process.wait(PATIENCE) == 0, self.errors.read_text()
        return self.summary()

    def summary(self) -> dict[str, Any]:
        """Return what supervise() returned."""
        found: dict[str, Any] = json.loads((self.directory / "summary").read_text())
        return found


@contextlib.contextmanager
def supervising(directory: Path, body: str, **options: Any) -> Iterator[Supervisor]:
    """Run a supervisor, and end it whatever happens."""
    supervisor = Supervisor(directory, body, **options)
    try:
        yield supervisor
    finally:
        if supervisor.process.poll() is None:
            supervisor.process.kill()
            supervisor.process.wait()


def pids(directory: Path, name: str) -> list[int]:
    """Return the pids in a file."""
    return [int(line) for line in (directory / name).read_text().split()]


def test_it_returns_when_all_have_ended_as_wished(tmp_path: Path) -> None:
    done = run(tmp_path, 'print(daemonkit.supervise(["true"], instances=3))')
    assert done.stdout.count("state='exited'") == 3 and "Summary(exitcode=0" in done.stdout, done.stderr


def test_a_failure_that_is_given_up_is_exit_code_1(tmp_path: Path) -> None:
    with supervising(tmp_path, 'supervise(["sh", "-c", "exit 3"], max_restarts=2)') as supervisor:
        assert supervisor.process.wait(PATIENCE) == 0
        summary = supervisor.summary()
        assert summary == {"exitcode": 1, "instances": [{"index": 0, "starts": 3, "exitcode": 3, "state": "gave-up"}]}
        assert [event["kind"] for event in supervisor.events()] == ["start", "exit"] * 3 + ["gave-up"]


def test_a_crash_is_restarted_with_the_same_index(tmp_path: Path) -> None:
    with supervising(tmp_path, f"supervise(['sh', '-c', {BEAT!r}], instances=2)") as supervisor:
        first = supervisor.until("start", 2)
        os.kill(first[1]["pid"], signal.SIGKILL)
        again = supervisor.until("start", 3)[2]
        assert again["instance"] == first[1]["instance"] == 1 and again["pid"] != first[1]["pid"]
        assert supervisor.until("exit")[0]["exitcode"] == -signal.SIGKILL
        assert alive(first[0]["pid"])
        summary = supervisor.stop()
        assert [record["starts"] for record in summary["instances"]] == [1, 2]
        assert summary["exitcode"] == 0 and not alive(again["pid"]) and not alive(first[0]["pid"])


def test_what_an_instance_gets(tmp_path: Path) -> None:
    (tmp_path / "probe.py").write_text(
        harness.PRELUDE + "report('report.' + os.environ['DAEMONKIT_INSTANCE'], env=dict(os.environ)); wait()"
    )
    body = f"""
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
os.environ.update(NOTIFY_SOCKET="/nowhere", LISTEN_FDS="1", LISTEN_PID="1", WATCHDOG_USEC="1")
stray = os.open("/dev/null", os.O_RDONLY); os.set_inheritable(stray, True)
supervise([{sys.executable!r}, "probe.py"], instances=2, umask=0o27, cpu_affinity="spread")
"""
    with supervising(tmp_path, body, env={**os.environ, "MARKER": "here"}) as supervisor:
        for index in (0, 1):
            facts = harness.reported(tmp_path, f"report.{index}")
            assert facts["pid"] == facts["pgid"] == facts["sid"] and facts["tty"] == 0
            assert (facts["mask"], facts["umask"]) == (0, 0o27)
            own = 1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1 | 3 << 31  # the probe's Python; the C library
            assert facts["ignored"] & ~own == 0
            assert facts["env"]["DAEMONKIT_INSTANCE"] == str(index) and facts["env"]["MARKER"] == "here"
            assert not {"NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "WATCHDOG_USEC"} & set(facts["env"])
            assert facts["fds"][0]["path"] == "/dev/null"
            assert [entry["path"] for fd, entry in facts["fds"].items() if fd > 2] == [f"{tmp_path}/report.{index}.new"]
        supervisor.stop()


def test_an_exact_environment_and_a_directory(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    body = """supervise(["/bin/sh", "-c", "pwd > out; env | sort >> out"], cwd="sub",
    env={"A": "b", "NOTIFY_SOCKET": os.environ["NOTIFY_SOCKET"]})"""
    with supervising(tmp_path, body, env={**os.environ, "NOTIFY_SOCKET": "/nowhere"}) as supervisor:
        assert supervisor.process.wait(PATIENCE) == 0
    lines = (tmp_path / "sub" / "out").read_text().split()
    assert lines[0] == str(tmp_path / "sub") and {"A=b", "DAEMONKIT_INSTANCE=0"} <= set(lines)
    assert all(
        line.partition("=")[0] in {"A", "DAEMONKIT_INSTANCE", "PWD", "OLDPWD", "SHLVL", "_"} for line in lines[1:]
    )


TREE = """
sleep {1} &
setsid sleep {2} &
(setsid sh -c 'sleep {3} & exec sleep {4}' &)
env -i /usr/bin/setsid /bin/sh -c '/bin/sleep {5} & exit 0' &
exec sleep {0}
"""
FIRST = 1_000_000 + 20 * os.getpid()  # suites that run side by side tell their sleeps apart
TREE = TREE.format(*range(FIRST, FIRST + 6))


def _tree(numbers: range = range(FIRST, FIRST + 6)) -> set[int]:
    """Return the pids of the sleeps of TREE that live."""
    found = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, IndexError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if (
                words[0].endswith(b"sleep")
                and words[1].isdigit()
                and int(words[1]) in numbers
                and alive(int(entry.name))
            ):
                found.add(int(entry.name))
    return found


@pytest.mark.parametrize("how", ["crash", "stop", "worker", "caller", "both"])
def test_nothing_is_left_of_an_instance_whatever_it_started(tmp_path: Path, how: str) -> None:
    before = _tree()
    with supervising(tmp_path, f"supervise(['sh', '-c', {TREE!r}], instances=2)") as supervisor:
        first = eventually(lambda: len(new := _tree() - before) == 12 and new)
        starts = supervisor.until("start", 2)
        if how == "crash":
            os.kill(starts[0]["pid"], signal.SIGKILL)
            supervisor.until("start", 3)
            eventually(lambda: len(_tree() - before) == 12)
            assert len(first & _tree()) == 6  # the other instance's
            supervisor.stop()
        elif how == "stop":
            supervisor.stop()
        elif how == "worker":
            os.kill(supervisor.worker, signal.SIGKILL)
            eventually(lambda: len(_tree() - before - first) == 12)
            assert not first & _tree()
            supervisor.stop()
        elif how == "caller":
            supervisor.process.kill()
        else:
            worker = supervisor.worker
            os.kill(supervisor.pid, signal.SIGSTOP)
            os.kill(worker, signal.SIGKILL)
            supervisor.process.kill()
            mains = {start["pid"] for start in starts}
            eventually(lambda: not any(map(alive, mains)))
            # The caller is a zombie still.
            left = _tree() - before  # those that left their session have nobody left to end them, until a new start
            bystander = subprocess.Popen(["sleep", "1000"])
            assert run(tmp_path, "daemonkit.supervise(['true'])").returncode == 0
            assert not left & _tree() and alive(bystander.pid)
            bystander.kill()
            bystander.wait()
        eventually(lambda: not _tree() - before)


def test_the_callers_own_children_are_left_alone(tmp_path: Path) -> None:
    body = f"""
import subprocess
own = subprocess.Popen(["sh", "-c", "(sleep {FIRST + 6} &) ; exec sleep {FIRST + 7}"])
supervise(["sleep", "1000"])
assert own.poll() is None
own.kill(); own.wait()
"""
    with supervising(tmp_path, body) as supervisor:
        supervisor.until("start")
        orphan = eventually(lambda: _tree(range(FIRST + 6, FIRST + 7)))
        os.kill(supervisor.worker, signal.SIGKILL)
        supervisor.until("start", 2)
        assert _tree(range(FIRST + 6, FIRST + 7)) == orphan and _tree(range(FIRST + 7, FIRST + 8))
        supervisor.stop()
        assert _tree(range(FIRST + 6, FIRST + 7)) == orphan
        for pid in orphan:
            os.kill(pid, signal.SIGKILL)


def test_a_caller_that_adopts_orphans_is_left_with_none_of_a_killed_worker(tmp_path: Path) -> None:
    """Process 1 of a container, for one: what the worker's end has killed comes to it, dead already."""
    body = """
from daemonkit._system import prctl
prctl.become_subreaper()
supervise(["sleep", "1000"], instances=10)
with open(f"/proc/self/task/{os.getpid()}/children") as file:
    assert not file.read()
"""
    with supervising(tmp_path, body) as supervisor:
        supervisor.until("start", 10)
        os.kill(supervisor.worker, signal.SIGKILL)
        supervisor.until("start", 20)
        zombies = [pid for pid in children(supervisor.pid) if not alive(pid)]
        assert not zombies
        supervisor.stop()


def test_the_marks_of_a_supervisor_with_the_same_number_in_another_namespace_are_not_ours(tmp_path: Path) -> None:
    body = """
import subprocess
from daemonkit._supervise import marks
other = marks.base() ^ 1 << 54  # a bit of the namespace
neighbour = subprocess.Popen(["sleep", "1000"], preexec_fn=lambda: marks.put(other))
supervise(["sleep", "1000"])
assert neighbour.poll() is None
neighbour.kill(); neighbour.wait()
"""
    with supervising(tmp_path, body) as supervisor:
        supervisor.until("start")
        os.kill(supervisor.worker, signal.SIGKILL)
        supervisor.until("start", 2)
        supervisor.stop()


def test_a_stop_between_two_workers_starts_nothing_any_more(tmp_path: Path) -> None:
    body = """
class Killed(logging.Handler):
    killed = 0
    def emit(self, record):
        self.killed += record.getMessage().startswith("the worker process was killed")
        if self.killed == 2:
            signal.setitimer(signal.ITIMER_REAL, 0.03)  # within the pause of 0.1 s
logging.getLogger("daemonkit").addHandler(Killed())
signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
assert supervise(["sleep", "1000"]).instances[0].state == "stopped"
"""
    with supervising(tmp_path, body) as supervisor:
        supervisor.until("start")
        os.kill(supervisor.worker, signal.SIGKILL)
        supervisor.until("start", 2)
        os.kill(supervisor.worker, signal.SIGKILL)
        assert supervisor.process.wait(PATIENCE) == 0, supervisor.errors.read_text()
        assert len(supervisor.events("start")) == 2


def test_orphans_of_the_callers_own_children_do_not_come_to_it(tmp_path: Path) -> None:
    body = """
import subprocess
own = subprocess.Popen(["sh", "-c", "(sh -c 'sleep 0.2; touch ended' &)"])
supervise(["sh", "-c", "until test -e ended; do sleep 0.05; done"])
own.wait()
try:
    os.waitpid(-1, 0)
except ChildProcessError:
    open("none", "w").close()
"""
    with supervising(tmp_path, body) as supervisor:
        assert supervisor.process.wait(PATIENCE) == 0
    assert (tmp_path / "none").exists()


def test_another_supervisor_goes_on_when_one_starts_or_is_killed(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with supervising(tmp_path / "one", "supervise(['sleep', '1000'], instances=2)") as one:
        first = {event["pid"] for event in one.until("start", 2)}
        with supervising(tmp_path / "two", "supervise(['sleep', '1000'])") as two:
            two.until("start")
            os.kill(two.worker, signal.SIGKILL)
            two.until("start", 2)
            assert all(map(alive, first))
            two.stop()
        assert all(map(alive, first)) and len(one.events("start")) == 2
        one.stop()


GRACEFUL = "trap 'sleep 0.2; echo $$ >> finished; exit 0' TERM; echo $$ >> up; while :; do sleep 0.02; done"


def test_a_supervisor_under_another_stops_in_order(tmp_path: Path) -> None:
    harness.write(tmp_path, f"daemonkit.supervise(['sh', '-c', {GRACEFUL!r}], instances=2)", "inner.py")
    with supervising(tmp_path, f"supervise([{sys.executable!r}, 'inner.py'])") as supervisor:
        eventually(lambda: len(pids(tmp_path, "up")) == 2)
        assert supervisor.stop()["instances"][0]["exitcode"] == 0
    assert sorted(pids(tmp_path, "finished")) == sorted(pids(tmp_path, "up"))


def test_a_signal_to_everything_stops_it_in_order(tmp_path: Path) -> None:
    with supervising(tmp_path, f"supervise(['sh', '-c', {GRACEFUL!r}])") as supervisor:
        eventually(lambda: pids(tmp_path, "up"))
        os.kill(supervisor.worker, signal.SIGTERM)
        assert supervisor.stop()["instances"][0] == {"index": 0, "starts": 1, "exitcode": 0, "state": "stopped"}
    assert pids(tmp_path, "finished") == pids(tmp_path, "up")


def test_one_that_is_stopped_as_it_starts_loses_no_signal(tmp_path: Path) -> None:
    body = """
def on_event(event):
    os.kill(os.getpid(), signal.SIGTERM)
begun = time.monotonic()
summary = daemonkit.supervise(["sleep", "1000"], on_event=lambda event: event.kind == "start" and on_event(event),
    stop_timeout=1000)
print(summary.instances[0].exitcode)
"""
    assert run(tmp_path, body).stdout == f"{-signal.SIGTERM}\n"


def test_nohup_lets_it_outlive_its_terminal(tmp_path: Path) -> None:
    body = "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + f"supervise(['sh', '-c', {BEAT!r}], min_uptime=0.1)"
    program = harness.write(tmp_path, SUPERVISE + body)
    terminal = harness.Terminal([sys.executable, program], tmp_path)
    first = eventually(lambda: pids(tmp_path, "started.0"))[0]
    parent = int(Path(f"/proc/{first}/stat").read_text().rpartition(")")[2].split()[1])
    caller = int(Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1])
    terminal.hang_up()
    select.select([], [], [], 0.3)
    assert alive(first) and alive(caller)
    os.kill(caller, signal.SIGHUP)
    eventually(lambda: len(pids(tmp_path, "started.0")) == 2)
    os.kill(caller, signal.SIGTERM)
    eventually((tmp_path / "summary").exists)
    os.waitpid(terminal.pid, 0)


def test_the_pidfile_is_free_once_the_calling_process_is_killed(tmp_path: Path) -> None:
    body = """
with daemonkit.PidFile("app.pid"):
    supervise(["sleep", "1000"])
"""
    with supervising(tmp_path, body) as supervisor:
        pid = supervisor.until("start")[0]["pid"]
        assert daemonkit.status(tmp_path / "app.pid").pid == supervisor.pid
        supervisor.process.kill()
        supervisor.process.wait()
        assert not daemonkit.status(tmp_path / "app.pid")
        eventually(lambda: not alive(pid))


@pytest.mark.parametrize("kind", ["command", "callable"])
def test_in_a_daemon_nobody_but_the_caller_has_the_lock_and_sighup_opens_the_log_anew(
    tmp_path: Path, kind: str
) -> None:
    (tmp_path / "probe.py").write_text(harness.PRELUDE + "print('here', flush=True); report(); wait()")
    body = f"""
def target():
    print("here"); report(); wait()
target = target if {kind!r} == "callable" else [{sys.executable!r}, "probe.py"]
with daemonkit.detached(pidfile="app.pid", stdout="log", stderr=daemonkit.STDOUT, working_directory="."):
    daemonkit.supervise(target, min_uptime=0.1)
"""
    assert run(tmp_path, body).returncode == 0
    pid = daemonkit.status(tmp_path / "app.pid").pid
    assert pid
    first = harness.reported(tmp_path)
    paths = {entry["path"] for entry in first["fds"].values()}
    assert not any("app.pid" in path or "pidfd" in path or "epoll" in path or "socket" in path for path in paths)
    (worker,) = children(pid)
    assert not any("app.pid" in os.readlink(f"/proc/{worker}/fd/{fd}") for fd in os.listdir(f"/proc/{worker}/fd"))
    (tmp_path / "log").rename(tmp_path / "log.1")
    daemonkit.send_signal(tmp_path / "app.pid", signal.SIGHUP)
    eventually(lambda: "here" in (tmp_path / "log").read_text())
    eventually(lambda: not alive(first["pid"]))
    second = eventually(lambda: (now := harness.reported(tmp_path)["pid"]) != first["pid"] and now)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not daemonkit.status(tmp_path / "app.pid") and not alive(second))
    os.waitpid(pid, 0)


def test_a_terminal_that_goes_stops_it(tmp_path: Path) -> None:
    program = harness.write(tmp_path, SUPERVISE + f"supervise(['sh', '-c', {GRACEFUL!r}])")
    terminal = harness.Terminal([sys.executable, program], tmp_path)
    eventually(lambda: pids(tmp_path, "up"))
    terminal.hang_up()
    eventually((tmp_path / "summary").exists)
    os.waitpid(terminal.pid, 0)
    assert pids(tmp_path, "finished") == pids(tmp_path, "up")


def test_a_reload_that_is_asked_for_again_meanwhile_is_done_again(tmp_path: Path) -> None:
    with supervising(tmp_path, "supervise(['sleep', '1000'], instances=2, min_uptime=0.2)") as supervisor:
        supervisor.until("ready", 2)
        supervisor.process.send_signal(signal.SIGHUP)
        supervisor.until("start", 3)
        supervisor.process.send_signal(signal.SIGHUP)
        supervisor.process.send_signal(signal.SIGHUP)
        supervisor.until("exit", 3)  # twice the one that had begun, once the other
        summary = supervisor.stop()
        assert [record["starts"] for record in summary["instances"]] == [3, 2]


def test_a_crash_loop_does_not_run_hot_also_after_a_good_run(tmp_path: Path) -> None:
    once = "test -e once && exit 1; touch once; sleep 0.5; exit 1"
    with supervising(tmp_path, f"supervise(['sh', '-c', {once!r}], min_uptime=0.3)") as supervisor:
        starts = supervisor.until("start", 5)
        gaps = [after["time"] - before["time"] for before, after in itertools.pairwise(starts[1:])]
        assert starts[1]["time"] - supervisor.events("exit")[0]["time"] < 0.1
        assert all(gap >= least for gap, least in zip(gaps, (0.1, 0.2, 0.4), strict=False))
        supervisor.stop()


def test_a_stop_escalates_and_gives_the_whole_group_its_time(tmp_path: Path) -> None:
    (tmp_path / "inner").write_text(
        "trap 'sleep 0.3; echo done > finished; exit' TERM\ntouch up\nwhile :; do sleep 0.05; done\n"
    )
    (tmp_path / "outer").write_text("trap 'exit 0' TERM\nsh inner &\nwait\n")
    with supervising(tmp_path, 'supervise(["sh", "outer"], stop_timeout=20)') as supervisor:
        eventually((tmp_path / "up").exists)
        summary = supervisor.stop()
    assert summary["exitcode"] == 0
    assert (tmp_path / "finished").read_text() == "done\n"


def test_without_an_end_to_the_stop_timeout_what_left_the_group_has_its_time_too(tmp_path: Path) -> None:
    (tmp_path / "inner").write_text(GRACEFUL)
    with supervising(
        tmp_path, "supervise(['sh', '-c', 'setsid sh inner; :'], stop_timeout=float('inf'))"
    ) as supervisor:
        eventually(lambda: pids(tmp_path, "up"))
        supervisor.stop()
    assert pids(tmp_path, "finished") == pids(tmp_path, "up")


def test_one_that_ignores_the_stop_signal_is_killed(tmp_path: Path) -> None:
    body = """supervise(["sh", "-c", "trap '' TERM; touch up; while :; do sleep 1; done"], stop_timeout=0.3)"""
    with supervising(tmp_path, body) as supervisor:
        eventually((tmp_path / "up").exists)
        assert supervisor.stop()["instances"][0]["exitcode"] == -signal.SIGKILL


def test_a_second_signal_kills_at_once(tmp_path: Path) -> None:
    body = """supervise(["sh", "-c", "trap '' TERM; touch up; while :; do sleep 1; done"], stop_timeout=1000)"""
    with supervising(tmp_path, body) as supervisor:
        eventually((tmp_path / "up").exists)
        supervisor.process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            supervisor.process.wait(0.3)
        assert supervisor.stop(signal.SIGINT)["instances"][0]["state"] == "stopped"


READY = """
import os, socket, sys, signal
def say(text):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.connect("\\0" + os.environ["NOTIFY_SOCKET"][1:])
        s.send(text)
"""


def test_with_wait_ready_an_instance_is_up_when_one_of_its_processes_says_so(tmp_path: Path) -> None:
    (tmp_path / "ready.py").write_text(
        READY + "r, w = os.pipe()\nif os.fork() == 0:\n    say(b'STATUS=x\\nREADY=1'); os._exit(0)\nsignal.pause()"
    )
    body = f"supervise([{sys.executable!r}, 'ready.py'], wait_ready=True)"
    with supervising(tmp_path, body) as supervisor:
        pid = supervisor.until("ready")[0]["pid"]
        assert supervisor.events("start")[0]["pid"] == pid
        supervisor.stop()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("user", [None, 65534])
def test_a_process_of_another_user_can_say_that_its_instance_is_up(tmp_path: Path, user: int | None) -> None:
    body = f"""
{READY}
def target():
    if os.fork() == 0:
        os.getuid() or os.setresuid(65533, 65533, 65533)
        say(b"READY=1")
    signal.pause()
supervise(target, wait_ready=True, user={user})
"""
    with supervising(tmp_path, body) as supervisor:
        assert supervisor.until("ready")
        supervisor.stop()


def test_what_an_instance_says_before_it_ends_at_once_is_heard(tmp_path: Path) -> None:
    body = f"{READY}\nfor _ in range(4): supervise(lambda: say(b'READY=1'), wait_ready=True, instances=20)"
    with supervising(tmp_path, body) as supervisor:
        assert supervisor.process.wait(PATIENCE) == 0, supervisor.errors.read_text()
        assert len(supervisor.events("ready")) == 80


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_a_helper_of_an_instance_that_became_somebody_else_is_believed_though_it_is_gone(tmp_path: Path) -> None:
    body = f"""
{READY}
def target():
    os.setresuid(65533, 65533, 65533)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for _ in range(20):
        if os.fork() == 0:
            say(b"READY=1")
            os._exit(0)
    time.sleep(0.5)
supervise(target, wait_ready=True, instances=4, restart="never")
"""
    with supervising(tmp_path, body) as supervisor:
        assert supervisor.process.wait(PATIENCE) == 0, supervisor.errors.read_text()
        assert len(supervisor.events("ready")) == 4


def test_a_start_that_does_not_get_ready_in_time_is_a_failure(tmp_path: Path) -> None:
    body = "supervise(['sleep', '1000'], wait_ready=True, start_timeout=0.2, max_restarts=1)"
    with supervising(tmp_path, body) as supervisor:
        assert supervisor.process.wait(PATIENCE) == 0
        assert supervisor.summary()["instances"][0] == {"index": 0, "starts": 2, "exitcode": -9, "state": "gave-up"}
        assert not supervisor.events("ready")


def test_a_watchdog_that_falls_silent_is_killed_and_restarted(tmp_path: Path) -> None:
    (tmp_path / "dog.py").write_text(
        READY
        + "import time\nsay(b'READY=1')\nassert os.environ['WATCHDOG_USEC'] == '500000'\n"
        + "for _ in range(8): say(b'WATCHDOG=1'); time.sleep(0.1)\nopen('fed', 'w').close()\nsignal.pause()"
    )
    body = f"supervise([{sys.executable!r}, 'dog.py'], wait_ready=True, watchdog=0.5)"
    with supervising(tmp_path, body) as supervisor:
        silent = supervisor.until("watchdog")[0]
        assert (tmp_path / "fed").exists()
        assert supervisor.until("exit")[0]["exitcode"] == -signal.SIGKILL
        assert supervisor.until("start", 2)[1]["pid"] != silent["pid"]
        supervisor.stop()


def test_a_rolling_restart_replaces_one_after_the_other(tmp_path: Path) -> None:
    (tmp_path / "ready.py").write_text(READY + "say(b'READY=1')\nsignal.pause()")
    body = f"supervise([{sys.executable!r}, 'ready.py'], wait_ready=True, instances=3)"
    with supervising(tmp_path, body) as supervisor:
        first = {event["pid"] for event in supervisor.until("ready", 3)}
        supervisor.process.send_signal(signal.SIGHUP)
        supervisor.until("exit", 3)
        events = supervisor.events()[-9:]
        assert [event["kind"] for event in events] == ["start", "ready", "exit"] * 3
        assert [event["instance"] for event in events] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        assert {event["pid"] for event in events if event["kind"] == "exit"} == first
        summary = supervisor.stop()
        assert [record["starts"] for record in summary["instances"]] == [2, 2, 2]


def test_a_reload_that_fails_leaves_the_old_run(tmp_path: Path) -> None:
    (tmp_path / "ready.py").write_text(
        READY + "if os.path.exists('broken'): sys.exit(4)\nsay(b'READY=1')\nsignal.pause()"
    )
    body = f"supervise([{sys.executable!r}, 'ready.py'], wait_ready=True, instances=2)"
    with supervising(tmp_path, body) as supervisor:
        first = {event["pid"] for event in supervisor.until("ready", 2)}
        (tmp_path / "broken").touch()
        supervisor.process.send_signal(signal.SIGHUP)
        failed = supervisor.until("reload-failed")[0]
        assert failed["exitcode"] == 4 and all(map(alive, first))
        (tmp_path / "broken").unlink()
        supervisor.process.send_signal(signal.SIGHUP)
        supervisor.until("ready", 4)
        eventually(lambda: not any(map(alive, first)))
        supervisor.stop()


SERVER = (
    READY
    + """
import select
assert os.environ["LISTEN_PID"] == str(os.getpid())
server = socket.socket(fileno=3)
server.setblocking(False)
stopping = []
signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
say(b"READY=1")
while not stopping:
    select.select([server], [], [], 0.05)
    try:
        connection, _ = server.accept()
    except BlockingIOError:
        continue
    connection.setblocking(True)
    connection.recv(100); connection.sendall(str(os.getpid()).encode()); connection.close()
"""
)


def _ask(address: Any) -> int:
    with socket.create_connection(address, 10) if isinstance(address, tuple) else _unix(address) as connection:
        connection.sendall(b"who?")
        return int(connection.recv(100))


def _unix(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    return connection


def test_a_rolling_restart_refuses_and_cuts_no_connection(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(SERVER)
    body = f"""
sock = socket.create_server(("127.0.0.1", 0)); sock.setblocking(True)
with open("port.new", "w") as file: file.write(str(sock.getsockname()[1]))
os.rename("port.new", "port")
supervise([{sys.executable!r}, "server.py"], listen=sock, instances=2, wait_ready=True)
"""
    with supervising(tmp_path, body) as supervisor:
        old = {event["pid"] for event in supervisor.until("ready", 2)}
        address = ("127.0.0.1", int((tmp_path / "port").read_text()))
        assert _ask(address) in old
        supervisor.process.send_signal(signal.SIGHUP)
        seen: set[int] = set()
        while len(supervisor.events("exit")) < 2:
            seen.add(_ask(address))
        assert _ask(address) not in old
        supervisor.stop()


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:0", "unix:sock"])
def test_sockets_are_bound_once_and_handed_on(tmp_path: Path, listen: str) -> None:
    if listen.startswith("["):
        with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    script = "import socket, os; s = socket.socket(fileno=3); print(s.getsockname(), s.family.name, os.environ['LISTEN_FDS'], flush=True)"
    body = f"""supervise([{sys.executable!r}, "-c", {script!r}], listen={listen!r}, instances=2, stdout="out.{{instance}}")"""
    with supervising(tmp_path, body) as supervisor:
        assert supervisor.process.wait(PATIENCE) == 0, supervisor.errors.read_text()
    first, second = ((tmp_path / f"out.{index}").read_text() for index in (0, 1))
    assert first == second and first.split()[-1] == "1"
    assert not (tmp_path / "sock").exists()


def test_a_socket_that_was_handed_in_comes_once_and_stays_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "probe.py").write_text(harness.PRELUDE + "report(env=dict(os.environ))")
    body = f"""
sock = socket.create_server(("127.0.0.1", 0)); sock.settimeout(3); os.set_inheritable(sock.fileno(), True)
high = socket.socket(fileno=os.dup2(sock.detach(), 77)); high.settimeout(3)
supervise([{sys.executable!r}, "probe.py"], listen=[high, high])
assert high.gettimeout() == 3 and os.get_inheritable(77) and not os.get_blocking(77)
"""
    with supervising(tmp_path, body) as supervisor:
        assert supervisor.process.wait(PATIENCE) == 0, supervisor.errors.read_text()
    facts = harness.reported(tmp_path)
    assert facts["env"]["LISTEN_FDS"] == "2" and facts["env"]["LISTEN_PID"] == str(facts["pid"])
    assert [facts["fds"][fd]["path"][:6] for fd in (3, 4)] == ["socket"] * 2
    assert set(facts["fds"]) == {0, 1, 2, 3, 4, 5}  # the last is the report's


def test_a_socket_that_took_the_place_of_a_closed_stdin_is_handed_on_too(tmp_path: Path) -> None:
    script = "import socket, os; print(socket.socket(fileno=3).getsockname(), os.fstat(0).st_rdev == os.stat('/dev/null').st_rdev)"
    body = f"""
os.close(0)
sock = socket.create_server(("127.0.0.1", 0)); assert sock.fileno() == 0
supervise([{sys.executable!r}, "-c", {script!r}], listen=sock, stdout="out")
assert sock.fileno() == 0 and open("out").read() == f"{{sock.getsockname()}} True\\n"
"""
    with supervising(tmp_path, body) as supervisor:
        assert supervisor.process.wait(PATIENCE) == 0, supervisor.errors.read_text()


def test_a_live_unix_socket_is_refused_and_a_stale_one_replaced(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        done = run(tmp_path, "daemonkit.supervise(['true'], listen='unix:sock')")
        assert done.returncode == 1 and "another process listens there" in done.stderr and path.exists()
    assert run(tmp_path, "daemonkit.supervise(['true'], listen='unix:sock')").returncode == 0
    path.write_text("not a socket")
    assert "no socket" in run(tmp_path, "daemonkit.supervise(['true'], listen='unix:sock')").stderr
    assert path.read_text() == "not a socket"


def test_logs_are_written_straight_by_default_and_named_for_the_instance(tmp_path: Path) -> None:
    body = """supervise(["sh", "-c", "echo out $DAEMONKIT_INSTANCE; echo err >&2"], instances=2, stdout="log.{instance}", stderr=daemonkit.STDOUT)"""
    with supervising(tmp_path, body) as supervisor:
        assert supervisor.process.wait(PATIENCE) == 0
    assert [(tmp_path / f"log.{index}").read_text() for index in (0, 1)] == ["out 0\nerr\n", "out 1\nerr\n"]
    assert (tmp_path / "log.0").stat().st_mode & 0o777 == 0o640 & ~0o022


def test_rotation_loses_and_splits_no_line(tmp_path: Path) -> None:
    """Also over a crash of the instance, and a kill of the worker."""
    writer = "import os, sys, signal\nfor n in range(20000): print(os.getpid(), n)\nsys.stdout.flush(); os.kill(os.getpid(), 9)"
    body = f"""supervise([{sys.executable!r}, "-c", {writer!r}], max_restarts=2, stdout="log", log_max_bytes=50_000, log_backups=1000)"""
    with supervising(tmp_path, body) as supervisor:
        assert supervisor.process.wait(PATIENCE) == 0, supervisor.errors.read_text()
        pids = [event["pid"] for event in supervisor.events("start")]
    files = sorted(tmp_path.glob("log*"), key=lambda path: -int(path.suffix[1:] or 0))
    assert len(files) > 10 and all(path.stat().st_size <= 50_000 for path in files)
    lines = "".join(path.read_text() for path in files).splitlines()
    assert lines == [f"{pid} {n}" for pid in pids for n in range(20000)]


def test_what_is_no_file_is_not_rotated(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    body = """supervise(["seq", "1000"], stdout="fifo", log_max_bytes=500)"""
    with supervising(tmp_path, body) as supervisor:
        assert supervisor.process.wait(PATIENCE) == 0, supervisor.errors.read_text()
        assert os.read(reader, 1 << 16).split() == [b"%d" % n for n in range(1, 1001)]
    os.close(reader)
    assert [path.name for path in tmp_path.glob("fifo*")] == ["fifo"]


def test_a_flood_of_lines_keeps_no_signal_waiting(tmp_path: Path) -> None:
    with supervising(tmp_path, """supervise(["yes"], stdout="log", log_max_bytes=10_000_000)""") as supervisor:
        eventually((tmp_path / "log.2").exists)
        supervisor.stop()


def test_backups_beyond_the_number_go(tmp_path: Path) -> None:
    body = """supervise(["seq", "10000"], stdout="log", log_max_bytes=5000, log_backups=2)"""
    with supervising(tmp_path, body) as supervisor:
        assert supervisor.process.wait(PATIENCE) == 0
    assert sorted(path.name for path in tmp_path.glob("log*")) == ["log", "log.1", "log.2"]
    text = "".join((tmp_path / name).read_text() for name in ("log.2", "log.1", "log"))
    numbers = [int(line) for line in text.split()]
    assert numbers == list(range(numbers[0], 10001))


def test_lines_in_a_pump_survive_the_worker(tmp_path: Path) -> None:
    writer = "import time\nfor n in range(100000):\n    print(n, flush=True)\n    if n == 5000: open('now', 'w').close(); time.sleep(1000)"
    body = f"""supervise([{sys.executable!r}, "-c", {writer!r}], stdout="log", log_max_bytes=10_000_000)"""
    with supervising(tmp_path, body) as supervisor:
        eventually((tmp_path / "now").exists)
        os.kill(supervisor.worker, signal.SIGKILL)
        supervisor.until("start", 2)
        lines = eventually(lambda: len(found := (tmp_path / "log").read_text().splitlines()) >= 5001 and found)
        assert lines[:5001] == [str(n) for n in range(5001)]
        supervisor.stop()


@pytest.mark.parametrize("shared", [False, True])
def test_what_a_pump_has_read_is_written_before_it_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, shared: bool
) -> None:
    monkeypatch.setattr(pump_module, "_AT_ONCE", 1)
    log = pump_module.Log(str(tmp_path / "log"), 1000, 5, None, None)
    pump = pump_module.Pump(log, shared=shared)
    os.write(pump.writer, b"line\n")
    assert pump.pump() and (tmp_path / "log").read_text() == "line\n"
    pump.close()
    log.close()


def test_a_log_that_somebody_moves_is_begun_anew(tmp_path: Path) -> None:
    loop = "i=0; while [ $i -lt 4000 ]; do echo $i; i=$((i+1)); [ $i = 1000 ] && until [ -e moved ]; do sleep 0.01; done; done"
    body = f"""supervise(["sh", "-c", {loop!r}], stdout="log", log_max_bytes=3000, log_backups=50, restart="never")"""
    with supervising(tmp_path, body) as supervisor:
        eventually(lambda: "999\n" in (tmp_path / "log").read_text())
        (tmp_path / "log").rename(tmp_path / "moved")
        assert supervisor.process.wait(PATIENCE) == 0, supervisor.errors.read_text()
    parts = [tmp_path / "moved", *tmp_path.glob("log*")]
    assert sorted(int(line) for part in parts for line in part.read_text().splitlines()) == list(range(4000))


def test_long_lines_of_many_instances_in_one_log_are_not_split(tmp_path: Path) -> None:
    writer = "import os\nfor _ in range(300): os.write(1, (os.environ['DAEMONKIT_INSTANCE'] * 5999 + '\\n').encode())"
    body = f"""supervise([{sys.executable!r}, "-c", {writer!r}], instances=3, stdout="log", log_max_bytes=500_000, restart="never")"""
    body = body.replace("log_max_bytes", "log_backups=50, log_max_bytes")
    with supervising(tmp_path, body) as supervisor:
        assert supervisor.process.wait(PATIENCE) == 0, supervisor.errors.read_text()
    parts = [part.read_text() for part in tmp_path.glob("log*")]
    lines = [line for part in parts for line in part.splitlines()]
    assert len(parts) > 5 and all(len(part) <= 500_000 for part in parts)
    assert sorted(lines) == sorted(300 * [str(index) * 5999 for index in range(3)])


def test_the_unfinished_last_line_of_one_of_many_is_not_lost(tmp_path: Path) -> None:
    body = """supervise(["sh", "-c", "printf end$DAEMONKIT_INSTANCE"], instances=2, stdout="log", log_max_bytes=1000)"""
    with supervising(tmp_path, body) as supervisor:
        assert supervisor.process.wait(PATIENCE) == 0, supervisor.errors.read_text()
    assert (tmp_path / "log").read_text() in {"end0end1", "end1end0"}


# --- where the worker, or what it goes by, is in trouble ----------------------------------------------------------


UNMARKED = (
    "prlimit --rttime=unlimited:unlimited setsid sleep 1000 & echo $! >stray; until [ -s stray ]; do :; done; sleep 0.2"
)


@pytest.mark.parametrize("instances", [1, 2])
def test_a_stray_that_nobody_can_attribute_ends_with_the_last_instance(tmp_path: Path, instances: int) -> None:
    with supervising(tmp_path, f"supervise(['sh', '-c', {UNMARKED!r}], instances={instances})") as supervisor:
        assert supervisor.process.wait(PATIENCE) == 0, supervisor.errors.read_text()
    assert not alive(int((tmp_path / "stray").read_text()))


def test_a_stray_without_a_mark_ends_with_the_only_run_there_is(tmp_path: Path) -> None:
    script = f"{UNMARKED}; [ -e second ] && exec sleep 1000; cat stray >first; touch second; exit 1"
    with supervising(tmp_path, f"supervise(['sh', '-c', {script!r}])") as supervisor:
        supervisor.until("start", 2)
        eventually(lambda: not alive(int((tmp_path / "first").read_text())))
        supervisor.stop()


def test_what_was_sent_in_time_counts_though_the_worker_was_held_up(tmp_path: Path) -> None:
    feeder = "import os, socket, time\ns = socket.socket(1, 2)\nwhile 1: s.sendto(b'WATCHDOG=1', '\\0' + os.environ['NOTIFY_SOCKET'][1:]); time.sleep(0.05)"
    with supervising(tmp_path, f"supervise([{sys.executable!r}, '-c', {feeder!r}], watchdog=0.7)") as supervisor:
        supervisor.until("ready")
        worker = supervisor.worker
        os.kill(worker, signal.SIGSTOP)
        select.select([], [], [], 1.5)  # longer than the watchdog
        os.kill(worker, signal.SIGCONT)
        select.select([], [], [], 0.5)
        assert supervisor.stop()["instances"][0]["starts"] == 1


def test_a_worker_that_is_killed_again_and_again_is_back_within_a_second(tmp_path: Path) -> None:
    with supervising(tmp_path, "supervise(['sleep', '1000'], instances=2)") as supervisor:
        for kill in range(1, 9):
            supervisor.until("start", 2 * kill)
            os.kill(supervisor.worker, signal.SIGKILL)
        supervisor.until("start", 18)
        supervisor.stop()
    assert guardian_module._WORKER_BACKOFF.delay(1000) < 0.5


def test_a_new_start_gets_the_socket_that_dead_supervisors_left_with_their_strays(tmp_path: Path) -> None:
    body = "supervise(['sh', '-c', 'sleep 1000 | cat'], listen='unix:sock')"
    with supervising(tmp_path, body) as supervisor:
        supervisor.until("start")
        worker = supervisor.worker
        for pid in (supervisor.pid, worker):
            os.kill(pid, signal.SIGSTOP)
        for pid in (supervisor.pid, worker):
            os.kill(pid, signal.SIGKILL)
        supervisor.process.wait(PATIENCE)
        harness.ended(worker)
    (tmp_path / "events").unlink()
    with supervising(tmp_path, body) as supervisor:
        supervisor.until("start")
        supervisor.stop()


def test_a_live_socket_whose_queue_is_full_is_refused_at_once(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket(socket.AF_UNIX))
        server.bind(str(tmp_path / "sock"))
        server.listen(0)
        for _ in range(3):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.connect(str(tmp_path / "sock"))
        done = run(tmp_path, "daemonkit.supervise(['true'], listen='unix:sock')")
        assert done.returncode == 1 and "another process listens there" in done.stderr


def test_sigchld_as_a_stop_signal_hides_no_end(tmp_path: Path) -> None:
    done = run(tmp_path, "print(daemonkit.supervise(['true'], stop_signal=signal.SIGCHLD).exitcode)")
    assert done.stdout == "0\n", done.stderr


def test_a_callable_has_no_descriptors_of_the_supervisors_own(tmp_path: Path) -> None:
    body = """
def target():
    folder = os.open("/proc/self/fd", os.O_RDONLY)
    print(sorted(int(name) for name in os.listdir(folder) if int(name) != folder and os.path.exists(f"/proc/self/fd/{name}")))
before = set(map(int, os.listdir("/proc/self/fd")))
supervise(target, stdout="out", stderr=daemonkit.STDOUT, listen="127.0.0.1:0", restart="never")
open("before", "w").write(str(sorted(before)))
"""
    with supervising(tmp_path, body) as supervisor:
        assert supervisor.process.wait(PATIENCE) == 0, supervisor.errors.read_text()
    there, before = (set(json.loads((tmp_path / name).read_text())) for name in ("out", "before"))
    assert {0, 1, 2, 3} <= there and there - {3} <= before


def test_a_program_that_grows_is_replaced_gracefully(tmp_path: Path) -> None:
    grow = "import signal, os\nif not os.path.exists('grown'):\n    x = bytearray(100 << 20); open('grown', 'w').close()\nsignal.pause()"
    body = f"supervise([{sys.executable!r}, '-c', {grow!r}], max_memory=80 << 20, min_uptime=0.1)"
    with supervising(tmp_path, body) as supervisor:
        assert supervisor.until("memory")[0]["pid"] == supervisor.events("start")[0]["pid"]
        assert supervisor.until("exit")[0]["exitcode"] == -signal.SIGTERM
        assert len(supervisor.events("start")) == 2
        supervisor.stop()


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ("return", 0, ""),
        ("sys.exit(7)", 7, ""),
        ("sys.exit('sorry')", 1, "sorry"),
        ("raise ValueError('oops')", 1, "ValueError: oops"),
        ("os.kill(os.getpid(), 9)", -9, ""),
    ],
)
def test_a_callable_ends_as_a_program_does(tmp_path: Path, body: str, status: int, text: str) -> None:
    program = f"""
import atexit
atexit.register(lambda: open("atexit." + str(os.getpid()), "w").close())
kept = open("kept", "w")
def work():
    kept.write("from the instance"); kept.flush()
    print("printed", os.environ["DAEMONKIT_INSTANCE"])
    {body}
supervise(work, restart="never", stdout="out")
"""
    with supervising(tmp_path, program) as supervisor:
        assert supervisor.process.wait(PATIENCE) == 0
        assert supervisor.summary()["instances"][0]["exitcode"] == status
        assert text in supervisor.errors.read_text()
        assert (tmp_path / "kept").read_text() == "from the instance"
        assert (tmp_path / "out").read_text() == "printed 0\n"
        assert [path.name for path in tmp_path.glob("atexit.*")] == [f"atexit.{supervisor.pid}"]


def test_the_caller_is_as_before_afterwards(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        import ctypes
        handler = lambda *_: None
        signal.signal(signal.SIGTERM, handler)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
        before = facts()
        assert daemonkit.supervise(["true"]).exitcode == 0
        after = facts()
        assert signal.getsignal(signal.SIGTERM) is handler and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        for fact in ("mask", "ignored", "caught", "umask", "cwd", "threads"):
            assert before[fact] == after[fact], fact
        assert set(before["fds"]) == set(after["fds"])
        answer = ctypes.c_int(); ctypes.CDLL(None).prctl(37, ctypes.byref(answer), 0, 0, 0); assert answer.value == 0
    """,
        flags=("-W", "error", "-X", "dev"),
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_an_event_handler_that_raises_stops_nothing(tmp_path: Path) -> None:
    done = run(tmp_path, "print(daemonkit.supervise(['true'], instances=2, on_event=lambda e: 1 / 0))")
    assert done.returncode == 0 and done.stdout.count("exited") == 2
    assert "ZeroDivisionError" in done.stderr


def test_an_event_handler_that_exits_takes_everything_with_it(tmp_path: Path) -> None:
    body = """
def leave(event):
    print(event.pid, flush=True)
    sys.exit(5)
daemonkit.supervise(["sleep", "1000"], on_event=leave)
"""
    done = run(tmp_path, body)
    assert done.returncode == 5, done.stderr
    assert not alive(int(done.stdout.split()[0]))


def test_it_runs_in_the_main_thread_only(tmp_path: Path) -> None:
    done = run(tmp_path, "t = threading.Thread(target=daemonkit.supervise, args=(['true'],)); t.start(); t.join()")
    assert "RuntimeError: supervise() must be called in the main thread" in done.stderr


def test_an_idle_supervisor_does_not_wake_up(tmp_path: Path) -> None:
    with supervising(tmp_path, "supervise(['sleep', '1000'], instances=3)") as supervisor:
        supervisor.until("ready", 3)
        both = (supervisor.pid, supervisor.worker)

        def switches() -> list[str]:
            return [
                line
                for pid in both
                for line in Path(f"/proc/{pid}/status").read_text().splitlines()
                if line.startswith("voluntary")
            ]

        settled = eventually(
            lambda: (one := switches()) and not select.select([], [], [], 0.2)[0] and one == switches() and one
        )
        select.select([], [], [], 1.5)
        assert switches() == settled
        supervisor.stop()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ("['no-such-program']", FileNotFoundError),
        ("['true'], instances=0", ValueError),
        ("['true'], instances='many'", TypeError),
        ("['true'], restart='sometimes'", ValueError),
        ("['true'], backoff=3", TypeError),
        ("['true'], min_uptime=0", ValueError),
        ("['true'], stop_timeout=-1", ValueError),
        ("['true'], max_restarts=-1", ValueError),
        ("['true'], max_memory=0", ValueError),
        ("['true'], listen='80'", ValueError),
        ("['true'], listen='no.such.host.invalid:80'", OSError),
        ("['true'], cwd='/no/such'", FileNotFoundError),
        ("lambda: None, cwd='/no/such'", FileNotFoundError),
        ("lambda: None, env=5", TypeError),
        ("['true'], stdin='/no/such'", FileNotFoundError),
        ("['true'], stdout='log', max_memory=0", ValueError),
        ("['true'], stdout='log', listen='80'", ValueError),
        ("['true'], stdout='log', cpu_affinity='all'", ValueError),
        ("['true'], backoff=daemonkit.Backoff(initial=-1)", ValueError),
        ("['true'], backoff=daemonkit.Backoff(factor=0.5)", ValueError),
        ("['true'], backoff=daemonkit.Backoff(maximum=float('nan'))", ValueError),
        ("['true'], backoff=daemonkit.Backoff(initial=True)", TypeError),
        ("['true'], backoff=daemonkit.Backoff(maximum='30')", TypeError),
        ("['true'], min_uptime=float('nan')", ValueError),
        ("['true'], restart=['always']", ValueError),
        ("['true'], listen='unix:'", ValueError),
        ("['true'], listen='unix:' + 200 * 'x'", OSError),
        ("['true'], log_backups=None", ValueError),
        ("['true'], stdout='/no/such/log'", FileNotFoundError),
        ("['true'], user='nobody-of-this-name'", LookupError),
        ("['true'], stop_signal=999", ValueError),
        ("['true'], cpu_affinity='all'", ValueError),
        ("['true'], on_event=3", TypeError),
        ("['true'], log_max_bytes=0", ValueError),
        ("['true'], success_codes=0", TypeError),
        ("'true'", TypeError),
        ("[]", ValueError),
        ("None", TypeError),
    ],
)
def test_bad_input_is_refused_before_anything_starts(tmp_path: Path, options: str, error: type[Exception]) -> None:
    done = run(
        tmp_path,
        f"""
        before = set(os.listdir("/proc/self/fd")), set(os.listdir("."))
        try:
            daemonkit.supervise({options})
        except Exception as error:
            print(type(error).__mro__)
        assert before == (set(os.listdir("/proc/self/fd")), set(os.listdir(".")))
    """,
    )
    assert done.returncode == 0, done.stderr
    assert error.__name__ in done.stdout


def test_a_start_for_which_there_is_no_descriptor_is_a_failure_of_that_instance_alone(tmp_path: Path) -> None:
    body = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))
summary = daemonkit.supervise(["sh", "-c", "until test -e go; do sleep 0.05; done"], instances=20, restart="never", wait_ready=True,
    on_event=lambda event: open("go", "w").close())
states = [record.state for record in summary.instances]
print(states.count("exited") > 3 and states.count("failed") > 3 and states.count("exited") + states.count("failed") == 20)
"""
    done = run(tmp_path, body)
    assert done.stdout == "True\n" and "Too many open files" in done.stderr, done.stderr


def test_many_instances_start_and_stop(tmp_path: Path) -> None:
    with supervising(tmp_path, "supervise(['sleep', '1000'], instances=300)") as supervisor:
        supervisor.until("start", 300)
        summary = supervisor.stop()
        assert {record["state"] for record in summary["instances"]} == {"stopped"}
        assert len(supervisor.events("exit")) == 300


def test_nothing_is_imported_once_it_was_named(tmp_path: Path) -> None:
    """Root's Python may be unreadable once rights were dropped."""
    done = run(
        tmp_path,
        """
        daemonkit.supervise
        sys.meta_path.clear()
        summary = daemonkit.supervise(["true"], instances=2, stdout="log", log_max_bytes=1000, wait_ready=False)
        sys.exit(summary.exitcode)
        """,
    )
    assert done.returncode == 0, done.stderr
