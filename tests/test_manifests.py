"""`daemonkit unit --for ENGINE`: what runs the same app elsewhere, and nothing that is dropped in silence."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import kubernetes_validate
import pytest
import yaml
from kubernetes_validate.utils import all_versions
from shell import QUICK, Shell, one_line

from daemonkit.cli import _kinds, _options
from daemonkit.cli._manifest import mapping
from daemonkit.cli._typed import parse
from daemonkit.cli._unit import unit, unit_of

if TYPE_CHECKING:
    from pathlib import Path

ENGINES = mapping.ENGINES
KUBERNETES = sorted({tuple(map(int, version.split(".")[:2])) for version in all_versions()})[-3:]
VALUES = {
    "instances": 3, "restart": "always", "success_codes": [0, 3], "backoff": [0.2, 3, 9], "min_uptime": 0.5,
    "steady_after": 7, "max_restarts": 4, "stop_signal": "INT", "stop_timeout": 21, "kill_mode": "main",
    "wait_ready": True, "start_timeout": 44, "ready_check": "check --up", "ready_tcp": "127.0.0.1:7000",
    "health_check": "check --well", "health_interval": 6, "health_failures": 5, "watchdog": 8, "max_memory": "200M",
    "cpu_affinity": "spread", "listen": "0.0.0.0:8123", "listen_nonblocking": True, "cwd": "/srv/other",
    "env": {"STAGE": "live"}, "user": "daemon", "group": "daemon", "umask": "027", "stdin": "/srv/in",
    "stdout": "/srv/out", "stderr": "/srv/err", "log": "/srv/log", "on_event": "tell", "log_max_bytes": "3M",
    "log_backups": 2, "log_format": "{time} ", "env_file": ".env", "after": ["other"], "command": "another program",
}  # fmt: skip
"""A value for each thing that an app can have, which is not the one it has anyway."""


class Author(Shell):
    """Somebody who has an app file and wants manifests of it."""

    variables = "KEY=hidden\n"
    """What is in its .env."""

    def unit(self, engine: str, text: str) -> str:
        (self.folder / "daemonkit.toml").write_text(text)
        (self.folder / ".env").write_text(self.variables)
        image = [] if engine == "slurm" else ["--image", "registry/app:1"]
        options = parse(["unit", "-f", f"{self.folder}/daemonkit.toml", "--for", engine, *image])
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            assert unit(options) == 0
        return said.getvalue()


@pytest.fixture
def author(tmp_path: Path) -> Author:
    return Author(tmp_path)


def app(name: str, **keys: object) -> str:
    """Return an app as a file has it; `keys` are laid over a command."""
    lines = [f"{key} = {_toml(value)}" for key, value in {"command": "program", "cwd": "/srv/app", **keys}.items()]
    return "\n".join([f"[apps.{name}]", *lines, ""])


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{_toml(key)} = {_toml(one)}' for key, one in value.items())} }}"
    return json.dumps(value, ensure_ascii=False)


def fields_and_comments(engine: str, text: str) -> tuple[Any, str]:
    """Return what the engine reads, and what the user does."""
    if engine == "nomad":
        job = json.loads(text)["Job"]
        groups = job["TaskGroups"]
        return groups, json.dumps([group.pop("Meta", {}) for group in groups])
    comments = "\n".join(re.findall(r"^ *#(?!SBATCH|!)(.*)$", text, re.MULTILINE))
    if engine == "slurm":
        return re.sub(r"^ *#(?!SBATCH).*\n", "", text, flags=re.MULTILINE), comments
    return [*yaml.safe_load_all(text)], comments


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("option", mapping.fields())
def test_each_thing_an_app_can_have_is_in_the_manifest_or_in_a_comment(
    author: Author, engine: str, option: str
) -> None:
    other = app("other") if option == "after" else ""
    without, _ = fields_and_comments(engine, author.unit(engine, other + app("web")))
    with_it, comments = fields_and_comments(engine, author.unit(engine, other + app("web", **{option: VALUES[option]})))
    named = re.search(rf"\b{option}\b", comments) is not None
    assert with_it != without or named
    cell = mapping.cell(option, engine)
    if not cell.field and not cell.inside:
        assert named, "what is lost is told"


@pytest.mark.parametrize("option", _options.OPTIONS, ids=lambda option: option.name)
def test_each_option_is_in_the_unit_of_systemd(option: _options.Option) -> None:
    before = {"command": ["program"], "cwd": "/srv/app"}
    value = _kinds.read(option, VALUES[option.name], "/")
    assert unit_of("web", before | {option.name: value}) != unit_of("web", before)


def test_the_values_of_the_walk_are_all_that_an_app_can_have() -> None:
    schema = {option.name for option in _options.OPTIONS} | {"command", "env_file", "after"}
    assert VALUES.keys() == schema == {*mapping.fields()}
    assert mapping.TABLE.keys() <= schema


@pytest.mark.parametrize("version", KUBERNETES, ids=lambda version: ".".join(map(str, version)))
def test_kubernetes_takes_what_is_made_for_it(author: Author, version: tuple[int, int]) -> None:
    keys = {key: value for key, value in VALUES.items() if key not in {"after", "ready_tcp"}}
    text = author.unit(
        "kubernetes",
        app("all", **keys)
        + app("numbered", log="/srv/{instance}.log", listen=["127.0.0.1:80", "unix:/run/x.sock"])
        + app("job", restart="never", instances=2)
        + app("plain"),
    )
    documents = [*yaml.safe_load_all(text)]
    assert sorted(one["kind"] for one in documents) == [
        "Deployment", "Deployment", "Job", "Service", "Service", "StatefulSet",
    ]  # fmt: skip
    for document in documents:
        kubernetes_validate.validate(document, ".".join(map(str, version)), strict=True)


def test_each_engine_gives_its_own_number_of_the_replica(author: Author) -> None:
    numbered = app("web", instances=3, command=["sh", "-c", "echo $DAEMONKIT_INSTANCE"])
    web = yaml.safe_load(author.unit("compose", numbered))["services"]["web"]
    assert web["environment"]["DAEMONKIT_INSTANCE"] == "{{.Task.Slot}}"
    assert '"DAEMONKIT_INSTANCE": "${NOMAD_ALLOC_INDEX}"' in author.unit("nomad", numbered)
    script = author.unit("slurm", numbered)
    assert 'DAEMONKIT_INSTANCE="$SLURM_ARRAY_TASK_ID"' in script and "#SBATCH --array=0-2\n" in script
    for text, kind, path in (
        (numbered, "StatefulSet", "metadata.labels['apps.kubernetes.io/pod-index']"),
        (numbered + 'restart = "never"', "Job", "metadata.annotations['batch.kubernetes.io/job-completion-index']"),
    ):
        found = next(yaml.safe_load_all(author.unit("kubernetes", text)))
        variables = {one["name"]: one for one in found["spec"]["template"]["spec"]["containers"][0]["env"]}
        assert found["kind"] == kind
        assert variables["DAEMONKIT_INSTANCE"]["valueFrom"] == {"fieldRef": {"fieldPath": path}}


def test_sockets_that_are_shared_keep_the_instances_of_a_batch_job_together(author: Author) -> None:
    script = author.unit("slurm", app("web", instances=3, listen="0.0.0.0:8000", cpu_affinity="spread"))
    assert " run web -i 3 " in script and "#SBATCH --cpus-per-task=3\n" in script and "--array" not in script
    assert "--cpu-affinity=spread" in script, "there are several, on CPUs of their own"


def test_an_order_that_the_manifest_can_not_have_is_remarked(author: Author) -> None:
    author("start", "web", *QUICK, "--", "sleep", "1000")
    kept = author.home / "web.json"
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "after": ["db"]}))  # as `up` keeps it
    for engine in ENGINES:
        text = author("unit", "web", "--for", engine, "--image", "a").stdout
        fields, comments = fields_and_comments(engine, text)
        assert re.search(r"after = \[.*db", comments) and "db" not in str(fields)
    author("delete", "web")


def test_one_instance_for_each_cpu_of_a_batch_job(author: Author) -> None:
    script = author.unit("slurm", app("web", instances="auto", max_memory="100M"))
    assert " run web -i auto " in script and "#SBATCH --exclusive\n" in script and "--mem-per-cpu=264M" in script
    assert "this machine" not in script


def test_the_engine_that_needs_an_image_says_so(author: Author) -> None:
    (author.folder / "daemonkit.toml").write_text(app("web"))
    for engine in ("compose", "kubernetes"):
        assert "--image" in one_line(author("unit", "-f", "daemonkit.toml", "--for", engine, status=2).stderr)


def test_a_batch_script_is_a_script_and_its_words_are_the_apps(author: Author) -> None:
    words = ["program", "it's", "$HOME", "a  b", "*"]
    text = author.unit("slurm", app("web", command=words, instances=4, env={"SAY": "it's $HOME"}))
    subprocess.run(["sh", "-n"], input=text, text=True, check=True)
    last = shlex.split(text.splitlines()[-1])
    assert last[-5:] == words and last[4:8] == ["run", "web", "-i", "1"]
    assert "#SBATCH --array=0-3" in text


READERS = [
    "docker stack config --compose-file FILE",
    "docker compose --file FILE config",
    "docker-compose --file FILE config",
]


@pytest.mark.parametrize("reader", READERS)
def test_what_is_made_for_compose_is_taken_by_what_reads_it(author: Author, reader: str) -> None:
    program, verb, *_ = reader.split()
    if not shutil.which(program):
        pytest.skip(f"{program} is not installed")
    refused = {"ready_tcp", *(["after"] if verb == "stack" else [])}
    keys = {key: value for key, value in VALUES.items() if key not in refused}
    path = author.folder / "compose.yaml"
    path.write_text(author.unit("compose", app("all", **keys) + app("other") + app("plain")))
    command = [str(path) if word == "FILE" else word for word in reader.split()]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "HOME": str(author.folder)}
    )
    if "unknown flag: --file" in done.stderr:
        pytest.skip("docker has no compose")
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["services"]["all"]["deploy"]["replicas"] == 3
