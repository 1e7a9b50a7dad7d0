"""What `daemonkit unit --for slurm` prints, on a controller and two nodes."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import pytest
from apps import CRASHING, told
from nodes import Node, eventually, programs
from slurm import TIMEOUT, are_idle, prepare, states

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

APP = """
[apps.web]
command = "python3 web.py"
wait_ready = true
stop_timeout = 5
"""


def _job(control: Node, job: str) -> dict[str, str]:
    return dict(re.findall(r"(\S+?)=(\S*)", control.run("scontrol", "show", "job", job)))


@pytest.fixture
def submit(cluster: tuple[Node, dict[str, Node]]) -> Iterator[Callable[[str], str]]:
    """Submit what `daemonkit unit` prints for an app file; return the job's number."""
    control, _ = cluster

    def one(app_file: str) -> str:
        control.write("/srv/web/daemonkit.toml", app_file)
        script = control.run("daemonkit", "unit", "-f", "daemonkit.toml", "--for", "slurm", cwd="/srv/web")
        control.write("/srv/web/app.sbatch", script + "\n")
        return control.run("sbatch", "--parsable", "app.sbatch", cwd="/srv/web")

    yield one
    control.run("scancel", "--user=root")
    eventually(lambda: not control.run("squeue", "-h") and are_idle(control))


def _place(control: Node, job: str) -> str:
    seen = _job(control, job)
    return seen["NodeList"] if seen["JobState"] == "RUNNING" else ""


def test_a_job_goes_on_on_the_other_node_when_its_own_dies(cluster, submit, seen) -> None:
    control, nodes = cluster
    job = submit(APP)
    eventually(lambda: _place(control, job))
    first = _place(control, job)
    eventually(lambda: len(programs(nodes[first], "python3 web.py")) == 1)
    begun = time.monotonic()
    nodes[first].kill()
    other = "two" if first == "one" else "one"
    eventually(lambda: len(programs(nodes[other], "python3 web.py")) == 1, 400)
    seconds = time.monotonic() - begun
    record = _job(control, job)
    assert (record["JobState"], record["NodeList"], record["Restarts"]) == ("RUNNING", other, "1")
    seen(
        f"slurm: node killed; the job goes on on the other after {seconds:.0f} s (SlurmdTimeout={TIMEOUT}, by default 300; a job that is queued again waits 120 s)"
    )
    nodes[first].__enter__()
    prepare(nodes[first], {node.name: node.address for node in (control, *nodes.values())})
    nodes[first].daemon("slurmd", "-D", log="slurmd")
    eventually(lambda: states(control)[first] == "idle")


def test_scancel_as_the_script_says_stops_it_as_daemonkit_does(cluster, submit, seen) -> None:
    control, nodes = cluster
    job = submit(APP)
    eventually(lambda: _place(control, job))
    node = nodes[_place(control, job)]
    eventually(lambda: "up" in node.read(f"/srv/web/slurm-{job}.out").splitlines())
    begun = time.monotonic()
    control.run("scancel", "--batch", "--signal=TERM", job)
    eventually(lambda: _job(control, job)["JobState"] == "COMPLETED")
    assert "bye" in node.read(f"/srv/web/slurm-{job}.out").splitlines()
    assert _job(control, job)["ExitCode"] == "0:0"
    seen(f"slurm: scancel --batch --signal=TERM: COMPLETED, 0:0, after {time.monotonic() - begun:.2f} s")


def test_a_crash_is_mended_in_the_job(cluster, submit) -> None:
    control, nodes = cluster
    job = submit(APP)
    eventually(lambda: _place(control, job))
    node = nodes[_place(control, job)]
    eventually(lambda: "up" in node.read(f"/srv/web/slurm-{job}.out").splitlines())
    node.run("pkill", "-9", "-f", "^python3 web.py")
    eventually(lambda: node.read(f"/srv/web/slurm-{job}.out").splitlines().count("up") == 2)
    assert _job(control, job)["Restarts"] == "0"


def test_crashes_delays_and_the_end_are_those_of_daemonkit_up(cluster, submit, under_up, seen) -> None:
    control, nodes = cluster
    job = submit(CRASHING.format(folder="/srv/web"))
    eventually(lambda: _job(control, job)["JobState"] == "FAILED")
    record = _job(control, job)
    assert told(nodes[record["NodeList"]].read(f"/srv/web/slurm-{job}.out")) == under_up
    assert (record["ExitCode"], record["Restarts"]) == ("1:0", "0")
    seen("slurm: given up after the restarts of daemonkit up: FAILED with 1:0, not queued again")


def test_a_reload_is_a_signal_to_the_batch_step(cluster, submit) -> None:
    control, nodes = cluster
    job = submit(APP)
    eventually(lambda: _place(control, job))

    def output() -> list[str]:
        return nodes[_place(control, job)].read(f"/srv/web/slurm-{job}.out").splitlines()

    eventually(lambda: "up" in output())
    control.run("scancel", "--batch", "--signal=HUP", job)
    eventually(lambda: output().count("up") == 2 and "bye" in output())
    assert [line for line in output() if line in {"up", "bye"}] == ["up", "up", "bye"]  # the new one was up before
    assert _place(control, job)
