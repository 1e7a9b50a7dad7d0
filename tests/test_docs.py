"""What the README and the documentation show is what happens."""

from __future__ import annotations

import doctest
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import harness
import pytest
from harness import alive, ended, eventually, run, stop

import daemonkit

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs").glob("howto/*.md"))]
BLOCKS = [
    pytest.param(code, id=f"{page.stem}-{n}")
    for page in PAGES
    for n, code in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL))
]


@pytest.mark.parametrize("code", BLOCKS)
def test_every_python_block_is_a_program_that_runs(tmp_path: Path, code: str) -> None:
    before = set(harness.children())
    done = run(tmp_path, code)
    assert (done.returncode, done.stderr) == (0, "")
    for pid in set(harness.children()) - before:
        for_ever = "while True" in code or "itertools.count" in code
        assert (stop(pid) if for_ever else ended(pid)) == 0
    assert not [line for log in tmp_path.glob("*.log") for line in log.read_text().splitlines() if "Traceback" in line]


def test_the_readmes_first_transcript_is_what_a_shell_shows(tmp_path: Path) -> None:
    text = PAGES[0].read_text()
    program = re.search(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    transcript = re.search(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert program and transcript
    (tmp_path / "beat.py").write_text(program[1])
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    pid = "none yet"
    for step in re.split(r"^\$ ", transcript[1], flags=re.MULTILINE)[1:]:
        command, _, expected = step.partition("\n")
        if "beat.log" in command:
            eventually(lambda: "alive" in (tmp_path / "beat.log").read_text())
        command = command.replace("4242", pid)
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        if "cat" in command and "kill" not in command:
            pid = done.stdout.strip()
        if "kill" in command:
            eventually(lambda pid=pid: not alive(int(pid)) or not (tmp_path / "beat.pid").exists())
        if "python" in command and "tail" not in command:
            pid = (tmp_path / "beat.pid").read_text().strip()
        seen = done.stdout.replace(pid, "4242").replace(str(tmp_path), "/srv")
        assert re.sub(r"since \d\d:\d\d", "since 10:31", seen) == expected
    eventually(lambda: not alive(int(pid)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["beat.log", "beat.py"]


@pytest.mark.parametrize(
    "name", ["_control", "_detach", "_handle", "_lock", "_policy", "_spawn", "_supervise", "errors"]
)
def test_examples_in_docstrings(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(f"daemonkit.{name}")
    result = doctest.testmod(module, extraglobs={"daemonkit": daemonkit, "os": os})
    assert result.attempted > 0 and result.failed == 0


def test_the_demo_shows_what_it_promises(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "demo.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "is held by process" in done.stdout and "Nothing is left running" in done.stdout
    assert list(tmp_path.iterdir()) == []
