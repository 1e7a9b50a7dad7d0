"""Whatever an instance started goes with it; nothing else does."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import harness
import pytest
from harness import DEAD, PATIENCE, alive, children, eventually, run
from supervising import FIRST, pids, supervising, tree

import daemonkit

if TYPE_CHECKING:
    from pathlib import Path


TREE = """
sleep {1} &
setsid sleep {2} &
(setsid sh -c 'sleep {3} & exec sleep {4}' &)
env -i /usr/bin/setsid /bin/sh -c '/bin/sleep {5} & exit 0' &
exec sleep {0}
"""


TREE = TREE.format(*range(FIRST, FIRST + 6))


UNMARKED = (
    "prlimit --rttime=unlimited:unlimited setsid sleep 1000 & echo $! >stray; until [ -s stray ]; do :; done; sleep 0.2"
)


@pytest.mark.parametrize("how", ["crash", "stop", "worker", "caller", "both"])
def test_nothing_is_left_of_an_instance_whatever_it_started(tmp_path: Path, how: str) -> None:
    before = tree()
    with supervising(tmp_path, f"supervise(['sh', '-c', {TREE!r}], instances=2)") as supervisor:
        first = eventually(lambda: len(new := tree() - before) == 12 and new)
        starts = supervisor.until("start", 2)
        if how == "crash":
            os.kill(starts[0]["pid"], signal.SIGKILL)
            supervisor.until("start", 3)
            eventually(lambda: len(tree() - before) == 12)
            assert len(first & tree()) == 6  # the other instance's
            supervisor.stop()
        elif how == "stop":
            supervisor.stop()
        elif how == "worker":
            os.kill(supervisor.worker, signal.SIGKILL)
            eventually(lambda: len(tree() - before - first) == 12)
            assert not first & tree()
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
            left = tree() - before  # those that left their session have nobody left to end them, until a new start
            bystander = subprocess.Popen(["sleep", "1000"])
            assert run(tmp_path, "daemonkit.supervise(['true'])").returncode == 0
            assert not left & tree() and alive(bystander.pid)
            bystander.kill()
            bystander.wait()
        eventually(lambda: not tree() - before)


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
        orphan = eventually(lambda: tree(range(FIRST + 6, FIRST + 7)))
        os.kill(supervisor.worker, signal.SIGKILL)
        supervisor.until("start", 2)
        assert tree(range(FIRST + 6, FIRST + 7)) == orphan and tree(range(FIRST + 7, FIRST + 8))
        supervisor.stop()
        assert tree(range(FIRST + 6, FIRST + 7)) == orphan
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
from daemonkit._system.run_mark import put_mark
other = marks.base() ^ 1 << 54  # a bit of the namespace
neighbour = subprocess.Popen(["sleep", "1000"], preexec_fn=lambda: put_mark(other))
supervise(["sleep", "1000"])
assert neighbour.poll() is None
neighbour.kill(); neighbour.wait()
"""
    with supervising(tmp_path, body) as supervisor:
        supervisor.until("start")
        os.kill(supervisor.worker, signal.SIGKILL)
        supervisor.until("start", 2)
        supervisor.stop()


def test_orphans_of_the_callers_own_children_are_not_left_to_it(tmp_path: Path) -> None:
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


BECOME = {
    "prlimit": "prlimit --rttime=unlimited:unlimited",
    "runuser": "runuser -u nobody --",
    "setpriv": "prlimit --rttime=unlimited:unlimited setpriv --reuid=65534 --clear-groups",
    "sudo": "sudo -u nobody",
    "su": "su -s /bin/sh nobody -c",
}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("session", ["", "setsid "])
@pytest.mark.parametrize("tool", BECOME)
def test_what_lost_its_mark_neither_survives_a_killed_worker_nor_runs_twice(
    tmp_path: Path, tool: str, session: str, *, own: bool
) -> None:
    if not shutil.which(tool):
        pytest.skip(f"no {tool} here")
    number = FIRST + 10
    sleep = f"sleep {number}"
    command = f"{session}{BECOME[tool]} {sleep!r}" if tool == "su" else f"{session}{BECOME[tool]} {sleep}"
    body = f"""
import subprocess
if {own}:
    mine = subprocess.Popen(["sleep", "1000"])
supervise(["sh", "-c", {command + " & wait; sleep 1000"!r}])
if {own}:
    assert mine.poll() is None
    mine.kill(); mine.wait()
"""
    ours = range(number, number + 1)
    with supervising(tmp_path, body) as supervisor:
        (first,) = eventually(lambda: tree(ours))
        os.kill(supervisor.worker, signal.SIGKILL)
        supervisor.until("start", 2)
        eventually(lambda: len(now := tree(ours)) == 1 and first not in now)
        supervisor.stop()
    eventually(lambda: not tree(ours))


@pytest.mark.long
@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("runuser"), reason="only root can become somebody else")
def test_a_main_process_that_became_another_user_neither_survives_nor_runs_twice(tmp_path: Path) -> None:
    number = FIRST + 11
    ours = range(number, number + 1)
    command = ["runuser", "-u", "nobody", "--", "sleep", str(number)]
    with supervising(tmp_path, f"supervise({command!r}, instances=2)") as supervisor:
        first = eventually(lambda: len(now := tree(ours)) == 2 and now)
        os.kill(supervisor.worker, signal.SIGKILL)
        supervisor.until("start", 4)
        eventually(lambda: len(now := tree(ours)) == 2 and not first & now)
        supervisor.stop()
    eventually(lambda: not tree(ours))


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("runuser"), reason="only root can become somebody else")
def test_what_comes_while_the_callers_code_runs_is_not_taken_for_the_callers_own(tmp_path: Path) -> None:
    number = FIRST + 12
    ours = range(number, number + 1)
    command = ["runuser", "-u", "nobody", "--", "sleep", str(number)]
    body = f"""
import subprocess
def children(pid):
    return set(map(int, open(f"/proc/{{pid}}/task/{{pid}}/children").read().split()))
def on_event(event):
    if event.kind == "ready" and not os.path.exists("killed"):
        (first,) = children(event.pid)
        (worker,) = children(os.getpid())
        mine = subprocess.Popen(["sleep", "1000"])
        os.kill(worker, signal.SIGKILL)
        while first not in children(os.getpid()): time.sleep(0.001)
        open("killed", "w").write(f"{{first}} {{mine.pid}}\\n")
daemonkit.supervise({command!r}, on_event=on_event)
"""
    with supervising(tmp_path, body) as supervisor:
        first, mine = map(
            int,
            eventually(
                lambda: (tmp_path / "killed").read_text().endswith("\n") and (tmp_path / "killed").read_text().split()
            ),
        )
        eventually(lambda: len(now := tree(ours)) == 1 and first not in now)
        assert alive(mine)
        os.kill(mine, signal.SIGKILL)
        supervisor.process.terminate()
        assert supervisor.process.wait(PATIENCE) == 0
    eventually(lambda: not tree(ours))


@pytest.mark.skipif(not shutil.which("prlimit"), reason="no prlimit here")
def test_a_new_start_names_what_it_can_not_prove_to_be_left(tmp_path: Path) -> None:
    script = "prlimit --rttime=unlimited:unlimited setsid sleep 1000 & echo $! > left; wait"
    with supervising(tmp_path, f"supervise(['sh', '-c', {script!r}])") as supervisor:
        (left,) = eventually(lambda: pids(tmp_path, "left"))
        eventually(lambda: os.getsid(left) == left)
        worker = supervisor.worker
        for pid in (supervisor.pid, worker):
            os.kill(pid, signal.SIGSTOP)
        for pid in (supervisor.pid, worker):
            os.kill(pid, signal.SIGKILL)
        supervisor.process.wait(PATIENCE)
        harness.ended(worker)
    done = run(tmp_path, "daemonkit.supervise(['true'])")
    assert (
        done.returncode == 0
        and "may have been left by a supervisor that was killed" in done.stderr
        and str(left) in done.stderr
    )
    assert alive(left)
    (tmp_path / "other").mkdir()
    assert str(left) not in run(tmp_path / "other", "daemonkit.supervise(['true'])").stderr  # it is not from there
    os.kill(left, signal.SIGKILL)
    harness.ended(left)


MARKED = """
from daemonkit._system.run_mark import FREE, put_mark
put_mark(FREE)
print(os.getpid(), flush=True)
signal.pause()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_a_mark_is_seen_by_all_users(tmp_path: Path) -> None:
    """Only /proc shows a stranger's limits to an ordinary user."""
    program = "import os, signal, sys\nsys.path[:] = " + repr(sys.path)
    with subprocess.Popen([sys.executable, "-c", program + MARKED], stdout=subprocess.PIPE, text=True) as marked:
        assert marked.stdout
        pid = int(marked.stdout.readline())
        try:
            look = (
                f"\nfrom daemonkit._system.run_mark import FREE, mark_of\nassert mark_of({pid}) == FREE, mark_of({pid})"
            )
            look += f"\nassert mark_of(1) is None and mark_of({DEAD}) is None"
            for user in (0, 65534):
                drop = f"\nimport daemonkit._system.run_mark\nos.setgroups([]), os.setresgid({user}, {user}, {user}), os.setresuid({user}, {user}, {user})"
                subprocess.run([sys.executable, "-c", program + drop + look], check=True, cwd=tmp_path)
        finally:
            marked.kill()
