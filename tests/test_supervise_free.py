"""What daemonkit itself set free inside an instance outlives it; everything else goes with the instance."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

import harness
import pytest
from harness import PATIENCE, alive, children, eventually, run
from supervising import pids, supervising

import daemonkit

if TYPE_CHECKING:
    from pathlib import Path

SPAWN = "p = daemonkit.spawn_detached(['sh', '-c', 'echo $$ > free; sleep 1000 & echo $! > below; exec sleep 1000'])"
AGENTS = {
    "spawn": f"{SPAWN}\nopen('begun', 'w').close(); wait()",
    "detached": """
import subprocess
subprocess.run([sys.executable, "become.py"], check=True)
open("begun", "w").close(); wait()
""",
    "command": """
import subprocess
subprocess.run([sys.executable, "-m", "daemonkit", "start", "web", "--min-uptime", "0.05", "--",
    "sh", "-c", "echo $$ > free; exec sleep 1000"], check=True)
open("begun", "w").close(); wait()
""",
}
DAEMON = """
with daemonkit.detached(pidfile="daemon.pid", working_directory="."):
    open("free", "w").write(str(os.getpid()))
    wait()
"""


@pytest.mark.parametrize("ending", ["crash", "stop", "worker", "caller", "both"])
@pytest.mark.parametrize("how", AGENTS)
def test_what_was_set_free_outlives_its_instance_however_that_ends(tmp_path: Path, how: str, ending: str) -> None:
    harness.write(tmp_path, AGENTS[how], "agent.py")
    harness.write(tmp_path, DAEMON, "become.py")
    environment = {**os.environ, "DAEMONKIT_HOME": str(tmp_path / "home")}
    bound = "sh -c 'sleep 1000 & echo $! > bound; wait' & exec " + f"{sys.executable} agent.py"
    body = f"supervise(['sh', '-c', {bound!r}], restart='never')"
    with supervising(tmp_path, body, env=environment) as supervisor:
        main = supervisor.until("start")[0]["pid"]
        eventually(
            lambda: (tmp_path / "begun").exists() and (tmp_path / "bound").read_text() and pids(tmp_path, "free")
        )
        (free,), (bound_pid,) = pids(tmp_path, "free"), pids(tmp_path, "bound")
        worker = supervisor.worker
        if ending == "crash":
            os.kill(main, signal.SIGKILL)
            assert supervisor.process.wait(PATIENCE) == 0
        elif ending == "stop":
            supervisor.stop()
        else:
            for pid in {"worker": [worker], "caller": [supervisor.pid], "both": [worker, supervisor.pid]}[ending]:
                os.kill(pid, signal.SIGSTOP)
            for pid in {"worker": [worker], "caller": [supervisor.pid], "both": [worker, supervisor.pid]}[ending]:
                os.kill(pid, signal.SIGKILL)
            if ending == "worker":
                supervisor.until("exit")
                supervisor.stop()
            else:
                supervisor.process.wait(PATIENCE)
                assert run(tmp_path, "daemonkit.supervise(['true'])").returncode == 0  # which ends what is left
        eventually(lambda: not alive(bound_pid))
        assert alive(free)
        if how == "command":
            assert daemonkit.stop(tmp_path / "home" / "web.pid")
            harness.ended(worker) if ending == "both" else None
        else:
            os.kill(free, signal.SIGKILL)
            if how == "spawn":
                os.kill(pids(tmp_path, "below")[0], signal.SIGKILL)
    for pid in children():
        if not alive(pid):
            os.waitpid(pid, 0)


def test_what_was_set_free_is_reaped_by_the_worker_and_counts_for_nothing(tmp_path: Path) -> None:
    harness.write(tmp_path, "daemonkit.spawn_detached(['sh', '-c', 'echo $$ > free; exec sleep 1000'])", "agent.py")
    script = f"{sys.executable} agent.py; touch begun; exec sleep 1000"
    with supervising(tmp_path, f"supervise(['sh', '-c', {script!r}])") as supervisor:
        eventually((tmp_path / "begun").exists)
        (free,) = eventually(lambda: pids(tmp_path, "free"))
        eventually(lambda: free in children(supervisor.worker))
        os.kill(free, signal.SIGKILL)
        eventually(lambda: free not in children(supervisor.worker))
        supervisor.stop()


def test_a_program_that_supervise_itself_executes_stays_in_the_foreground(tmp_path: Path) -> None:
    harness.write(
        tmp_path,
        "with daemonkit.detached(pidfile='d.pid', working_directory='.') as d: report(detached=d.detached); wait()",
        "d.py",
    )
    with supervising(tmp_path, f"supervise([{sys.executable!r}, 'd.py'])") as supervisor:
        facts = harness.reported(tmp_path)
        assert not facts["detached"] and facts["pid"] == supervisor.events("start")[0]["pid"]
        assert daemonkit.status(tmp_path / "d.pid").pid == facts["pid"]
        supervisor.stop()
    assert not daemonkit.status(tmp_path / "d.pid")
