"""What becomes of each option of an app on each engine.

This is the one table of it. The makers of manifests pass to `daemonkit run` what stays inside, and make a comment of
each remark, so that nothing is dropped in silence. The page "When one machine is not enough" shows the same table.
"""

from __future__ import annotations

from collections import namedtuple

from daemonkit.cli._options import OPTIONS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

ENGINES: Final = ("compose", "kubernetes", "nomad", "slurm")


class Cell(namedtuple("Cell", ("field", "inside", "remark"), defaults=("",))):
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


def _both(field: str, remark: str = "") -> Cell:
    return Cell(field, inside=True, remark=remark)


def _inside(remark: str = "") -> Cell:
    return Cell("", inside=True, remark=remark)


def _lost(remark: str) -> Cell:
    return Cell("", inside=False, remark=remark)


_ALL: Final = _inside()
_FILE: Final = _inside("it is a file of the replica's own, and goes with it; mount a volume there to keep it")
_SOURCE: Final = _inside("the file must be in the image, or on a volume")
_SCRIPT: Final = _inside("what it runs must be in the image, with a shell")
_GIVEN_UP: Final = _inside("once it has been given up, the engine starts the replica anew, and the row with it")
_THERE: Final = "it must be there in the image, or be changed to where the app is"
_CPU: Final = "alone in its replica it would always have the first CPU; "
_PLAIN: Final = "the values stand here in plain text; a secret belongs into "
_WAIT: Final = _lost("all start at once: the program has to wait for what it needs")
_BATCH: Final = _inside("plain scancel signals all processes at once; use scancel --batch --signal=TERM JOB")
_SUBMIT: Final = _lost("a job runs as whoever submits it; root may submit with sbatch --uid=USER --gid=GROUP")
_NO_ORDER: Final = "docker stack deploy has no order and refuses conditions: for Swarm delete depends_on, and have the "

TABLE: Final[dict[str, tuple[Cell, Cell, Cell, Cell]]] = {
    "command": (_both("command"), _both("command"), _both("Config"), _both("the last line")),
    "instances": (_maps("deploy.replicas"), _maps("replicas"), _maps("Count"), _maps("--array; with listen -i N")),
    "restart": (_both("restart"), _both("kind"), _both("Type, RestartPolicy"), _both("--requeue")),
    "max_restarts": (_GIVEN_UP, _GIVEN_UP, _GIVEN_UP, _ALL),
    "stop_signal": (_ALL, _ALL, _ALL, _BATCH),
    "stop_timeout": (
        _both("stop_grace_period"),
        _both("terminationGracePeriodSeconds"),
        _both("KillTimeout", "a client's max_kill_timeout, 30 s unless configured, limits it"),
        _both("--signal", "plain scancel waits for the cluster's KillWait instead, 30 s unless configured"),
    ),
    "kill_mode": (_ALL, _ALL, _ALL, _BATCH),
    "start_timeout": (
        _both("healthcheck.start_period"),
        _both("progressDeadlineSeconds"),
        _both("Update.HealthyDeadline"),
        _ALL,
    ),
    "max_memory": (_both("deploy.resources"), _both("resources"), _both("Resources.MemoryMB"), _both("--mem")),
    "cpu_affinity": (
        _lost(_CPU + "give each service a cpuset, or deploy.resources.limits.cpus"),
        _lost(_CPU + "the kubelet's static CPU manager does it for whole resources.limits.cpu"),
        _maps("Resources.Cores"),
        _maps("--cpus-per-task", "the cluster binds to CPUs where TaskPlugin has affinity or cgroup"),
    ),
    "listen": (
        _both("ports"),
        _both("Service, ports"),
        _both("Networks, Services"),
        _inside("it is bound on the node that the job gets: squeue tells which"),
    ),
    "cwd": (
        _maps("working_dir", _THERE),
        _maps("workingDir", _THERE),
        _maps("work_dir", _THERE),
        _maps("--chdir", "it must be there on each node"),
    ),
    "env": (
        _maps("environment", _PLAIN + "secrets:"),
        _maps("env", _PLAIN + "a Secret, with envFrom"),
        _maps("Env", _PLAIN + "Vault or a Nomad variable"),
        _maps("export", _PLAIN + "a file of mode 600 that the program reads"),
    ),
    "user": (_maps("user"), _maps("runAsUser"), _maps("User"), _SUBMIT),
    "group": (_maps("user"), _maps("runAsGroup"), _maps("User"), _SUBMIT),
    "stdin": (_SOURCE, _SOURCE, _SOURCE, _ALL),
    "stdout": (_FILE, _FILE, _FILE, _ALL),
    "stderr": (_FILE, _FILE, _FILE, _ALL),
    "log": (_FILE, _FILE, _FILE, _ALL),
    "on_event": (_SCRIPT, _SCRIPT, _SCRIPT, _ALL),
    "env_file": (
        _maps("env_file", "keep the manifest beside the app file"),
        _maps("env"),
        _maps("Env"),
        _maps("export"),
    ),
    "after": (
        _maps("depends_on", _NO_ORDER + "program wait for what it needs"),
        _WAIT,
        _WAIT,
        _maps("--dependency=after", "the job begins once the other one has begun, which may not be up yet"),
    ),
}
"""By option, a cell for each engine. An option that is not here stays inside everywhere."""


def cell(option: str, engine: str) -> Cell:
    """Return what becomes of an option."""
    return TABLE.get(option, (_ALL,) * len(ENGINES))[ENGINES.index(engine)]


def fields() -> list[str]:
    """Return all that an app can have, in the order of the command line's options."""
    return ["command", *(option.name for option in OPTIONS), "env_file", "after"]
