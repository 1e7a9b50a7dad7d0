"""A batch script for Slurm, sbatch(1); of several apps, a script that submits one for each."""

from __future__ import annotations

import os
import re
import shlex
import sys

from daemonkit.cli._manifest.replica import Replica, comments

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Sequence
    from typing import Final

    from daemonkit.cli._manifest.replica import Wanted

_VARIABLE: Final = "[A-Za-z_][A-Za-z0-9_]*"
_SIGNAL: Final = 65535  # seconds; the longest that --signal takes
_PLAIN: Final = re.compile(r"[\w./+@-]+")
_HOME: Final = '"${TMPDIR:-/tmp}/daemonkit-$SLURM_JOB_ID"'
_HEAD: Final = (
    "Plain scancel signals all its processes at once, and kills them after the cluster's KillWait, 30 s by default.",
    "This stops it as daemonkit stop does:",
    "  scancel --batch --signal=TERM JOB",
    "This shows how it is:",
    "  srun --overlap --jobid=JOB sh -c 'DAEMONKIT_HOME=${TMPDIR:-/tmp}/daemonkit-JOB daemonkit status NAME'",
    "A job whose node fails is queued again (--requeue); before its time limit daemonkit is asked to stop (--signal).",
    "No --time is asked for, so that the partition's holds.",
)


def manifest(apps: Sequence[Wanted], image: str | None) -> str:
    if len(apps) == 1:
        return _script(Replica("slurm", apps[0]), [], image)
    parts = ["#!/bin/sh\n# Submits a job for each app: run this script itself, not with sbatch.\nset -e\n"]
    jobs: dict[str, str] = {}
    for number, app in enumerate(apps):  # each after those that it comes after
        script, end = _script(Replica("slurm", app), jobs, image), f"end-of-{app.name}"
        after = "".join(f":${jobs[other]}" for other in app.after if other in jobs)
        option = f" --dependency=after{after}" if after else ""
        job = jobs[app.name] = f"job{number}"
        while end in script:
            end += "-"
        parts.append(f"\n{job}=$(sbatch --parsable{option} <<'{end}'\n{script}{end}\n)\n")
        parts.append(f'{job}="${{{job}%%;*}}"\necho "{app.name}: job ${job}"\n')
    return "".join(parts)


def _script(replica: Replica, before: Container[str], image: str | None) -> str:
    replica.comes_after(before)
    if image:
        replica.remarks.append(f"{image} is not used: a job runs what is on its node, or begins with apptainer exec.")
    count = replica.settings.get("instances", 1)
    together = count == "auto" or "listen" in replica.settings
    env, inside = replica.variables(_VARIABLE)
    own = {"cpu_affinity": "spread"} if together and "cpu_affinity" in replica.settings else {}
    words = replica.run(number=str(count) if together else "1", env=inside, **own)
    cwd = replica.settings.get("cwd", "")
    directives = [
        f"--job-name={replica.name}",
        *([f"--array=0-{count - 1}"] if not together and count > 1 else []),
        "--ntasks=1",
        *_cpus(replica, together=together),
        *_memory(replica, together=together),
        "--no-requeue" if replica.restart == "never" else "--requeue",
        f"--signal=B:TERM@{min(replica.grace, _SIGNAL)}",
        "--open-mode=append",
        *([f"--chdir={cwd}"] if _PLAIN.fullmatch(cwd) else []),
    ]
    if together and count != 1:
        replica.remark("instances", "all are in one job, on one node, as they share its sockets or CPUs")
    kept = replica.settings.get("environment", os.environ)
    variables = {"PATH": kept.get("PATH", os.defpath), **env}
    lines = [
        "#!/bin/sh\n",
        *(f"#SBATCH {one}\n" for one in directives),
        comments([*_HEAD, *replica.remarks]),
        f"export DAEMONKIT_HOME={_HOME}\n",
        *([] if together or count == 1 else ['export DAEMONKIT_INSTANCE="$SLURM_ARRAY_TASK_ID"\n']),
        *(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()),
        *([] if _PLAIN.fullmatch(cwd) or not cwd else [f"cd {shlex.quote(cwd)} || exit\n"]),
        f"exec {shlex.join([sys.executable, '-m', 'daemonkit', *words])}\n",
    ]
    return "".join(lines)


def _cpus(replica: Replica, *, together: bool) -> list[str]:
    if replica.settings.get("instances") == "auto":
        return ["--exclusive"]
    if together and replica.count > 1:
        return [f"--cpus-per-task={replica.count}"]
    return ["--cpus-per-task=1"] if "cpu_affinity" in replica.settings else []


def _memory(replica: Replica, *, together: bool) -> list[str]:
    if not replica.memory:
        return []
    if replica.settings.get("instances") == "auto":  # one for each CPU
        return [f"--mem-per-cpu={replica.memory}M"]
    return [f"--mem={replica.memory * (replica.count if together else 1)}M"]
