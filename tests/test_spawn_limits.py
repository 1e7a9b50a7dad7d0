"""spawn_detached() where rights, descriptors or processes have run out."""

from __future__ import annotations

import importlib.util
import os
import shutil
from typing import TYPE_CHECKING

import pytest
from harness import let_everybody_in, run
from launches import (
    IGNORE,
    MODES,
    ORDINARY,
    ROOT,
    TRY,
    call,
    judged,
    kill,
    root_only,
    script,
)

if TYPE_CHECKING:
    from pathlib import Path

DENIED = {
    "['./roots']": "PermissionError|roots",
    "['closed/program']": "PermissionError|program",
    "['true'], cwd='closed'": "PermissionError|closed",
    "['true'], stdout='read-only/log'": "PermissionError|log",
    "['true'], stdout='roots'": "PermissionError|roots",
    "['true'], stdin='roots'": "PermissionError|roots",
    "['true'], pidfile='read-only/pid'": "PermissionError|pid",
    "['true'], pidfile='roots'": "PermissionError|roots",
    "['true'], user=0": "PermissionError|None",
    "['true'], user='daemon'": "PermissionError|None",
    "['true'], group=12345": "PermissionError|None",
    "['true'], extra_groups=[12345]": "PermissionError|None",
    "['program'], env={'PATH': 'closed'}": "PermissionError|program",
    "['./interpreted']": "PermissionError|program",
}


@root_only
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "user"])
def test_what_an_ordinary_user_may_not(tmp_path: Path, everybody: dict[str, str], mode: str) -> None:
    (tmp_path / "closed").mkdir()
    script(tmp_path / "closed" / "program", "#!/bin/sh\n")
    (tmp_path / "closed").chmod(0o700)
    (tmp_path / "read-only").mkdir()
    script(tmp_path / "roots", "#!/bin/sh\n", 0o700)
    script(tmp_path / "interpreted", f"#!{tmp_path}/closed/program\n")
    let_everybody_in(tmp_path)
    (tmp_path / "kept").touch()
    (tmp_path / "kept").chmod(0o666)
    cases = dict(DENIED)
    if mode in {"all", "SIGCHLD ignored"}:
        # There it takes this very interpreter to set the signals back, which root may keep to itself.
        del cases["['./interpreted']"]
    results = judged(tmp_path, cases, mode, check=ORDINARY, env=everybody)
    wrong = {}
    for text, expected in cases.items():
        kind, _, what = expected.partition("|")
        if results[text][0] != kind or (what != "None" and results[text][2] != what):
            wrong[text] = results[text][:4]
    assert wrong == {}
    assert (tmp_path / "roots").read_text() == "#!/bin/sh\n"


@root_only
def test_a_caller_that_dropped_its_rights_can_still_spawn_with_every_option(tmp_path: Path) -> None:
    """Its own interpreter may be out of its reach by then: nothing is imported that late."""
    let_everybody_in(tmp_path)
    done = run(
        tmp_path,
        "import resource\nspawn = daemonkit.spawn_detached; PIPE = daemonkit.PIPE\n"
        + ORDINARY
        + """
class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if not name.startswith("encodings"): raise ModuleNotFoundError(f"imported too late: {name}")
sys.meta_path.insert(0, Nowhere())
pids = [spawn(["sleep", "1000"], **options).pid for options in (
    {}, dict(cwd="/", umask=0), dict(stdout="log", pidfile="pid"), dict(input=b"x", stdout=PIPE), dict(env={}, pass_fds=[2]),
    dict(cwd="/", umask=0, pidfile="other"),
)]
try:
    spawn(["missing"], pidfile="third")
except (FileNotFoundError, PermissionError):  # the latter, as Popen, where PATH has a directory that is closed
    pass
for options in (dict(), dict(cwd="/", umask=0)):
    try:
        spawn(["sleep", "1000"], pidfile="pid", **options)
    except Exception as error:
        assert (type(error).__name__, error.pid) == ("AlreadyRunningError", pids[2]), error
p = spawn(["sleep", "1000"])
try:
    p.wait(0)
except Exception as error:
    assert type(error).__name__ == "TimeoutExpired", error
print(*pids, p.pid)
""",
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    kill(*map(int, done.stdout.split()))


@pytest.mark.parametrize("before", ["", IGNORE.format("[signal.SIGHUP]")], ids=["", "SIGHUP ignored"])
def test_the_package_may_be_deleted_under_a_running_program(tmp_path: Path, before: str) -> None:
    """As a virtual environment is when a release is upgraded: the cause of an error is told, not a missing module."""
    packages = tmp_path / "packages"
    for name in ("daemonkit", "daemon", "lockfile"):
        found = importlib.util.find_spec(name)
        assert found and found.origin
        shutil.copytree(os.path.dirname(found.origin), packages / name, ignore=shutil.ignore_patterns("__pycache__"))
    done = run(
        tmp_path,
        f"""
        import shutil
        spawn = daemonkit.spawn_detached
        assert daemonkit.__file__.startswith({str(packages)!r})
        {before.strip()}
        shutil.rmtree({str(packages)!r})
        pids = [spawn(["sleep", "1000"], **options).pid for options in (dict(cwd="/"), dict(umask=0), dict(pidfile="pid"))]
        try:
            spawn(["sleep", "1000"], pidfile="pid")
        except Exception as error:
            assert (type(error).__name__, error.pid) == ("AlreadyRunningError", pids[2]), error
        print(*pids)
    """,
        env=os.environ | {"PYTHONPATH": str(packages)},
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    kill(*map(int, done.stdout.split()))


SCARCE = {
    "default": {},
    "log, pidfile": {"stdout": "'log'", "pidfile": "'pid'"},
    "cwd, umask": {"cwd": "'.'", "umask": "0o22", "stdout": "'log'", "stderr": "'err'"},
    "pipes": {"stdin": "PIPE", "stdout": "PIPE", "stderr": "PIPE"},
    "all": {"cwd": "'.'", "umask": "0o22", "pidfile": "'pid'", "stdout": "'log'", "stderr": "PIPE", "input": "b'x'"},
    "shell": {"shell": "True", "pidfile": "'pid'"},
}


if ROOT:
    SCARCE["user"] = {"user": "'daemon'", "pidfile": "'pid'", "stdout": "'log'"}


@pytest.mark.parametrize("options", SCARCE)
def test_descriptors_run_out_at_every_limit_and_nothing_is_left(tmp_path: Path, options: str) -> None:
    told = call(
        tmp_path,
        TRY
        + f"""
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
def close(p):
    for pipe in (p.stdin, p.stdout, p.stderr): pipe and pipe.close()
close(p := spawn(["true"], {", ".join(f"{k}={v}" for k, v in SCARCE[options].items())}))
p.wait(); del p
for name in ("log", "err", "pid"):
    if os.path.exists(name): os.unlink(name)
results = {{}}
def limited(*args, real=spawn, **options):
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        p = real(*args, **options)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    close(p)
    return p
spawn = limited
for limit in range(3, 40):
    results[limit] = attempt("['sleep', '1000']", {SCARCE[options]!r})
    for name in ("log", "err", "pid"):
        if results[limit][0] == "started" and os.path.exists(name): os.unlink(name)
    p = None
tell(results=results)
""",
        timeout=90,
    )
    kinds = [result[0] for result in told["results"].values()]
    assert kinds[0] == "OSError" and kinds[-1] == "started"
    assert kinds == sorted(kinds, key=lambda kind: kind == "started"), kinds  # a line: too few below, enough above
    for limit, (kind, number, _, message, left) in told["results"].items():
        if kind != "started":
            assert (kind, number) == ("OSError", 24), (limit, message)
            assert left == [], limit


@pytest.mark.parametrize("limit", [3, 4, 5, 6, 8, 10, 12])
def test_the_very_first_spawn_may_be_the_one_without_descriptors(tmp_path: Path, limit: int) -> None:
    done = run(
        tmp_path,
        f"""
        import resource
        spawn = daemonkit.spawn_detached
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, hard))
        try:
            p = spawn(["true"], stdout="log", pidfile="pid", cwd=".")
        except OSError as error:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            assert error.errno == 24, error
            assert os.listdir(".") == ["program.py"], os.listdir(".")
            try:
                os.wait()
            except ChildProcessError:
                p = spawn(["true"], stdout="log", pidfile="pid", cwd=".")
        assert p.wait() == 0
    """,
    )
    assert (done.returncode, done.stderr) == (0, "")


@root_only
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "user"])
def test_no_processes_left(tmp_path: Path, everybody: dict[str, str], mode: str) -> None:
    let_everybody_in(tmp_path)
    script(tmp_path / "kept", "kept\n", 0o666)
    limit = "resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))\n"
    check = "assert spawn(['true']).wait() in (0, None)\n" + ORDINARY + limit
    result = judged(tmp_path, {"['true']": ""}, mode, check=check, env=everybody)["['true']"]
    assert result[:2] == ["BlockingIOError", 11]
