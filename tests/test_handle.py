"""DetachedProcess: as Popen, for event loops too, and signals that never reach a stranger."""

from __future__ import annotations

import os
import shutil
import signal
from typing import TYPE_CHECKING

import harness
import pytest
from harness import eventually, run, stop
from launches import (
    ROOT,
    call,
    caller,
)

if TYPE_CHECKING:
    from pathlib import Path

GROUP_SIGNALS = tuple(map(int, os.uname().release.split("-")[0].split(".")[:2])) >= (6, 9)


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
