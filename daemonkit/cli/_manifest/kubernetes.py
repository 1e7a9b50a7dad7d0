"""Objects for Kubernetes: https://kubernetes.io/docs/reference/kubernetes-api/."""

from __future__ import annotations

import re

from daemonkit.cli._manifest.replica import HOME, Replica, comments, dns_label
from daemonkit.cli._manifest.yaml_text import dump

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Final

    from daemonkit.cli._manifest.replica import Wanted

_DEPLOYMENT: Final = "Deployment"
_STATEFUL_SET: Final = "StatefulSet"
_JOB: Final = "Job"
_NUMBER: Final = {
    _STATEFUL_SET: "metadata.labels['apps.kubernetes.io/pod-index']",
    _JOB: "metadata.annotations['batch.kubernetes.io/job-completion-index']",
}
"""Where the engine keeps a replica's number."""
_NAME: Final = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]*")
_PROGRESS: Final = 600  # seconds; the default, which allows for the image to be fetched
_HEAD: Final = (
    "For kubectl apply -f FILE. In each replica daemonkit restarts the program; Kubernetes restarts the replica.",
    "There is no livenessProbe: daemonkit replaces what hangs (watchdog, health_check), and backing off is no hang.",
    "The environment that an app was started in stays behind: the image has its own, and --env is laid over that.",
    "An image's STOPSIGNAL has to be SIGTERM: daemonkit itself sends the program's own.",
)


def manifest(apps: Sequence[Wanted], image: str) -> str:
    taken: list[str] = []
    documents = []
    for app in apps:
        replica = Replica("kubernetes", app)
        taken.append(dns_label(app.name, taken=taken))
        if taken[-1] != app.name:
            replica.remark(f"{app.name} is called {taken[-1]}, as names are DNS labels there")
        objects = _objects(replica, taken[-1], image)
        documents.append(comments(replica.remarks) + "---\n".join(map(dump, objects)))
    return comments(_HEAD) + "---\n".join(documents)


def _objects(replica: Replica, label: str, image: str) -> list[dict[str, Any]]:
    ports, addresses = replica.ports()
    numbers = [*dict.fromkeys(port.number for port in ports)]
    kind = _kind(replica)
    labels = {"app.kubernetes.io/name": label}
    pod = {
        "terminationGracePeriodSeconds": replica.grace,
        "restartPolicy": "Never" if kind == _JOB else "Always",
        "securityContext": _security(replica),
        "containers": [_container(replica, label, image, addresses, numbers, kind)],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }
    spec = {**_spec(replica, kind, label, labels), "template": {"metadata": {"labels": labels}, "spec": pod}}
    version = "batch/v1" if kind == _JOB else "apps/v1"
    found = {"apiVersion": version, "kind": kind, "metadata": {"name": label, "labels": labels}, "spec": spec}
    service = _service(label, labels, numbers, headless=kind == _STATEFUL_SET and not numbers)
    return [found, service] if numbers or kind == _STATEFUL_SET else [found]


def _kind(replica: Replica) -> str:
    if replica.restart == "never":
        return _JOB
    if replica.restart == "on-failure":
        replica.remark(
            'restart = "on-failure": a program that ends with 0 is started again, as replicas always are; one that '
            'has an end is a Job: restart = "never"'
        )
    return _STATEFUL_SET if replica.uses_number else _DEPLOYMENT


def _spec(replica: Replica, kind: str, label: str, labels: Mapping[str, str]) -> dict[str, Any]:
    if kind == _JOB:
        count = replica.count
        return {"completions": count, "parallelism": count, "completionMode": "Indexed", "backoffLimit": 0}
    spec: dict[str, Any] = {"replicas": replica.count, "selector": {"matchLabels": labels}}
    if kind == _STATEFUL_SET:
        return spec | {
            "serviceName": label,
            "podManagementPolicy": "Parallel",
            "updateStrategy": {"type": "RollingUpdate"},
        }
    return spec | {
        "progressDeadlineSeconds": _PROGRESS + replica.start_timeout,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
    }


def _security(replica: Replica) -> dict[str, Any]:
    context: dict[str, Any] = {"seccompProfile": {"type": "RuntimeDefault"}}
    user, group = replica.owner()
    for field, name, number in (("runAsUser", user, _uid), ("runAsGroup", group, _gid)):
        if name is None:
            continue
        found = name if isinstance(name, int) else number(name)
        if found is None:
            replica.remark(f"{name} is unknown on this machine: give its number in the image as {field}")
            continue
        context[field] = found
        if name != found:
            replica.remark(f"{field}: {found} is {name} on this machine; give its number in the image")
    if context.get("runAsUser"):
        context["runAsNonRoot"] = True
    return context


def _uid(name: str) -> int | None:
    import pwd

    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def _gid(name: str) -> int | None:
    import grp

    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def _container(  # noqa: PLR0913, PLR0917 - what a container is made of
    replica: Replica, label: str, image: str, addresses: Sequence[str], ports: Sequence[int], kind: str
) -> dict[str, Any]:
    inside = [(name, value) for name, value in replica.env.items() if not _NAME.fullmatch(name)]
    if inside:
        replica.remark("variables whose names Kubernetes does not allow are given to daemonkit run")
    words = ["daemonkit", *replica.run(listen=addresses, env=[f"{name}={value}" for name, value in inside])]
    variables: list[dict[str, Any]] = [{"name": "DAEMONKIT_HOME", "value": HOME}]
    if kind in _NUMBER:
        number = {"fieldRef": {"fieldPath": _NUMBER[kind]}}
        variables.append({"name": "DAEMONKIT_INSTANCE", "valueFrom": number})
    variables += [{"name": k, "value": _escaped(v)} for k, v in replica.env.items() if (k, v) not in inside]
    container: dict[str, Any] = {
        "name": label,
        "image": image,
        "command": [_escaped(word) for word in words],  # whatever the image's own is
        "workingDir": replica.settings.get("cwd", ""),
        "env": variables,
        "ports": [{"name": f"tcp-{number}", "containerPort": number} for number in ports],
        "readinessProbe": {
            "exec": {"command": ["daemonkit", "status", replica.name]},
            "periodSeconds": 5,
            "timeoutSeconds": 5,
        },
        "resources": _resources(replica),
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108 - so that a read-only root will do
    }
    return {key: value for key, value in container.items() if value not in ("", [], {})}


def _resources(replica: Replica) -> dict[str, Any]:
    if not replica.memory:
        return {}
    return {"requests": {"memory": f"{replica.memory // 2}Mi"}, "limits": {"memory": f"{replica.memory}Mi"}}


def _service(label: str, labels: Mapping[str, str], ports: Sequence[int], *, headless: bool) -> dict[str, Any]:
    spec: dict[str, Any] = {"clusterIP": "None"} if headless else {}
    spec["selector"] = labels
    if ports:
        spec["ports"] = [{"name": f"tcp-{number}", "port": number, "targetPort": number} for number in ports]
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": label, "labels": labels}, "spec": spec}


def _escaped(text: str) -> str:
    """Return a text that Kubernetes does not put variables into."""
    return text.replace("$", "$$")
