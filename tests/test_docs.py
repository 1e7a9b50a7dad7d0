"""What the README and the documentation show is what happens."""

from __future__ import annotations

import doctest
import importlib
import inspect
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import harness
import pytest
from harness import alive, ended, eventually, run, stop

import daemonkit

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "README.zh-CN.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = [
    pytest.param(code, id=f"{page.stem}-{n}")
    for page in PAGES
    for n, code in enumerate(
        re.findall(r"(?<!`[:\uff1a]\n\n)^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    )
]  # those with a name are run by the page's transcripts


@pytest.mark.parametrize("code", BLOCKS)
def test_every_python_block_is_a_program_that_runs(tmp_path: Path, code: str) -> None:
    before = set(harness.children())
    done = run(tmp_path, code)
    assert (done.returncode, done.stderr) == (0, "")
    for pid in set(harness.children()) - before:
        for_ever = "while True" in code or "itertools.count" in code
        assert (stop(pid) if for_ever else ended(pid)) == 0
    assert not [line for log in tmp_path.glob("*.log") for line in log.read_text().splitlines() if "Traceback" in line]


# A page's story: its programs are written down under their names, which the line above a block gives ("`beat.py`:"), and
# what its transcripts say is typed. Commands that need another machine, root or a registry are in `sh` blocks, not typed.
TOLD = {"README", "README.zh-CN", "index", "install", "tutorial", "cli"}
# Sessions that prove what a page says in words stand beside the tests.
PROOFS = sorted((ROOT / "tests" / "sessions").glob("*.md"))
STORIES = [page for page in PAGES if page.parent.name == "howto" or page.stem in TOLD] + PROOFS
PART = re.compile(
    r"`(?P<name>[\w.]+)`[:\uff1a]\n\n```(?:python|toml|ini|json|text)\n(?P<program>.*?)^```"
    r"|^```\{literalinclude\} (?P<included>\S+)"
    r"|^```console\n(?P<transcript>.*?)^```",
    re.MULTILINE | re.DOTALL,
)
# These are typed again until they show what they should: a daemon takes time.
LOOKS = {"cat", "grep", "head", "ls", "sort", "tail"}


class Shell:
    """Types commands and compares what they show. A number of four digits or more is a pid, learnt where it comes first."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.pids: dict[str, str] = {}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path, "HOME": str(directory), "DAEMONKIT_HOME": f"{directory}/state"}

    def follow(self, transcript: str) -> None:
        for step in re.split(r"^\$ ", transcript, flags=re.MULTILINE)[1:]:
            command, _, shown = step.replace("\\\n", " ").partition("\n")
            self.type(command, shown)

    def type(self, command: str, shown: str) -> None:
        for number, pid in self.pids.items():
            command = re.sub(rf"\b{number}\b", pid, command)
        command = re.sub(r"\$\(cat (\S+)\)", lambda file: (self.directory / file[1]).read_text().strip(), command)
        if command.split()[0] in LOOKS or re.match("daemonkit (ls|status|logs) ?", command):
            eventually(lambda: self.is_as_shown(self.output_of(command), shown), f"{shown!r} from {command}")
            return
        seen = self.output_of(command)
        assert self.is_as_shown(seen, shown), f"$ {command}\n{seen}\nis not\n{shown}"
        if re.match(r"kill (-9 )?\d", command):
            eventually(lambda: not any(alive(int(pid)) for pid in re.findall(r"\d{2,}", command)), command)

    def output_of(self, command: str) -> str:
        with tempfile.TemporaryFile("w+") as terminal:  # a pipe's end would wait for whatever keeps it open
            subprocess.run(
                command, shell=True, cwd=self.directory, env=self.environment, stdin=subprocess.DEVNULL,
                stdout=terminal, stderr=subprocess.STDOUT, check=False, timeout=harness.PATIENCE,
            )  # fmt: skip
            terminal.seek(0)
            return terminal.read()

    def is_as_shown(self, seen: str, shown: str) -> bool:
        """Compare; "..." stands for anything, and a time of day for any other."""
        pattern = re.escape(shown.replace("/srv/app", str(self.directory))).replace(r"\.\.\.", ".*")
        pattern = re.sub(r"\b\d\d:\d\d\b", r"\\d\\d:\\d\\d", pattern)
        for number in set(re.findall(r"\b[1-9]\d{3,}\b", shown)):
            first, *others = re.split(rf"\b{number}\b", pattern)
            learn = self.pids.get(number, f"(?P<n{number}>\\d+)")
            again = self.pids.get(number, f"(?P=n{number})")
            pattern = first + learn + again.join(others)
        found = re.fullmatch(pattern, seen, re.DOTALL)
        self.pids.update({name[1:]: pid for name, pid in found.groupdict().items()} if found else {})
        return bool(found)


@pytest.mark.parametrize("page", STORIES, ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_what_a_transcript_shows_is_what_a_shell_shows(tmp_path: Path, page: Path) -> None:
    shell = Shell(tmp_path)
    before = set(harness.children())
    names = {part["name"] for part in PART.finditer(page.read_text()) if (part["name"] or "").endswith(".py")}
    typed = re.findall(r"[\w.]+\.py", " ".join(re.findall(r"^\$ .*\bpython .*", page.read_text(), re.MULTILINE)))
    launched = re.findall(r'"(\w+\.py)"', page.read_text())
    imported = {f"{name}.py" for name in re.findall(r"^(?:from|import) (\w+)", page.read_text(), re.MULTILINE)}
    assert names <= {*typed, *launched, *imported}, "each is run"
    for part in PART.finditer(page.read_text()):
        if part["program"]:
            (tmp_path / part["name"]).write_text(part["program"])
        elif part["included"]:
            shutil.copy(page.parent / part["included"], tmp_path)
        else:
            shell.follow(part["transcript"])
    eventually(lambda: not [pid for pid in set(harness.children()) - before if alive(pid)], "nothing is left running")


@pytest.mark.parametrize(
    "name",
    [
        "_control",
        "_status",
        "_detach.context",
        "_system.handle",
        "_pidfile.pidfile",
        "_supervise.rules",
        "_spawn.spawn",
        "_service.service",
        "_supervise.supervise",
        "errors",
    ],
)
def test_examples_in_docstrings(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(f"daemonkit.{name}")
    result = doctest.testmod(module, extraglobs={"daemonkit": daemonkit, "os": os, "signal": signal})
    assert result.attempted > 0 and result.failed == 0


@pytest.mark.parametrize("name", ["detached", "spawn_detached", "status", "attach", "send_signal", "stop", "supervise"])
def test_the_reference_has_every_argument(name: str) -> None:
    sections = re.split(r"^## ", (ROOT / "docs" / "reference.md").read_text(), flags=re.MULTILINE)
    section = next(text for text in sections if f"daemonkit.{name}\n" in text)
    told = set(re.findall(r"`(\w+)`", section)) | {
        "pidfile",
        "sig",
        "timeout",
        "signal",
        "kill",
        "group",
    }  # told by docstrings
    assert set(inspect.signature(getattr(daemonkit, name)).parameters) <= told


def test_the_reference_has_every_name() -> None:
    text = (ROOT / "docs" / "reference.md").read_text()
    assert [name for name in daemonkit.__all__ if f"daemonkit.{name}" not in text] == []


def test_the_house_that_contributors_are_shown_is_the_one_that_is_checked() -> None:
    floors = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]["layers"]
    text = (ROOT / "CONTRIBUTING.md").read_text()
    shown = [set(re.findall(r"`(\w+)`", row)) for row in re.findall(r"^\| (`\w+`.*?) \|", text, re.MULTILINE)]
    assert set().union(*shown) == {name for floor in floors for name in floor.split(" | ")}
    order = {name: n for n, names in enumerate(shown) for name in names}
    places = [order[name] for floor in floors for name in floor.split(" | ")]
    assert places == sorted(places), "from the top down"


def test_the_demo_shows_what_it_promises(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "demo.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "is held by process" in done.stdout and "Nothing is left running" in done.stdout
    assert list(tmp_path.iterdir()) == []
