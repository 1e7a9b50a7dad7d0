"""spawn_detached(): what the program gets, and what the caller is told when it can not start; from outside."""

from __future__ import annotations

import inspect
import json
import os
import pwd
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import harness
import pytest
from harness import ended, eventually, let_everybody_in, pid_in, run, stop

ROOT = os.geteuid() == 0
root_only = pytest.mark.skipif(not ROOT, reason="only root can change the user or lay out what a user may not touch")

C_LIBRARY = 1 << 31 | 1 << 32
"""Signals 32 and 33 are the C library's own: no program can set them through it, and its posix_spawn ignores them."""


def seen(pid: int | str) -> dict[str, Any]:
    """Return what /proc tells of a process, once it sleeps; run in the test and, by its source, in callers.

    Whoever waits for an exec is woken in its midst: arguments and environment are not there yet.
    """
    for _ in range(3000):
        with open(f"/proc/{pid}/stat") as file:
            if not str(pid).isdigit() or file.read().rpartition(")")[2].split()[0] in "STZ":
                break
        select.select([], [], [], 0.001)
    with open(f"/proc/{pid}/status") as file:
        status = dict(line.rstrip("\n").split(":", 1) for line in file)
    with open(f"/proc/{pid}/stat") as file:
        stat = file.read().rpartition(")")[2].split()
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        cmdline = file.read()
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            environ = file.read()
    except PermissionError:  # its own, after it has changed its user: prctl(2), PR_SET_DUMPABLE
        environ = b""
    fds, flags = {}, {}
    for fd in sorted(os.listdir(f"/proc/{pid}/fd"), key=int):
        try:
            fds[fd] = os.readlink(f"/proc/{pid}/fd/{fd}")
            with open(f"/proc/{pid}/fdinfo/{fd}") as file:
                flags[fd] = int(
                    dict(line.split(":", 1) for line in file.read().splitlines() if ":" in line)["flags"], 8
                )
        except FileNotFoundError:
            fds.pop(fd, None)  # the listing's own
    return {
        "ppid": int(stat[1]),
        "pgid": int(stat[2]),
        "sid": int(stat[3]),
        "tty": int(stat[4]),
        "mask": int(status["SigBlk"], 16),
        "ignored": int(status["SigIgn"], 16) & ~(1 << 31 | 1 << 32),
        "caught": int(status["SigCgt"], 16),
        "pending": int(status["SigPnd"], 16) | int(status["ShdPnd"], 16),
        "umask": int(status["Umask"], 8),
        "uid": list(map(int, status["Uid"].split())),
        "gid": list(map(int, status["Gid"].split())),
        "groups": sorted(map(int, status["Groups"].split())),
        "cwd": os.readlink(f"/proc/{pid}/cwd"),
        "exe": os.path.basename(os.readlink(f"/proc/{pid}/exe")),
        "args": [part.decode("latin-1") for part in cmdline.split(b"\0")[:-1]],
        "env": sorted(part.decode("latin-1") for part in environ.split(b"\0")[:-1]),
        "fds": fds,
        "flags": flags,
    }


# Callers start with this, after the harness's prelude.
CALLER = f"""
import fcntl, resource, select, subprocess
from typing import Any
from daemonkit import DEVNULL, INHERIT, PIPE, STDOUT
spawn = daemonkit.spawn_detached
SLEEP = ["sleep", "1000"]

{inspect.getsource(seen)}

def tell(**more):
    print(json.dumps(more), flush=True)

def own():
    return {{n: path for n, path in seen("self")["fds"].items() if not path.endswith("/fd")}}

def children():
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) or "living"
    except ChildProcessError:
        return None
"""

ORDINARY = """
os.setgroups([])
os.setresgid(61234, 61234, 61234)
os.setresuid(61234, 61234, 61234)
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


def spawned(directory: Path, call_text: str = "SLEEP", before: str = "", **options: Any) -> int:
    """Run a caller that spawns once and ends; return the program's pid."""
    body = textwrap.dedent(before) + f"\np = spawn({call_text})\ntell(pid=p.pid)\n"
    pid: int = call(directory, body, **options)["pid"]
    return pid


def kill(*pids: int) -> None:
    for pid in pids:
        assert stop(pid, signal.SIGKILL) == -signal.SIGKILL


def is_file(pid: int, fd: str, path: Path) -> bool:
    """Tell whether a descriptor is that file; the link text would not do for one that got its name afterwards."""
    return Path(f"/proc/{pid}/fd/{fd}").samefile(path)


def script(path: Path, text: str | bytes, mode: int = 0o755) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(mode)
    return path


# --- session, terminal, signals: whatever the caller's are, with whatever options --------------------------------

BLOCK = "signal.pthread_sigmask(signal.SIG_BLOCK, {})\n"
IGNORE = "for n in {}: signal.signal(n, signal.SIG_IGN)\n"
EVERY = "signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}"
REAL_TIME = "range(signal.SIGRTMIN, signal.SIGRTMAX + 1)"
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


# --- descriptors ----------------------------------------------------------------------------------------------------

SLOW = ", cwd='.', umask=0o22"
WAYS = {
    "": "",
    "cwd, umask": SLOW,
    "pidfile": ", pidfile='pid'",
    "all": SLOW + ", pidfile='pid', input=b'x', env=os.environ",
}


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


# --- streams ----------------------------------------------------------------------------------------------------

SAY = "['sh', '-c', 'echo out; echo err >&2; cat']"


def test_the_null_device_is_the_default_and_devnull_says_so(tmp_path: Path) -> None:
    for options in ("", ", stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL", ", stderr=STDOUT"):
        pid = spawned(tmp_path, "SLEEP" + options)
        assert set(seen(pid)["fds"].values()) == {"/dev/null"}
        kill(pid)


@pytest.mark.parametrize("slow", ["", SLOW], ids=["", "cwd, umask"])
def test_logs_are_appended_to_whoever_else_writes_and_both_may_be_one(tmp_path: Path, slow: str) -> None:
    (tmp_path / "old").write_text("kept\n")
    (tmp_path / "in").write_text("in\n")
    pid = spawned(tmp_path, f"{SAY}, stdin='in', stdout=b'old', stderr=__import__('pathlib').Path('new'){slow}")
    assert ended(pid) == 0
    assert (tmp_path / "old").read_text() == "kept\nout\nin\n" and (tmp_path / "new").read_text() == "err\n"
    for options in (", stdout='one', stderr=STDOUT", ", stdout='one', stderr='one'"):
        assert ended(spawned(tmp_path, SAY + options + slow)) == 0
    assert (tmp_path / "one").read_text() == "out\nerr\n" * 2
    pid = spawned(tmp_path, "SLEEP, stdout='old', stderr='new'" + slow)
    flags = seen(pid)["flags"]
    assert all(flags[fd] & os.O_APPEND and not flags[fd] & os.O_NONBLOCK for fd in "12")
    assert not any(flags[fd] & os.O_CLOEXEC for fd in "012")
    kill(pid)


def test_a_new_log_is_0640_less_the_umask_and_an_old_one_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "old").touch(0o600)
    modes = {}
    for name, mask, options in (
        ("plain", 0o022, ""),
        ("private", 0o077, ""),
        ("open", 0o000, ""),
        ("given", 0o022, ", umask=0o077"),
        ("wider", 0o077, ", umask=0o022"),
        ("old", 0o022, ", umask=0"),
    ):
        assert ended(spawned(tmp_path, f"['true'], stdout='{name}'{options}", before=f"os.umask({mask})")) == 0
        modes[name] = oct((tmp_path / name).stat().st_mode & 0o7777)
    assert modes == {
        "plain": "0o640",
        "private": "0o600",
        "open": "0o640",
        "given": "0o600",
        "wider": "0o640",
        "old": "0o600",
    }


def test_paths_of_streams_and_pidfile_are_the_callers_and_not_relative_to_cwd(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "in").write_text("mine")
    pid = spawned(tmp_path, "SLEEP, cwd='sub', stdin='in', stdout='out', stderr='err', pidfile='pid'")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["err", "in", "out", "pid", "program.py", "sub"]
    assert list((tmp_path / "sub").iterdir()) == [] and pid_in(tmp_path / "pid") == pid
    assert seen(pid)["fds"]["0"] == str(tmp_path / "in")
    kill(pid)


def test_files_descriptors_and_sockets_as_streams(tmp_path: Path) -> None:
    told = call(
        tmp_path,
        """
        with open("in", "w+") as given, open("out", "w") as out:
            given.write("skipped|read"); given.seek(8)
            left, right = socket.socketpair()
            p = spawn(["sh", "-c", "echo out; echo err >&2; cat"], stdin=given, stdout=out.fileno(), stderr=left)
            left.close()
            assert p.wait() == 0 and p.stdin is p.stdout is p.stderr is None
            assert (right.recv(99), right.recv(99)) == (b"err\\n", b"")  # and its end: no copy is left
        reading, writing = os.pipe()
        os.set_blocking(reading, False); os.set_blocking(writing, False)
        p = spawn(["sh", "-c", "cat; echo done"], stdin=reading, stdout=writing)
        os.close(writing) if p.wait() is not None else None
        assert not os.get_blocking(reading)  # the caller's own, as before
        right.close(); os.close(reading)
        tell(fds=own(), code=p.returncode)
    """,
    )
    assert (tmp_path / "out").read_text() == "out\nread" and (tmp_path / "in").read_text() == "skipped|read"
    assert isinstance(told["code"], int)


def test_streams_may_be_swapped(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        caller("""
        assert spawn(["sh", "-c", "echo out; echo err >&2"], stdout=2, stderr=1).wait() == 0
        assert spawn(["sh", "-c", "echo out; echo err >&2"], stdout=2, stderr=1, cwd="/", umask=0).wait() == 0
        assert spawn(["sh", "-c", "echo both; echo both >&2"], stdout=2, stderr=STDOUT).wait() == 0
        assert spawn(["sh", "-c", "echo as it is; echo as it is >&2"], stdout=INHERIT, stderr=INHERIT).wait() == 0
        assert spawn(["sh", "-c", "echo one; echo one >&2"], stdout=INHERIT, stderr=STDOUT).wait() == 0
    """),
    )
    assert (done.returncode, done.stdout) == (0, "err\nerr\nas it is\none\none\n"), done
    assert done.stderr == "out\nout\nboth\nboth\nas it is\n"


def test_inherit_reads_what_is_left_of_the_callers_input(tmp_path: Path) -> None:
    assert _fed(tmp_path) == "second\n"


def _fed(directory: Path) -> str:
    program = harness.write(
        directory,
        caller("""
        assert os.read(0, 6) == b"first\\n"
        assert spawn(["cat"], stdin=INHERIT, stdout=INHERIT).wait() == 0
    """),
    )
    (directory / "fed").write_text("first\nsecond\n")
    with (directory / "fed").open() as fed:
        return subprocess.run(
            [sys.executable, program], cwd=directory, stdin=fed, capture_output=True, text=True, check=True
        ).stdout


@pytest.mark.parametrize("slow", ["", SLOW, ", pidfile='pid'"], ids=["", "cwd, umask", "pidfile"])
def test_pipes_as_popen_has_them(tmp_path: Path, slow: str) -> None:
    call(
        tmp_path,
        f"""
        p = spawn(["sh", "-c", "cat; echo err >&2; exit 4"], stdin=PIPE, stdout=PIPE, stderr=PIPE{slow})
        assert p.stdin.write(b"to and fro") == 10
        p.stdin.close()
        with p.stdout, p.stderr:
            assert (p.stdout.read(), p.stderr.read()) == (b"to and fro", b"err\\n")
        assert p.wait() == 4
        q = spawn(["sh", "-c", "echo out; echo err >&2"], stdout=PIPE, stderr=STDOUT)
        assert q.stdin is None and q.stderr is None
        with q.stdout:
            assert q.stdout.readline() == b"out\\n" and q.stdout.read() == b"err\\n"
        r = spawn(["cat"], stdin=PIPE, stdout=PIPE)
        assert not os.get_inheritable(r.stdin.fileno()) and not os.get_inheritable(r.stdout.fileno())
        assert all(not seen(r.pid)["flags"][fd] & os.O_NONBLOCK for fd in "012")
        r.stdin.close(); r.stdout.close()
        assert r.wait() == 0
    """,
        flags=("-X", "dev", "-W", "error"),
    )


def test_a_fifo_as_a_stream_is_opened_without_waiting_for_its_other_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    pid = spawned(tmp_path, "['sh', '-c', 'cat > got; exec sleep 1000'], stdin='fifo'")
    assert eventually(lambda: harness.alive(pid))
    kill(pid)


# --- input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 65536, 65537, 10_000_000])
@pytest.mark.parametrize("slow", ["", SLOW + ", pidfile='pid'"], ids=["", "cwd, umask, pidfile"])
def test_input_is_complete_though_the_caller_ends_at_once(tmp_path: Path, size: int, slow: str) -> None:
    """The program reads none of it before the caller is gone."""
    os.mkfifo(tmp_path / "go")
    done = run(
        tmp_path,
        caller(f"""
        data = (bytes(range(256)) * ({size} // 256 + 1))[:{size}]
        p = spawn(["sh", "-c", "cat go; cat > got.new; mv got.new got; exec sleep 1000"], input=data{slow})
        assert p.stdin is None
        os.write(1, str(p.pid).encode())
        os._exit(0)
    """),
    )
    pid = int(done.stdout)
    (tmp_path / "go").open("w").close()
    eventually((tmp_path / "got").exists)
    assert (tmp_path / "got").read_bytes() == (bytes(range(256)) * (size // 256 + 1))[:size]
    kill(pid)


def test_input_that_nobody_reads_holds_nobody_up(tmp_path: Path) -> None:
    told = call(
        tmp_path,
        """
        p = spawn(["true"], input=bytes(10_000_000))
        code = p.wait()
        before = len(own())
        codes = [spawn(["sh", "-c", "exec 0<&-; exit 3"], input=bytes(1_000_000)).wait() for _ in range(20)]
        tell(code=code, codes=codes, more=len(own()) - before, threads=threading.active_count(), pgid=os.getpgid(0))
    """,
    )
    assert told["code"] == 0 and told["codes"] == [3] * 20 and told["more"] <= 1 and told["threads"] == 1


# --- the command ------------------------------------------------------------------------------------------------


def test_arguments_of_every_kind_arrive_byte_by_byte(tmp_path: Path) -> None:
    odd = script(tmp_path / os.fsdecode(b"odd \xff\n name"), "#!/bin/sh\nexec sleep 1000 #")
    told = call(
        tmp_path,
        """
        from pathlib import Path
        args = [b"sh", "-c", b"exec sleep 1000", Path("a path"), b"raw \\xff\\xfe", os.fsdecode(b"escaped \\xff"), "gr\\u00fc\\u00df", "", "a b\\nc", "x=y"]
        copy = list(args)
        p = spawn(args)
        assert p.args == copy and args == copy
        q = spawn((Path.cwd() / os.fsdecode(b"odd \\xff\\n name"),), cwd=".", umask=0)
        r = spawn([b"./odd \\xff\\n name"])
        s = spawn(["called", "1000"], executable=b"/bin/sleep")
        tell(p=p.pid, q=q.pid, r=r.pid, s=s.pid, args=seen(p.pid)["args"], name=seen(s.pid)["args"])
    """,
    )
    assert odd.exists() and told["name"] == ["called", "1000"]
    if told["args"][0] == "sh":  # not yet replaced by sleep
        assert told["args"][3:] == [
            "a path",
            "raw \xff\xfe",
            "escaped \xff",
            "grüß".encode().decode("latin-1"),
            "",
            "a b\nc",
            "x=y",
        ]
    kill(*(told[name] for name in "pqrs"))


def test_every_argument_arrives_at_a_program_that_shows_them(tmp_path: Path) -> None:
    call(
        tmp_path,
        r"""
        args = [b"raw \xff\xfe", os.fsdecode(b"escaped \xff"), "grüß", "", "a b\nc", "-n", "*", "$HOME"]
        for options in ({}, dict(cwd="/", umask=0)):
            p = spawn(["printf", "<%s>", *args], stdout=PIPE, **options)
            with p.stdout:
                assert p.stdout.read() == b"".join(b"<%s>" % os.fsencode(a) for a in args)
            assert p.wait() == 0
    """,
    )


def test_the_shell_and_another_one(tmp_path: Path) -> None:
    script(tmp_path / "shell", '#!/bin/sh\necho "$0" "$1" "$2" "$3" > said\n')
    call(
        tmp_path,
        """
        def out(*args, **options):
            p = spawn(*args, stdout=PIPE, **options)
            with p.stdout: text = p.stdout.read()
            assert p.wait() == 0
            return text
        assert out("echo $((1 + 1)) | cat", shell=True) == b"2\\n"
        assert out(b"echo bytes", shell=True, cwd="/", umask=0) == b"bytes\\n"
        assert out(["echo $0 $1", "zero", "one"], shell=True) == b"zero one\\n"
        assert out("echo $KEY", shell=True, env={"KEY": "value"}) == b"value\\n"
        out("the command", shell=True, executable="./shell")
        p = spawn("exit 3", shell=True)
        assert (p.wait(), p.args) == (3, "exit 3")
    """,
    )
    assert (tmp_path / "said").read_text().split() == ["./shell", "-c", "the", "command"]


def test_the_environment_of_every_kind(tmp_path: Path) -> None:
    told = call(
        tmp_path,
        """
        import types
        os.environ["ADDED"] = "later"
        os.environb[b"RAW"] = b"\\xff"
        del os.environ["REMOVED"]
        found = {}
        for name, env in {
            "none": None, "its own": os.environ, "bytes": os.environb, "empty": {}, "proxy": types.MappingProxyType({"A": "b"}),
            "mixed": {b"B\\xff": b"\\xfe", "U": "\\u00fc", "EMPTY": "", "EQUALS": "a=b=c", "S": os.fsdecode(b"\\xfd"), "P": "."},
        }.items():
            for way, options in {"": {}, " slowly": dict(cwd=".", umask=0o22)}.items():
                p = spawn(["/bin/sleep", "1000"], env=env, **options)
                found[name + way] = dict(pid=p.pid, env=seen(p.pid)["env"])
        tell(found=found, mine=sorted((k + b"=" + v).decode("latin-1") for k, v in os.environb.items()))
    """,
        env={**os.environ, "REMOVED": "x"},
    )
    found = told["found"]
    for way in ("", " slowly"):
        for name in ("none", "its own", "bytes"):
            assert found[name + way]["env"] == told["mine"], name
        assert {"ADDED=later", "RAW=\xff"} <= set(found["none" + way]["env"])
        assert found["empty" + way]["env"] == [] and found["proxy" + way]["env"] == ["A=b"]
        u = "ü".encode().decode("latin-1")
        assert found["mixed" + way]["env"] == sorted(
            [f"U={u}", "B\xff=\xfe", "EMPTY=", "EQUALS=a=b=c", "S=\xfd", "P=."]
        )
    kill(*(entry["pid"] for entry in found.values()))


def test_a_relative_program_is_looked_for_in_cwd_and_on_the_path_of_env(tmp_path: Path) -> None:
    """As `subprocess` does; `Popen` is asked beside it."""
    for name, code in {
        "here": 1,
        "sub/there": 2,
        "sub/here": 3,
        "bin/found": 4,
        "sub/bin/found": 5,
        "callers/found": 6,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        script(tmp_path / name, f"#!/bin/sh\nexit {code}\n")
    call(
        tmp_path,
        """
        home = os.getcwd()
        os.environ["PATH"] = home + "/callers:" + os.environ["PATH"]
        env = lambda path: dict(os.environ, PATH=path)
        cases = {
            1: (["./here"], {}), 2: (["./there"], dict(cwd="sub")), 3: (["./here"], dict(cwd="sub")),
            4: (["found"], dict(env=env(home + "/bin"))), 5: (["found"], dict(env=env("bin:" + home + "/bin"), cwd="sub")),
            6: (["found"], {}), 7: (["found"], dict(cwd="sub")), 8: (["here"], dict(env=env(""), cwd="sub")),
            9: (["here"], dict(env=env(":/usr/bin"), cwd="sub")), 10: (["here"], dict(env=env("/usr/bin::"))),
            11: (["bin/found"], dict(cwd="sub")), 12: (["bin/found"], {}), 13: (["found"], dict(env={b"PATH": os.fsencode(home) + b"/bin"})),
            14: (["x"], dict(executable="here", env=env("."), cwd="sub")), 15: (["true"], dict(env={})), 16: (["found"], dict(env={"A": "b"})),
            17: (["here"], dict(env=env(".:bin"))), 18: (["../here"], dict(cwd="sub")), 19: (["here"], dict(env=env(" : "))),
            20: (["x"], dict(executable="./here", cwd=b"sub")), 21: (["found"], dict(env=env("sub/../bin:callers"))),
        }
        wrong = {}
        def outcome(start, args, options):
            try:
                return start(args, **options).wait()
            except OSError as error:
                return type(error).__name__, error.errno
        for number, (args, options) in cases.items():
            for more in ({}, dict(umask=0o22)):
                ours, theirs = outcome(spawn, args, options | more), outcome(subprocess.Popen, args, options)
                if ours != theirs: wrong[number, bool(more)] = ours, theirs
        assert not wrong, wrong
        assert [outcome(spawn, *cases[n]) for n in range(1, 7)] == [1, 2, 3, 4, 5, 6]
    """,
    )


@pytest.mark.parametrize("slow", ["", SLOW], ids=["", "cwd, umask"])
def test_every_kind_of_entry_on_the_path_is_passed_over_as_popen_does(tmp_path: Path, slow: str) -> None:
    bins = tmp_path / "bins"
    contents = {
        "first": ("#!/bin/sh\nexit 11\n", 0o755), "second": ("#!/bin/sh\nexit 12\n", 0o755), "closed file": ("#!/bin/sh\nexit 13\n", 0o644),
        "broken": ("#!/nowhere/interpreter\n", 0o755), "text": ("no first line\n", 0o755), "private": ("#!/bin/sh\nexit 14\n", 0o755),
    }  # fmt: skip
    for name, (text, mode) in contents.items():
        (bins / name).mkdir(parents=True)
        script(bins / name / "prog", text, mode)
    (bins / "directory" / "prog").mkdir(parents=True)
    (bins / "lacking").mkdir()
    (bins / "file").touch()
    (bins / "loop").mkdir()
    (bins / "loop" / "prog").symlink_to("prog")
    (bins / "dangling").mkdir()
    (bins / "dangling" / "prog").symlink_to("nowhere")
    script(tmp_path / "prog", "#!/bin/sh\nexit 15\n")
    (bins / "private").chmod(0)
    if ROOT:
        let_everybody_in(tmp_path)
    try:
        call(
            tmp_path,
            f"""
            {ORDINARY.replace(chr(10), chr(10) + " " * 12) if ROOT else ""}
            home = os.getcwd() + "/bins/"
            entries = ["", "bins/first", home + "missing"] + [home + name for name in {sorted(p.name for p in bins.iterdir())}]
            def outcome(start, path, **options):
                try:
                    return start(["prog"], env={{"PATH": path}}, **options).wait()
                except OSError as error:
                    return type(error).__name__, error.errno
            more = dict(cwd=".", umask=0o22) if {bool(slow)} else {{}}
            wrong = {{}}
            for one in entries:
                for two in entries:
                    path = one + ":" + two
                    ours, theirs = outcome(spawn, path, **more), outcome(subprocess.Popen, path)
                    if one in (home + "broken", home + "text"):
                        # The first that can be executed is the program; if it is broken that is said, and no other taken.
                        assert isinstance(ours, tuple), (path, ours)
                    elif ours != theirs and (isinstance(ours, int) or isinstance(theirs, int)):
                        wrong[path.replace(home, "")] = ours, theirs
            assert not wrong, wrong
            assert children() is None
        """,
        )
    finally:
        (bins / "private").chmod(0o755)


# --- errors -----------------------------------------------------------------------------------------------------

# Each case in turn: what was raised, and everything that it left.
TRY = """
def attempt(text, more):
    options = text + "".join(f", {key}={value}" for key, value in more.items() if f" {key}=" not in text and not ("input=" in text and key == "stdin"))
    files = lambda: {name: (os.lstat(name).st_mtime_ns, os.lstat(name).st_size, os.lstat(name).st_mode) for name in os.listdir(".")}
    before, mine = files(), own()
    state = [seen("self")[key] for key in ("mask", "ignored", "caught", "umask", "cwd")]
    try:
        p = eval(f"spawn({options})")
    except BaseException as error:
        name = getattr(error, "filename", None)
        said = [type(error).__name__, getattr(error, "errno", None), name and os.path.basename(os.fsdecode(name)), str(error)]
    else:
        said = ["started", None, None, ""]
        p.kill(); p.wait()
    left = []
    if files() != before: left.append(f"files: {before} {files()}")
    if own() != mine: left.append(f"descriptors: {own()} {mine}")
    if children(): left.append(f"children: {children()}")
    if state != [seen("self")[key] for key in ("mask", "ignored", "caught", "umask", "cwd")]: left.append("state")
    if not "pidfile=" in text and daemonkit.PidFile("pid").read_pid(): left.append("a held pidfile")
    if threading.active_count() != threads: left.append("a thread")
    return [*said, left]
threads = threading.active_count()
"""

MODES = {
    "plain": ("", {}),
    "blocked": (BLOCK.format("[signal.SIGTERM]"), {"stdout": "'log'", "pidfile": "'pid'"}),
    "log, pidfile": ("", {"stdout": "'log'", "pidfile": "'pid'"}),
    "cwd, umask": ("", {"cwd": "'.'", "umask": "0o22", "stdout": "'log'", "stderr": "'err'"}),
    "all": (
        BLOCK.format("[signal.SIGTERM]") + IGNORE.format("[signal.SIGUSR1]"),
        {"cwd": "'.'", "umask": "0o22", "pidfile": "'pid'", "stdin": "PIPE", "stdout": "'log'", "stderr": "'kept'"},
    ),
    "SIGCHLD ignored": (IGNORE.format("[signal.SIGCHLD]"), {"pidfile": "'pid'", "umask": "0o22"}),
}
if ROOT:
    MODES["user"] = ("", {"user": "'daemon'", "pidfile": "'pid'", "stdout": "'log'"})

ARGUMENTS = {
    "None": "TypeError", "5": "TypeError", "object()": "TypeError", "'sleep 1000'": "TypeError|ValueError", "b'true'": "TypeError|ValueError",
    "[]": "ValueError", "()": "ValueError", "[5]": "TypeError", "['true', None]": "TypeError", "['true', 1.5]": "TypeError",
    "['true', True]": "TypeError", "[None]": "TypeError", "['nul\\0byte']": "ValueError", "['true', 'nul\\0byte']": "ValueError",
    "['true', b'nul\\0byte']": "ValueError", "5, shell=True": "TypeError", "['true'], 'cat'": "TypeError", "['true'], nonsense=1": "TypeError",
    "['true'], stdin=5.5": "TypeError", "['true'], stdout=True": "TypeError", "['true'], stderr=object()": "TypeError", "['true'], stdout=[]": "TypeError",
    "['true'], stdin=STDOUT": "ValueError", "['true'], stdout=STDOUT": "ValueError", "['true'], stdout=999": "ValueError|OSError",
    "['true'], stdin=-17": "ValueError", "['true'], stdout=__import__('io').StringIO()": "ValueError|UnsupportedOperation",
    "['true'], stdout=''": "ValueError|FileNotFoundError", "['true'], stderr='nul\\0byte'": "ValueError", "['true'], stdin='nul\\0byte'": "ValueError",
    "['true'], input='text'": "TypeError", "['true'], input=5": "TypeError", "['true'], input=['x']": "TypeError", "['true'], input=b'x', stdin=PIPE": "ValueError",
    "['true'], input=b'', stdin=DEVNULL": "ValueError", "['true'], input=b'x', stdin='program.py'": "ValueError",
    "['true'], cwd=5.5": "TypeError", "['true'], cwd=[]": "TypeError", "['true'], cwd='nul\\0byte'": "ValueError",
    "['true'], env=5": "TypeError|AttributeError", "['true'], env=['A=b']": "TypeError|AttributeError", "['true'], env={'A': 1}": "TypeError",
    "['true'], env={1: 'a'}": "TypeError", "['true'], env={'A': None}": "TypeError", "['true'], env={'A=B': 'c'}": "ValueError", "['true'], env={b'A=B': b'c'}": "ValueError",
    "['true'], env={'A': 'nul\\0byte'}": "ValueError", "['true'], env={'nul\\0byte': 'a'}": "ValueError", "['true'], env={b'A': b'nul\\0byte'}": "ValueError",
    "['true'], executable=5": "TypeError", "['true'], executable='nul\\0byte'": "ValueError", "['true'], executable=[]": "TypeError",
    "['true'], umask='0o22'": "TypeError", "['true'], umask=1.5": "TypeError", "['true'], umask=True": "TypeError",
    "['true'], umask=0o1000": "ValueError", "['true'], umask=-2": "ValueError", "['true'], umask=2**40": "ValueError|OverflowError",
    "['true'], pass_fds=5": "TypeError", "['true'], pass_fds=[1.5]": "TypeError|ValueError", "['true'], pass_fds=['x']": "TypeError|ValueError",
    "['true'], pass_fds=[-1]": "ValueError", "['true'], pass_fds=[999]": "ValueError|OSError", "['true'], pass_fds=[2**40]": "ValueError|OverflowError|OSError",
    "['true'], pass_fds=[None]": "TypeError", "['true'], pass_fds=None": "TypeError",
    "['true'], user=1.5": "TypeError", "['true'], user=True": "TypeError", "['true'], user=-1": "ValueError", "['true'], user=2**33": "ValueError",
    "['true'], user='nobody-such'": "LookupError|KeyError", "['true'], group=1.5": "TypeError", "['true'], group=-1": "ValueError",
    "['true'], group='nobody-such'": "LookupError|KeyError", "['true'], group=[]": "TypeError", "['true'], extra_groups=5": "TypeError",
    "['true'], extra_groups='games'": "TypeError|ValueError", "['true'], extra_groups=[1.5]": "TypeError", "['true'], extra_groups=[-1]": "ValueError",
    "['true'], extra_groups=['nobody-such']": "LookupError|KeyError", "['true'], extra_groups=[None]": "TypeError",
    "['true'], pidfile=3": "TypeError", "['true'], pidfile=object()": "TypeError", "['true'], pidfile=True": "TypeError",
    "['true'], pidfile='nul\\0byte'": "ValueError", "['true'], pidfile=''": "ValueError",
}  # fmt: skip


def judged(directory: Path, cases: dict[str, str], mode: str, check: str = "", **options: Any) -> dict[str, Any]:
    before, more = MODES[mode]
    (directory / "kept").write_text("kept\n")
    told = call(
        directory,
        before + check + TRY + f"tell(results={{text: attempt(text, {more!r}) for text in {list(cases)!r}}})\n",
        timeout=60,
        **options,
    )
    assert (directory / "kept").read_text() == "kept\n"
    results: dict[str, Any] = told["results"]
    assert {text: result[4] for text, result in results.items() if result[4]} == {}  # nothing is left of any
    return results


@pytest.mark.parametrize("mode", MODES)
def test_bad_arguments_are_refused_before_anything_happens(tmp_path: Path, mode: str) -> None:
    results = judged(tmp_path, ARGUMENTS, mode)
    wrong = {text: results[text][:4] for text, kinds in ARGUMENTS.items() if results[text][0] not in kinds.split("|")}
    assert wrong == {}
    messages = {
        text: results[text][3]
        for text in ARGUMENTS
        if "=" in text and "nul" not in text and "env=" not in text and "pass_fds=[999]" not in text
    }
    assert {
        text: said for text, said in messages.items() if text.partition("], ")[2].partition("=")[0] not in said
    } == {}


PATHS = {
    "['missing-program']": "FileNotFoundError|missing-program",
    "['./missing']": "FileNotFoundError|missing",
    "['/nowhere/missing']": "FileNotFoundError|missing",
    "[b'./missing \\xff']": "FileNotFoundError|missing \udcff",
    "['./plain']": "PermissionError|plain",
    "['./directory']": "PermissionError|directory",
    "['/']": "PermissionError|None",
    "['plain/x']": "NotADirectoryError|x",
    "['./loop']": "OSError|loop",
    "['./dangling']": "FileNotFoundError|dangling",
    "['x' * 300]": "OSError|" + "x" * 300,
    "['./' + 'x' * 300]": "OSError|" + "x" * 300,
    "['./no-interpreter']": "FileNotFoundError|interpreter",
    "['./no-interpreter-blank']": "FileNotFoundError|interpreter",
    "['./closed-interpreter']": "PermissionError|plain",
    "['./directory-interpreter']": "PermissionError|directory",
    "['./file-interpreter']": "NotADirectoryError|x",
    "['./crlf']": "FileNotFoundError|sh\r",
    "['./nested']": "FileNotFoundError|interpreter",
    "['no-interpreter'], env={'PATH': os.getcwd()}": "FileNotFoundError|interpreter",
    "['./no-interpreter'], env={'PATH': ''}": "FileNotFoundError|interpreter",
    "['no-interpreter'], cwd='directory', env={'PATH': '..'}": "FileNotFoundError|interpreter",
    "['x'], executable='./crlf'": "FileNotFoundError|sh\r",
    "'true', shell=True, executable='./no-interpreter'": "FileNotFoundError|interpreter",
    "['../no-interpreter'], cwd='directory'": "FileNotFoundError|interpreter",
    "['./text']": "OSError|text",
    "['./empty']": "OSError|empty",
    "['./elf']": "OSError|elf",
    "['true'], cwd='missing'": "FileNotFoundError|missing",
    "['true'], cwd=b'missing'": "FileNotFoundError|missing",
    "['missing-program'], cwd='missing'": "FileNotFoundError|missing",
    "['true'], cwd='plain'": "NotADirectoryError|plain",
    "['true'], cwd='plain/x'": "NotADirectoryError|x",
    "['true'], cwd='loop'": "OSError|loop",
    "['true'], cwd=''": "FileNotFoundError|None",
    "['./plain'], cwd='directory'": "FileNotFoundError|plain",
    "['true'], executable='./missing'": "FileNotFoundError|missing",
    "['true'], executable='./plain'": "PermissionError|plain",
    "'true', shell=True, executable='./missing'": "FileNotFoundError|missing",
    "['true'], env={'PATH': '/nowhere'}": "FileNotFoundError|true",
    "['true'], env={'PATH': ''}": "FileNotFoundError|true",
    "['sleep'], env={'PATH': os.getcwd()}": "PermissionError|sleep",
    "['true', 'x' * (1 << 18)]": "OSError|7",
    "['true', *['x' * 100_000] * 100]": "OSError|7",
    "['true'], env={'A': 'x' * (1 << 18)}": "OSError|7",
    "'x' * (1 << 18), shell=True": "OSError|7",
    "['true'], stdout='missing/log'": "FileNotFoundError|log",
    "['true'], stdout='directory'": "IsADirectoryError|directory",
    "['true'], stdin='missing'": "FileNotFoundError|missing",
    "['true'], stdin='directory'": "IsADirectoryError|directory",
    "['true'], stderr='link'": "OSError|link",
    "['true'], stdout='dangling'": "OSError|dangling",
    "['true'], stdout='plain/log'": "NotADirectoryError|log",
    "['true'], stdout='new', stderr='missing/log'": "FileNotFoundError|log",
    "['true'], stdout='kept', stderr='missing/log'": "FileNotFoundError|log",
    "['true'], pidfile='missing/pid'": "FileNotFoundError|pid",
    "['true'], pidfile='directory'": "IsADirectoryError|directory",
    "['true'], pidfile='link'": "OSError|link",
    "['true'], pidfile='fifo'": "OSError|fifo",
    "['true'], stdout='new', pidfile='fifo'": "OSError|fifo",
    "['missing-program'], stdout=b'new', stderr='newer', pidfile='new.pid'": "FileNotFoundError|missing-program",
    "['missing-program'], stdout='new', stderr=STDOUT": "FileNotFoundError|missing-program",
    "['missing-program'], stdout='new', stderr='new'": "FileNotFoundError|missing-program",
    "['missing-program'], stdout='kept', stderr='empty'": "FileNotFoundError|missing-program",
    "['missing-program'], input=bytes(1_000_000)": "FileNotFoundError|missing-program",
    "['missing-program'], stdin=PIPE, stdout=PIPE, stderr=PIPE": "FileNotFoundError|missing-program",
    "['./text'], stdout=PIPE, pidfile='new.pid'": "OSError|text",
    "['./crlf'], pidfile='new.pid', input=b'x'": "FileNotFoundError|sh\r",
}
NUMBERS = {"loop": 40, "text": 8, "empty": 8, "elf": 8, "link": 40, "dangling": 40, "x" * 300: 36}


def lay_out(directory: Path) -> None:
    (directory / "directory").mkdir()
    script(directory / "plain", "plain\n", 0o644)
    script(directory / "text", "no first line\n")
    script(directory / "empty", "")
    script(directory / "elf", b"\x7fELF and then rubbish")
    (directory / "loop").symlink_to("loop")
    (directory / "link").symlink_to("plain")
    (directory / "dangling").symlink_to("nowhere")
    (directory / "sleep").mkdir()
    os.mkfifo(directory / "fifo")
    for name, text in {
        "no-interpreter": "#!/nowhere/interpreter\n", "no-interpreter-blank": "#! \t/nowhere/interpreter  an argument\n",
        "closed-interpreter": f"#!{directory}/plain\n", "directory-interpreter": f"#!{directory}/directory\n",
        "file-interpreter": f"#!{directory}/plain/x\n", "crlf": "#!/bin/sh\r\nexit 0\r\n", "nested": f"#!{directory}/no-interpreter\n",
    }.items():  # fmt: skip
        script(directory / name, text)


@pytest.mark.parametrize("mode", MODES)
def test_the_error_names_what_is_at_fault_and_nothing_is_left(tmp_path: Path, mode: str) -> None:
    lay_out(tmp_path)
    if mode == "user":
        let_everybody_in(tmp_path)
    results = judged(tmp_path, PATHS, mode)
    wrong = {}
    for text, expected in PATHS.items():
        kind, _, what = expected.partition("|")
        name, number, file, message, _ = results[text]
        good = name == kind
        if what == "7":
            good &= number == 7
        elif what != "None":
            good &= file == what and what.rstrip("\r").partition(" ")[0] in message
            good &= kind != "OSError" or what == "fifo" or number == NUMBERS[what]
        if not good:
            wrong[text] = results[text][:4]
    assert wrong == {}


def test_the_loader_of_a_binary_that_is_missing_is_an_error_too(tmp_path: Path) -> None:
    binary = Path(shutil.which("true") or "/bin/true").read_bytes()
    loader = next(
        (name for name in (b"/lib64/ld-linux-x86-64.so.2", b"/lib/ld-linux-aarch64.so.1") if name in binary), None
    )
    if loader is None:
        pytest.skip("true(1) has no loader that this test knows")
    script(tmp_path / "binary", binary.replace(loader, loader.replace(b"/ld-", b"/no-")))
    for mode in ("plain", "all"):
        kind, number, name, *_ = judged(tmp_path, {"['./binary']": ""}, mode)["['./binary']"]
        assert (kind, number) == ("FileNotFoundError", 2)
        assert name in {"binary", os.path.basename(loader.replace(b"/ld-", b"/no-").decode())}


DENIED = {
    "['./roots']": "PermissionError|roots",
    "['closed/program']": "PermissionError|program",
    "['true'], cwd='closed'": "PermissionError|closed",
    "['true'], stdout='read-only/log'": "PermissionError|log",
    "['true'], stdout='roots'": "PermissionError|roots",
    "['true'], stdin='roots'": "PermissionError|roots",
    "['true'], pidfile='read-only/pid'": "PermissionError|pid",
    "['true'], pidfile='roots'": "PermissionError|roots",
    "['true'], user=0": "PermissionError|None",
    "['true'], user='daemon'": "PermissionError|None",
    "['true'], group=12345": "PermissionError|None",
    "['true'], extra_groups=[12345]": "PermissionError|None",
    "['program'], env={'PATH': 'closed'}": "PermissionError|program",
    "['./interpreted']": "PermissionError|program",
}


@root_only
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "user"])
def test_what_an_ordinary_user_may_not(tmp_path: Path, everybody: dict[str, str], mode: str) -> None:
    (tmp_path / "closed").mkdir()
    script(tmp_path / "closed" / "program", "#!/bin/sh\n")
    (tmp_path / "closed").chmod(0o700)
    (tmp_path / "read-only").mkdir()
    script(tmp_path / "roots", "#!/bin/sh\n", 0o700)
    script(tmp_path / "interpreted", f"#!{tmp_path}/closed/program\n")
    let_everybody_in(tmp_path)
    (tmp_path / "kept").touch()
    (tmp_path / "kept").chmod(0o666)
    cases = dict(DENIED)
    if mode in {"all", "SIGCHLD ignored"}:
        # There it takes this very interpreter to set the signals back, which root may keep to itself.
        del cases["['./interpreted']"]
    results = judged(tmp_path, cases, mode, check=ORDINARY, env=everybody)
    wrong = {}
    for text, expected in cases.items():
        kind, _, what = expected.partition("|")
        if results[text][0] != kind or (what != "None" and results[text][2] != what):
            wrong[text] = results[text][:4]
    assert wrong == {}
    assert (tmp_path / "roots").read_text() == "#!/bin/sh\n"


@root_only
def test_a_caller_that_dropped_its_rights_can_still_spawn_with_every_option(tmp_path: Path) -> None:
    """Its own interpreter may be out of its reach by then: nothing is imported that late."""
    let_everybody_in(tmp_path)
    done = run(
        tmp_path,
        "import resource\nspawn = daemonkit.spawn_detached; PIPE = daemonkit.PIPE; daemonkit.AlreadyRunningError\n"
        + ORDINARY
        + """
class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if not name.startswith("encodings"): raise ModuleNotFoundError(f"imported too late: {name}")
sys.meta_path.insert(0, Nowhere())
pids = [spawn(["sleep", "1000"], **options).pid for options in (
    {}, dict(cwd="/", umask=0), dict(stdout="log", pidfile="pid"), dict(input=b"x", stdout=PIPE), dict(env={}, pass_fds=[2]),
    dict(cwd="/", umask=0, pidfile="other"),
)]
try:
    spawn(["missing"], pidfile="third")
except (FileNotFoundError, PermissionError):  # the latter, as Popen, where PATH has a directory that is closed
    pass
print(*pids)
""",
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    kill(*map(int, done.stdout.split()))


SCARCE = {
    "default": {},
    "log, pidfile": {"stdout": "'log'", "pidfile": "'pid'"},
    "cwd, umask": {"cwd": "'.'", "umask": "0o22", "stdout": "'log'", "stderr": "'err'"},
    "pipes": {"stdin": "PIPE", "stdout": "PIPE", "stderr": "PIPE"},
    "all": {"cwd": "'.'", "umask": "0o22", "pidfile": "'pid'", "stdout": "'log'", "stderr": "PIPE", "input": "b'x'"},
    "shell": {"shell": "True", "pidfile": "'pid'"},
}
if ROOT:
    SCARCE["user"] = {"user": "'daemon'", "pidfile": "'pid'", "stdout": "'log'"}


@pytest.mark.parametrize("options", SCARCE)
def test_descriptors_run_out_at_every_limit_and_nothing_is_left(tmp_path: Path, options: str) -> None:
    told = call(
        tmp_path,
        TRY
        + f"""
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
def close(p):
    for pipe in (p.stdin, p.stdout, p.stderr): pipe and pipe.close()
close(p := spawn(["true"], {", ".join(f"{k}={v}" for k, v in SCARCE[options].items())}))
p.wait(); del p
for name in ("log", "err", "pid"):
    if os.path.exists(name): os.unlink(name)
results = {{}}
def limited(*args, real=spawn, **options):
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        p = real(*args, **options)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    close(p)
    return p
spawn = limited
for limit in range(3, 40):
    results[limit] = attempt("['sleep', '1000']", {SCARCE[options]!r})
    for name in ("log", "err", "pid"):
        if results[limit][0] == "started" and os.path.exists(name): os.unlink(name)
    p = None
tell(results=results)
""",
        timeout=90,
    )
    kinds = [result[0] for result in told["results"].values()]
    assert kinds[0] == "OSError" and kinds[-1] == "started"
    assert kinds == sorted(kinds, key=lambda kind: kind == "started"), kinds  # a line: too few below, enough above
    for limit, (kind, number, _, message, left) in told["results"].items():
        if kind != "started":
            assert (kind, number) == ("OSError", 24), (limit, message)
            assert left == [], limit


@pytest.mark.parametrize("limit", [3, 4, 5, 6, 8, 10, 12])
def test_the_very_first_spawn_may_be_the_one_without_descriptors(tmp_path: Path, limit: int) -> None:
    done = run(
        tmp_path,
        f"""
        import resource
        spawn = daemonkit.spawn_detached
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, hard))
        try:
            p = spawn(["true"], stdout="log", pidfile="pid", cwd=".")
        except OSError as error:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            assert error.errno == 24, error
            assert os.listdir(".") == ["program.py"], os.listdir(".")
            try:
                os.wait()
            except ChildProcessError:
                p = spawn(["true"], stdout="log", pidfile="pid", cwd=".")
        assert p.wait() == 0
    """,
    )
    assert (done.returncode, done.stderr) == (0, "")


@root_only
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "user"])
def test_no_processes_left(tmp_path: Path, everybody: dict[str, str], mode: str) -> None:
    let_everybody_in(tmp_path)
    script(tmp_path / "kept", "kept\n", 0o666)
    limit = "resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))\n"
    check = "assert spawn(['true']).wait() in (0, None)\n" + ORDINARY + limit
    result = judged(tmp_path, {"['true']": ""}, mode, check=check, env=everybody)["['true']"]
    assert result[:2] == ["BlockingIOError", 11]


def test_a_stale_pidfile_is_free_after_a_start_that_failed(tmp_path: Path) -> None:
    dead = 4194300
    for text in (f"{dead}\n", "", "rubbish\n"):
        (tmp_path / "pid").write_text(text)
        call(
            tmp_path,
            """
            for args in (["missing"], ["./program.py"]):
                try:
                    spawn(args, pidfile="pid")
                except OSError:
                    assert daemonkit.PidFile("pid").read_pid() is None
                else:
                    assert False
        """,
        )
        assert not (tmp_path / "pid").exists() or (tmp_path / "pid").read_text() == text
        pid = spawned(tmp_path, "SLEEP, pidfile='pid'")
        assert pid_in(tmp_path / "pid") == pid
        kill(pid)


def test_an_error_is_right_while_another_thread_sits_in_os_wait(tmp_path: Path) -> None:
    """It may well be that thread which reaps what a failed start leaves for a moment."""
    call(
        tmp_path,
        """
        keeper = subprocess.Popen(SLEEP)
        taken, stopping = [], False
        def reap():
            while not stopping:
                try:
                    taken.append(os.wait())
                except ChildProcessError:
                    return
        thread = threading.Thread(target=reap); thread.start()
        open("text", "w").close(); os.chmod("text", 0o755)
        for n in range(40):
            for args in (["missing"], ["./text"], ["true", "x" * (1 << 18)]):
                for options in ({}, dict(cwd=".", umask=0o22), dict(pidfile="pid", stdout="log")):
                    try:
                        spawn(args, **options)
                    except OSError as error:
                        assert error.errno in (2, 8, 7), error
                    else:
                        assert False, "started"
        assert sorted(os.listdir(".")) == ["program.py", "text"]
        stopping = True
        keeper.kill()
        thread.join()
        keeper.returncode = -9  # that thread took its status
    """,
        timeout=60,
    )


# --- user, group --------------------------------------------------------------------------------------------------


@root_only
@pytest.mark.parametrize(
    ("options", "gid", "groups"),
    [
        ("user='daemon'", None, None),
        ("user=1", None, None),
        ("user='games'", None, None),
        ("user='daemon', cwd='/', umask=0o77", None, None),
        ("user='daemon', group='games'", "games", None),
        ("user=1, group=12345", 12345, None),
        ("user=61234, group=61235", 61235, []),
        ("user='daemon', extra_groups=[]", None, []),
        ("user='daemon', extra_groups=[7, 'games', 12345]", None, [7, "games", 12345]),
        ("user=1, group='games', extra_groups=('mail',)", "games", ["mail"]),
    ],
)
def test_roots_groups_never_leak(tmp_path: Path, options: str, gid: Any, groups: Any) -> None:
    import grp

    def number(group: Any) -> int:
        return grp.getgrnam(group).gr_gid if isinstance(group, str) else int(group)

    let_everybody_in(tmp_path)
    pid = spawned(tmp_path, f"SLEEP, {options}, stdout='log', pidfile='pid'", before="os.setgroups([0, 4, 27])")
    facts = seen(pid)
    expected_gid = None if gid is None else number(gid)
    uid = facts["uid"][0]
    assert uid in {1, 61234, pwd.getpwnam("games").pw_uid} and facts["uid"] == [uid] * 4
    if uid != 61234:
        user = pwd.getpwuid(uid)
        expected_gid = user.pw_gid if expected_gid is None else expected_gid
        expected = os.getgrouplist(user.pw_name, expected_gid) if groups is None else map(number, groups)
    else:
        expected = []
    assert facts["gid"] == [expected_gid] * 4
    assert facts["groups"] == sorted(set(expected))
    assert not {0, 4, 27} & {*facts["groups"], *facts["gid"]}
    assert pid_in(tmp_path / "pid") == pid == seen(pid)["sid"]
    refused = run(tmp_path, caller("spawn(SLEEP, pidfile='pid')"))
    assert f"is held by process {pid}" in refused.stderr
    kill(pid)


@root_only
def test_a_user_without_an_entry_never_has_roots_groups(tmp_path: Path) -> None:
    done = run(tmp_path, caller("os.setgroups([0, 4, 27])\ntell(pid=spawn(SLEEP, user=61234).pid)"))
    if done.returncode == 0:
        facts = seen(pid := json.loads(done.stdout)["pid"])
        assert facts["uid"] == [61234] * 4 and not {0, 4, 27} & {*facts["groups"], *facts["gid"]}
        kill(pid)
    else:
        assert "LookupError" in done.stderr and "61234" in done.stderr


@root_only
def test_a_group_alone_and_the_caller_keeps_its_own(tmp_path: Path) -> None:
    told = call(
        tmp_path,
        """
        before = seen("self")
        p, q = spawn(SLEEP, group=12345), spawn(SLEEP, user="daemon")
        after = seen("self")
        assert all(before[key] == after[key] for key in ("uid", "gid", "groups", "umask", "cwd"))
        tell(pids=[p.pid, q.pid], gid=seen(p.pid)["gid"], uid=seen(p.pid)["uid"])
    """,
    )
    assert told["gid"] == [12345] * 4 and told["uid"] == [0] * 4
    kill(*told["pids"])


@root_only
def test_a_program_that_the_user_may_not_run_is_named(tmp_path: Path) -> None:
    let_everybody_in(tmp_path)
    script(tmp_path / "roots", "#!/bin/sh\n", 0o700)
    result = judged(tmp_path, {"['./roots']": ""}, "user")["['./roots']"]
    assert result[0] == "PermissionError" and result[2] == "roots"


# --- pidfile --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["'pid'", "b'pid'", "__import__('pathlib').Path('pid')", "daemonkit.PidFile('pid')"])
@pytest.mark.parametrize("slow", ["", SLOW], ids=["", "cwd, umask"])
def test_the_pidfile_names_the_program_on_return_and_a_second_one_is_refused(
    tmp_path: Path, way: str, slow: str
) -> None:
    os.umask(0o022)
    told = call(
        tmp_path,
        f"""
        os.umask(0o077)
        p = spawn(SLEEP, pidfile={way}{slow}, stdout="log")
        file = read("pid")
        held = daemonkit.PidFile("pid").read_pid()
        before = os.stat("pid"), os.stat("log")
        for again in ({way}, "./pid", os.path.abspath("pid")):
            try:
                spawn(SLEEP, pidfile=again, stdout="other")
            except daemonkit.AlreadyRunningError as error:
                assert (error.pid, error.path) == (p.pid, os.path.abspath("pid")), vars(error)
                assert str(p.pid) in str(error)
            else:
                assert False, "a second one"
        assert not os.path.exists("other") and before == (os.stat("pid"), os.stat("log"))
        assert not daemonkit.PidFile("pid").i_am_locking()
        tell(pid=p.pid, file=file, held=held, fds=seen(p.pid)["fds"])
    """,
    )
    pid = told["pid"]
    assert told["file"] == f"{pid}\n" and told["held"] == pid
    assert (tmp_path / "pid").stat().st_mode & 0o7777 == 0o644
    rest = set(told["fds"]) - {"0", "1", "2"}
    assert len(rest) == 1 and is_file(pid, *rest, tmp_path / "pid")
    second = run(tmp_path, caller("spawn(SLEEP, pidfile='pid')"))  # the first caller is gone
    assert second.returncode == 1 and f"{tmp_path}/pid is held by process {pid}" in second.stderr
    assert pid_in(tmp_path / "pid") == pid
    kill(pid)
    third = spawned(tmp_path, "SLEEP, pidfile='pid'")
    assert pid_in(tmp_path / "pid") == third != pid
    kill(third)


def test_the_callers_death_does_not_free_it(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        caller("""
        p = spawn(SLEEP, pidfile="pid")
        os.write(1, str(p.pid).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    """),
    )
    pid = int(done.stdout)
    assert done.returncode == -signal.SIGKILL
    assert "is held by process" in run(tmp_path, caller("spawn(SLEEP, pidfile='pid')")).stderr
    assert pid_in(tmp_path / "pid") == pid
    kill(pid)


@pytest.mark.parametrize("slow", ["", SLOW], ids=["", "cwd, umask"])
def test_a_caller_that_dies_the_moment_the_program_runs_leaves_no_second_one_a_way_in(
    tmp_path: Path, slow: str
) -> None:
    """The program itself kills it, perhaps before it could hand the lock over."""
    command = "['sh', '-c', 'kill -9 $PPID; echo $$ > me.new; mv me.new me; exec sleep 1000']"
    for _ in range(10):
        (tmp_path / "me").unlink(missing_ok=True)
        done = run(tmp_path, caller(f"spawn({command}, pidfile='pid'{slow})\nwait()"))
        assert done.returncode == -signal.SIGKILL, done.stderr
        program = int(eventually((tmp_path / "me").read_text))
        assert harness.alive(program)
        second = run(tmp_path, caller("p = spawn(['true'], pidfile='pid'); p.wait()"))
        kill(program)
        assert "is held by process" in second.stderr, "a second one was started while the first runs"


@pytest.mark.parametrize("slow", ["", SLOW], ids=["", "cwd, umask"])
def test_a_descendant_does_not_prolong_it(tmp_path: Path, slow: str) -> None:
    command = "['sh', '-c', 'sleep 1000 & echo $! > child.new; mv child.new child; wait']"
    told = call(
        tmp_path,
        f"""
        p = spawn({command}, pidfile="pid"{slow})
        while not os.path.exists("child"): select.select([], [], [], 0.01)
        p.kill()
        select.select([p], [], [])  # ended, and not reaped: a zombie holds nothing
        assert daemonkit.PidFile("pid").read_pid() is None
        q = spawn(SLEEP, pidfile="pid")
        tell(pid=q.pid, old=p.pid, held=daemonkit.PidFile("pid").read_pid())
    """,
    )
    child = int((tmp_path / "child").read_text())
    assert harness.alive(child) and told["held"] == told["pid"] == pid_in(tmp_path / "pid")
    assert "is held by process" in run(tmp_path, caller("spawn(SLEEP, pidfile='pid')")).stderr
    kill(child, told["pid"])


def test_a_program_that_closes_what_it_inherited_still_counts_as_its_holder(tmp_path: Path) -> None:
    """As nginx or a DaemonContext does: the kernel's lock is gone, the file names a process that lives."""
    closing = 'for n in 3 4 5 6 7 8 9; do eval "exec $n>&-"; done; touch closed; exec sleep 1000'
    pid = spawned(tmp_path, f"['bash', '-c', {closing!r}], pidfile='pid'") if shutil.which("bash") else 0
    if not pid:
        pytest.skip("takes bash")
    eventually((tmp_path / "closed").exists)
    eventually(lambda: len(seen(pid)["fds"]) == 3)
    assert "is held by process" in run(tmp_path, caller("spawn(SLEEP, pidfile='pid')")).stderr
    assert pid_in(tmp_path / "pid") == pid
    kill(pid)


def test_programs_that_end_at_once_leave_it_free_each_time(tmp_path: Path) -> None:
    call(
        tmp_path,
        """
        for n in range(60):
            options = (dict(), dict(cwd="/", umask=0))[n % 2]
            p = spawn(["true"], pidfile="pid", **options)
            assert p.wait() == 0
            assert daemonkit.PidFile("pid").read_pid() is None
        assert not own().get("4") or len(own()) < 6
    """,
    )
    with daemonkit_pidfile(tmp_path / "pid") as lock:
        assert lock.read_pid() == os.getpid()


def daemonkit_pidfile(path: Path) -> Any:
    import daemonkit

    return daemonkit.PidFile(path)


def test_a_pid_file_that_waits_gets_it_when_the_holder_ends(tmp_path: Path) -> None:
    call(
        tmp_path,
        """
        import lockfile
        first = spawn(["sh", "-c", "while ! test -e go; do sleep 0.01; done"], pidfile="pid")
        try:
            spawn(SLEEP, pidfile=daemonkit.PidFile("pid", timeout=0.05), stdout="log")
        except lockfile.LockTimeout:
            assert not os.path.exists("log")
        else:
            assert False
        threading.Timer(0.1, lambda: open("go", "w").close()).start()
        second = spawn(["true"], pidfile=daemonkit.PidFile("pid", timeout=None))
        assert first.wait() == 0 and second.wait() == 0
    """,
    )


def test_a_lock_that_the_caller_holds_itself_is_held(tmp_path: Path) -> None:
    call(
        tmp_path,
        """
        lock = daemonkit.PidFile("pid")
        with lock:
            for again in (lock, "pid"):
                try:
                    spawn(SLEEP, pidfile=again)
                except daemonkit.AlreadyRunningError as error:
                    assert error.pid == os.getpid() and error.path == os.path.abspath("pid")
                else:
                    assert False
            assert read("pid") == f"{os.getpid()}\\n" and lock.i_am_locking()
            p = spawn(SLEEP)  # and what it spawns otherwise has no copy of it
            assert set(seen(p.pid)["fds"]) == {"0", "1", "2"}
            p.kill(); p.wait()
        assert spawn(["true"], pidfile=lock).wait() == 0
    """,
    )


def test_the_object_that_was_handed_in_is_not_the_callers_lock(tmp_path: Path) -> None:
    told = call(
        tmp_path,
        """
        import lockfile
        lock = daemonkit.PidFile("pid")
        p = spawn(SLEEP, pidfile=lock)
        assert lock.is_locked() and not lock.i_am_locking() and lock.read_pid() == p.pid
        for method, error in (("release", lockfile.NotMyLock), ("break_lock", daemonkit.AlreadyRunningError), ("acquire", lockfile.AlreadyLocked)):
            try:
                getattr(lock, method)()
            except error:
                pass
            else:
                assert False, method
        child = os.fork()
        if child == 0:
            assert lock.read_pid() == p.pid
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        tell(pid=p.pid)
    """,
    )
    assert pid_in(tmp_path / "pid") == told["pid"]
    kill(told["pid"])


def test_of_many_starters_at_once_exactly_one_wins(tmp_path: Path) -> None:
    program = harness.write(
        tmp_path,
        caller("""
        while not os.path.exists("go"): pass
        try:
            print("won", spawn(SLEEP, pidfile="pid").pid, os.getpid())
        except daemonkit.AlreadyRunningError as error:
            print("lost", error.pid, os.getpid())
    """),
    )
    starters = [
        subprocess.Popen([sys.executable, program], cwd=tmp_path, stdout=subprocess.PIPE, text=True) for _ in range(6)
    ]
    (tmp_path / "go").touch()
    said = [starter.communicate()[0].split() for starter in starters]
    winners = [(int(pid), int(starter)) for verdict, pid, starter in said if verdict == "won"]
    assert len(winners) == 1 and len(said) == 6
    assert {int(pid) for verdict, pid, _ in said if verdict == "lost"} <= set(winners[0])
    assert pid_in(tmp_path / "pid") == winners[0][0]
    kill(winners[0][0])


def test_a_reader_finds_a_living_holder_at_every_moment_of_a_start(tmp_path: Path) -> None:
    """Of the starting caller first, then of the program; never an empty or partial file."""
    call(
        tmp_path,
        """
        stopping, odd, reads = False, [], 0
        def watch():
            global reads
            while not stopping:
                try:
                    text = read("pid")
                except FileNotFoundError:
                    continue
                reads += 1
                if not (text.endswith("\\n") and text.strip().isdigit()): odd.append(text)
        thread = threading.Thread(target=watch); thread.start()
        for n in range(60):
            p = spawn(SLEEP, pidfile="pid")
            assert read("pid") == f"{p.pid}\\n"
            p.kill(); p.wait()
        stopping = True
        thread.join()
        assert reads and not odd, odd
    """,
        timeout=60,
    )


# --- beside Node -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not shutil.which("node"), reason="node is not installed")
def test_beside_node_the_program_finds_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.js").write_text(
        "const p = require('child_process').spawn('sleep', ['1000'], {detached: true, stdio: 'ignore'});"
        "p.unref(); console.log(p.pid); process.exit(0)"
    )
    node = int(subprocess.run(["node", "a.js"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout)
    ours = spawned(tmp_path)
    facts = {}
    for pid in (node, ours):
        facts[pid] = {key: value for key, value in seen(pid).items() if key not in {"env", "flags"}}
        assert facts[pid].pop("pgid") == facts[pid].pop("sid") == pid
    assert facts[node] == facts[ours]
    kill(node, ours)


def test_a_socket_given_as_a_stream_keeps_its_kind() -> None:
    """In this very process, whose sockets are as any program's."""
    import daemonkit

    one, two = socket.socketpair()
    with one, two:
        p = daemonkit.spawn_detached(["sleep", "1000"], stdin=one, stdout=one)
        assert seen(p.pid)["fds"]["0"] == seen(p.pid)["fds"]["1"] == os.readlink(f"/proc/self/fd/{one.fileno()}")
        p.kill()
        assert p.wait() == -signal.SIGKILL


def test_a_start_during_which_the_clock_ticks_is_named_right_too(tmp_path: Path) -> None:
    """Then the start time is looked up, and not told by the clock."""
    call(
        tmp_path,
        """
        from daemonkit._spawn import spawn as module
        from daemonkit._system.process import identity_of
        for ticking in (True, False):
            if ticking: now, module.ticks = module.ticks, iter(range(1000)).__next__
            else: module.ticks = now
            p = spawn(["sleep", "1000"], pidfile="pid")
            status = daemonkit.status("pid")
            assert status.pid == p.pid and status._ticks == identity_of(p.pid).started, ticking
            p.kill(); p.wait()
            assert not daemonkit.status("pid")
    """,
    )


def test_what_make_runs_spawns_as_quickly_as_what_a_shell_runs(tmp_path: Path) -> None:
    """A program that was started by posix_spawn(3) has signals 32 and 33 ignored; that alone takes no other way."""
    code = "from daemonkit._spawn import ways; print(ways._has_odd_signals())"
    command = [sys.executable, "-c", code]
    output = tmp_path / "out"
    actions = [(os.POSIX_SPAWN_OPEN, 1, str(output), os.O_WRONLY | os.O_CREAT, 0o600)]
    pid = os.posix_spawn(command[0], command, os.environ, file_actions=actions, setsigdef=[signal.SIGHUP])
    assert os.waitpid(pid, 0)[1] == 0
    assert output.read_text() == "False\n"


@pytest.mark.skipif(not hasattr(os, "POSIX_SPAWN_CLOSEFROM"), reason="posix_spawn(3) can close all only in Python 3.13")
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
