"""Handles that are dropped: their programs are reaped, whenever and wherever that happens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from harness import run
from launches import (
    call,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    "call_text",
    [
        "spawn(['true']).wait()",
        "other.poll()",
        "other.running",
        "spawn_fails()",
    ],
)
def test_what_was_dropped_is_reaped_at_the_next_call_once_it_has_ended(tmp_path: Path, call_text: str) -> None:
    call(
        tmp_path,
        f"""
        def spawn_fails():
            try:
                spawn(["missing"])
            except FileNotFoundError:
                pass
        other = spawn(SLEEP)
        before = descriptors()
        pids = []
        for n in range(10):
            p = spawn(["sh", "-c", "read line"], stdin=PIPE)
            pids.append((p.pid, p.stdin))
            if n % 2: p.cycle = p
            del p
        gc.collect()
        for _, pipe in pids: pipe.close()
        until(lambda: sorted(zombies()) == sorted(pid for pid, _ in pids))
        {call_text}
        assert children().keys() == {{other.pid}}, (children(), other.pid)
        assert descriptors() == before, (descriptors(), before)
        other.kill(); other.wait()
    """,
        flags=("-X", "dev", "-W", "error"),
    )


def test_1000_in_a_row_leave_nothing(tmp_path: Path) -> None:
    """Each has ended before the next one starts, so that there is one zombie at most."""
    told = call(
        tmp_path,
        """
        spawn(["true"]).wait()
        gc.collect()
        before, objects, most, last = descriptors(), len(gc.get_objects()), 0, None
        for n in range(1000):
            options = dict(cwd="/", umask=0) if n % 50 == 49 else dict(pidfile="pid") if n % 50 == 48 else {}
            p = spawn(["true"], **options)
            if last: assert state(last) == "", (n, state(last))
            last = p.pid
            end_of(p)
            del p
        most = len(zombies())
        spawn(["true"]).wait()
        gc.collect()
        tell(most=most, left=children(), more=descriptors() - before, objects=len(gc.get_objects()) - objects, threads=threading.active_count(),
             native=len(os.listdir("/proc/self/task")), known=len(daemonkit._system.reaping.launched))
    """,
        timeout=110,
    )
    assert told["most"] == 1 and told["left"] == {} and told["more"] == 0
    assert told["known"] == 0  # or memory would grow with each
    assert told["objects"] < 100 and told["threads"] == told["native"] == 1


def test_many_at_once_cost_a_descriptor_each_and_are_all_reaped(tmp_path: Path) -> None:
    told = call(
        tmp_path,
        """
        before = descriptors()
        handles = [spawn(SLEEP) for _ in range(60)]
        living = descriptors() - before
        for p in handles[::2]: p.kill()
        assert all(p.wait() == -9 for p in handles[::2])
        pids = [p.pid for p in handles[1::2]]
        del handles, p
        gc.collect()
        for pid in pids: os.kill(pid, signal.SIGKILL)
        until(lambda: len(zombies()) == 30)
        spawn(["true"]).wait()
        tell(living=living, left=children(), after=descriptors() - before)
    """,
    )
    assert told == {"living": 60, "left": {}, "after": 0}


def test_handles_that_are_collected_in_the_midst_of_a_spawn(tmp_path: Path) -> None:
    """The collector may run at any allocation: neither a deadlock nor a lost child."""
    call(
        tmp_path,
        """
        gc.set_threshold(1)
        for n in range(150):
            p = spawn(["true"])
            p.cycle = [p]
            del p
        gc.set_threshold(700)
        gc.collect()
        until(lambda: set(children().values()) <= {"Z"})
        spawn(["true"]).wait()
        assert children() == {}
    """,
        flags=("-X", "dev", "-W", "error"),
        timeout=90,
    )


def test_a_signal_handler_that_spawns_in_the_midst_of_a_spawn(tmp_path: Path) -> None:
    call(
        tmp_path,
        """
        handles, inner = [], []
        def again(*_):
            if len(inner) < 60:
                inner.append(spawn(exits(2), cwd="/") if len(inner) % 9 == 8 else spawn(exits(2)))
                if handles: handles[-1].poll()
                signal.setitimer(signal.ITIMER_REAL, 0.003)  # now, or it would be due again in here on a loaded machine
        signal.signal(signal.SIGALRM, again)
        signal.setitimer(signal.ITIMER_REAL, 0.003)
        while len(inner) < 60 or len(handles) < 60:
            handles.append(spawn(exits(1)))
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert {p.wait() for p in handles} == {1} and {p.wait() for p in inner} == {2}
        assert children() == {}
    """,
        timeout=90,
    )


def test_threads_that_spawn_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    told = call(
        tmp_path,
        """
        spawn(["true"]).wait(); spawn(["true"], cwd="/").wait()
        before, wrong = descriptors(), []
        def work(n):
            try:
                for turn in range(25):
                    options = [{}, dict(cwd="/", umask=0), dict(stdout=PIPE), dict(input=b"x"), dict(pidfile=f"{n}.pid")][turn % 5]
                    p = spawn(["sh", "-c", f"echo {n}; exit {turn}"], **options)
                    if p.stdout:
                        with p.stdout: assert p.stdout.read() == b"%d\\n" % n
                    if turn % 3 or "pidfile" in options: assert p.wait() == turn  # or its pidfile might still be held
            except BaseException as error:
                wrong.append(repr(error))
        threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        gc.collect()
        until(lambda: set(children().values()) <= {"Z"})
        spawn(["true"]).wait()
        tell(wrong=wrong, left=children(), more=descriptors() - before)
    """,
        timeout=90,
    )
    assert told == {"wrong": [], "left": {}, "more": 0}


def test_a_fork_in_the_midst_of_another_threads_spawn_leaves_a_child_that_can_spawn(tmp_path: Path) -> None:
    call(
        tmp_path,
        """
        warnings.simplefilter("ignore", DeprecationWarning)  # of 3.12: this process has threads, and forks
        stopping = False
        def work():
            while not stopping:
                spawn(["true"]); spawn(["true"]).poll()
        thread = threading.Thread(target=work, daemon=True); thread.start()
        for _ in range(25):
            child = os.fork()
            if child == 0:
                signal.alarm(20)  # a deadlock is the failure
                code = 99
                try:
                    code = spawn(exits(3)).wait() or 98
                finally:
                    os._exit(code)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            assert code == 3, code
        stopping = True
        thread.join()
        until(lambda: set(children().values()) <= {"Z"})
        spawn(["true"]).wait()
        assert children() == {}
    """,
        timeout=60,
    )


CALLS = [
    "status('pid')",
    "PidFile('pid').acquire()",
    "PidFile('pid').read_pid()",
    "PidFile('pid').is_locked()",
    "PidFile('pid').break_lock()",
    "detached(detach_process=False).open()",
    "supervise(['true'], min_uptime=0.01)",
    "attach('running').send_signal(signal.SIGCONT, group=True)",
    "send_signal('running', signal.SIGCONT)",
    "stop('running')",
]


@pytest.mark.parametrize("call", CALLS)
def test_a_dropped_handles_program_is_reaped_by_whatever_call_comes_next(tmp_path: Path, call: str) -> None:
    done = run(
        tmp_path,
        f"""
        import select
        running = daemonkit.spawn_detached(["sleep", "1000"], pidfile="running")
        fd = os.dup((p := daemonkit.spawn_detached(["true"])).fileno())
        pid = p.pid
        del p
        select.select([fd], [], [])
        assert os.path.exists(f"/proc/{{pid}}")
        daemonkit.{call}
        assert not os.path.exists(f"/proc/{{pid}}")
        running.kill(); running.wait()
    """,
        flags=("-W", "error"),
    )
    assert done.returncode == 0, done.stderr  # supervise() may tell of what another test has left
