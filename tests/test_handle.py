"""DetachedProcess: what the caller learns and can do, and that nothing of the caller is touched; on real processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import textwrap
from typing import TYPE_CHECKING, Any

import harness
import pytest
from harness import ended, eventually, pid_in, run, stop

if TYPE_CHECKING:
    from pathlib import Path

ROOT = os.geteuid() == 0
GROUP_SIGNALS = tuple(map(int, os.uname().release.split("-")[0].split(".")[:2])) >= (6, 9)

# Callers start with this, after the harness's prelude.
CALLER = """
import gc, resource, select, subprocess, warnings
from daemonkit import DEVNULL, INHERIT, PIPE, STDOUT
spawn = daemonkit.spawn_detached
SLEEP = ["sleep", "1000"]
NEVER = 30.0  # seconds; for waits that are to end long before

def tell(**more):
    print(json.dumps(more), flush=True)

def exits(code):
    return ["sh", "-c", f"exit {code}"]

def state(pid):
    try:
        return read(f"/proc/{pid}/stat").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""

def children():
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                fields = read(f"/proc/{name}/stat").rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[1]) == os.getpid():
                found[int(name)] = fields[0]
    return found

def members(pgid):
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                fields = read(f"/proc/{name}/stat").rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[2]) == pgid and fields[0] not in "ZX":
                found.append(int(name))
    return found

def zombies():
    return [pid for pid, letter in children().items() if letter == "Z"]

def descriptors():
    return len(os.listdir("/proc/self/fd"))

def until(look):
    deadline = time.monotonic() + NEVER
    while not look():
        assert time.monotonic() < deadline, "never came true"
        select.select([], [], [], 0.002)

def end_of(p):
    assert select.select([p], [], [], NEVER)[0] == [p]
"""


def caller(body: str) -> str:
    return CALLER + textwrap.dedent(body)


def call(directory: Path, body: str, **options: Any) -> dict[str, Any]:
    """Run a caller to its end; warnings are errors, it ends well and quietly. Return what it told."""
    options.setdefault("flags", ("-W", "error"))
    done = run(directory, caller(body), **options)
    assert (done.returncode, done.stderr) == (0, ""), done
    told: dict[str, Any] = json.loads(done.stdout) if done.stdout else {}
    return told


# --- as Popen ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", ["", ", cwd='/', umask=0"], ids=["", "cwd, umask"])
def test_poll_wait_and_returncode_are_popens(tmp_path: Path, options: str) -> None:
    call(
        tmp_path,
        f"""
        args = ["sh", "-c", "read line; exit 5"]
        p = spawn(args, stdin=PIPE{options})
        assert p.args == args and p.stdout is None and p.stderr is None
        assert p.returncode is None and p.poll() is None and p.running is True
        for timeout in (0, 0.01, -1):
            try:
                p.wait(timeout=timeout)
            except subprocess.TimeoutExpired as error:
                assert error.timeout == timeout and str(args[0]) in str(error.cmd)
            else:
                assert False, "it has not ended"
        assert p.returncode is None and p.poll() is None
        p.stdin.close()
        assert p.wait() == 5 and p.returncode == 5 and p.poll() == 5 and p.wait(0) == 5 and p.wait(timeout=None) == 5
        assert p.running is False and state(p.pid) == ""
        q = spawn(SLEEP{options})
        q.terminate()
        assert q.wait(NEVER) == -signal.SIGTERM == q.returncode
        for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGRTMIN + 1):
            r = spawn(SLEEP{options})
            r.send_signal(number)
            assert r.wait(1e12) == -number
        assert spawn(exits(255){options}).wait(float("inf")) == 255
    """,
    )


def test_a_zombie_does_not_run_and_running_says_so_without_a_poll(tmp_path: Path) -> None:
    call(
        tmp_path,
        """
        p = spawn(exits(3))
        end_of(p)
        assert p.running is False
        assert p.poll() == 3
        q = spawn(SLEEP)
        q.kill()
        until(lambda: not q.running)
        assert q.returncode in (None, -9) and q.wait() == -9
    """,
    )


def test_stopped_and_continued_it_still_runs(tmp_path: Path) -> None:
    call(
        tmp_path,
        """
        p = spawn(SLEEP)
        p.send_signal(signal.SIGSTOP)
        until(lambda: state(p.pid) == "T")
        assert p.running and p.poll() is None and select.select([p], [], [], 0.05)[0] == []
        p.send_signal(signal.SIGCONT)
        until(lambda: state(p.pid) == "S")
        assert p.running and p.poll() is None
        p.kill()
        assert p.wait() == -9
    """,
    )


def test_wait_wakes_for_the_end_in_every_thread_that_waits(tmp_path: Path) -> None:
    call(
        tmp_path,
        """
        p = spawn(["sh", "-c", "read line; exit 6"], stdin=PIPE)
        codes = []
        threads = [threading.Thread(target=lambda: codes.append(p.wait())) for _ in range(8)]
        for thread in threads: thread.start()
        p.stdin.close()
        for thread in threads: thread.join(NEVER)
        assert codes == [6] * 8
    """,
    )


def test_a_signal_handler_in_the_midst_of_wait_changes_nothing_and_an_exception_only_ends_that_wait(
    tmp_path: Path,
) -> None:
    call(
        tmp_path,
        """
        p = spawn(["sh", "-c", "read line; exit 6"], stdin=PIPE)
        seen = []
        def look(*_):
            seen.append((p.poll(), p.running))
            if len(seen) == 20: raise InterruptedError("enough")
        signal.signal(signal.SIGALRM, look)
        signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
        try:
            p.wait()
        except InterruptedError:
            signal.setitimer(signal.ITIMER_REAL, 0)
        assert seen == [(None, True)] * 20 and p.returncode is None
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
            p.wait(timeout=0.01)
        except subprocess.TimeoutExpired:
            signal.setitimer(signal.ITIMER_REAL, 0)
        p.stdin.close()
        assert p.wait() == 6
    """,
    )


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("p.wait('soon')", TypeError),
        ("p.wait(float('nan'))", ValueError),
        ("p.send_signal('TERM')", TypeError),
        ("p.send_signal(9999)", OSError),
    ],
)
def test_bad_arguments_are_refused_while_it_lives(text: str, error: type[Exception]) -> None:
    import daemonkit

    p = daemonkit.spawn_detached(["sleep", "1000"])
    try:
        with pytest.raises((error, ValueError)):
            eval(text, {"p": p})
        assert p.running
    finally:
        p.kill()
        assert p.wait() == -signal.SIGKILL


# --- fileno: select, selectors, asyncio -------------------------------------------------------------------------


def test_it_is_readable_once_it_has_ended_and_stays_so(tmp_path: Path) -> None:
    call(
        tmp_path,
        """
        import selectors
        for kind in {selectors.DefaultSelector, selectors.SelectSelector, selectors.PollSelector, selectors.EpollSelector}:
            with kind() as selector:
                p = spawn(["sh", "-c", "read line; exit 2"], stdin=PIPE)
                selector.register(p, selectors.EVENT_READ, "the data")
                assert selector.select(0.02) == []
                p.stdin.close()
                [(key, events)] = selector.select(NEVER)
                assert key.fileobj is p and key.data == "the data" and events == selectors.EVENT_READ
                number = p.fileno()
                assert p.poll() == 2 and p.fileno() == number == key.fd
                assert select.select([p], [], [], 0)[0] == [p]
                assert selector.unregister(p).fileobj is p
        assert not os.get_inheritable(number) and os.readlink(f"/proc/self/fd/{number}").startswith(("anon_inode:", "pidfd:"))
    """,
    )


@pytest.mark.parametrize("how", ["p", "p.fileno()"])
def test_an_event_loop_that_watches_fileno_reaps_at_once(tmp_path: Path, how: str) -> None:
    call(
        tmp_path,
        f"""
        import asyncio
        async def one(n, room):
            async with room:
                loop = asyncio.get_running_loop()
                p = spawn(exits(n % 7))
                done = loop.create_future()
                def ended():
                    loop.remove_reader({how})
                    done.set_result(p.poll())
                loop.add_reader({how}, ended)
                code = await done
                assert state(p.pid) == "" and p.running is False
                return code == n % 7
        async def beside(n):
            process = await asyncio.create_subprocess_exec("sh", "-c", f"exit {{n}}")
            return await process.wait() == n
        async def main():
            asyncio.get_running_loop().slow_callback_duration = NEVER  # says nothing about speed
            room = asyncio.Semaphore(10)
            return await asyncio.gather(*(one(n, room) for n in range(150)), *(beside(n) for n in range(5)))
        before = descriptors()
        assert all(asyncio.run(main()))
        gc.collect()
        assert children() == {{}} and descriptors() == before and threading.active_count() == 1
    """,
        flags=("-X", "dev", "-W", "error"),
        timeout=90,
    )


def test_spawning_in_an_event_loop_with_pipes_as_streams(tmp_path: Path) -> None:
    call(
        tmp_path,
        """
        import asyncio
        async def main():
            loop = asyncio.get_running_loop()
            loop.slow_callback_duration = 60  # on a loaded machine -X dev has something to say of anything
            p = spawn(["sh", "-c", "cat; exit 3"], stdin=PIPE, stdout=PIPE)
            reader = asyncio.StreamReader()
            transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), p.stdout)
            p.stdin.write(b"text"); p.stdin.close()
            assert await reader.read() == b"text"
            transport.close()
            return await loop.run_in_executor(None, p.wait)
        assert asyncio.run(main()) == 3
    """,
        flags=("-X", "dev", "-W", "error"),
    )


# --- signals ----------------------------------------------------------------------------------------------------


def test_signals_to_what_has_ended_are_nothing(tmp_path: Path) -> None:
    call(
        tmp_path,
        """
        for reaped in (True, False):
            p = spawn(exits(4))
            end_of(p)
            if reaped: assert p.wait() == 4
            for _ in range(2):
                assert p.send_signal(signal.SIGTERM) is p.terminate() is p.kill() is p.send_signal(0) is None
                assert p.send_signal(signal.SIGTERM, group=True) is None
            assert p.wait() == 4
    """,
    )


FAMILY = "['sh', '-c', 'sleep 1000 & sleep 1000 & echo $! > child.new; mv child.new child; {then}']"


def _members(pgid: int) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if os.getpgid(int(name)) == pgid and harness.alive(int(name)):
                    found.append(int(name))
            except OSError:
                continue
    return found


def test_group_reaches_the_whole_group_and_without_it_the_program_alone(tmp_path: Path) -> None:
    told = call(
        tmp_path,
        f"""
        p = spawn({FAMILY.format(then="wait")})
        until(lambda: os.path.exists("child"))
        p.send_signal(signal.SIGTERM)
        assert p.wait() == -signal.SIGTERM
        q = spawn({FAMILY.format(then="wait")})
        bystander = spawn(SLEEP)
        q.send_signal(signal.SIGKILL, group=True)
        assert q.wait() == -signal.SIGKILL
        assert bystander.running
        tell(first=p.pid, second=q.pid, bystander=bystander.pid)
    """,
    )
    eventually(lambda: not _members(told["second"]), "all of the second group are gone")
    assert len(_members(told["first"])) == 2
    for pid in [*_members(told["first"]), told["bystander"]]:
        assert stop(pid, signal.SIGKILL) == -9


@pytest.mark.parametrize("moment", ["a zombie", "reaped by the handle", "reaped by somebody else"])
def test_group_reaches_what_is_left_after_the_leader(tmp_path: Path, moment: str) -> None:
    told = call(
        tmp_path,
        f"""
        p = spawn({FAMILY.format(then="exit 3")})
        end_of(p)
        if {moment!r} == "reaped by the handle": assert p.wait() == 3
        if {moment!r} == "reaped by somebody else": assert os.waitpid(p.pid, 0)[0] == p.pid
        p.send_signal(signal.SIGTERM)
        p.kill()
        tell(pid=p.pid, kept=members(p.pid))
        p.send_signal(signal.SIGKILL, group=True)
        assert p.poll() in (3, None)
    """,
    )
    assert len(told["kept"]) == 2  # a signal to the leader alone was for nobody else
    if GROUP_SIGNALS or moment == "a zombie":
        eventually(lambda: not _members(told["pid"]), "none of the group is left")
    for pid in _members(told["pid"]):  # an older kernel can not do it safely
        stop(pid, signal.SIGKILL)


@pytest.mark.skipif(
    not ROOT or not shutil.which("unshare"), reason="choosing the next pid takes root and a PID namespace"
)
def test_a_reused_pid_is_never_meant(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        caller("""
        def next_pid(n):
            with open("/proc/sys/kernel/ns_last_pid", "w") as file: file.write(str(n - 1))
        for options in ({}, dict(pidfile="pid"), dict(cwd="/", umask=0)):
            p = spawn(exits(7), **options)
            end_of(p)
            assert os.waitpid(p.pid, 0)[0] == p.pid  # somebody else took it
            if options.get("pidfile"):  # a number that is given out again so soon may still be the file's: clocks tick
                until(lambda: time.time() > os.stat("pid").st_mtime + 0.1)
            next_pid(p.pid)
            stranger = subprocess.Popen(SLEEP, start_new_session=True)
            assert stranger.pid == p.pid, (stranger.pid, p.pid)
            for _ in range(2):
                p.terminate(); p.kill(); p.send_signal(signal.SIGKILL); p.send_signal(signal.SIGKILL, group=True)
                assert p.running is False and p.poll() in (None, 7) and p.wait() in (None, 7) and p.wait(0) in (None, 7)
            end_of(p)
            until(lambda: stranger.poll() is not None or state(stranger.pid) == "S")
            assert stranger.poll() is None, stranger.poll()
            assert daemonkit.PidFile("pid").read_pid() is None
            del p
            spawn(["true"], pidfile="pid").wait()  # a call of daemonkit reaps what was dropped, not the stranger
            assert stranger.poll() is None
            stranger.kill()
            assert stranger.wait() == -9
        # dropped while alive, taken by somebody else, and the number given out to a child that ends
        p = spawn(exits(7)); pid = p.pid
        end_of(p)
        del p
        os.waitpid(pid, 0)
        next_pid(pid)
        stranger = subprocess.Popen(exits(9), start_new_session=True)
        assert stranger.pid == pid
        until(lambda: state(pid) == "Z")
        spawn(["true"]).wait()
        assert stranger.wait() == 9
        print("done")
    """),
        wrapper=("unshare", "--pid", "--fork", "--mount-proc", "--kill-child"),
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", ""), done


# --- never a zombie, whenever it ends -----------------------------------------------------------------------------


def test_an_end_in_the_midst_of_a_poll_is_reaped_too(tmp_path: Path) -> None:
    """Asked again and again around the very moment: who has the status has reaped it as well."""
    call(
        tmp_path,
        """
        for n in range(300):
            p = spawn(exits(3))
            if n % 2:
                while p.poll() is None: pass
            else:
                while p.running: pass
            assert p.poll() == 3 and state(p.pid) == "", (n, p.returncode, state(p.pid))
    """,
        timeout=60,
    )


def test_an_end_just_after_the_look_for_a_status_is_reaped_too(tmp_path: Path) -> None:
    """Inject the fault: the program ends between the two questions, has it a status and has it ended."""
    call(
        tmp_path,
        """
        from daemonkit._system import handle
        real = handle.has_ended
        def ends_just_now(pidfd):
            if state(p.pid) not in ("", "Z"):
                os.kill(p.pid, signal.SIGKILL)
                until(lambda: state(p.pid) == "Z")
            return real(pidfd)
        p = spawn(SLEEP)
        handle.has_ended = ends_just_now
        first = p.poll()
        handle.has_ended = real
        if state(p.pid) not in ("", "Z"): p.kill()
        assert first in (None, -9) and p.wait() == -9
        pid = p.pid
        del p
        spawn(["true"]).wait()
        assert state(pid) == "", "a zombie for good"
    """,
    )


# --- never a false 0 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "taker", ["os.wait()", "os.waitpid(-1, 0)", "os.waitpid(p.pid, 0)", "os.waitid(os.P_PIDFD, p.fileno(), os.WEXITED)"]
)
@pytest.mark.parametrize("asked", ["poll()", "wait()", "wait(5)", "wait(0)"])
def test_a_status_that_somebody_else_took_is_none_or_true(tmp_path: Path, taker: str, asked: str) -> None:
    told = call(
        tmp_path,
        f"""
        p = spawn(exits(5))
        {taker}
        tell(first=p.{asked}, running=p.running, again=p.poll(), code=p.returncode, wait=p.wait())
    """,
    )
    assert told.pop("running") is False
    assert set(told.values()) in ({None}, {5}), told


def test_a_status_that_a_sigchld_handler_took_while_wait_sat_there(tmp_path: Path) -> None:
    told = call(
        tmp_path,
        """
        taken = []
        def reap(*_):
            try:
                while (got := os.waitpid(-1, os.WNOHANG))[0]: taken.append(got)
            except ChildProcessError:
                pass
        signal.signal(signal.SIGCHLD, reap)
        p = spawn(["sh", "-c", "read line; exit 5"], stdin=PIPE)
        threading.Timer(0.05, p.stdin.close).start()
        code = p.wait()
        until(lambda: not p.running)
        tell(code=code, again=p.poll(), taken=taken, pid=p.pid)
    """,
    )
    pid = told.pop("pid")
    assert told["taken"] in ([], [[pid, 5 << 8]])
    assert told["code"] == told["again"] == 5 if not told["taken"] else told["code"] in (None, 5)


@pytest.mark.parametrize("options", ["", ", cwd='/', umask=0", ", pidfile='pid'", ", input=b'x', stdout='log'"])
def test_with_sigchld_ignored_the_end_is_seen_and_the_status_is_none_or_true(tmp_path: Path, options: str) -> None:
    told = call(
        tmp_path,
        f"""
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        p = spawn(["sh", "-c", "read line; exit 5"]{options})
        q = spawn(SLEEP{options.replace("pid'", "q'")})
        assert q.running and q.poll() is None
        try:
            q.wait(0.01)
        except subprocess.TimeoutExpired:
            pass
        code = p.wait()
        assert p.running is False and children().keys() <= {{q.pid}}
        q.kill()
        killed = q.wait(NEVER)
        codes = [spawn(exits(5)).wait() for _ in range(30)]
        quick = [spawn(["true"]{options}) for _ in range(1 if "pidfile" in {options!r} else 20)]
        assert {{r.wait() for r in quick}} <= {{0, None}} and not any(r.running for r in quick)
        tell(code=code, killed=killed, codes=sorted(set(codes), key=str))
    """,
    )
    assert told["code"] in (None, 5) and told["killed"] in (None, -9) and set(told["codes"]) <= {None, 5}


def test_a_forked_copy_of_the_handle_sees_the_end_and_takes_nothing(tmp_path: Path) -> None:
    told = call(
        tmp_path,
        """
        p = spawn(["sh", "-c", "read line; exit 5"], stdin=PIPE)
        ready, go = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            try:
                result = dict(alive=[p.poll(), p.running, p.returncode])
                try:
                    p.wait(0.01)
                except subprocess.TimeoutExpired:
                    result["expired"] = True
                p.stdin.close()
                os.write(ready[1], b"x")
                result |= dict(wait=p.wait(), poll=p.poll(), running=p.running)
                p.kill(); p.send_signal(15, group=True)
                q = spawn(exits(4))
                result["own"] = q.wait()
                with open("copy", "w") as file: json.dump(result, file)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        os.read(ready[0], 1)
        p.stdin.close()
        assert os.waitpid(child, 0)[1] == 0
        assert state(p.pid) == "Z", "the copy reaped what was not its own"
        tell(code=p.wait(), running=p.running)
    """,
    )
    assert told == {"code": 5, "running": False}
    copy = json.loads((tmp_path / "copy").read_text())
    assert copy["alive"] == [None, True, None] and copy["expired"] is True
    assert copy["wait"] in (None, 5) and copy["poll"] == copy["wait"] and copy["running"] is False and copy["own"] == 4


def test_a_forked_copy_that_is_dropped_ends_and_reaps_nothing(tmp_path: Path) -> None:
    call(
        tmp_path,
        """
        p, q = spawn(SLEEP), spawn(exits(5))
        end_of(q)
        dropped = spawn(exits(3)); gone = dropped.pid
        end_of(dropped); del dropped
        child = os.fork()
        if child == 0:
            p = q = None
            gc.collect()
            assert spawn(exits(1)).wait() == 1
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert p.running and q.poll() == 5 and state(gone) == ""
        p.kill()
        assert p.wait() == -9
    """,
    )


# --- handles that are dropped ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call_text",
    ["spawn(['true']).wait()", "other.poll()", "other.running", "spawn_fails()"],
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
             native=len(os.listdir("/proc/self/task")))
    """,
        timeout=110,
    )
    assert told["most"] == 1 and told["left"] == {} and told["more"] == 0
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


# --- nothing of the caller is touched ---------------------------------------------------------------------------

VARIANTS = """
variants = [dict(), dict(cwd="/"), dict(umask=0o22), dict(env={}), dict(pass_fds=[2]), dict(stdout="log"), dict(pidfile="pid"),
            dict(input=b"x"), dict(stdout=PIPE), dict(cwd="/", umask=0, pidfile="other", stdout="log", input=b"y")]
if os.geteuid() == 0:
    variants += [dict(user="daemon"), dict(user="daemon", cwd="/", umask=0, pidfile="third")]
"""
BLOCKED = "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"


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


def test_the_repr_names_the_program(tmp_path: Path) -> None:
    told = call(
        tmp_path,
        """
        p = spawn(exits(3))
        first = repr(p)
        p.wait()
        tell(pid=p.pid, first=first, then=repr(p))
    """,
    )
    assert str(told["pid"]) in told["first"] and str(told["pid"]) in told["then"]


@pytest.mark.parametrize("call", ["status('pid')", "PidFile('pid').acquire()", "PidFile('pid').read_pid()"])
def test_a_dropped_handles_program_is_reaped_by_whatever_call_comes_next(tmp_path: Path, call: str) -> None:
    done = run(
        tmp_path,
        f"""
        import select
        fd = os.dup((p := daemonkit.spawn_detached(["true"])).fileno())
        pid = p.pid
        del p
        select.select([fd], [], [])
        assert os.path.exists(f"/proc/{{pid}}")
        daemonkit.{call}
        assert not os.path.exists(f"/proc/{{pid}}")
    """,
        flags=("-W", "error"),
    )
    assert (done.returncode, done.stderr) == (0, "")
