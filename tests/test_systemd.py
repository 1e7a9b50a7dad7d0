"""Real systemd: the same program as a service of each type, in a machine that is thrown away."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
from typing import TYPE_CHECKING

import boot
import pytest
from boot import Service
from harness import eventually, pid_in, reported

import daemonkit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Services = Callable[..., Service]

TICKING = """
    with daemonkit.detached(
        pidfile="pid", stdout="log", working_directory=".", wait_ready=True,
        detach_process=True if "--detach" in sys.argv else None,
    ) as d:
        print("begun")
        while os.path.exists("hold"): time.sleep(0.01)
        d.ready("listening on 8080")
        report(
            detached=d.detached, executed=os.environ.get("SYSTEMD_EXEC_PID"), notify=os.environ.get("NOTIFY_SOCKET")
        )
        while True:
            print("tick")
            time.sleep(0.01)
"""

COMMON = """
StandardError=append:{dir}/err
ExecReload=kill -HUP $MAINPID
ExecStopPost=sh -c 'echo $$SERVICE_RESULT $$EXIT_CODE $$EXIT_STATUS >{dir}/ended'
TimeoutStartSec=100
"""
NOTIFY = f"Type=notify\nExecStart={{run}}\n{COMMON}"
SIMPLE = f"Type=simple\nExecStart={{run}}\n{COMMON}"
EXEC = f"Type=exec\nExecStart={{run}}\n{COMMON}"
FORKING = f"Type=forking\nPIDFile={{dir}}/pid\nExecStart={{run}} --detach\n{COMMON}"

each_type = pytest.mark.parametrize(
    "unit", [NOTIFY, SIMPLE, EXEC, FORKING], ids=["notify", "simple", "exec", "forking"]
)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[boot.Machine]:
    if reason := boot.missing():
        pytest.skip(reason)
    try:
        with boot.booted(tmp_path_factory.mktemp("machine")) as booted:
            yield booted
    except boot.CannotBootError as error:
        pytest.skip(f"no machine can be built here: {error}")


@pytest.fixture
def services(machine: boot.Machine) -> Iterator[Services]:
    """Make services; at the test's end none of them runs."""
    made: list[Service] = []

    def make(unit: str, body: str = TICKING) -> Service:
        made.append(Service(machine, f"app{next(NUMBERS)}", body, unit))
        return made[-1]

    yield make
    for service in made:
        service("stop")
        service("reset-failed")
    assert not [pid for service in made for pid in _processes(service)]


TIOCSPTLCK = 0x40045431  # ioctl_tty(2): what unlockpt does
NUMBERS = itertools.count(1)


def _processes(service: Service) -> list[int]:
    """Return the processes of a service, as seen in there, whether systemd knows of them or not."""
    program = f"{service.dir}/program.py".encode()
    proc = service.machine.root / "proc"
    found = []
    for entry in proc.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if program in (entry / "cmdline").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def _started(service: Service) -> dict[str, object]:
    done = service("start")
    assert done.returncode == 0, service.failure()
    return reported(service.path)


# --- each type ------------------------------------------------------------------------------------------------------


def test_notify_is_active_only_after_ready(services: Services) -> None:
    service = services(NOTIFY)
    (service.path / "hold").touch()
    assert service.machine.systemctl("start", "--no-block", service.name).returncode == 0
    eventually(lambda: (service.path / "log").read_text() == "begun\n")
    assert service["ActiveState"] == "activating"
    main = pid_in(service.path / "pid")
    (service.path / "hold").unlink()
    eventually(lambda: service["ActiveState"] == "active")
    facts = reported(service.path)
    assert (facts["pid"], facts["ppid"], facts["detached"]) == (main, 1, False)
    assert service["MainPID"] == str(main)
    assert service["StatusText"] == "listening on 8080"
    assert 'Status: "listening on 8080"' in service("status").stdout
    assert facts["notify"] and _processes(service) == [main]


@pytest.mark.parametrize("unit", [SIMPLE, EXEC], ids=["simple", "exec"])
def test_what_systemd_executes_stays_without_being_told(services: Services, unit: str) -> None:
    service = services(unit)
    facts = _started(service)
    assert facts["detached"] is False and facts["notify"] is None
    assert facts["executed"] == str(facts["pid"]) == service["MainPID"]
    assert pid_in(service.path / "pid") == facts["pid"] and _processes(service) == [facts["pid"]]


def test_a_service_with_a_terminal_stays_too(services: Services) -> None:
    """Parent 1, but a terminal of its own: only SYSTEMD_EXEC_PID tells it from a program typed in a container."""
    service = services(SIMPLE + "StandardInput=tty-force\nTTYPath=/dev/pts/0\n")
    master = os.open(f"{service.machine.root}/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY)
    try:
        fcntl.ioctl(master, TIOCSPTLCK, b"\0" * 4)
        facts = _started(service)
        assert facts["tty"] != 0 and facts["ppid"] == 1
        assert facts["detached"] is False and service["MainPID"] == str(facts["pid"])
    finally:
        service("stop")
        os.close(master)


def test_forking_is_supervised_by_the_pidfile(services: Services) -> None:
    service = services(FORKING)
    facts = _started(service)
    daemon = facts["pid"]
    assert facts["detached"] is True and facts["sid"] != daemon
    stat = service.machine.root / f"proc/{daemon}/stat"
    assert stat.read_text().rpartition(")")[2].split()[1] == "1"  # whose child it is: systemd takes its exit status
    assert service["MainPID"] == str(daemon) == str(pid_in(service.path / "pid"))
    assert service["ActiveState"] == "active" and _processes(service) == [daemon]
    _, starting, log = service.machine.log().rpartition(f"Starting {service.name}.service")
    assert starting and "PID file" not in log  # it was there, and right, when systemd looked for it


def test_forking_a_daemon_that_is_killed_is_started_again_over_its_stale_pidfile(services: Services) -> None:
    service = services(FORKING + "Restart=on-failure\nRestartSec=0\n")
    first = _started(service)["pid"]
    (service.path / "report").unlink()
    assert service.machine.run("kill", "-KILL", first).returncode == 0
    second = reported(service.path)["pid"]
    assert second != first
    eventually(lambda: service["MainPID"] == str(second))
    assert service["NRestarts"] == "1" and pid_in(service.path / "pid") == second
    assert _processes(service) == [second]


def test_forking_as_another_user_the_pidfile_is_that_user_s_and_systemd_takes_it(services: Services) -> None:
    """Where a pidfile is not root's systemd believes it only if it names a process of the service itself."""
    pidfile = "/run/{name}/pid"
    body = TICKING.replace('pidfile="pid"', 'pidfile=os.environ["RUNTIME_DIRECTORY"] + "/pid"')
    number = next(NUMBERS)
    unit = FORKING.replace("{dir}/pid", pidfile.replace("{name}", f"own{number}"))
    service = services(unit + f"User=nobody\nRuntimeDirectory=own{number}\n", body)
    service.open_to("nobody")
    facts = _started(service)
    there = service.machine.inside(f"/run/own{number}/pid")
    assert facts["detached"] is True and facts["uid"] == [there.stat().st_uid] * 3 != [0, 0, 0]
    assert service["MainPID"] == str(facts["pid"]) == str(pid_in(there))
    assert "Refusing" not in service.machine.log()
    assert service("stop").returncode == 0
    assert (service.path / "ended").read_text() == "success exited 0\n"


def test_root_s_program_that_drops_its_privileges_is_stopped_as_any_other(services: Services) -> None:
    body = TICKING.replace('pidfile="pid"', 'pidfile="pid", uid="nobody"')
    service = services(NOTIFY, body)
    service.open_to("nobody")
    facts = _started(service)
    assert facts["uid"] != [0, 0, 0] and service["MainPID"] == str(facts["pid"])
    assert service["StatusText"] == "listening on 8080"
    assert service("stop").returncode == 0
    assert (service.path / "ended").read_text() == "success exited 0\n"


def test_a_socket_that_systemd_listens_on_is_handed_over(services: Services) -> None:
    body = """
        with daemonkit.detached(pidfile="pid", working_directory=".", wait_ready=True) as d:
            listener = socket.socket(fileno=3)
            d.ready()
            while True:
                connection, _ = listener.accept()
                connection.sendall(f"{os.getpid()} {d.detached}".encode())
                connection.close()
    """
    service = services(NOTIFY, body)
    service.write("socket", f"[Unit]\nDefaultDependencies=no\n[Socket]\nListenStream={service.dir}/socket\nAccept=no\n")
    unit = f"{service.name}.socket"
    assert service.machine.systemctl("start", unit).returncode == 0, service.failure()
    assert service["ActiveState"] == "inactive"
    ask = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect('{service.dir}/socket'); print(s.recv(99).decode())"
    assert service.machine.python(ask) == f"{service['MainPID']} False\n"
    assert service["ActiveState"] == "active"
    assert service.machine.systemctl("stop", unit, service.name).returncode == 0


# --- reload and stop ------------------------------------------------------------------------------------------------


@each_type
def test_reload_opens_the_log_anew(services: Services, unit: str) -> None:
    service = services(unit)
    daemon = _started(service)["pid"]
    log, old = service.path / "log", service.path / "log.1"
    eventually(lambda: "tick" in log.read_text())
    log.rename(old)
    assert service("reload").returncode == 0, service.failure()
    eventually(lambda: log.read_text().startswith("tick\n"))
    last = old.read_text()
    assert last.startswith("begun\n") and last.endswith("tick\n")
    eventually(lambda: log.read_text().count("tick\n") > 2)
    assert old.read_text() == last
    assert service["ActiveState"] == "active" and service["MainPID"] == str(daemon)


@each_type
def test_stop_ends_it_with_status_0_and_the_pidfile_is_gone(services: Services, unit: str) -> None:
    service = services(unit)
    _started(service)
    assert service("stop").returncode == 0
    assert service["ActiveState"] == "inactive", service.failure()
    # It ended by itself, and systemd saw its status, also that of the detached one.
    assert (service.path / "ended").read_text() == "success exited 0\n"
    assert not (service.path / "pid").exists() and not (service.path / "err").read_text()
    assert _processes(service) == []


@each_type
def test_restart_is_a_new_process_that_holds_the_pidfile(services: Services, unit: str) -> None:
    service = services(unit)
    first = _started(service)["pid"]
    (service.path / "report").unlink()
    assert service("restart").returncode == 0, service.failure()
    second = reported(service.path)["pid"]
    assert second != first and _processes(service) == [second]
    assert service["MainPID"] == str(second) == str(pid_in(service.path / "pid"))


@each_type
def test_daemonkit_looks_after_a_service_from_within(services: Services, unit: str) -> None:
    service = services(unit + "Restart=on-failure\n")
    daemon = _started(service)["pid"]
    pidfile = f"{service.dir}/pid"
    assert service.machine.python(f"print(daemonkit.status('{pidfile}').pid)") == f"{daemon}\n"
    assert service.machine.python(f"print(daemonkit.stop('{pidfile}'))") == "True\n"
    eventually(lambda: service["ActiveState"] == "inactive")
    assert (service.path / "ended").read_text() == "success exited 0\n"
    assert service.machine.python(f"print(bool(daemonkit.status('{pidfile}')))") == "False\n"


def test_a_service_counts_as_held_from_outside_its_machine_and_is_stopped_in_there_alone(services: Services) -> None:
    """As from the host of a container, which can't see whether the holder lives."""
    service = services(NOTIFY)
    _started(service)
    assert daemonkit.status(service.path / "pid").running
    with pytest.raises(daemonkit.NotRunningError, match="is held in another PID namespace"):
        daemonkit.stop(service.path / "pid")
    assert service["ActiveState"] == "active"


def test_what_runs_outside_is_out_of_a_machine_s_reach(services: Services) -> None:
    service = services(NOTIFY)
    with daemonkit.PidFile(service.path / "outside"):
        for call in ("stop(path)", "send_signal(path, signal.SIGKILL)", "attach(path)"):
            text = f"path = '{service.dir}/outside'\ntry: daemonkit.{call}\nexcept ProcessLookupError as e: print(e)"
            assert "is held in another PID namespace" in service.machine.python(text)
        assert service.machine.python(f"print(bool(daemonkit.status('{service.dir}/outside')))") == "True\n"


# --- a start that fails ---------------------------------------------------------------------------------------------

QUEUE = """
    with daemonkit.detached(
        pidfile="pid", working_directory=".", wait_ready=True,
        detach_process=True if "--detach" in sys.argv else None,
    ):
        raise ConnectionError("the queue is down")
"""


def test_notify_a_start_that_fails_is_told_with_its_reason(services: Services) -> None:
    service = services(NOTIFY, QUEUE)
    done = service("start")
    assert done.returncode == 1 and f"Job for {service.name}.service failed" in done.stderr
    assert (service["ActiveState"], service["Result"], service["ExecMainStatus"]) == ("failed", "exit-code", "1")
    assert service["StatusText"] == "failed to start: ConnectionError: the queue is down"
    assert 'Status: "failed to start: ConnectionError: the queue is down"' in service("status").stdout
    errors = (service.path / "err").read_text()
    assert errors.count("Traceback (most recent call last)") == 1
    assert not (service.path / "pid").exists()


REFUSED = {
    "a log that can't be opened": ('stdout="absent/log"', "No such file or directory"),
    "a user that is unknown": ('uid="nobody-here"', "nobody-here"),
    "a held pidfile": ('pidfile="other"', "held by process"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_notify_a_start_that_is_refused_is_told_with_its_reason(services: Services, what: str) -> None:
    option, reason = REFUSED[what]
    body = f"""
        with daemonkit.detached({option}, working_directory=".", wait_ready=True) as d:
            d.ready()
            wait()
    """
    service = services(NOTIFY, body)
    holder = services(SIMPLE, TICKING.replace('"pid"', f'"{service.dir}/other"'))
    _started(holder)
    assert service("start").returncode == 1
    assert (service["ActiveState"], service["Result"], service["ExecMainStatus"]) == ("failed", "exit-code", "1")
    assert reason in (service.path / "err").read_text()
    assert service["StatusText"].startswith("failed to start: ") and reason in service["StatusText"]


def test_notify_a_body_that_ends_before_it_is_ready_has_failed(services: Services) -> None:
    body = """
        with daemonkit.detached(pidfile="pid", working_directory=".", wait_ready=True):
            pass
    """
    service = services(NOTIFY, body)
    assert service("start").returncode == 1
    assert (service["ActiveState"], service["Result"], service["ExecMainStatus"]) == ("failed", "exit-code", "1")
    assert service["StatusText"] == "failed to start: the body ended without calling ready()"


def test_forking_a_start_that_fails_has_failed_and_leaves_nothing(services: Services) -> None:
    service = services(FORKING, QUEUE)
    assert service("start").returncode == 1
    assert (service["ActiveState"], service["Result"]) == ("failed", "exit-code")
    errors = (service.path / "err").read_text()
    assert "StartError" in errors and "ConnectionError: the queue is down" in errors
    assert _processes(service) == [] and not (service.path / "pid").exists()


def test_forking_a_second_one_is_refused_and_the_first_goes_on(services: Services) -> None:
    first = services(FORKING)
    daemon = _started(first)["pid"]
    second = services(FORKING.replace("{dir}/pid", f"{first.dir}/pid"), TICKING.replace('"pid"', f'"{first.dir}/pid"'))
    assert second("start").returncode == 1
    assert second["ActiveState"] == "failed" and f"held by process {daemon}" in (second.path / "err").read_text()
    assert first["ActiveState"] == "active" and _processes(first) == [daemon]


def test_a_crash_after_the_start_is_a_failure_with_its_traceback(services: Services) -> None:
    body = """
        with daemonkit.detached(pidfile="pid", working_directory=".") as d:
            d.ready("working")
            while not os.path.exists("go"): time.sleep(0.01)
            raise ValueError("no such order")
    """
    service = services(NOTIFY, body)
    assert service("start").returncode == 0
    (service.path / "go").touch()
    eventually(lambda: service["ActiveState"] == "failed")
    assert (service["Result"], service["ExecMainStatus"]) == ("exit-code", "1")
    assert (service.path / "err").read_text().count("\nValueError: no such order") == 1
    assert not (service.path / "pid").exists()


# --- the watchdog ---------------------------------------------------------------------------------------------------

WATCHED = """
    def tell(text):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            address = os.environ["NOTIFY_SOCKET"]
            manager.connect("\\0" + address[1:] if address[0] == "@" else address)
            manager.send(text)

    with daemonkit.detached(pidfile="pid", working_directory=".", wait_ready=True) as d:
        d.ready("watched")
        begin, interval, said = time.monotonic(), int(os.environ["WATCHDOG_USEC"]) / 1e6, False
        assert os.environ["WATCHDOG_PID"] == str(os.getpid())
        while not os.path.exists("hang"):
            tell(b"WATCHDOG=1")
            time.sleep(0.05)
            if time.monotonic() > begin + 1.5 * interval and not said:
                report()
                said = True
        os.unlink("hang")
        wait()
"""


def test_the_watchdog_lets_it_live_as_long_as_it_is_told_and_replaces_it_when_it_hangs(services: Services) -> None:
    service = services(NOTIFY + "WatchdogSec=4\nRestart=on-watchdog\nRestartSec=0\n", WATCHED)
    first = _started(service)["pid"]  # having lived half as long again as without a word
    assert service["MainPID"] == str(first) and service["NRestarts"] == "0"
    (service.path / "hang").touch()
    eventually(lambda: reported(service.path)["pid"] != first)
    second = reported(service.path)["pid"]
    assert not (service.path / "hang").exists()
    assert service["MainPID"] == str(second) == str(pid_in(service.path / "pid"))
    assert service["NRestarts"] == "1" and _processes(service) == [second]


def test_the_watchdog_s_victim_has_failed(services: Services) -> None:
    service = services(NOTIFY + "WatchdogSec=200ms\n", WATCHED)
    (service.path / "hang").touch()
    assert service("start").returncode == 0
    eventually(lambda: service["ActiveState"] == "failed")
    assert service["Result"] == "watchdog"
    assert (service.path / "ended").read_text() in {"watchdog killed ABRT\n", "watchdog dumped ABRT\n"}
    assert service.machine.python(f"print(bool(daemonkit.status('{service.dir}/pid')))") == "False\n"


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_unit_that_the_command_prints_runs_the_same_app(machine: boot.Machine) -> None:
    def command(*arguments: object) -> str:
        done = machine.run("env", "DAEMONKIT_HOME=/srv/apps", boot.PYTHON, "-m", "daemonkit", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = "SAY=a 'b' \"c\" $HOME %n"
    print_and_sleep = 'echo "$SAY" >"/srv/said.$DAEMONKIT_INSTANCE"; exec sleep 1000'
    command(
        "start", "web", "-i", 2, "--min-uptime", 0.05, "--cwd", "/srv", "--env", said, "--", "sh", "-c", print_and_sleep
    )
    command("stop", "web")
    for number in range(2):
        machine.inside(f"/srv/said.{number}").unlink()
    units = machine.inside("/run/systemd/system")
    (units / "web.service.d").mkdir()
    (units / "web.service.d" / "alone.conf").write_text("[Unit]\nDefaultDependencies=no\n")
    (units / "web.service").write_text(command("unit", "web"))
    machine.systemctl("daemon-reload")
    try:
        done = machine.systemctl("start", "web")
        assert done.returncode == 0, machine.systemctl("status", "web").stdout
        told = machine.show("web")
        assert (told["ActiveState"], told["StatusText"]) == ("active", "2 up")
        seen = [machine.inside(f"/srv/said.{number}").read_text() for number in range(2)]
        assert seen == [f"{said[4:]}\n"] * 2
        group = machine.inside(f"/sys/fs/cgroup{told['ControlGroup']}/cgroup.procs")
        before = set(group.read_text().split())
        assert len(before) == 5  # two that supervise, one that shows the log, and two instances
        assert machine.systemctl("reload", "web").returncode == 0
        eventually(lambda: len(before & set(group.read_text().split())) == 3 and len(group.read_text().split()) == 5)
        assert machine.systemctl("stop", "web").returncode == 0
        told = machine.show("web")
        assert (told["ActiveState"], told["Result"]) == ("inactive", "success")
    finally:
        machine.systemctl("kill", "-s", "KILL", "web")


FILE = """
[defaults]
min_uptime = 0.05
[apps.db]
command = ["sh", "-c", "trap 'echo db ends >>/srv/order; exit 0' TERM; echo db >>/srv/order; while :; do sleep 0.02; done"]
[apps.web]
command = ["sh", "-c", "trap 'echo web ends >>/srv/order; exit 0' TERM; echo web >>/srv/order; while :; do sleep 0.02; done"]
after = ["db"]
"""


def test_the_unit_of_a_file_runs_all_its_apps_in_their_order_and_reads_it_anew(machine: boot.Machine) -> None:
    machine.inside("/srv/daemonkit.toml").write_text(FILE)
    home = "DAEMONKIT_HOME=/srv/file-apps"
    done = machine.run("env", home, boot.PYTHON, "-m", "daemonkit", "unit", "-f", "/srv/daemonkit.toml")
    assert done.returncode == 0, done.stderr
    units = machine.inside("/run/systemd/system")
    (units / "site.service.d").mkdir()
    (units / "site.service.d" / "alone.conf").write_text("[Unit]\nDefaultDependencies=no\n")
    (units / "site.service").write_text(done.stdout)
    machine.systemctl("daemon-reload")
    order = machine.inside("/srv/order")
    try:
        assert machine.systemctl("start", "site").returncode == 0, machine.systemctl("status", "site").stdout
        told = machine.show("site")
        assert (told["ActiveState"], told["StatusText"]) == ("active", "2 up")
        assert order.read_text().split() == ["db", "web"]
        machine.inside("/srv/daemonkit.toml").write_text(FILE.replace("echo web >>", "echo new >>"))
        assert machine.systemctl("reload", "site").returncode == 0
        eventually(lambda: order.read_text().splitlines() == ["db", "web", "new", "web ends"])  # rolled in

        def status() -> str:
            return machine.run("env", home, boot.PYTHON, "-m", "daemonkit", "status", "web").stdout

        eventually(lambda: status().splitlines()[1].split()[:3] == ["web", "running", "1/1"])
        assert machine.systemctl("stop", "site").returncode == 0
        assert order.read_text().splitlines()[4:] == ["web ends", "db ends"]
        told = machine.show("site")
        assert (told["ActiveState"], told["Result"]) == ("inactive", "success")
    finally:
        machine.systemctl("kill", "-s", "KILL", "site")


# --- supervise ------------------------------------------------------------------------------------------------------

SUPERVISING = """
    worker = "echo start >>starts; trap 'echo asked >>asked; exit' TERM; while :; do sleep 0.05; done"
    with daemonkit.detached(pidfile="pid", working_directory=".") as d:
        daemonkit.supervise(["sh", "-c", worker], instances=2, restart="always", min_uptime=0.1)
"""


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_a_supervisor_is_reloaded_and_stopped_by_systemd_and_asks_each_instance(services: Services) -> None:
    service = services(NOTIFY + "KillMode=mixed\n", SUPERVISING)
    assert service("start").returncode == 0, service.failure()
    eventually(lambda: _lines(service.path / "starts") == 2)
    assert service("reload").returncode == 0
    eventually(lambda: (_lines(service.path / "starts"), _lines(service.path / "asked")) == (4, 2))
    assert service("stop").returncode == 0
    assert service["Result"] == "success"
    assert (_lines(service.path / "starts"), _lines(service.path / "asked")) == (4, 4)
    assert not (service.path / "pid").exists()
