"""Nothing of the caller is touched: no signal, no status, no thread, no hook."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import harness
import pytest
from harness import ended, pid_in, run, stop
from launches import (
    CALLER,
    call,
    caller,
)

if TYPE_CHECKING:
    from pathlib import Path

VARIANTS = """
variants = [dict(), dict(cwd="/"), dict(umask=0o22), dict(env={}), dict(pass_fds=[2]), dict(stdout="log"), dict(pidfile="pid"),
            dict(input=b"x"), dict(stdout=PIPE), dict(cwd="/", umask=0, pidfile="other", stdout="log", input=b"y")]
if os.geteuid() == 0:
    variants += [dict(user="daemon"), dict(user="daemon", cwd="/", umask=0, pidfile="third")]
"""


BLOCKED = "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"


@pytest.mark.long
@pytest.mark.parametrize("before", ["", BLOCKED], ids=["", "SIGTERM blocked"])
def test_one_sigchld_for_each_program_and_none_for_looking_for_it(tmp_path: Path, before: str) -> None:
    """Whoever sits in os.wait() meets the programs, and nothing that helped to start them."""
    (tmp_path / "directory").mkdir()
    call(
        tmp_path,
        before
        + VARIANTS
        + """
os.environ["PATH"] = os.getcwd() + "/directory:/nowhere:" + os.environ["PATH"]
arrived = []
signal.signal(signal.SIGCHLD, lambda *_: arrived.append(1))
def handler(): return signal.getsignal(signal.SIGCHLD)
mine = handler()
for options in variants:
    for name in ("missing-program", "./missing", "./directory", "./program.py"):
        try:
            spawn([name], **options)
        except OSError:
            pass
        else:
            assert False, name
    assert arrived == [], (options, "a failed look sent a signal")
for options in variants:
    p = spawn(["sleep", "0.05"], **options)
    end_of(p)
    until(lambda: arrived)
    assert os.waitpid(-1, 0) == (p.pid, 0), options
    assert len(arrived) == 1, (options, len(arrived))
    arrived.clear()
    if p.stdout: p.stdout.close()
assert handler() is mine
""",
    )


@pytest.mark.parametrize("before", ["", BLOCKED], ids=["", "SIGTERM blocked"])
def test_who_sits_in_os_wait_gets_each_status_and_nothing_else(tmp_path: Path, before: str) -> None:
    call(
        tmp_path,
        before
        + VARIANTS
        + """
keeper = subprocess.Popen(SLEEP)
taken, started = {}, {}
def reap():
    while True:
        pid, status = os.wait()
        taken[pid] = os.waitstatus_to_exitcode(status)
        if pid == keeper.pid: return
thread = threading.Thread(target=reap); thread.start()
for turn in range(4):
    for n, options in enumerate(variants):
        if "pidfile" in options: options = dict(options, pidfile=f"{turn}{n}")
        p = spawn(["sh", "-c", f"exit {n + 1}"], **options)
        started[p.pid] = n + 1
        code = p.wait()
        assert code in (None, n + 1), (options, code)
        assert p.running is False
        if p.stdout: p.stdout.close()
keeper.kill()
thread.join()
extra = {pid: code for pid, code in taken.items() if pid not in started and pid != keeper.pid}
assert extra == {}, extra
assert all(taken.get(pid, code) == code for pid, code in started.items())
keeper.returncode = -9
""",
        timeout=60,
    )


def test_sigwait_subprocess_and_multiprocessing_go_on_as_ever(tmp_path: Path) -> None:
    call(
        tmp_path,
        """
        import multiprocessing
        def work(n): return n * 2
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD, signal.SIGUSR1])
        handles = [spawn(exits(3)) for _ in range(5)] + [spawn(exits(3), cwd="/", umask=0)]
        assert signal.sigwait([signal.SIGCHLD]) == signal.SIGCHLD
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        others = [subprocess.Popen(exits(4)) for _ in range(5)]
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.map(work, range(5)) == [0, 2, 4, 6, 8]
        child = multiprocessing.get_context("fork").Process(target=sys.exit, args=(6,))
        child.start()
        spawn(["true"])
        child.join()
        assert child.exitcode == 6
        assert [other.wait() for other in others] == [4] * 5
        assert subprocess.run(["true"]).returncode == 0
        assert [p.wait() for p in handles] == [3] * 6
        assert os.system("exit 7") >> 8 == 7
    """,
        flags=("-X", "dev", "-W", "error"),
    )


def test_no_thread_no_fork_hook_no_handler_no_exit_handler_and_no_change_of_anything(tmp_path: Path) -> None:
    call(
        tmp_path,
        VARIANTS
        + """
import atexit, random, lockfile, daemon
hooks = []
real_hook, real_exit = os.register_at_fork, atexit.register
os.register_at_fork = lambda **options: hooks.append(sys._getframe(1).f_globals["__name__"])
atexit.register = lambda *args, **options: hooks.append(sys._getframe(1).f_globals["__name__"])
def state_of_mine():
    status = read("/proc/self/status")
    umask = os.umask(0); os.umask(umask)
    return ([line for line in status.splitlines() if line.startswith(("Sig", "Shd", "Uid", "Gid", "Groups", "Threads"))
             and not line.startswith("SigQ")], umask, os.getcwd(), os.environ.copy(), resource.getrlimit(resource.RLIMIT_NOFILE),
            [signal.getsignal(n) for n in signal.valid_signals()], sys.gettrace(), signal.set_wakeup_fd(-1),
            read("/proc/self/oom_score_adj"), len(threading.enumerate()), gc.isenabled(), os.getpgid(0), os.getsid(0))
before = state_of_mine()
for options in variants:
    p = spawn(["true"], **options)
    if p.stdout: p.stdout.close()
    assert p.wait() == 0
    assert state_of_mine() == before, options
dropped = spawn(["true"]); del dropped
assert not [name for name in hooks if name.startswith("daemonkit")], hooks
assert not {"asyncio", "multiprocessing", "concurrent.futures"} & set(sys.modules)
""",
    )


def test_a_later_fork_warns_of_nothing(tmp_path: Path) -> None:
    call(
        tmp_path,
        VARIANTS
        + """
handles = [spawn(SLEEP, **options) for options in variants]
for p in handles:
    if p.stdout: p.stdout.close()
for _ in range(3):
    child = os.fork()
    if child == 0:
        assert all(p.running for p in handles)
        sys.exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
assert all(p.running for p in handles)
for p in handles: p.kill()
assert [p.wait() for p in handles] == [-9] * len(handles)
""",
        flags=("-X", "dev", "-W", "error"),
    )


def test_a_later_detached_warns_of_nothing_and_the_daemon_can_spawn(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        caller("""
        kept, taken = spawn(SLEEP, cwd="/", umask=0), spawn(SLEEP, pidfile="taken.pid")
        ended = spawn(exits(3)); end_of(ended)
        spawn(exits(4))
        with daemonkit.detached(pidfile="pid", stdout="log", stderr=daemonkit.STDOUT, working_directory="."):
            p = spawn(SLEEP, pidfile="own.pid")
            q = spawn(exits(6))
            until(lambda: state(p.pid) == "S")  # an exec lets the launcher go before it closes what is to be closed
            report(running=[kept.running, taken.running, p.running], ended=[ended.running, ended.poll()], code=q.wait(),
                   program=p.pid, kept=kept.pid, taken=taken.pid, held=daemonkit.PidFile("taken.pid").read_pid(),
                   foreign=sorted(map(int, os.listdir(f"/proc/{p.pid}/fd"))))
            kept.kill()
            wait()
    """),
        flags=("-X", "dev", "-W", "error"),
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    facts = harness.reported(tmp_path)
    assert (
        facts["running"] == [True] * 3
        and facts["ended"][0] is False
        and facts["ended"][1] in (None, 3)
        and facts["code"] == 6
    )
    assert facts["held"] == facts["taken"] == pid_in(tmp_path / "taken.pid")
    assert pid_in(tmp_path / "own.pid") == facts["program"] and len(facts["foreign"]) == 4
    assert ended(facts["kept"]) == -9 and stop(facts["taken"]) == -15
    assert stop(facts["pid"]) == 0
    assert (tmp_path / "log").read_text() == ""
    assert harness.alive(facts["program"])
    assert stop(facts["program"]) == -signal.SIGTERM


ENDINGS = {
    "a living handle in a global": "p = spawn(SLEEP)",
    "an ended handle in a global": "p = spawn(exits(0)); end_of(p)",
    "dropped": "spawn(SLEEP)",
    "dropped and ended": "p = spawn(exits(0)); end_of(p); del p",
    "in a cycle": "p = spawn(SLEEP); p.cycle = p; del p",
    "kept by builtins": "import builtins; builtins.kept = [spawn(SLEEP), spawn(exits(0))]",
    "the modules gone": "p = spawn(SLEEP); [sys.modules.pop(name) for name in list(sys.modules) if name.startswith('daemonkit')]",
    "a thread that waits": "p = spawn(SLEEP); threading.Thread(target=p.wait, daemon=True).start()",
    "an exit handler that spawns": "import atexit; atexit.register(lambda: tell(pid=spawn(SLEEP).pid))",
    "with a pidfile": "p = spawn(SLEEP, pidfile='pid', stdout='log')",
    "cwd and umask": "p = spawn(SLEEP, cwd='/', umask=0); q = spawn(SLEEP, cwd='/')",
    "in a subclass with a destructor": "class Late:\n    def __del__(self): self.p.poll(); self.p.running\nlate = Late(); late.p = spawn(SLEEP); late.me = late",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_nothing_happens_at_interpreter_exit(tmp_path: Path, ending: str) -> None:
    before = set(harness.children())
    done = run(tmp_path, CALLER + ENDINGS[ending] + "\n", flags=("-X", "dev", "-W", "error"))
    assert (done.returncode, done.stderr) == (0, "")
    left = [pid for pid in set(harness.children()) - before if harness.alive(pid)]
    assert len(left) == (
        0 if ending in {"an ended handle in a global", "dropped and ended"} else 2 if ending == "cwd and umask" else 1
    )
    for pid in left:
        assert stop(pid, signal.SIGKILL) == -9  # it had not been signalled


def test_only_a_pipe_left_open_warns(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        caller("""
        spawn(["true"]); p = spawn(["true"], stdin=PIPE)
        del p
        gc.collect()
    """),
        flags=("-X", "dev"),
    )
    assert (
        done.returncode == 0
        and done.stderr.count("ResourceWarning: unclosed file") == done.stderr.count("ResourceWarning: ") - 1 == 1
    )
