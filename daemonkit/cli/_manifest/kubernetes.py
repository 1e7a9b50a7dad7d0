"""Objects for Kubernetes: https://kubernetes.io/docs/reference/kubernetes-api/."""

from __future__ import annotations

from daemonkit.cli._manifest.replica import AGAIN, HOME, Replica, comments, dns_label, escaped, without_empty
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
_VARIABLE: Final = "[-._a-zA-Z][-._a-zA-Z0-9]*"
_DOWN: Final = 300  # seconds for which a replica may be down before it is made anew; daemonkit backs off for 30 at most
_PERIOD: Final = 10  # seconds between probes
_PROGRESS: Final = 600  # seconds; the default, which allows for the image to be fetched
_HEAD: Final = (
    "In each replica daemonkit restarts the program; Kubernetes restarts the replica.",
    "The environment and user that started an app stay behind: the image has its own; --env and --user hold there.",
    "An image's STOPSIGNAL has to be SIGTERM: daemonkit itself sends the program's own.",
)


def manifest(apps: Sequence[Wanted], image: str) -> str:
    taken: list[str] = []
    documents = []
    for app in apps:
        replica = Replica("kubernetes", app)
        taken.append(dns_label(app.name, taken=taken))
        if taken[-1] != app.name:
            replica.remarks.append(f"{app.name} is called {taken[-1]}, as names are DNS labels there")
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
        replica.remark("restart", AGAIN, "on-failure")
    if replica.uses_number:
        replica.remarks.append("A StatefulSet stops each replica before its successor starts: it numbers them.")
        return _STATEFUL_SET
    if replica.count > 1:
        replica.remarks.append("A Deployment does not number its replicas: DAEMONKIT_INSTANCE is 0 in each.")
    return _DEPLOYMENT


def _spec(replica: Replica, kind: str, label: str, labels: Mapping[str, str]) -> dict[str, Any]:
    if kind == _JOB:
        count = replica.count
        return {"completions": count, "parallelism": count, "completionMode": "Indexed", "backoffLimit": 0}
    spec: dict[str, Any] = {"replicas": replica.count, "selector": {"matchLabels": labels}}
    if kind == _STATEFUL_SET:
        return spec | {"serviceName": label, "podManagementPolicy": "Parallel"}
    return spec | {
        "progressDeadlineSeconds": _PROGRESS + replica.start_timeout,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
    }


def _security(replica: Replica) -> dict[str, Any]:
    context: dict[str, Any] = {"seccompProfile": {"type": "RuntimeDefault"}}
    for option, field, name in zip(("user", "group"), ("runAsUser", "runAsGroup"), replica.owner(), strict=True):
        number = name if isinstance(name, int) else _number(option, name)
        if number is not None:
            context[field] = number
        if name is not None and name != number:
            here = "unknown" if number is None else number
            replica.remark(option, f"{field} is a number: {here} on this machine; give that of the image")
    if context.get("runAsUser"):
        context["runAsNonRoot"] = True
    return context


def _number(option: str, name: str | None) -> int | None:
    """Return the number that a user or a group has on this machine; None if it is unknown here."""
    import grp
    import pwd

    try:
        if name is not None:
            return pwd.getpwnam(name).pw_uid if option == "user" else grp.getgrnam(name).gr_gid
    except KeyError:
        pass
    return None


def _container(  # noqa: PLR0913, PLR0917 - what a container is made of
    replica: Replica, label: str, image: str, addresses: Sequence[str], ports: Sequence[int], kind: str
) -> dict[str, Any]:
    env, inside = replica.variables(_VARIABLE)
    words = ["daemonkit", *replica.run(listen=addresses, env=inside)]
    number = {"fieldRef": {"fieldPath": _NUMBER[kind]}} if kind in _NUMBER else None
    variables = {"DAEMONKIT_HOME": {"value": HOME}} | ({"DAEMONKIT_INSTANCE": {"valueFrom": number}} if number else {})
    variables |= {name: {"value": escaped(value)} for name, value in env.items()}
    most = replica.memory
    probe = {"exec": {"command": ["daemonkit", "status", replica.name]}, "timeoutSeconds": 5}
    container: dict[str, Any] = {
        "name": label,
        "image": image,
        "command": [escaped(word) for word in words],  # whatever the image's own is
        "workingDir": replica.settings.get("cwd", ""),
        "env": [{"name": name, **value} for name, value in variables.items()],
        "ports": [{"name": f"tcp-{number}", "containerPort": number} for number in ports],
        "readinessProbe": probe | {"periodSeconds": 5},
        "livenessProbe": probe
        | {"periodSeconds": _PERIOD, "failureThreshold": (_DOWN + replica.start_timeout) // _PERIOD},
        "resources": {
            what: {"memory": f"{most}Mi"} for what, most in (("requests", most // 2), ("limits", most)) if most
        },
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108 - so that a read-only root will do
    }
    return without_empty(container)


def _service(label: str, labels: Mapping[str, str], ports: Sequence[int], *, headless: bool) -> dict[str, Any]:
    spec: dict[str, Any] = {"clusterIP": "None"} if headless else {}
    spec["selector"] = labels
    if ports:
        spec["ports"] = [{"name": f"tcp-{number}", "port": number, "targetPort": number} for number in ports]
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": label, "labels": labels}, "spec": spec}
