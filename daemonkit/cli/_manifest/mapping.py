"""What becomes of each option of an app on each engine.

The one table of it: the makers of the manifests pass to `daemonkit run` what stays inside, and make a comment of each
remark, so that nothing is dropped in silence; the page "When one machine is not enough" has the same table.
"""

from __future__ import annotations

from collections import namedtuple

from daemonkit.cli._options import OPTIONS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

ENGINES: Final = ("compose", "kubernetes", "nomad", "slurm")


class Cell(namedtuple("Cell", ("field", "inside", "remark"))):
    """What becomes of one option on one engine; with neither field nor inside it is lost."""

    __slots__ = ()
    field: str
    """The engine's own word for it; '' if it has none."""
    inside: bool
    """Whether `daemonkit run` is told it, in each replica."""
    remark: str
    """What the user has to know or to do."""


def _maps(field: str, remark: str = "") -> Cell:
    return Cell(field, inside=False, remark=remark)


def _inside(remark: str = "") -> Cell:
    return Cell("", inside=True, remark=remark)


def _both(field: str, remark: str = "") -> Cell:
    return Cell(field, inside=True, remark=remark)


def _lost(remark: str) -> Cell:
    return Cell("", inside=False, remark=remark)


_INSIDE: Final = (_inside(),) * 4
_AGAIN: Final = "once it has been given up, {engine} starts the replica anew, and the row of restarts with it"
_FILE: Final = _inside("it is a file of the replica's own, and goes with it; mount a volume there to keep it")
_SOURCE: Final = _inside("the file must be in the image, or on a volume")
_ALL_AT_ONCE: Final = "plain scancel signals all processes at once; use scancel --batch --signal=TERM JOB"
_SUBMIT: Final = _lost("a job runs as whoever submits it; root may submit with sbatch --uid=USER --gid=GROUP")
_CPUSET: Final = "alone in its replica it would always have the first CPU; "

TABLE: Final[dict[str, tuple[Cell, Cell, Cell, Cell]]] = {
    "command": (_both("entrypoint, command"), _both("command"), _both("Config"), _both("the script's last line")),
    "after": (
        _maps(
            "depends_on",
            "docker stack deploy knows no order and refuses conditions: delete depends_on for Swarm, "
            "where the program has to wait for what it needs",
        ),
        _lost("Kubernetes starts all at once: the program has to wait for what it needs"),
        _lost("Nomad starts all groups at once: the program has to wait for what it needs"),
        _maps("--dependency=after", "the job begins after the other one has begun, which may not be up yet"),
    ),
    "instances": (
        _maps("deploy.replicas"),
        _maps("replicas (of a Job: completions, parallelism)"),
        _maps("Count"),
        _maps("--array (with listen: one job, -i N)"),
    ),
    "restart": (
        _both("restart, deploy.restart_policy"),
        _both("kind, restartPolicy"),
        _both("Type, RestartPolicy"),
        _both("--requeue, --no-requeue"),
    ),
    "max_restarts": (
        _inside(_AGAIN.format(engine="the engine") + '; restart: "no" leaves it down'),
        _inside(_AGAIN.format(engine="Kubernetes")),
        _inside(_AGAIN.format(engine="Nomad")),
        _inside(),
    ),
    "stop_signal": (_inside(), _inside(), _inside(), _inside(_ALL_AT_ONCE)),
    "stop_timeout": (
        _both("stop_grace_period"),
        _both("terminationGracePeriodSeconds"),
        _both("KillTimeout", "a client's max_kill_timeout, 30 s unless configured, limits it"),
        _both("--signal", "scancel waits for the cluster's KillWait, 30 s unless configured, and not longer"),
    ),
    "kill_mode": (_inside(), _inside(), _inside(), _inside(_ALL_AT_ONCE)),
    "start_timeout": (
        _both("healthcheck.start_period"),
        _both("progressDeadlineSeconds"),
        _both("Update.HealthyDeadline"),
        _inside(),
    ),
    "max_memory": (
        _both("deploy.resources.limits.memory"),
        _both("resources"),
        _both("Resources.MemoryMB"),
        _both("--mem"),
    ),
    "cpu_affinity": (
        _lost(_CPUSET + "give each service a cpuset, or deploy.resources.limits.cpus"),
        _lost(_CPUSET + "the kubelet's static CPU manager does it for whole resources.limits.cpu"),
        _maps("Resources.Cores"),
        _maps("--cpus-per-task", "the cluster binds to CPUs where TaskPlugin has affinity or cgroup"),
    ),
    "listen": (
        _both("ports"),
        _both("Service, containerPort"),
        _both("Networks"),
        _inside("it is bound on the node that the job gets: squeue tells which"),
    ),
    "cwd": (
        _maps("working_dir", "it must be there in the image, or be changed to where the app is"),
        _maps("workingDir", "it must be there in the image, or be changed to where the app is"),
        _maps("Config.work_dir", "it must be there in the image or on each client, or be changed"),
        _maps("--chdir", "it must be there on each node"),
    ),
    "env": (
        _maps("environment", "the values stand here in plain text; a secret belongs into secrets:"),
        _maps("env", "the values stand here in plain text; a secret belongs into a Secret, with envFrom"),
        _maps("Env", "the values stand here in plain text; a secret belongs into Vault or a Nomad variable"),
        _maps("export", "the values stand here in plain text; have a secret read from a file of mode 600"),
    ),
    "env_file": (
        _maps("env_file, or environment", "keep the manifest beside the app file"),
        _maps("env"),
        _maps("Env"),
        _maps("export"),
    ),
    "user": (_maps("user"), _maps("securityContext.runAsUser"), _maps("User"), _SUBMIT),
    "group": (_maps("user"), _maps("securityContext.runAsGroup"), _maps("User"), _SUBMIT),
    "stdin": (_SOURCE, _SOURCE, _SOURCE, _inside()),
    "stdout": (_FILE, _FILE, _FILE, _inside()),
    "stderr": (_FILE, _FILE, _FILE, _inside()),
    "log": (_FILE, _FILE, _FILE, _inside()),
    "on_event": (_inside("what it runs must be in the image, with a shell"),) * 3 + (_inside(),),
}
"""By option, a cell for each engine. An option that is not here stays inside everywhere."""


def cell(option: str, engine: str) -> Cell:
    """Return what becomes of an option."""
    return TABLE.get(option, _INSIDE)[ENGINES.index(engine)]


def fields() -> list[str]:
    """Return all that an app can have, in the order of the command line's options."""
    return ["command", *(option.name for option in OPTIONS), "env_file", "after"]


def as_text() -> str:
    """Return the table for the documentation, as Markdown."""
    rows = [f"| option | {' | '.join(ENGINES)} |", f"| --- |{' --- |' * len(ENGINES)}"]
    rows += [f"| `{name}` | {' | '.join(_shown(cell(name, one)) for one in ENGINES)} |" for name in fields()]
    return "".join(f"{row}\n" for row in rows)


def _shown(one: Cell) -> str:
    how = [f"`{one.field}`" if one.field else "", "inside" if one.inside else ""]
    return "; ".join([part for part in (" and ".join(filter(None, how)) or "lost", one.remark) if part])
