"""The package as a whole: what importing it loads, what its names are, how it looks elsewhere."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from importlib import resources
from typing import TYPE_CHECKING

import lockfile
import pytest

import daemonkit

if TYPE_CHECKING:
    from pathlib import Path


def _fresh(code: str, *flags: str) -> str:
    done = subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_it_loads_nothing_else() -> None:
    loaded = _fresh(
        "import sys; before = set(sys.modules); import daemonkit; print(*sorted(set(sys.modules) - before))"
    ).split()
    assert [name for name in loaded if name not in sys.builtin_module_names] == ["daemonkit"]


def test_no_name_loads_typing_or_dataclasses() -> None:
    """Each takes as long as all that `daemonkit ls` does, and up to two megabytes in each supervisor."""
    code = f"""
import sys
sys.path[:] = {sys.path!r}
import daemonkit
for name in daemonkit.__all__:
    getattr(daemonkit, name)
print(*sorted({{"typing", "dataclasses", "inspect"}} & set(sys.modules)))
"""
    assert _fresh(code, "-S") == "\n"


SLOW = {
    "argparse",
    "ctypes",
    "daemon",
    "dataclasses",
    "datetime",
    "enum",
    "lockfile",
    "signal",
    "socket",
    "subprocess",
    "typing",
}


@pytest.mark.parametrize(
    ("reading", "expected"),
    [
        ("daemonkit.status('free.pid')", set()),
        ("assert daemonkit.status('held.pid').pid", set()),
        ("assert daemonkit.status('held.pid') == daemonkit.status('held.pid')", set()),
        ("assert daemonkit.status('held.pid').started", {"datetime"}),
        (
            "assert daemonkit.PidFile('held.pid').read_pid()",
            {"enum", "lockfile", "socket"},
        ),  # the base class needs them
    ],
)
def test_asking_a_pidfile_loads_nothing_that_takes_longer_than_the_answer(
    tmp_path: Path, reading: str, expected: set[str]
) -> None:
    """Many programs run for the answer alone: a probe, a shell prompt."""
    code = f"import sys; sys.path[:] = {sys.path!r}; import daemonkit; {reading}; print(*sys.modules)"
    with daemonkit.PidFile(tmp_path / "held.pid"):
        command = [sys.executable, "-S", "-c", code]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert SLOW & set(done.stdout.split()) == expected, done.stderr


def test_becoming_a_daemon_loads_no_logging_whose_hooks_each_fork_would_run() -> None:
    code = f"import sys; sys.path[:] = {sys.path!r}; import daemonkit; daemonkit.detached; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True)
    assert "daemonkit._detach.context" in done.stdout.split(), done
    assert "logging" not in done.stdout.split(), done


@pytest.mark.parametrize("words", [["ls"], ["status", "web"]])
def test_ls_and_status_load_nothing_that_takes_longer_than_the_answer(tmp_path: Path, words: list[str]) -> None:
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; from daemonkit.cli import main; main({words!r}); print(*sys.modules)"
    )
    command = [sys.executable, "-S", "-c", code]
    environment = {**os.environ, "DAEMONKIT_HOME": str(tmp_path)}
    (tmp_path / "web.json").write_text('{"command": ["true"]}')
    (tmp_path / "web.state").write_text('{"instances": []}')
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "daemonkit.cli._table" in loaded, done
    assert not (SLOW | {"gettext", "importlib", "json", "re", "shlex"}) & loaded, done


def test_all_names_are_there_and_no_others() -> None:
    names = {name for name in dir(daemonkit) if not name.startswith("_")}
    assert names == set(daemonkit.__all__)
    for name in daemonkit.__all__:
        assert getattr(daemonkit, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'spwan'"):
        daemonkit.spwan  # type: ignore[attr-defined]  # noqa: B018 - the look-up is the test


def test_names_once_used_are_plain_attributes() -> None:
    assert daemonkit.PidFile is vars(daemonkit)["PidFile"]


def test_it_is_typed() -> None:
    assert (resources.files("daemonkit") / "py.typed").is_file()


ERRORS = [
    (
        daemonkit.AlreadyRunningError("m", path="p", pid=7),
        (daemonkit.DaemonkitError, lockfile.AlreadyLocked),
        {"path": "p", "pid": 7},
    ),
    (daemonkit.NotRunningError("m", path="p"), (daemonkit.DaemonkitError, ProcessLookupError), {"path": "p"}),
    (
        daemonkit.StartError("m", traceback="t", exitcode=-9),
        (daemonkit.DaemonkitError,),
        {"traceback": "t", "exitcode": -9},
    ),
    (
        daemonkit.StartTimeoutError("m", traceback="t"),
        (daemonkit.StartError, TimeoutError),
        {"traceback": "t", "exitcode": None},
    ),
    (daemonkit.StopTimeoutError("m", pid=7), (daemonkit.DaemonkitError, TimeoutError), {"pid": 7}),
]


@pytest.mark.parametrize(("error", "bases", "fields"), ERRORS, ids=[type(error).__name__ for error, _, _ in ERRORS])
def test_every_error_is_what_it_says_and_keeps_its_fields_through_pickle(
    error: Exception, bases: tuple[type, ...], fields: dict[str, object]
) -> None:
    assert isinstance(error, bases)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error) == "m"
    assert {name: getattr(again, name) for name in fields} == fields


# What other systems lack, and what importing is an ImportError.
LACKING = {
    "win32": (
        {
            "os": "fork getuid geteuid pidfd_open posix_spawn register_at_fork sched_getaffinity O_NOCTTY O_CLOEXEC WNOHANG",
            "signal": "SIGHUP SIGKILL SIGCHLD SIGUSR1 SIG_BLOCK pthread_sigmask pidfd_send_signal",
            "select": "poll epoll",
        },
        ("fcntl", "grp", "pwd", "resource", "termios", "_posixsubprocess"),
    ),
    "darwin": (
        {
            "os": "pidfd_open P_PIDFD O_TMPFILE O_PATH sched_getaffinity eventfd memfd_create splice",
            "fcntl": "F_OFD_SETLK F_OFD_GETLK F_OFD_SETLKW",
            "signal": "pidfd_send_signal",
            "select": "epoll",
            "time": "CLOCK_BOOTTIME",
        },
        (),
    ),
}
ELSEWHERE = """
import builtins, fcntl, json, os, select, signal, sys, time
sys.platform, (lacking, missing) = PLATFORM, LACKING
for module, names in lacking.items():
    for name in names.split():
        delattr(sys.modules[module], name)
sys.modules.update(dict.fromkeys(missing))
real = os.listdir
def listdir(path="."):
    if str(path).startswith("/proc"):
        raise FileNotFoundError(path)
    return real(path)
os.listdir = listdir
"""
CALLING = """
import daemonkit
said = {}
for name in daemonkit.__all__:
    value = getattr(daemonkit, name)
    if name.endswith("Error"):
        assert issubclass(value, Exception)  # so that a program can catch it
        continue
    if not callable(value):
        continue
    if name[0].isupper():
        assert not isinstance(1, value) and (value | None) and issubclass(type("Own", (value,), {}), value)
    for arguments in (), ("x",), ("x", 9):
        try:
            value(*arguments)
        except NotImplementedError as error:
            said[name] = str(error)
print(json.dumps(said))
"""


def _elsewhere(platform: str) -> str:
    return ELSEWHERE.replace("PLATFORM", repr(platform)).replace("LACKING", repr(LACKING[platform]))


@pytest.mark.parametrize("platform", LACKING)
def test_on_another_system_it_imports_and_each_call_says_why_it_can_not(platform: str) -> None:
    said = json.loads(_fresh(_elsewhere(platform) + CALLING))
    names = {name for name in daemonkit.__all__ if not name.endswith("Error") and not name.isupper()}
    assert set(said) == names
    for name, text in said.items():
        assert text.startswith(f"daemonkit.{name} needs Linux") and "\n" not in text
        assert f"this is {platform}" in text and "in a Linux container" in text


@pytest.mark.parametrize("platform", LACKING)
@pytest.mark.parametrize("arguments", [["ls"], ["start", "web", "--", "true"], ["--help"], ["nonsense"]])
def test_on_another_system_the_command_says_why_it_can_not_in_one_line(platform: str, arguments: list[str]) -> None:
    code = _elsewhere(platform) + f"from daemonkit.cli import main\nsys.exit(main({arguments!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("daemonkit: it needs Linux") and done.stderr.count("\n") == 1, done.stderr
