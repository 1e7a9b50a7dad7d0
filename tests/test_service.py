"""`daemonkit.Service` as a library: starts from a caller that goes on, and what the daemon's side does."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import harness
import pytest
from harness import alive, ended, eventually, pid_in, reported, run, write

import daemonkit

WORK = """
def work(daemon):
    report()
    daemon.ready("at work")
    wait()

service = daemonkit.Service(work, pidfile="app.pid", stdout="app.log", stderr=daemonkit.STDOUT, wait_ready=True, working_directory=".")
"""


def _log(tmp_path: Path) -> str:
    return (tmp_path / "app.log").read_text()


# --- the caller goes on ---------------------------------------------------------------------------------------------


def test_start_returns_the_daemons_pid_and_the_caller_goes_on(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        WORK
        + """
import atexit
atexit.register(print, "exit handler in", os.getpid())
print("before", os.getpid(), end=" ")
try:
    pid = service.start()
    print("after", os.getpid(), pid, read("app.pid").strip(), bool(service.status()), service.stop())
finally:
    print("finally in", os.getpid())
""",
    )
    assert (done.returncode, done.stderr) == (0, "")
    caller = done.stdout.split()[1]
    daemon = str(reported(tmp_path)["pid"])
    assert done.stdout.splitlines() == [
        f"before {caller} after {caller} {daemon} {daemon} True True",
        f"finally in {caller}",
        f"exit handler in {caller}",
    ]
    assert ended(int(daemon)) == 0 and _log(tmp_path) == "" and not (tmp_path / "app.pid").exists()


def test_the_daemon_is_one_as_detached_makes_it(tmp_path: Path) -> None:
    assert run(tmp_path, WORK + "service.start()").returncode == 0
    facts = reported(tmp_path)
    assert facts["sid"] not in {facts["pid"], os.getsid(0)} and facts["tty"] == 0 and facts["cwd"] == str(tmp_path)
    assert facts["mask"] == 0 and facts["threads"] == 1
    paths = {number: entry["path"] for number, entry in facts["fds"].items()}
    assert paths.pop(1) == paths.pop(2) == str(tmp_path / "app.log") and paths.pop(0) == "/dev/null"
    assert not [path for path in paths.values() if path.startswith(("pipe:", "anon_inode:[pidfd]"))]
    pid = facts["pid"]
    open_now = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    assert not [path for path in open_now if path.startswith("socket:")], "what reported the start is closed"
    assert daemonkit.stop(tmp_path / "app.pid") and ended(pid) == 0


def test_a_start_in_this_very_test_process(tmp_path: Path) -> None:
    def work(daemon: daemonkit.DetachedContext) -> None:
        (tmp_path / "ran").write_text(str(os.getpid()))
        daemon.ready()
        while True:
            signal.pause()

    service = daemonkit.Service(work, pidfile=tmp_path / "app.pid", stderr=tmp_path / "app.log", wait_ready=True)
    for _ in range(2):
        pid = service.start()
        assert pid == int((tmp_path / "ran").read_text()) == service.status().pid != os.getpid()
        with pytest.raises(daemonkit.AlreadyRunningError) as caught:
            service.start()
        assert (caught.value.pid, caught.value.path) == (pid, service.path)
        assert service.restart() != pid
        service.reload()
        assert service.stop() is True and not service.status()
        with pytest.raises(daemonkit.NotRunningError):
            service.stop()
        with pytest.raises(daemonkit.NotRunningError):
            service.reload()
    assert _log(tmp_path) == ""


def test_a_start_in_a_thread_and_inside_an_event_loop(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        WORK
        + """
import asyncio
async def main():
    print(service.start() == service.status().pid, service.stop())
asyncio.run(main())
thread = threading.Thread(target=lambda: print(service.start() == service.status().pid, service.stop()))
thread.start()
thread.join()
""",
        flags=("-W", "error"),
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True True\nTrue True\n", "")


def test_what_the_caller_has_not_written_yet_is_written_once_and_what_the_daemon_wrote_is_not_lost(
    tmp_path: Path,
) -> None:
    done = run(
        tmp_path,
        """
mine = open("callers", "w")
mine.write("once")
def work():
    global kept
    kept = open("/".join([HERE, "kept"]), "w")
    kept.write("a global's")
    local = open("/".join([HERE, "local"]), "w")
    local.write("a local's")
    print("printed", end="")
    raise SystemExit(3)
HERE = os.getcwd()
service = daemonkit.Service(work, pidfile="app.pid", stdout="app.log")
print(service.start())
""",
    )
    assert done.stderr == "" and ended(int(done.stdout)) == 3
    texts = {name: (tmp_path / name).read_text() for name in ("callers", "kept", "local", "app.log")}
    assert texts == {"callers": "once", "kept": "a global's", "local": "a local's", "app.log": "printed"}


def test_the_daemon_runs_its_own_exit_handlers_and_waits_for_its_own_threads(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
import atexit, multiprocessing.pool, tempfile, weakref
callers = tempfile.TemporaryDirectory()
atexit.register(print, "the caller's", file=sys.stderr)
child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,), daemon=True)
child.start()
def work():
    atexit.register(print, "handler: held", bool(daemonkit.status(service.path)))
    global own
    own = tempfile.TemporaryDirectory()
    print(own.name)
    thread = threading.Thread(target=lambda: (time.sleep(0.3), print("thread: held", bool(service.status()))))
    thread.start()
service = daemonkit.Service(work, pidfile="app.pid", stdout="app.log", stderr=daemonkit.STDOUT)
pid = service.start()
daemonkit.attach
while service.status():
    time.sleep(0.01)
print(pid, os.path.isdir(callers.name), child.is_alive())
""",
    )
    pid, *rest = done.stdout.split()
    assert (rest, done.stderr) == (["True", "True"], "the caller's\n")
    assert ended(int(pid)) == 0
    name, *lines = _log(tmp_path).splitlines()
    assert lines == ["thread: held True", "handler: held True"] and not Path(name).exists()


def test_a_crash_is_on_stderr_once_with_status_1_and_the_programs_excepthook_is_called(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
def hook(kind, error, traceback):
    print("hook:", kind.__name__, file=sys.stderr)
    sys.__excepthook__(kind, error, traceback)
def work(daemon):
    sys.excepthook = hook
    daemon.ready()
    raise ValueError("gone wrong")
service = daemonkit.Service(work, pidfile="app.pid", stderr="app.log", wait_ready=True)
print(service.start())
""",
    )
    assert ended(int(done.stdout)) == 1 and not (tmp_path / "app.pid").exists()
    assert _log(tmp_path).count("Traceback") == 1 and _log(tmp_path).count("ValueError: gone wrong") >= 1


def test_it_takes_every_option_of_detached_and_no_other() -> None:
    options = set(inspect.signature(daemonkit.detached).parameters)
    for name in options - {"pidfile"}:
        default = inspect.signature(daemonkit.detached).parameters[name].default
        daemonkit.Service(print, pidfile="app.pid", **{name: default})
    with pytest.raises(TypeError):
        daemonkit.Service(print, pidfile="app.pid", nosuch=None)  # type: ignore[call-arg]


def test_a_child_that_the_target_forks_ends_as_it_likes(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
def work(daemon):
    for status in (0, 5):
        child = os.fork()
        if child == 0:
            sys.exit(status)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), bool(daemonkit.status(daemon.pidfile)))
    if FAIL:
        os.kill(os.getpid(), signal.SIGKILL)
    daemon.ready()
    wait()
service = daemonkit.Service(work, pidfile="app.pid", stdout="app.log", stderr="err", wait_ready=True, name="app")
FAIL = True
service.main(["start"])
FAIL = False
print(service.start(), service.stop())
""",
    )
    pid, stopped = done.stdout.split()
    assert (stopped, done.stderr) == (
        "True",
        "app: the daemon was killed by SIGKILL before it had started\n",
    ) and ended(int(pid)) == 0
    assert _log(tmp_path).splitlines() == ["0 True", "5 True"] * 2


# --- a start that fails ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "exitcode", "text"),
    [
        ("raise RuntimeError('the database is down')", 1, "RuntimeError: the database is down"),
        ("sys.exit('bad config')", 1, "bad config"),
        ("sys.exit(7)", 7, "status 7"),
        ("return", 0, "without calling ready()"),
        ("os.kill(os.getpid(), signal.SIGKILL)", -9, "SIGKILL"),
        ("time.sleep(0.2); {}['key']", 1, "KeyError: 'key'"),
    ],
)
def test_a_start_that_fails_is_an_exception_in_the_caller_and_leaves_nothing(
    tmp_path: Path, end: str, exitcode: int, text: str
) -> None:
    done = run(
        tmp_path,
        f"""
def work(daemon):
    {end}
service = daemonkit.Service(work, pidfile="app.pid", stderr="app.log", wait_ready=True, working_directory=".")
try:
    service.start()
except daemonkit.StartError as error:
    print(error.exitcode, type(error).__name__, error, error.traceback, bool(service.status()), sep="|")
""",
    )
    assert done.stderr == ""
    told = done.stdout.split("|")
    assert told[1] == "StartError" and text in done.stdout and told[-1] == "False\n"
    assert int(told[0]) == exitcode or (end == "return" and int(told[0]) == 1)
    assert not (tmp_path / "app.pid").exists()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"stdout": "/nosuch/app.log"}, FileNotFoundError),
        ({"working_directory": "/nosuch"}, FileNotFoundError),
        ({"pidfile": "/nosuch/app.pid"}, FileNotFoundError),
        ({"start_timeout": 0.1}, daemonkit.StartTimeoutError),
    ],
)
def test_an_error_is_the_same_object_as_detached_raises(
    tmp_path: Path, options: dict[str, object], error: type[Exception]
) -> None:
    def work() -> None:
        signal.pause()

    service = daemonkit.Service(work, **{"pidfile": tmp_path / "app.pid", "wait_ready": True, **options})  # type: ignore[arg-type]
    with pytest.raises(error) as caught:
        service.start()
    if isinstance(caught.value, FileNotFoundError):
        assert str(caught.value.filename).startswith("/nosuch")
    assert not (tmp_path / "app.pid").exists()


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({}, TypeError, "pidfile"),
        ({"pidfile": None}, TypeError, "pidfile"),
        ({"pidfile": ""}, ValueError, "pidfile"),
        ({"pidfile": "a\0b"}, ValueError, "pidfile"),
        ({"pidfile": threading.Lock()}, TypeError, "pidfile"),
        ({"target": "work"}, TypeError, "target"),
        ({"name": 3}, TypeError, "name"),
        ({"stop_timeout": "5"}, TypeError, "stop_timeout"),
        ({"stop_timeout": float("nan")}, ValueError, "stop_timeout"),
        ({"stdot": "app.log"}, TypeError, "stdot"),
        ({"umask": "022"}, TypeError, "umask"),
        ({"umask": 0o1000}, ValueError, "umask"),
        ({"umask": True}, TypeError, "umask"),
        ({"start_timeout": 0}, ValueError, "start_timeout"),
        ({"wait_ready": 1}, TypeError, "wait_ready"),
        ({"stdout": ""}, (ValueError, FileNotFoundError), ""),
        ({"stdout": 99999}, ValueError, "stdout"),
        ({"stdout": daemonkit.STDOUT}, ValueError, "stdout"),
        ({"working_directory": None}, TypeError, "working_directory"),
        ({"uid": "nosuchuser"}, LookupError, "nosuchuser"),
        ({"close_fds": "some"}, ValueError, "close_fds"),
        ({"signal_map": {"SIGNOSUCH": None}}, (ValueError, TypeError), "SIGNOSUCH"),
        ({"signal_map": {"SIGKILL": print}}, ValueError, "SIGKILL"),
        ({"signal_map": {"SIGHUP": "nosuch"}}, ValueError, "nosuch"),
        ({"signal_map": [1]}, TypeError, "signal_map"),
    ],
)
def test_what_is_of_no_use_is_refused_at_once(
    tmp_path: Path, options: dict[str, object], error: type[Exception], text: str
) -> None:
    given = {"target": print, "pidfile": tmp_path / "app.pid", **options} if options else {"target": print}
    with pytest.raises(error, match=text or None):
        daemonkit.Service(**given)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_pickle_can_not_take_arrives_with_its_text(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
class Odd(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} {two}")
class Refusing(daemonkit.PidFile):
    def acquire(self, timeout=None):
        raise Odd("odd", "error")
service = daemonkit.Service(wait, pidfile=Refusing("app.pid"))
try:
    service.start()
except daemonkit.StartError as error:
    print(error, "Traceback" in error.traceback)
""",
    )
    assert (done.stderr, done.returncode) == ("", 0) and "Odd: odd error True" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGALRM])
def test_an_exception_in_the_waiting_caller_ends_the_start(tmp_path: Path, number: signal.Signals) -> None:
    body = """
def late(number, frame):
    raise OverflowError
signal.signal(signal.SIGALRM, late)
def work(daemon):
    report()
    wait()
service = daemonkit.Service(work, pidfile="app.pid", stderr="app.log", wait_ready=True, working_directory=".")
try:
    service.start()
except (KeyboardInterrupt, OverflowError) as error:
    print(type(error).__name__, bool(service.status()), os.path.exists("app.pid"))
"""
    program = subprocess.Popen(
        [sys.executable, write(tmp_path, body)], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    daemon = reported(tmp_path)["pid"]
    program.send_signal(number)
    out, err = program.communicate(timeout=harness.PATIENCE)
    assert err == "" and out.split()[1:] == ["False", "False"]
    assert out.split()[0] == {signal.SIGINT: "KeyboardInterrupt", signal.SIGALRM: "OverflowError"}[number]
    assert not alive(daemon)


def test_a_caller_that_is_killed_does_not_end_the_start(tmp_path: Path) -> None:
    body = WORK.replace("report()", "report(); signal.alarm(0)\n    while not os.path.exists(GO): time.sleep(0.01)")
    body = "GO = os.path.abspath('go')\n" + body + "service.start()"
    with subprocess.Popen([sys.executable, write(tmp_path, body)], cwd=tmp_path) as program:
        daemon = reported(tmp_path)["pid"]
        program.kill()
    (tmp_path / "go").touch()
    eventually(lambda: pid_in(tmp_path / "app.pid") == daemon)
    eventually(lambda: not [pid for pid in harness.children() if pid != daemon and alive(pid)], "the helper has ended")
    assert daemonkit.stop(tmp_path / "app.pid") and ended(daemon) == 0


def test_a_helper_that_is_killed_is_a_failed_start_and_the_daemon_is_ended(tmp_path: Path) -> None:
    body = """
def work(daemon):
    report()
    wait()
service = daemonkit.Service(work, pidfile="app.pid", stderr="app.log", wait_ready=True, working_directory=".")
try:
    service.start()
except daemonkit.StartError as error:
    print(error, bool(service.status()))
"""
    with subprocess.Popen(
        [sys.executable, write(tmp_path, body)], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as program:
        daemon = reported(tmp_path)["pid"]
        (helper,) = harness.children(program.pid)
        os.kill(helper, signal.SIGKILL)
        out, _ = program.communicate(timeout=harness.PATIENCE)
    assert "was killed" in out and out.endswith("False\n")
    eventually(lambda: not alive(daemon))


def test_the_caller_gets_its_own_signal_handlers_back_and_the_daemon_keeps_those_that_were_set(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
def mine(number, frame):
    with open(HERE + "/got", "a") as file:
        file.write(f"{number} ")
HERE = os.getcwd()
for number in (signal.SIGUSR1, signal.SIGHUP, signal.SIGINT):
    signal.signal(number, mine)
def work(daemon):
    daemon.ready()
    wait()
service = daemonkit.Service(work, pidfile="app.pid", stderr="app.log", wait_ready=True)
pid = service.start()
same = [signal.getsignal(number) is mine for number in (signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)]
print(pid, same, signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, signal.pthread_sigmask(signal.SIG_BLOCK, ()))
""",
    )
    pid, _, rest = done.stdout.partition(" ")
    assert (rest, done.stderr) == ("[True, True, True] True set()\n", "")
    for number in (signal.SIGHUP, signal.SIGINT):
        os.kill(int(pid), number)
        eventually(lambda number=number: f"{number} " in (tmp_path / "got").read_text())  # type: ignore[misc]
    assert harness.stop(int(pid)) == 0


# --- what it loads ----------------------------------------------------------------------------------------------------


def test_a_status_loads_nothing_that_it_does_not_need(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("""
import sys
import daemonkit
def hup(*_):
    pass
service = daemonkit.Service(
    print, pidfile="app.pid", stdout="app.log", stderr=daemonkit.STDOUT, wait_ready=True, umask=0o027,
    start_timeout=30, stop_timeout=30, signal_map={"SIGHUP": hup}, working_directory="/",
)
print(service.main(["status"]))
print(*sys.modules)
""")
    done = subprocess.run([sys.executable, "app.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    words, status, loaded = done.stdout.splitlines()
    assert (words, status) == ("not running", "3")
    heavy = {"argparse", "asyncio", "daemon", "dataclasses", "datetime", "inspect", "lockfile", "logging", "signal"}
    heavy |= {"socket", "subprocess", "threading", "traceback", "typing", "re"}
    before = subprocess.run(
        [sys.executable, "-c", "import sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    assert heavy & set(loaded.split()) - set(before.stdout.split()) == set()


# --- the foreground -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["run", "start under a manager", "start with detach_process=False"])
def test_in_the_foreground_it_is_this_process_with_its_streams_and_the_same_pidfile(tmp_path: Path, way: str) -> None:
    option = ", detach_process=False" if "False" in way else ""
    body = f"""
def work(daemon):
    print("in", read({str(tmp_path / "app.pid")!r}).strip(), sys.stdin.readline().strip())
    daemon.ready()
    time.sleep(1000)
service = daemonkit.Service(work, pidfile="app.pid", stdout="app.log", wait_ready=True{option})
try:
    service.{way.split(maxsplit=1)[0]}()
finally:
    print("out", os.getpid())
"""
    environment = {**os.environ, "NOTIFY_SOCKET": "@nobody"} if "manager" in way else None
    program = subprocess.Popen(
        [sys.executable, write(tmp_path, body)], cwd=tmp_path, env=environment, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert program.stdin and program.stdout
    program.stdin.write("typed\n")
    program.stdin.flush()
    assert program.stdout.readline() == f"in {program.pid} typed\n"
    eventually(lambda: pid_in(tmp_path / "app.pid") == program.pid)
    program.terminate()
    out, err = program.communicate(timeout=harness.PATIENCE)
    assert (program.returncode, out) == (0, f"out {program.pid}\n") and "Traceback" not in err
    assert not (tmp_path / "app.log").exists() and not (tmp_path / "app.pid").exists()
