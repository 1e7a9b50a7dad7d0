"""Manifests of odd apps: names, words and values that YAML, a shell or an engine would take for something else."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from shell import QUICK, Shell, one_line
from test_manifests import Author, app, author

from daemonkit.cli._manifest.replica import comments, dns_label
from daemonkit.cli._manifest.yaml_text import dump

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["author"]
ODD = [
    "no", "y", "On", "null", "~", "1.0", "1e3", "0o17", "017", "0x1F", "1_000", "12:30:45", "2024-01-01", ".inf", "=", "<<",
    "", " ", " a", "a: b", "# no comment", "- a", "{{.Task.Slot}}", "$HOME", "${HOME}", "$$", "$(HOME)", "%h", "`id`",
    "it's", 'a "b"', "back\\slash", "a\nb", "a\r\nb\t", "\x1b[1m", "\x85", "\u2028", "caf\xe9", "\U0001f600", "*", "&a", "!b",
]  # fmt: skip
SHOW = "import json, os, sys; sys.stdout.write(json.dumps([sys.argv[1:], os.environ['VALUE']]) + '\\n')"
"""In one write(2): print() makes two without a buffer, and a line of daemonkit's own may come between them."""


def unescaped(value: Any) -> Any:
    """Return what an engine makes of "$$"."""
    if isinstance(value, dict):
        return {key: unescaped(one) for key, one in value.items()}
    if isinstance(value, list):
        return [unescaped(one) for one in value]
    return re.sub(r"\$(.)", lambda found: "$" if found[1] == "$" else pytest.fail("a variable"), value)


@pytest.mark.parametrize("odd", ODD)
def test_words_and_values_arrive_as_they_are(author: Author, odd: str) -> None:
    text = app("web", command=["program", odd], env={"VALUE": odd}, restart="always")
    compose = yaml.safe_load(author.unit("compose", text))["services"]["web"]
    assert unescaped(compose["command"])[-2:] == ["program", odd]
    assert unescaped(compose["environment"])["VALUE"] == odd
    container = yaml.safe_load(author.unit("kubernetes", text))["spec"]["template"]["spec"]["containers"][0]
    assert unescaped(container["command"])[-2:] == ["program", odd]
    assert unescaped([one["value"] for one in container["env"]])[-1] == odd
    task = json.loads(author.unit("nomad", text))["Job"]["TaskGroups"][0]["Tasks"][0]
    assert task["Config"]["args"][-2:] == ["program", odd] and task["Env"]["VALUE"] == odd


def test_kubernetes_is_told_the_number_of_a_user_also_of_root(author: Author) -> None:
    text = author.unit("kubernetes", app("web", user="root", group="no-such-group"))
    assert yaml.safe_load(text)["spec"]["template"]["spec"]["securityContext"]["runAsUser"] == 0
    assert "runAsUser is a number: 0 on this machine" in text
    assert "runAsGroup is a number: unknown on this machine" in text


def test_a_batch_script_runs_the_program_with_the_same_words_in_the_same_environment(author: Author) -> None:
    odd = [word for word in ODD if word]
    value = "".join(odd)
    text = author.unit("slurm", app("web", command=[sys.executable, "-c", SHOW, *odd], env={"VALUE": value, "a b": "c"},
                                    cwd=str(author.folder), restart="never", min_uptime=0.05))  # fmt: skip
    environment = {**author.environment, "SLURM_JOB_ID": "7", "TMPDIR": str(author.folder)}
    done = subprocess.run(["sh", "-c", text], env=environment, capture_output=True, text=True, check=True)
    said = next(line for line in done.stdout.split("\n") if line.startswith("["))
    assert json.loads(said) == [odd, value]
    assert (author.folder / "daemonkit-7" / "web.json").exists()


@pytest.mark.parametrize("odd", [word for word in ODD if re.search("[^A-Za-z/]", word)])
def test_no_reader_of_yaml_takes_a_text_for_something_else(odd: str) -> None:
    written = dump([odd])
    assert yaml.safe_load(written) == [odd]
    assert written.startswith('- "') and written.isascii() and written.count("\n") == 1, "quoted, on one line"


@given(st.text())
def test_a_comment_ends_where_it_should(text: str) -> None:
    written = comments([text])
    assert all(line.startswith("# ") for line in written.splitlines())
    assert yaml.safe_load(f"{written}a: 1") == {"a": 1}


@given(st.lists(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,80}", fullmatch=True), min_size=1, max_size=5))
def test_each_app_has_a_name_of_its_own_that_dns_allows(names: list[str]) -> None:
    taken: list[str] = []
    for name in names:
        taken.append(dns_label(name, taken=taken))
    assert len({*taken}) == len(names)
    assert all(re.fullmatch(r"[a-z]([a-z0-9-]{0,50}[a-z0-9])?", name) for name in taken), taken


@pytest.mark.parametrize("engine", ["compose", "kubernetes", "nomad", "slurm"])
def test_names_are_mended_and_each_app_is_still_called_as_it_was(author: Author, engine: str) -> None:
    names = ["1.0", "Web_App", "web-app", "web.app", "no", "A" * 100]
    text = author.unit(engine, "".join(app(json.dumps(name), restart="always") for name in names))
    for name in names:
        assert re.search(rf"\b(run|daemonkit_\d)\b.*\n?.*{re.escape(name)}", text), name
    if engine == "kubernetes":
        labels = [one["metadata"]["name"] for one in yaml.safe_load_all(text)]
        assert len({*labels}) == len(names) and text.count("is called") == 5
    if engine == "compose":
        assert len(yaml.safe_load(text)["services"]) == len(names) and text.count("is called") == 3


def test_a_loopback_address_stays_one_outside_and_is_all_addresses_inside(author: Author) -> None:
    addresses = [
        "127.0.0.1:8001",
        "localhost:8002",
        "[::1]:8003",
        ":8004",
        "0.0.0.0:8005",
        "unix:/run/a.sock",
        "host:8006",
    ]
    text = author.unit("compose", app("web", listen=addresses))
    service = yaml.safe_load(text)["services"]["web"]
    assert service["ports"] == [
        "127.0.0.1:8001:8001", "127.0.0.1:8002:8002", "[::1]:8003:8003", "8004:8004", "8005:8005", "8006:8006",
    ]  # fmt: skip
    inside = [word.removeprefix("--listen=") for word in service["command"] if word.startswith("--listen=")]
    assert inside == [
        "0.0.0.0:8001",
        "0.0.0.0:8002",
        "[::]:8003",
        ":8004",
        "0.0.0.0:8005",
        "unix:/run/a.sock",
        "0.0.0.0:8006",
    ]


def test_nomad_runs_a_program_as_it_is_where_there_is_no_image(author: Author) -> None:
    (author.folder / "daemonkit.toml").write_text(app("web", listen=["127.0.0.1:80", "[::1]:80"], user="u", group="g"))
    group = json.loads(author("unit", "-f", "daemonkit.toml", "--for", "nomad").stdout)["Job"]["TaskGroups"][0]
    task = group["Tasks"][0]
    assert task["Driver"] == "raw_exec" and task["User"] == "u" and task["Config"]["command"] == sys.executable
    assert {"--listen=127.0.0.1:80", "--listen=[::1]:80", "--cwd=/srv/app"} <= {*task["Config"]["args"]}
    assert group["Networks"] == [{"Mode": "host", "ReservedPorts": [{"Label": "tcp_80", "Value": 80}]}]
    assert "in the replica" not in json.dumps(group["Meta"])


def test_a_number_that_the_app_gives_itself_is_there_once(author: Author) -> None:
    text = author.unit("kubernetes", app("web", env={"DAEMONKIT_INSTANCE": "5"}))
    container = next(yaml.safe_load_all(text))["spec"]["template"]["spec"]["containers"][0]
    assert [one["value"] for one in container["env"] if one["name"] == "DAEMONKIT_INSTANCE"] == ["5"]


def test_for_ever_and_no_limit_are_said_in_numbers(author: Author) -> None:
    text = app("web", stop_timeout=float("inf"), start_timeout=float("inf"), max_memory="max").replace(
        "Infinity", "inf"
    )
    pod = yaml.safe_load(author.unit("kubernetes", text))["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 365 * 86400 and "resources" not in pod["containers"][0]
    assert "@65535" in author.unit("slurm", text)
    assert yaml.safe_load(author.unit("compose", text))["services"]["web"]["stop_grace_period"] == "31536000s"


def test_the_engine_allows_twice_the_memory_that_daemonkit_replaces_at(author: Author) -> None:
    text = app("web", max_memory="100M", instances=2)
    assert "--mem=264M" in author.unit("slurm", text)
    assert yaml.safe_load(author.unit("kubernetes", text))["spec"]["template"]["spec"]["containers"][0]["resources"] == {
        "requests": {"memory": "132Mi"}, "limits": {"memory": "264Mi"},
    }  # fmt: skip


def test_a_file_of_variables_that_docker_reads_otherwise_is_written_out(author: Author) -> None:
    author.variables = "KEY='a b'\n"
    text = author.unit("compose", app("web", env_file=".env"))
    service = yaml.safe_load(text)["services"]["web"]
    assert "env_file" not in service and service["environment"]["KEY"] == "a b"
    author.variables = "KEY=plain # said\n"
    assert "env_file" not in yaml.safe_load(author.unit("compose", app("web", env_file=".env")))["services"]["web"]
    author.variables = "# said\n\nKEY=plain"
    text = author.unit("compose", app("web", env_file=".env", env={"OTHER": "x"}))
    service = yaml.safe_load(text)["services"]["web"]
    assert service["env_file"] == [".env"] and "KEY" not in service["environment"]
    assert "env (OTHER)" in text


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--for", "compose"], 2, "--image"),
        (["--for", "kubernetes", "--image", ""], 2, "invalid IMAGE"),
        (["--for", "compose", "--image", "a b"], 2, "invalid IMAGE"),
        (["--for", "docker", "--image", "a"], 2, "invalid choice"),
        (["--for", "slurm", "--user"], 2, "--user"),
        (["--image", "a"], 2, "--image"),
    ],
)
def test_a_bad_command_line_is_one_line_and_nothing_is_printed(
    author: Author, arguments: list[str], status: int, words: str
) -> None:
    (author.folder / "daemonkit.toml").write_text(app("web"))
    done = author("unit", "-f", "daemonkit.toml", *arguments, status=status)
    assert words in one_line(done.stderr) and not done.stdout


@pytest.mark.parametrize("engine", ["compose", "kubernetes", "nomad", "slurm"])
def test_an_address_that_is_none_and_a_value_that_is_not_utf_8_are_one_line(author: Author, engine: str) -> None:
    image = ["--image", "a"]
    if engine != "slurm":
        (author.folder / "daemonkit.toml").write_text(app("other") + app("web", listen="0.0.0.0:70000"))
        done = author("unit", "-f", "daemonkit.toml", "--for", engine, *image, status=1)
        assert "70000" in one_line(done.stderr) and not done.stdout
    author("start", "web", *QUICK, "--env", b"A=\xff".decode(errors="surrogateescape"), "--", "sleep", "1000")
    done = author("unit", "web", "--for", engine, *image, status=1)
    author("delete", "web")
    assert "web: env: it is not UTF-8" in one_line(done.stderr) and not done.stdout


def test_an_app_that_is_unknown_and_no_app_at_all_are_one_line(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    for arguments in (["web"], ["--all"]):
        done = shell("unit", *arguments, "--for", "slurm", status=1)
        assert "there is no app" in one_line(done.stderr) and not done.stdout


def test_without_pyyaml_the_way_to_have_it_is_told(author: Author) -> None:
    (author.folder / "yaml.py").write_text("raise ImportError\n")
    (author.folder / "daemonkit.toml").write_text(app("web"))
    for engine, status in (("compose", 1), ("kubernetes", 1), ("nomad", 0)):
        environment = {**author.environment, "PYTHONPATH": str(author.folder)}
        done = author("unit", "-f", "daemonkit.toml", "--for", engine, "--image", "a", status=status, env=environment)
        assert bool(done.stdout) == (not status)
        assert not status or one_line(done.stderr).endswith(f"; install it: {sys.executable} -m pip install pyyaml\n")


def test_docker_reads_odd_words_as_they_are(author: Author) -> None:
    if not shutil.which("docker"):
        pytest.skip("the docker command is not installed")
    odd = [word for word in ODD if "{{" not in word]  # a template is Swarm's to fill in
    path = author.folder / "compose.yaml"
    path.write_text(
        author.unit("compose", app("web", command=["program", *odd], env={f"V{n}": one for n, one in enumerate(odd)}))
    )
    done = subprocess.run(["docker", "stack", "config", "-c", path], capture_output=True, text=True, check=False,
                          env={**os.environ, "HOME": str(author.folder)})  # fmt: skip
    assert done.returncode == 0, done.stderr
    service = yaml.load(done.stdout, Loader=yaml.BaseLoader)["services"]["web"]  # PyYAML knows no plain "="
    assert service["command"][-len(odd) :] == odd
    assert [service["environment"][f"V{n}"] for n in range(len(odd))] == odd
