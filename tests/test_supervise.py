"""What a supervised program is given, what becomes of it, and what the caller gets back."""

from __future__ import annotations

import itertools
import json
import os
import select
import signal
import sys
from pathlib import Path

import harness
import pytest
from harness import PATIENCE, alive, children, eventually, run
from supervising import BEAT, supervising

import daemonkit


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


def test_a_crash_loop_does_not_run_hot_also_after_a_good_run(tmp_path: Path) -> None:
    once = "test -e once && exit 1; touch once; sleep 0.5; exit 1"
    with supervising(tmp_path, f"supervise(['sh', '-c', {once!r}], steady_after=0.3)") as supervisor:
        starts = supervisor.until("start", 5)
        gaps = [after["time"] - before["time"] for before, after in itertools.pairwise(starts[1:])]
        assert starts[1]["time"] - supervisor.events("exit")[0]["time"] < 0.1
        assert all(gap >= least for gap, least in zip(gaps, (0.1, 0.2, 0.4), strict=False))
        supervisor.stop()


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


def test_a_callables_garbage_is_collected_as_the_callers(tmp_path: Path) -> None:
    body = """
import gc
gc.set_threshold(123, 4, 5)
supervise(lambda: print(gc.isenabled(), gc.get_threshold()[:2]), stdout="out", restart="never")
"""
    with supervising(tmp_path, body) as supervisor:
        assert supervisor.process.wait(PATIENCE) == 0
    assert (tmp_path / "out").read_text() == "True (123, 4)\n"


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ("return", 0, ""),
        ("sys.exit(7)", 7, ""),
        ("sys.exit(2**70)", 255, ""),
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


@pytest.mark.long
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
        ("['true'], instances=1 << 40", ValueError),
        ("['true'], instances='many'", TypeError),
        ("['true'], restart='sometimes'", ValueError),
        ("['true'], backoff=3", TypeError),
        ("['true'], min_uptime=0", ValueError),
        ("['true'], steady_after=0", ValueError),
        ("['true'], kill_mode='all'", ValueError),
        ("['true'], kill_mode=None", ValueError),
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


@pytest.mark.long
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
