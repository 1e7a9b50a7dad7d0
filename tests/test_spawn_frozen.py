"""In a frozen or embedded program `sys.executable` is no Python that runs what it is told: it is never started."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import PRELUDE, run, stop

ROOT = os.geteuid() == 0

# Each ignores SIGHUP, as under nohup(1), and blocks SIGTERM; then `frozen` says what sys.executable is.
CALLER = """
signal.signal(signal.SIGHUP, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
{frozen}
p = daemonkit.spawn_detached({call})
print(json.dumps({{"pid": p.pid}}))
"""
FAKE = "#!/bin/sh\ntouch was-run\nexec sleep 1000\n"
FROZEN = {
    "PyInstaller": "sys.frozen = True",
    "an application of its own": "sys.executable = os.path.abspath('app')",
    "uWSGI": "sys.executable = os.path.abspath('uwsgi')",
    "Apache": "sys.executable = '/usr/sbin/httpd'",
    "nothing": "sys.executable = ''",
    "None": "sys.executable = None",
}


def spawned(directory: Path, frozen: str, call: str, **options: Any) -> int:
    (directory / "sub").mkdir(exist_ok=True)
    for name in ("app", "uwsgi"):
        (directory / name).write_text(FAKE)
        (directory / name).chmod(0o755)
    done = run(directory, CALLER.format(frozen=frozen, call=call), **options)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert not (directory / "was-run").exists()
    pid = int(json.loads(done.stdout)["pid"])
    if "python" not in call:  # a script, as pyenv's, might run another program
        assert os.path.basename(os.readlink(f"/proc/{pid}/exe")) == "sleep"
    return pid


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def environment_of(pid: int) -> set[bytes]:
    return set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")[:-1])


@pytest.mark.parametrize("frozen", FROZEN)
@pytest.mark.parametrize("options", ["cwd='sub'", "umask=0o027", "cwd='sub', umask=0o027, pidfile='pid'"])
def test_cwd_and_umask_need_no_python(tmp_path: Path, frozen: str, options: str) -> None:
    pid = spawned(tmp_path, FROZEN[frozen], f"['sleep', '1000'], {options}")
    status = status_of(pid)
    assert int(status["SigBlk"], 16) == 0
    assert int(status["SigIgn"], 16) & ~(1 << 31 | 1 << 32) == 0
    assert os.getsid(pid) == os.getpgid(pid) == pid
    assert len(os.listdir(f"/proc/{pid}/fd")) == (4 if "pidfile" in options else 3)
    if "cwd" in options:
        assert os.readlink(f"/proc/{pid}/cwd") == str(tmp_path / "sub")
    if "umask" in options:
        assert int(status["Umask"], 8) == 0o027
    stop(pid)


SHELLS = ["/bin/sh", *(path for path in map(shutil.which, ("bash", "dash", "busybox", "mksh")) if path)]
VARIABLES = {
    "A": "b", "PATH": os.environ["PATH"], "not a word": "kept", "BASH_FUNC_f%%": "() {  echo f\n}", "npm_config_//x/:y": "z",
    "dotted.name": "1", "-u": "2", "empty": "", "equals": "a=b=c", "newline": "\n", "IFS": "x", "OPTIND": "7",
}  # fmt: skip


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    "more", [{}, {"PWD": "/nowhere", "OLDPWD": "elsewhere", "SHLVL": "7", "_": "me"}], ids=["", "PWD"]
)
def test_the_environment_and_the_arguments_arrive_unchanged(tmp_path: Path, shell: str, more: dict[str, str]) -> None:
    """Whatever /bin/sh is: a shell drops what it can't spell, and sets PWD, OLDPWD, SHLVL and _."""
    wrapper: tuple[str, ...] = ()
    if shell != "/bin/sh":
        if not ROOT or not shutil.which("unshare"):
            pytest.skip("only root can lay another shell over /bin/sh")
        wrapper = ("unshare", "--mount", "sh", "-c", f'mount --bind "{shell}" "$(realpath /bin/sh)" && exec "$@"', "sh")
    arguments = ["a b", "", "*", "$HOME", "-n", "--", "a=b", "\udcff", "\x01\x7f", "\n", "'", '"', "x" * 5000]
    call = f"[sys.executable, '-c', 'import time; time.sleep(1000)', *{arguments!r}], umask=0o027, cwd='sub', env={VARIABLES | more!r}"
    pid = spawned(
        tmp_path,
        "python, sys.executable = sys.executable, ''",
        call.replace("sys.executable", "python"),
        wrapper=wrapper,
    )
    found = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
    assert found[0] == os.fsencode(sys.executable)
    assert found[3:] == [os.fsencode(part) for part in arguments]
    assert environment_of(pid) == {os.fsencode(f"{name}={value}") for name, value in (VARIABLES | more).items()}
    stop(pid)


FAILING = {
    "['missing']": "FileNotFoundError",
    "['./text']": "OSError",
    "['./no-interpreter']": "FileNotFoundError",
    "['./closed-interpreter']": "PermissionError",
    "['./nested']": "FileNotFoundError",
    "['./plain']": "PermissionError",
    "['true', 'x' * (1 << 18)]": "OSError",
    "['true'], stdout='missing/log'": "FileNotFoundError",
    "['true'], user=12345, group=12345": "RuntimeError" if ROOT else "PermissionError",
}


@pytest.mark.parametrize("call", FAILING)
@pytest.mark.parametrize("cwd", ["", ", cwd='.'"])
def test_an_error_comes_in_the_caller_and_nothing_is_left(tmp_path: Path, call: str, cwd: str) -> None:
    for name, text in {
        "text": "no first line\n", "no-interpreter": "#!/nowhere/x\n", "closed-interpreter": "#!./plain\n",
        "nested": "#!./no-interpreter\n", "plain": "",
    }.items():  # fmt: skip
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o644 if name == "plain" else 0o755)
    done = run(
        tmp_path,
        f"""
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        sys.frozen = True
        before = sorted(os.listdir("."))
        try:
            daemonkit.spawn_detached({call}, umask=0o22, pidfile="pid"{cwd})
        except BaseException as error:
            print(type(error).__name__, error, sep="|")
        assert sorted(os.listdir(".")) == before, os.listdir(".")
        try:
            print(os.waitpid(-1, os.WNOHANG))
        except ChildProcessError:
            pass
    """,
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    kind, _, message = done.stdout.partition("|")
    assert kind == FAILING[call] and message.count("\n") == 1, done.stdout
    if kind == "RuntimeError":
        assert "SIG_DFL" in message and "sys.executable" in message


def test_a_python_as_it_should_be_still_changes_the_user(tmp_path: Path) -> None:
    if not ROOT:
        pytest.skip("only root can change the user")
    pid = spawned(tmp_path, "", "['sleep', '1000'], user='daemon', umask=0o027, cwd='/'")
    status = status_of(pid)
    assert status["Uid"].split()[0] == "1" and int(status["Umask"], 8) == 0o027
    assert int(status["SigBlk"], 16) == 0
    stop(pid)


APP = """
with open(os.environ["TRACE"], "a") as trace:
    trace.write(f"run {sys.argv[1:]}\\n")
if len(read(os.environ["TRACE"]).splitlines()) > 10:
    sys.exit("it starts itself without end")
pids = [daemonkit.spawn_detached(["sleep", "1000"], **options).pid for options in ({}, {"cwd": "/"}, {"umask": 0o27}, {"cwd": "/", "umask": 0o27})]
try:
    daemonkit.spawn_detached(["sleep", "1000"], user="daemon")
except (RuntimeError, PermissionError) as error:
    print(error, file=sys.stderr)
print(*pids)
"""


@pytest.mark.long
@pytest.mark.timeout(600)  # to freeze it takes 15 s, and minutes on a loaded machine
def test_a_program_frozen_by_pyinstaller_under_nohup_starts_what_it_was_told_and_never_itself(tmp_path: Path) -> None:
    freeze = pytest.importorskip("PyInstaller", reason="takes pyinstaller, of the test group")
    del freeze
    (tmp_path / "app.py").write_text(PRELUDE + APP)
    build = [sys.executable, "-m", "PyInstaller", "--onefile", "--log-level", "ERROR", "app.py"]
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True, timeout=500)
    trace = tmp_path / "trace"
    done = subprocess.run(
        ["nohup", tmp_path / "dist" / "app"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"TRACE": str(trace)},
        timeout=60,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done
    assert trace.read_text() == "run []\n"
    pids = [int(pid) for pid in done.stdout.split()]
    assert [os.readlink(f"/proc/{pid}/cwd") == "/" for pid in pids] == [False, True, False, True]
    assert [int(status_of(pid)["Umask"], 8) == 0o27 for pid in pids] == [False, False, True, True]
    if ROOT:
        assert "SIG_DFL" in done.stderr
    for pid in pids:
        assert stop(pid, signal.SIGHUP) == -signal.SIGHUP  # which nohup had ignored


@pytest.mark.long
def test_in_uwsgi_it_starts_the_program_and_not_uwsgi(tmp_path: Path) -> None:
    # Not one on PATH, which may be without a Python, or with another.
    if not (uwsgi := shutil.which("uwsgi", path=str(Path(sys.executable).parent))):
        pytest.skip("takes uwsgi: pip install pyuwsgi")
    body = """
    print("run", file=open("trace", "a"))
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    pids = [daemonkit.spawn_detached(["sleep", "1000"], **options).pid for options in ({"cwd": "/"}, {"umask": 0o27})]
    report(pids=pids)
    os._exit(0)
    """
    (tmp_path / "app.py").write_text(PRELUDE + "\n".join(line.strip() for line in body.splitlines()))
    subprocess.run(
        [uwsgi, "--socket", "uwsgi.sock", "--wsgi-file", "app.py"],
        cwd=tmp_path, timeout=60, check=False, capture_output=True,
    )  # fmt: skip
    assert (tmp_path / "trace").read_text() == "run\n"
    for pid in json.loads((tmp_path / "report").read_text())["pids"]:
        assert os.path.basename(os.readlink(f"/proc/{pid}/exe")) == "sleep"
        stop(pid)
