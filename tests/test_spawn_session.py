"""spawn_detached(): a session of its own, default signals and no stray descriptor, whatever the caller has."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from typing import TYPE_CHECKING

import harness
import pytest
from harness import eventually, run, stop
from launches import (
    BLOCK,
    EVERY,
    IGNORE,
    REAL_TIME,
    ROOT,
    SLOW,
    WAYS,
    call,
    caller,
    is_file,
    kill,
    root_only,
    seen,
    spawned,
)

if TYPE_CHECKING:
    from pathlib import Path

STATES = {
    "as it comes": "",
    "SIGTERM blocked": BLOCK.format("[signal.SIGTERM]"),
    "SIGTERM blocked, ignored": BLOCK.format("[signal.SIGTERM]") + IGNORE.format("[signal.SIGTERM]"),
    "SIGTERM blocked and pending": BLOCK.format("[signal.SIGTERM]") + "os.kill(os.getpid(), signal.SIGTERM)\n",
    "all blocked": BLOCK.format(EVERY),
    "all ignored": IGNORE.format(EVERY),
    "all blocked and ignored": BLOCK.format(EVERY) + IGNORE.format(EVERY),
    "all handled": f"for n in {EVERY}: signal.signal(n, lambda *_: None)\n",
    "real-time signals blocked": BLOCK.format(REAL_TIME),
    "real-time signals ignored": IGNORE.format(REAL_TIME),
    "real-time signals both": BLOCK.format(REAL_TIME) + IGNORE.format(REAL_TIME),
    "SIGCHLD ignored": IGNORE.format("[signal.SIGCHLD]"),
    "SIGCHLD blocked": BLOCK.format("[signal.SIGCHLD]"),
    "SIGHUP ignored, SIGINT blocked": IGNORE.format("[signal.SIGHUP]") + BLOCK.format("[signal.SIGINT]"),
    "from another thread, whose mask is another": "",
}


OPTIONS = {
    "nothing": "SLEEP",
    "cwd": "SLEEP, cwd='sub'",
    "umask": "SLEEP, umask=0o027",
    "cwd and umask": "SLEEP, cwd='sub', umask=0o027",
    "env": "SLEEP, env={'ONLY': 'this'}",
    "pass_fds": "SLEEP, pass_fds=[handed]",
    "a log": "SLEEP, stdout='log', stderr=STDOUT",
    "a pipe": "SLEEP, stdin=PIPE, stdout=PIPE, stderr=PIPE",
    "input": "SLEEP, input=b'text'",
    "shell": "'exec sleep 1000', shell=True",
    "executable": "['called', '1000'], executable='/bin/sleep'",
    "a pidfile": "SLEEP, pidfile='plain.pid'",
    "a pidfile and cwd": "SLEEP, pidfile='cwd.pid', cwd='sub'",
    "everything": "SLEEP, cwd='sub', umask=0o027, env={'ONLY': 'this'}, pass_fds=[handed], stdout='log', pidfile='all.pid', input=b'x'",
}


FOR_ROOT = {
    "user": "SLEEP, user='daemon'",
    "group": "SLEEP, group='games'",
    "extra_groups": "SLEEP, extra_groups=[12345]",
    "user and everything": "SLEEP, user='daemon', group='games', extra_groups=[7], cwd='sub', umask=0o027, "
    "pass_fds=[handed], stdout='log', pidfile='user.pid', input=b'x'",
}


@pytest.mark.parametrize("state", STATES)
def test_a_session_of_its_own_and_default_signals_whatever_the_callers_are(tmp_path: Path, state: str) -> None:
    (tmp_path / "sub").mkdir()
    options = {**OPTIONS, **(FOR_ROOT if ROOT else {})}
    told = call(
        tmp_path,
        f"""
        handed, _ = os.pipe()
        os.set_inheritable(_, True)
        handles, found = [], {{}}
        def mine():
            now = seen("thread-self")
            return [now[key] for key in ("mask", "ignored", "caught", "umask", "cwd", "pgid", "sid")]
        def spawn_all():
            if "thread" in {state!r}:
                signal.pthread_sigmask(signal.SIG_SETMASK, [signal.SIGUSR1, signal.SIGTERM])
            before = mine()
            for name, text in {options!r}.items():
                handles.append(p := eval("spawn(" + text + ")"))
                found[name] = dict(seen(p.pid), pid=p.pid)
                assert mine() == before, (name, mine(), before)
        {STATES[state].replace(chr(10), chr(10) + " " * 8)}
        thread = threading.Thread(target=spawn_all)
        if "thread" in {state!r}:
            thread.start(); thread.join()
        else:
            spawn_all()
        for p in handles:
            for pipe in (p.stdin, p.stdout, p.stderr): pipe and pipe.close()
        tell(found=found, me=os.getpid(), handed=handed)
    """,
    )
    assert set(told["found"]) == set(options)
    for name, facts in told["found"].items():
        pid = facts["pid"]
        assert facts["pgid"] == facts["sid"] == pid and facts["ppid"] == told["me"], name
        assert (facts["tty"], facts["mask"], facts["ignored"], facts["caught"], facts["pending"]) == (0, 0, 0, 0, 0), (
            name
        )
        assert name == "shell" or facts["exe"] == "sleep", name  # exec'ed by the time of return
        expected = {"0", "1", "2"}
        if "pass_fds" in options[name]:
            expected |= {str(told["handed"])}
        lock = set(facts["fds"]) - expected
        assert len(lock) == ("pidfile" in options[name]) and expected <= set(facts["fds"]), (name, facts["fds"])
        assert facts["cwd"] == str(tmp_path / "sub" if "cwd=" in options[name] else tmp_path), name
        assert facts["umask"] == (0o027 if "umask=" in options[name] else 0o022), name
        if "env=" in options[name]:
            assert facts["env"] == ["ONLY=this"], name
    kill(*(facts["pid"] for facts in told["found"].values()))


@pytest.mark.parametrize(
    "options", ["", ", cwd='/'", ", umask=0o22", ", pidfile='pid'", ", stdout='log', cwd='/', umask=0o22"]
)
def test_nohup_does_not_make_the_program_deaf(tmp_path: Path, options: str) -> None:
    done = run(
        tmp_path,
        caller(f"""
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        tell(pid=spawn(SLEEP{options}).pid)
    """),
        wrapper=("nohup",),
    )
    pid = json.loads(done.stdout)["pid"]
    assert seen(pid)["ignored"] == 0
    assert stop(pid, signal.SIGHUP) == -signal.SIGHUP


def test_sigpipe_ends_a_program_that_writes_to_nobody(tmp_path: Path) -> None:
    told = call(
        tmp_path,
        """
        p = spawn(["yes"], stdout=PIPE)
        assert p.stdout.read(2) == b"y\\n"
        p.stdout.close()
        tell(code=p.wait())
    """,
    )
    assert told["code"] == -signal.SIGPIPE


def test_it_outlives_its_caller_and_the_thread_that_started_it(tmp_path: Path) -> None:
    told = call(
        tmp_path,
        """
        pids = []
        thread = threading.Thread(target=lambda: pids.append(spawn(SLEEP, cwd="/").pid)); thread.start(); thread.join()
        assert seen(pids[0])["ppid"] == os.getpid()
        pids.append(spawn(SLEEP).pid)
        tell(pids=pids)
    """,
    )
    for pid in told["pids"]:
        assert seen(pid)["ppid"] == os.getpid() and harness.alive(pid)  # the nearest subreaper
        assert stop(pid) == -signal.SIGTERM


def test_limits_and_priority_are_the_callers(tmp_path: Path) -> None:
    told = call(
        tmp_path,
        """
        resource.setrlimit(resource.RLIMIT_NOFILE, (77, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        os.nice(3)
        tell(found=[[p.pid, read(f"/proc/{p.pid}/limits"), os.getpriority(os.PRIO_PROCESS, p.pid)]
                    for p in (spawn(SLEEP), spawn(SLEEP, cwd="/", umask=0))],
             mine=[os.getpid(), read("/proc/self/limits"), os.getpriority(os.PRIO_PROCESS, 0)])
    """,
    )
    assert [found[1:] for found in told["found"]] == [told["mine"][1:]] * 2
    kill(*(found[0] for found in told["found"]))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("blocked", ["", BLOCK.format("[signal.SIGTERM]")], ids=["", "blocked"])
def test_no_stray_descriptor_reaches_it_high_or_many(tmp_path: Path, way: str, blocked: str) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    many = 1500 if hard > 1600 else 100  # all of them above the limit by then
    pid = spawned(
        tmp_path,
        "SLEEP" + WAYS[way],
        before=f"""
        {blocked.strip()}
        resource.setrlimit(resource.RLIMIT_NOFILE, ({hard}, {hard}))
        source = os.open("/dev/zero", os.O_RDONLY)
        for n in range(100, {many} + 100): os.dup2(source, n, inheritable=True)
        left, right = socket.socketpair(); left.set_inheritable(True); right.set_inheritable(True)
        earlier = spawn(["cat"], stdin=PIPE, stdout=PIPE)
        tight = resource.setrlimit(resource.RLIMIT_NOFILE, (90, {hard}))
        before = own()
        def after():
            assert set(own()) - set(before) <= {{str(p.fileno())}} and set(before) <= set(own())
            assert all(os.get_inheritable(fd) for fd in (left.fileno(), right.fileno(), {many} + 99))
            earlier.stdin.close(); earlier.stdout.close()
            left.close(); right.close()
            assert earlier.wait() == 0  # it had seen the end of its input: nobody else has a copy
        real = spawn
        def spawn(*args, **options):
            global p
            p = real(*args, **options)
            after()
            return p
    """,
    )
    facts = seen(pid)
    rest = set(facts["fds"]) - {"0", "1", "2"}
    assert len(rest) == ("pidfile" in WAYS[way]), facts["fds"]
    assert all(is_file(pid, fd, tmp_path / "pid") for fd in rest)
    kill(pid)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("blocked", ["", BLOCK.format("[signal.SIGTERM]")], ids=["", "blocked"])
def test_pass_fds_keep_their_numbers_also_above_a_lowered_limit(tmp_path: Path, way: str, blocked: str) -> None:
    """Close-on-exec or not; the caller's own flags stay as they are."""
    told = call(
        tmp_path,
        f"""
        {blocked.strip()}
        fd = os.open("/dev/zero", os.O_RDONLY)
        os.dup2(fd, 700, inheritable=False)
        os.dup2(fd, 701, inheritable=True)
        os.dup2(fd, 50, inheritable=True)
        reading, writing = os.pipe()
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        p = spawn(["sh", "-c", "read line <&" + str(reading) + "; echo $line > told; exec sleep 1000"]{WAYS[way]},
                  pass_fds=(700, 701, reading, fd, fd))
        assert [os.get_inheritable(n) for n in (700, 701, 50, reading, writing)] == [False, True, True, False, False]
        os.write(writing, b"through\\n")
        tell(pid=p.pid, passed=[700, 701, reading, fd])
    """,
    )
    eventually(lambda: (tmp_path / "told").read_text() == "through\n")
    facts = eventually(lambda: (f := seen(told["pid"]))["exe"] == "sleep" and f)
    assert [facts["fds"][str(fd)] for fd in (700, 701, told["passed"][3])] == ["/dev/zero"] * 3
    passed = {str(fd) for fd in told["passed"]} | {"0", "1", "2"}
    assert len(set(facts["fds"]) - passed) == ("pidfile" in WAYS[way]), facts["fds"]
    kill(told["pid"])


def test_standard_numbers_in_pass_fds_are_the_streams_asked_for(tmp_path: Path) -> None:
    pid = spawned(tmp_path, "SLEEP, pass_fds=[0, 1, 2], stdout='log'")
    assert [seen(pid)["fds"][fd] for fd in "012"] == ["/dev/null", str(tmp_path / "log"), "/dev/null"]
    kill(pid)


CLOSED = [[0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2]]


@pytest.mark.parametrize("closed", CLOSED, ids=map(str, CLOSED))
@pytest.mark.parametrize("slow", ["", SLOW], ids=["", "cwd, umask"])
def test_a_caller_whose_own_streams_are_closed(tmp_path: Path, closed: list[int], slow: str) -> None:
    (tmp_path / "in").write_text("input\n")
    told_to = tmp_path / "told"
    done = run(
        tmp_path,
        caller(f"""
        os.dup2(2, 60, inheritable=False)
        sys.stderr = os.fdopen(60, "w")
        for fd in {closed}: os.close(fd)
        before, handles, found = own(), [], {{}}
        handed = os.open("/dev/zero", os.O_RDONLY)
        os.dup2(handed, 61, inheritable=False)
        os.close(handed)
        for name, options in {{
            "default": {{}},
            "paths": dict(stdin="in", stdout="out", stderr="err"),
            "one": dict(stdout="both", stderr=STDOUT),
            "piped": dict(stdin=PIPE, stdout=PIPE, stderr=PIPE),
            "input": dict(input=b"given", stdout="given"),
            "passed": dict(pass_fds=[61]),
            "locked": dict(pidfile="pid", stdout="locked"),
        }}.items():
            if {bool(slow)}: options |= dict(cwd=".", umask=0o22)
            p = spawn(["sleep", "1000"], **options)
            handles.append(p)
            assert p.fileno() > 2, (name, p.fileno())
            found[name] = dict(seen(p.pid), pid=p.pid)
        os.close(61)
        for p in handles:
            for pipe in (p.stdin, p.stdout, p.stderr): pipe and pipe.close()
        left = set(own()) - {{str(p.fileno()) for p in handles}}
        with open("told.new", "w") as file:
            json.dump(dict(found=found, left=sorted(left), before=sorted(before)), file)
        os.rename("told.new", "told")
    """),
    )
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(told_to.read_text())
    assert told["left"] == told["before"]
    found = told["found"]
    names = {
        "default": ["/dev/null"] * 3,
        "paths": [str(tmp_path / name) for name in ("in", "out", "err")],
        "one": ["/dev/null", str(tmp_path / "both"), str(tmp_path / "both")],
        "passed": ["/dev/null"] * 3,
        "locked": ["/dev/null", str(tmp_path / "locked"), "/dev/null"],
    }
    for name, expected in names.items():
        assert [found[name]["fds"][fd] for fd in "012"] == expected, name
    assert all(found["piped"]["fds"][fd].startswith(("pipe:", "socket:")) for fd in "012")
    assert len({found["piped"]["fds"][fd] for fd in "012"}) == 3
    counts = {name: len(facts["fds"]) for name, facts in found.items()}
    assert counts == {"default": 3, "paths": 3, "one": 3, "piped": 3, "input": 3, "passed": 4, "locked": 4}
    kill(*(facts["pid"] for facts in found.values()))


def test_inherited_streams_that_are_closed_are_nothing_of_ours(tmp_path: Path) -> None:
    run(
        tmp_path,
        caller("""
        os.close(0); os.close(1)
        first = spawn(SLEEP)
        result = dict(first=first.pid)
        try:
            second = spawn(SLEEP, stdin=INHERIT, stdout=INHERIT)
            result |= dict(pid=second.pid, **seen(second.pid))
        except (OSError, ValueError) as error:
            result |= dict(error=str(error))
        with open("told", "w") as file:
            json.dump(result, file)
    """),
    )
    told = json.loads(eventually((tmp_path / "told").read_text))
    if "error" not in told:
        assert told["fds"].get("0", "/dev/null") == told["fds"].get("1", "/dev/null") == "/dev/null", told["fds"]
        assert set(told["fds"]) <= {"0", "1", "2"}
        kill(told["pid"])
    kill(told["first"])


def test_what_make_runs_spawns_as_quickly_as_what_a_shell_runs(tmp_path: Path) -> None:
    """A program that was started by posix_spawn(3) has signals 32 and 33 ignored; that alone takes no other way."""
    code = "from daemonkit._spawn import ways; print(ways._has_odd_signals())"
    command = [sys.executable, "-c", code]
    output = tmp_path / "out"
    actions = [(os.POSIX_SPAWN_OPEN, 1, str(output), os.O_WRONLY | os.O_CREAT, 0o600)]
    pid = os.posix_spawn(command[0], command, os.environ, file_actions=actions, setsigdef=[signal.SIGHUP])
    assert os.waitpid(pid, 0)[1] == 0
    assert output.read_text() == "False\n"


def test_the_signals_of_the_c_library_are_at_their_default_too(tmp_path: Path) -> None:
    """posix_spawn(3) leaves 32 and 33 ignored in a program, unless it is asked not to."""
    told = call(
        tmp_path,
        """
        tell(codes=[spawn(["grep", "Ign", "/proc/self/status"], stdout="log", **o).wait() for o in ({}, dict(cwd="/"))])
    """,
    )
    assert told["codes"] == [0, 0]
    assert [int(line.split()[1], 16) for line in (tmp_path / "log").read_text().splitlines()] == [0, 0]


@pytest.mark.long
@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "posix_spawn_file_actions_addclosefrom_np"),
    reason="posix_spawn(3) can close all only from glibc 2.34 on",
)
def test_no_descriptor_that_another_thread_opens_meanwhile_reaches_it(tmp_path: Path) -> None:
    told = call(
        tmp_path,
        """
        over = threading.Event()
        def busy():
            while not over.is_set():
                fd = os.open("/dev/zero", os.O_RDONLY)
                os.set_inheritable(fd, True)
                os.close(fd)
        threads = [threading.Thread(target=busy) for _ in range(3)]
        for thread in threads: thread.start()
        found = []
        for _ in range(300):
            p = spawn(["ls", "/proc/self/fd"], stdout=PIPE)
            with p.stdout: found.append(len(p.stdout.read().split()))
            p.wait()
        over.set()
        for thread in threads: thread.join()
        tell(found=sorted(set(found)))
    """,
    )
    assert told["found"] == [4]  # 0, 1, 2 and ls's own


@root_only
def test_thousands_of_groups_are_no_hindrance(tmp_path: Path) -> None:
    told = call(
        tmp_path,
        """
        os.setgroups(range(100000, 103000))
        tell(code=spawn(["true"], cwd="/").wait())
    """,
    )
    assert told == {"code": 0}
