"""A job for Nomad, in JSON as its API and `nomad job run -json` take it: https://developer.hashicorp.com/nomad/api-docs/json-jobs."""

from __future__ import annotations

import json
import re
import sys

from daemonkit.cli._manifest.replica import AGAIN, Replica, dns_label, without_empty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Final

    from daemonkit.cli._manifest.replica import Wanted

_LONGEST: Final = 128  # characters of a job's name
_SECOND: Final = 10**9  # Nomad counts nanoseconds
_HEALTHY: Final = 300  # seconds; the default, which allows for the image to be fetched
_HEAD: Final = (
    "Each replica is one instance: daemonkit in it restarts the program, Nomad the replica.",
    "The environment and the user that started an app stay behind; --env and --user hold there.",
    "A script check `daemonkit status NAME` needs Consul: put it into Services with Provider consul.",
    "Where MemoryMB is not given, 300 MB is the limit.",
)


def manifest(apps: Sequence[Wanted], image: str | None) -> str:
    batch = all(app.settings.get("restart") == "never" for app in apps)
    replicas = [Replica("nomad", app) for app in apps]
    groups = [_group(replica, image, batch=batch) for replica in replicas]
    name = "-".join(app.name for app in apps)[:_LONGEST]
    job = {
        "ID": name,
        "Name": name,
        "Type": "batch" if batch else "service",
        "Datacenters": ["*"],
        "Meta": _meta(_HEAD),
        "TaskGroups": groups,
    }
    return json.dumps({"Job": job}, indent=2) + "\n"


def _meta(remarks: Sequence[str]) -> dict[str, str]:
    return {f"daemonkit_{number}": " ".join(text.split()) for number, text in enumerate(remarks, 1)}


def _group(replica: Replica, image: str | None, *, batch: bool) -> dict[str, Any]:
    found, addresses = replica.ports(on_host=not image)
    ports = [*dict.fromkeys(port.number for port in found)]
    if ports and not image:
        replica.remark("listen", "the ports are the node's own, so that two replicas can't share a node")
    once = replica.restart == "never"
    group: dict[str, Any] = {
        "Name": replica.name,
        "Count": replica.count,
        "Networks": _networks(ports, on_host=not image),
        "Services": [
            {"Name": dns_label(replica.name, 63), "PortLabel": _label(port), "Provider": "nomad"} for port in ports
        ],
        "Tasks": [_task(replica, image, addresses)],
    }
    if once:
        group["RestartPolicy"] = {"Attempts": 0, "Mode": "fail"}
        group["ReschedulePolicy"] = {"Attempts": 0, "Unlimited": False}
    if once and not batch:
        replica.remark("restart", "in a job of type service it is started again; give it a job of its own")
    if replica.restart == "on-failure":
        replica.remark("restart", AGAIN, "on-failure")
    if not batch:
        deadline = _HEALTHY + replica.start_timeout
        group["Update"] = {
            "MaxParallel": 1,
            "Canary": 1,  # started beside the old ones, and before one of them is stopped
            "AutoPromote": True,
            "AutoRevert": True,
            "HealthCheck": "task_states",
            "HealthyDeadline": deadline * _SECOND,
            "ProgressDeadline": 2 * deadline * _SECOND,
        }
    group["Meta"] = _meta(replica.remarks)
    return without_empty(group)


def _networks(ports: Sequence[int], *, on_host: bool) -> list[dict[str, Any]]:
    if not ports:
        return []
    if on_host:
        return [{"Mode": "host", "ReservedPorts": [{"Label": _label(port), "Value": port} for port in ports]}]
    return [{"Mode": "bridge", "DynamicPorts": [{"Label": _label(port), "To": port} for port in ports]}]


def _label(port: int) -> str:
    return f"tcp_{port}"


def _task(replica: Replica, image: str | None, addresses: Sequence[str]) -> dict[str, Any]:
    if any(re.search(r"\$\{[\w.-]+\}", text) for text in (*replica.run(), *replica.env.values())):
        replica.remarks.append("Nomad itself replaces ${NAME} in words and variables, where it knows NAME.")
    cwd = replica.settings.get("cwd", "/")
    config: dict[str, Any] = {"command": sys.executable, "args": ["-m", "daemonkit", *replica.run(cwd=cwd)]}
    if image:
        words = replica.run(listen=addresses)
        config = {"image": image, "entrypoint": ["daemonkit"], "args": words, "work_dir": cwd}
    user = replica.owner_as_text()
    if not image and "group" in replica.settings:
        user = user.partition(":")[0]
        replica.remark("group", "the driver raw_exec takes that of the user")
    task: dict[str, Any] = {
        "Name": replica.name,
        "Driver": "docker" if image else "raw_exec",
        "Config": config,
        "User": user,
        "Env": {
            "DAEMONKIT_HOME": "${NOMAD_TASK_DIR}/daemonkit",
            "DAEMONKIT_INSTANCE": "${NOMAD_ALLOC_INDEX}",
            **replica.env,
        },
        "Resources": _resources(replica),
        "KillSignal": "SIGTERM",  # daemonkit's own: it sends the app's
        "KillTimeout": replica.grace * _SECOND,
    }
    return without_empty(task)


def _resources(replica: Replica) -> dict[str, int]:
    cores = {"Cores": 1} if "cpu_affinity" in replica.settings else {}
    return cores | ({"MemoryMB": replica.memory} if replica.memory else {})
