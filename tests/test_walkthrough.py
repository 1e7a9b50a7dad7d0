"""The walk-through, the page for those who come from Node, and real Node side by side with `spawn_detached`."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import harness
import pytest
from harness import Terminal, alive, ended, eventually, run, stop

ROOT = Path(__file__).parent.parent
WALKTHROUGH = ROOT / "examples" / "walkthrough.py"
PAGE = (ROOT / "docs" / "node.md").read_text()
LAUNCHERS = ["daemonkit", "node"]


@pytest.fixture(scope="session")
def node() -> str:
    found = shutil.which("node")
    if not found:
        pytest.skip("Node is not installed: nothing to compare with")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.lstrip("v").partition(".")[0]) < 20:
        pytest.skip(f"the page is about Node 20 or later; this is {version.strip()}")
    return found


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where programs make their temporary directories."""
    directory = tmp_path / "temporary"
    directory.mkdir()
    monkeypatch.setenv("TMPDIR", str(directory))
    return directory


# --- the walk-through ---------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """A line of a printed process table."""

    pid: int
    ppid: int
    pgid: int
    sid: int
    tty: str
    command: str


def tables(text: str) -> list[list[Row]]:
    """Return the process tables in what the walk-through printed."""
    found: list[list[Row]] = []
    for line in text.splitlines():
        words = line.split(maxsplit=5)
        if words[:1] == ["PID"]:
            found.append([])
        elif len(words) == 6 and words[0].isdigit():
            found[-1].append(Row(*map(int, words[:4]), *words[4:]))
    return found


def shape(text: str) -> list[list[str]]:
    """Return the words, with a name for each pid that shows which are the same, and without what may differ."""
    text = re.sub(r"\S+ walkthrough\.\w+", "PROGRAM", re.sub(r"job \d+", "job N", re.sub(r"pts/\d+", "pts/N", text)))
    names: dict[str, str] = {}
    found = []
    for line in text.strip().splitlines():
        words = line.split()
        if words[-1:] == ["PROGRAM"]:
            words[1] = "PPID"  # the shell's parent is not part of the story
        found.append([names.setdefault(word, f"pid{len(names)}") if word.isdigit() else word for word in words])
    return found


def block(language: str, starts: str) -> str:
    """Return the page's one block that starts so."""
    (found,) = [
        code
        for code in re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
        if code.startswith(starts)
    ]
    return str(found)


def check_tables(text: str, *, terminal: bool) -> None:
    """Check the effects, from the printed tables."""
    (shell, a, b), (_, other_a, detached), (_, orphan) = tables(text)
    assert a.ppid == other_a.ppid == shell.pid and b.ppid == a.pid and detached.ppid == other_a.pid
    assert (b.pgid, b.sid, b.tty) == (a.pgid, a.sid, a.tty) == (shell.pgid, shell.sid, shell.tty)
    assert (shell.tty != "none") is terminal
    assert detached.pid == detached.pgid == detached.sid and detached.tty == "none"
    assert orphan == detached._replace(ppid=os.getpid())  # the nearest subreaper
    assert f"adopted by process {os.getpid()} " in text
    assert len(re.findall(r"^B has done job \d+", text, re.MULTILINE)) == 3
    for row in (shell, a, b, other_a, detached):
        eventually(lambda pid=row.pid: not alive(pid), f"the end of {row}")


def test_the_walk_through_shows_it_at_a_terminal(tmp_path: Path, temporary: Path) -> None:
    terminal = Terminal([sys.executable, WALKTHROUGH], tmp_path)
    text = terminal.read()
    assert ended(terminal.pid) == 0
    terminal.hang_up()
    check_tables(text, terminal=True)
    assert shape(text) == shape(block("console", "$ python walkthrough.py").partition("\n")[2])
    assert list(temporary.iterdir()) == []


def test_the_walk_through_shows_it_without_a_terminal(tmp_path: Path, temporary: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", WALKTHROUGH],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        start_new_session=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    check_tables(done.stdout, terminal=False)
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("step", [1, 2, 3])
def test_an_interrupted_walk_through_leaves_nothing(tmp_path: Path, temporary: Path, step: int, number: int) -> None:
    terminal = Terminal([sys.executable, WALKTHROUGH], tmp_path)
    terminal.read(f"{step}. A ")
    os.kill(terminal.pid, number)
    came_too_late = "Nothing is left running" in terminal.read()
    assert ended(terminal.pid) == (0 if came_too_late else 128 + number)
    terminal.hang_up()
    assert list(temporary.iterdir()) == []  # and no process: the fixture looks for them


def test_the_pages_node_program_shows_the_same(tmp_path: Path, temporary: Path, node: str) -> None:
    program = tmp_path / "walkthrough.mjs"
    program.write_text(block("js", "import { spawn }"))
    terminal = Terminal([node, program], tmp_path)
    text = terminal.read()
    assert ended(terminal.pid) == 0
    terminal.hang_up()
    check_tables(text, terminal=True)
    assert shape(text) == shape(block("console", "$ python walkthrough.py").partition("\n")[2])
    assert list(temporary.iterdir()) == []


def test_an_event_loop_reaps_each_program_as_it_ends(tmp_path: Path) -> None:
    program = ROOT / "examples" / "asyncio_reap.py"
    # Without -X dev: on a loaded machine asyncio's debug mode tells of slow steps.
    command = [sys.executable, "-W", "error", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [re.sub(r"process \d+", "it", line) for line in done.stdout.splitlines()]
    loops = ("asyncio", "selectors")
    assert sorted(lines) == [f"{loop}: it ended with status {n} and left no zombie" for loop in loops for n in range(4)]


# --- the page's table ---------------------------------------------------------------------------------------------

OPTIONS = """cwd env argv0 stdio detached uid gid serialization shell windowsVerbatimArguments windowsHide signal timeout
    killSignal 'pipe' 'overlapped' 'ipc' 'ignore' 'inherit' null undefined 'spawn' 'exit' 'close' 'error' 'message'
    'disconnect' command args"""


def first_cells() -> str:
    """Return the left column of the page's tables."""
    return "\n".join(line.split(" | ")[0] for line in PAGE.splitlines() if line.startswith("| "))


@pytest.mark.parametrize("name", OPTIONS.split())
def test_the_table_has_every_option_and_event(name: str) -> None:
    assert f"`{name}`" in first_cells()


def test_the_table_has_every_member_of_a_real_childprocess_and_every_error(tmp_path: Path, node: str) -> None:
    script = """
        const { spawn, ChildProcess } = require('child_process');
        const child = spawn('true', { stdio: ['pipe', 'pipe', 'pipe', 'ipc'] });
        const names = [...Object.keys(child), ...Object.getOwnPropertyNames(ChildProcess.prototype)];
        const sources = ['child_process', 'internal/child_process'].map((name) => process.binding('natives')[name]);
        console.log(JSON.stringify({ names, errors: sources.join('').match(/ERR_[A-Z_]+/g) }));
    """
    members = ask(node, "--no-deprecation", "-e", script, cwd=tmp_path)
    names = {name for name in members["names"] if not name.startswith("_")} - {"constructor", "spawn"}
    cells = first_cells()
    assert {"pid", "kill", "channel"} <= names
    assert not [name for name in names if not re.search(rf"`{name}(\(\))?`", cells)]
    assert not [name for name in members["errors"] if f"`{name}`" not in cells]


def ask(*command: object, cwd: Path, **options: Any) -> Any:
    """Run a program that prints JSON."""
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, check=True, **options)
    return json.loads(done.stdout)


def test_errors_are_what_the_table_says(tmp_path: Path) -> None:
    for name, text in (("lost", "#!/no/interpreter\n"), ("plain", "echo hello\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "file").touch()
    done = run(
        tmp_path,
        """
        def name_of(*args, **options):
            try:
                daemonkit.spawn_detached(*args, **options)
            except Exception as error:
                print(type(error).__name__, getattr(error, "errno", None), getattr(error, "filename", None))
        name_of(["no-such-program"])
        name_of(["true"], cwd="/no/directory")
        name_of(["./lost"])
        name_of(["./file"])
        name_of(["true"], cwd="./file")
        name_of(["true", "x" * 300_000])
        name_of(["./plain"])
        name_of(["true"], stdout=999)
        name_of("true")
        name_of([5])
        name_of([""])
        name_of(["true", "\\0"])
        name_of(["true"], umask=-5)
        name_of(["true"], user="no such user")
        p = daemonkit.spawn_detached(["sleep", "1000"])
        for wrong in ("SIGTERM", 999):
            try:
                p.send_signal(wrong)
            except Exception as error:
                print(type(error).__name__, getattr(error, "errno", None))
        p.terminate()
        print(signal.Signals(-p.wait()).name)
    """,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "FileNotFoundError 2 no-such-program",
        "FileNotFoundError 2 /no/directory",
        "FileNotFoundError 2 /no/interpreter",
        "PermissionError 13 ./file",
        "NotADirectoryError 20 ./file",
        "OSError 7 true",
        "OSError 8 ./plain",
        "ValueError None None",
        "TypeError None None",
        "TypeError None None",
        "ValueError None None",
        "ValueError None None",
        "ValueError None None",
        "LookupError None None",
        "TypeError None",
        "OSError 22",
        "SIGTERM",
    ]


# --- real Node beside it ------------------------------------------------------------------------------------------

# Launch `sleep` with its output in a log, tell its pid, end at a line.
PYTHON_LAUNCHER = """
import sys
import daemonkit
p = daemonkit.spawn_detached(["sleep", "1000"], stdout="log", stderr=daemonkit.STDOUT)
print("launched", p.pid, flush=True)
sys.stdin.readline()
"""
NODE_LAUNCHER = """
const { spawn } = require('child_process');
const log = require('fs').openSync('log', 'a');
const child = spawn('sleep', ['1000'], { detached: true, stdio: ['ignore', log, log] });
child.on('spawn', () => console.log(`launched ${child.pid}`));
child.unref();
process.stdin.once('data', () => process.exit(0)).once('end', () => process.exit(0));
"""


@pytest.fixture(params=LAUNCHERS)
def launcher(request: pytest.FixtureRequest) -> list[object]:
    """Return a command that launches a detached program, by daemonkit or by Node."""
    if request.param == "daemonkit":
        return [sys.executable, "-c", PYTHON_LAUNCHER]
    return [request.getfixturevalue("node"), "-e", NODE_LAUNCHER]


def line_of(pid: int) -> tuple[int, int, int, int]:
    """Return a process's ppid, pgid, sid and terminal."""
    ppid, pgid, sid, tty = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1:5]
    return int(ppid), int(pgid), int(sid), int(tty)


def signals_of(pid: int) -> dict[str, int]:
    """Return what a process blocks, ignores and catches."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    own = 1 << 32 - 1 | 1 << 33 - 1  # glibc's, which no program can set; its posix_spawn(3) leaves them ignored
    return {name: int(fields[name], 16) & ~own for name in ("SigBlk", "SigIgn", "SigCgt")}


def descriptors_of(pid: int) -> dict[int, str]:
    """Return what a process has open."""
    return {int(entry.name): os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()}


def at_a_terminal(launcher: list[object], tmp_path: Path) -> tuple[Terminal, int]:
    """Run the launcher at a terminal; return that and the pid of what it launched."""
    terminal = Terminal(launcher, tmp_path)
    found = re.search(r"launched (\d+)\r?\n", terminal.read("\n"))
    assert found
    return terminal, int(found[1])


def test_both_launch_a_session_leader_without_a_terminal(launcher: list[object], tmp_path: Path) -> None:
    terminal, pid = at_a_terminal(launcher, tmp_path)
    assert line_of(terminal.pid)[3] != 0
    assert line_of(pid) == (terminal.pid, pid, pid, 0)
    terminal.type("\n")
    assert ended(terminal.pid) == 0
    assert line_of(pid) == (os.getpid(), pid, pid, 0)
    terminal.hang_up()
    assert alive(pid) and stop(pid) == -signal.SIGTERM


@pytest.mark.parametrize(("key", "number"), [("\x03", signal.SIGINT), ("\x1c", signal.SIGQUIT), ("", signal.SIGHUP)])
def test_both_outlive_what_ends_their_launcher(launcher: list[object], tmp_path: Path, key: str, number: int) -> None:
    terminal, pid = at_a_terminal(launcher, tmp_path)
    terminal.type(key) if key else terminal.hang_up()
    status = ended(terminal.pid)
    assert status == -number
    terminal.hang_up()
    assert alive(pid) and line_of(pid) == (os.getpid(), pid, pid, 0)
    assert stop(pid) == -signal.SIGTERM


def without_a_terminal(launcher: list[object], tmp_path: Path, before: str = "", **options: Any) -> int:
    """Run the launcher, from a program that does something `before`; return the pid of what it launched."""
    run_it = f"import os, signal, sys\n{before}\nos.execv(sys.argv[1], sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", run_it, *map(str, launcher)],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        timeout=harness.PATIENCE,
        **options,
    )
    pid = int(done.stdout.split()[1])
    # For an instant after execve(2) let the launcher go on, its descriptors are not closed yet, and this is empty.
    eventually(lambda: Path(f"/proc/{pid}/cmdline").read_text() == "sleep\0001000\0")
    return pid


def test_both_give_default_signals_and_an_empty_mask(launcher: list[object], tmp_path: Path) -> None:
    before = """
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGUSR1, signal.SIGCHLD):
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR2, signal.SIGALRM})
"""
    pid = without_a_terminal(launcher, tmp_path, before)
    assert signals_of(pid) == {"SigBlk": 0, "SigIgn": 0, "SigCgt": 0}
    assert stop(pid) == -signal.SIGTERM


def test_both_give_it_the_null_device_and_the_log_and_nothing_else(launcher: list[object], tmp_path: Path) -> None:
    pid = without_a_terminal(launcher, tmp_path)
    log = str(tmp_path / "log")
    assert descriptors_of(pid) == {0: os.devnull, 1: log, 2: log}
    assert stop(pid) == -signal.SIGTERM


def test_node_leaks_a_high_descriptor_and_daemonkit_does_not(launcher: list[object], tmp_path: Path) -> None:
    pid = without_a_terminal(launcher, tmp_path, "os.dup2(0, 500)")
    assert (500 in descriptors_of(pid)) is ("node" in str(launcher[0]))
    assert stop(pid) == -signal.SIGTERM


# --- what the page says of the differences ------------------------------------------------------------------------


def test_node_loses_the_error_of_a_failed_start_and_daemonkit_raises_it(tmp_path: Path, node: str) -> None:
    script = "require('child_process').spawn('no-such-program', { detached: true, stdio: 'ignore' }); process.exit(0)"
    there = subprocess.run([node, "-e", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (there.returncode, there.stdout, there.stderr) == (0, "", "")
    here = run(tmp_path, 'daemonkit.spawn_detached(["no-such-program"])\nos._exit(0)')
    assert here.returncode == 1 and "FileNotFoundError" in here.stderr and "'no-such-program'" in here.stderr


def test_node_blames_the_command_for_a_missing_directory_and_daemonkit_does_not(tmp_path: Path, node: str) -> None:
    script = """
        const child = require('child_process').spawn('true', { cwd: '/no/directory' });
        child.on('error', (error) => console.log(JSON.stringify([error.message, error.path])));
    """
    assert ask(node, "-e", script, cwd=tmp_path) == ["spawn true ENOENT", "true"]
    here = run(tmp_path, 'daemonkit.spawn_detached(["true"], cwd="/no/directory")')
    assert here.stderr.splitlines()[-1] == "FileNotFoundError: [Errno 2] No such file or directory: '/no/directory'"


def test_nodes_pipes_are_sockets_and_daemonkits_are_pipes(tmp_path: Path, node: str) -> None:
    script = """
        const child = require('child_process').spawn('readlink', ['/proc/self/fd/1']);
        child.stdout.on('data', (data) => console.log(JSON.stringify(String(data))));
    """
    assert ask(node, "-e", script, cwd=tmp_path).startswith("socket:")
    here = run(
        tmp_path,
        """
        p = daemonkit.spawn_detached(["readlink", "/proc/self/fd/1"], stdout=daemonkit.PIPE)
        with p.stdout:
            print(p.stdout.read().decode())
    """,
    )
    assert here.stdout.startswith("pipe:")


def test_node_has_a_shell_run_a_file_that_names_no_interpreter(tmp_path: Path, node: str) -> None:
    (tmp_path / "plain").write_text("exit 9\n")
    (tmp_path / "plain").chmod(0o755)
    script = "require('child_process').spawn('./plain').on('exit', (code) => console.log(code))"
    assert ask(node, "-e", script, cwd=tmp_path) == 9
    here = run(tmp_path, 'daemonkit.spawn_detached(["./plain"])')
    assert here.stderr.splitlines()[-1] == "OSError: [Errno 8] Exec format error: './plain'"
