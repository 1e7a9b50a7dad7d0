"""spawn_detached() with an older C library or a Python without ctypes: the same, by other ways."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from harness import run
from launches import BLOCK, IGNORE, MODES, call, judged, kill, seen

if TYPE_CHECKING:
    from pathlib import Path

LIBRARIES = {
    "glibc 2.31 or musl": "import daemonkit._spawn.posix_spawn as libc\nlibc.CAN_CLOSE_ALL = False\n",
    "no ctypes": "import daemonkit._spawn.posix_spawn as libc\nlibc.CAN_ENTER = libc.CAN_CLOSE_ALL = False\n",
}
SIGNALS = {"": "", "odd signals": BLOCK.format("[signal.SIGTERM]") + IGNORE.format("[signal.SIGHUP]")}
OPTIONS = ["", "cwd='/'", "umask=0o027", "cwd='/', umask=0o027, pidfile='pid'", "pass_fds=[handed]", "pass_fds=[high]"]


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("signals", SIGNALS)
@pytest.mark.parametrize("options", OPTIONS)
def test_the_program_finds_the_same(tmp_path: Path, library: str, signals: str, options: str) -> None:
    told = call(
        tmp_path,
        LIBRARIES[library]
        + SIGNALS[signals]
        + f"""
handed, high = os.open("/", os.O_RDONLY), fcntl.fcntl(0, fcntl.F_DUPFD, 900)
stray = os.open("/", os.O_RDONLY); os.set_inheritable(stray, True)
p = spawn(SLEEP, {options})
tell(pid=p.pid, handed=handed, high=high, umask=seen("self")["umask"])
""",
    )
    facts = seen(pid := told["pid"])
    assert (facts["sid"], facts["pgid"], facts["mask"], facts["ignored"]) == (pid, pid, 0, 0)
    assert facts["umask"] == (0o027 if "umask" in options else told["umask"])
    assert facts["cwd"] == ("/" if "cwd" in options else str(tmp_path))
    more = {"pass_fds=[handed]": {str(told["handed"])}, "pass_fds=[high]": {str(told["high"])}}.get(options, set())
    assert len(facts["fds"]) == 4 if "pidfile" in options else set(facts["fds"]) == {"0", "1", "2", *more}
    kill(pid)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "user"])
def test_errors_come_in_the_caller(tmp_path: Path, library: str, mode: str) -> None:
    (tmp_path / "text").write_text("no first line\n")
    (tmp_path / "text").chmod(0o755)
    cases = {"['./text']": "", "['true', 'x' * (1 << 18)]": "", "['missing']": "", "['true'], cwd='missing'": ""}
    results = judged(tmp_path, cases, mode, check=LIBRARIES[library])
    assert [result[1] for result in results.values()] == [8, 7, 2, 2], results


def test_a_python_without_ctypes(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
        sys.modules["_ctypes"] = None  # so that it can't be imported
        assert daemonkit.spawn_detached(["sh", "-c", "exit 3"], cwd="/").wait() == 3
        assert not sys.modules["daemonkit._spawn.posix_spawn"].CAN_ENTER
    """,
    )
    assert (done.returncode, done.stderr) == (0, ""), done
