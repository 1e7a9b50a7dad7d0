"""A Slurm controller and two nodes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from apps import CRASH, WEB
from nodes import Node, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

CONF = """
ClusterName=here
SlurmctldHost=control({control})
SlurmUser=root
AuthType=auth/munge
StateSaveLocation=/var/lib/slurm/control
SlurmdSpoolDir=/var/lib/slurm/node
ReturnToService=2
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SlurmdTimeout={timeout}
KillWait=5
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
NodeName=one NodeAddr={one} CPUs=4
NodeName=two NodeAddr={two} CPUs=4
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
TIMEOUT = 10
"""Seconds until a silent node counts as down; Slurm's own default is 300."""


@contextlib.contextmanager
def running_cluster() -> Iterator[tuple[Node, dict[str, Node]]]:
    with Node("control", 11) as control, Node("one", 12) as one, Node("two", 13) as two:
        addresses = {node.name: node.address for node in (control, one, two)}
        prepare(control, addresses)
        control.daemon("slurmctld", "-D", log="slurmctld")
        for node in (one, two):
            prepare(node, addresses)
            node.daemon("slurmd", "-D", log="slurmd")
        eventually(lambda: are_idle(control))
        yield control, {"one": one, "two": two}


def prepare(node: Node, addresses: dict[str, str]) -> None:
    node.write("/etc/hosts", "".join(f"{address} {name}\n" for name, address in addresses.items()))
    node.write("/etc/slurm/slurm.conf", CONF.format(**addresses, timeout=TIMEOUT))
    node.write("/etc/munge/munge.key", "k" * 64)
    node.run("chmod", "0400", "/etc/munge/munge.key")
    munge = ["/run/munge", "/var/log/munge", "/var/lib/munge"]
    node.run("mkdir", "-p", *munge, "/var/lib/slurm/control", "/var/lib/slurm/node")
    node.run("chown", "-R", "munge:", "/etc/munge", *munge)
    node.daemon("setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", "munged", "--foreground", log="munged")
    eventually(lambda: node.status_of("sh", "-c", "munge -n | unmunge") == 0)
    pip = "pip install -q --no-index --break-system-packages --root-user-action=ignore"
    node.run(*pip.split(), f"--find-links=/cache/{Path(os.environ['ENGINES_WHEELS']).name}", "daemonkit")
    node.run("ln", "-s", "python3", "/usr/bin/python")
    node.write("/srv/web/web.py", WEB)
    node.write("/srv/web/crash.py", CRASH)


def states(control: Node) -> dict[str, str]:
    lines = control.run("sinfo", "-hN", "-o", "%N %t", check=False).splitlines()
    return dict(line.split() for line in lines)


def are_idle(control: Node) -> bool:
    return states(control) == {"one": "idle", "two": "idle"}
