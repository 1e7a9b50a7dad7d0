"""DetachedProcess: never a zombie that stays, never a false 0."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from launches import (
    call,
)

if TYPE_CHECKING:
    from pathlib import Path


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
