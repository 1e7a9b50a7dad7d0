"""A compose file, for Docker Compose and for Swarm: https://github.com/compose-spec/compose-spec/blob/main/spec.md."""

from __future__ import annotations

import re
import textwrap

from daemonkit.cli._manifest.replica import HOME, LAST_PORT, Replica, comments, escaped, untaken, without_empty
from daemonkit.cli._manifest.yaml_text import dump

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Final

    from daemonkit.cli._manifest.replica import Port, Wanted

_LONGEST: Final = 63  # characters of a service's name in Swarm
_RESTART: Final = {"always": ("always", "any"), "on-failure": ("on-failure", "on-failure"), "never": ("no", "none")}
"""By the app's rule: that of Compose, and that of Swarm."""
_HEAD: Final = (
    "For Compose and for Swarm:",
    "  docker compose up -d",
    "  docker stack deploy -c compose.yaml NAME",
    "Swarm starts what a lost node had elsewhere, and replaces what fails its healthcheck; Compose alone does neither.",
    "The environment and user that started an app stay behind: the image has its own; --env and --user hold there.",
    "A replica's number ($DAEMONKIT_INSTANCE) comes from Swarm, from 1 on; with Compose alone each one is number 0.",
)


def manifest(apps: Sequence[Wanted], image: str) -> str:
    names: dict[str, str] = {}
    for app in apps:
        mended = re.sub(r"[^A-Za-z0-9_-]", "-", app.name).strip("-_")[:_LONGEST]
        names[app.name] = untaken(mended, _LONGEST, names.values())
    parts = [comments(_HEAD), "services:\n"]
    for app in apps:
        in_files = {name: value for variables in app.env_files.values() for name, value in variables.items()}
        env = {name: one for name, one in app.settings.get("env", {}).items() if in_files.get(name) != one}
        replica = Replica("compose", app._replace(settings={**app.settings, "env": env}))
        if any("{{" in value for value in replica.env.values()):
            replica.remark("env", "Swarm replaces what it knows in {{ }}, Compose does not", env)
        if names[app.name] != app.name:
            replica.remarks.append(f"{app.name} is called {names[app.name]}, as Swarm allows no other name")
        service = _service(replica, escaped(image), [names[other] for other in replica.comes_after(names)])
        parts.append(textwrap.indent(comments(replica.remarks) + dump({names[app.name]: service}), "  "))
    return "".join(parts)


def _service(replica: Replica, image: str, after: Sequence[str]) -> dict[str, Any]:
    ports, addresses = replica.ports()
    compose, swarm = _RESTART[replica.restart]
    service: dict[str, Any] = {
        "image": image,
        "entrypoint": ["daemonkit"],  # whatever the image's own is
        "command": [escaped(word) for word in replica.run(listen=addresses)],
        "restart": compose,
        "stop_signal": "SIGTERM",  # daemonkit's own: it sends the app's
        "stop_grace_period": f"{replica.grace}s",
        "env_file": [escaped(path) for path in replica.env_files],
        "environment": {"DAEMONKIT_HOME": HOME, "DAEMONKIT_INSTANCE": "{{.Task.Slot}}"}
        | {name: escaped(value) for name, value in replica.env.items()},
        "user": replica.owner_as_text(),
        "working_dir": escaped(replica.settings.get("cwd", "")),
        "ports": _ports(replica, ports),
        "healthcheck": {
            "test": ["CMD", "daemonkit", "status", replica.name],
            "interval": "5s",
            "timeout": "5s",
            "retries": 6,  # a program that backs off, for 30 s at most, is not to be replaced for it
            "start_period": f"{replica.start_timeout}s",
        },
        "depends_on": {name: {"condition": "service_healthy"} for name in after},
        "deploy": {
            "replicas": replica.count,
            "restart_policy": {"condition": swarm},
            "update_config": {"order": "start-first", "failure_action": "rollback"},
            "resources": {"limits": {"memory": f"{replica.memory}M"}} if replica.memory else {},
        },
    }
    return without_empty(service | {"deploy": without_empty(service["deploy"])})


def _ports(replica: Replica, ports: Sequence[Port]) -> list[str]:
    """Return them in the short form: a range as long as there are replicas, where they would meet on one host."""
    published = []
    for port in ports:
        last = min(port.number + replica.count - 1, LAST_PORT)
        many = f"{port.number}-{last}" if last > port.number else str(port.number)
        published.append(f"{port.host}:{many}:{port.number}".removeprefix(":"))
        if last > port.number:
            text = (
                f"Compose gives each replica one port of {many}: put a proxy before them, or have replicas: 1 "
                f"and -i {replica.count}, which share one port; Swarm spreads each port over all replicas"
            )
            replica.remark("listen", text)
        if port.host:
            replica.remark("listen", f"Swarm publishes port {port.number} on all addresses, not on {port.host} alone")
    return published
