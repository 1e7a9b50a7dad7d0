"""Bad input: an ordinary exception in the caller that names the thing; nothing started, changed or lost."""

from __future__ import annotations

import os
import shutil
import textwrap
from pathlib import Path

import pytest
from harness import pid_in, reported, run, stop

# The interpreter itself may be out of an ordinary user's reach, so what is needed is loaded first.
ORDINARY = """
import resource
daemonkit.detached, daemonkit.StartError
os.setgroups([])
os.setresgid({0}, {0}, {0})
os.setresuid({0}, {0}, {0})
"""

# Each tells the exception and what is left; the program under test must get no further than that.
TRY = """
before = sorted(os.listdir("."))
try:
    with daemonkit.detached({options}):
        open("started", "w").close()
except BaseException as error:
    print(type(error).__name__, isinstance(error, OSError) and os.path.basename(str(error.filename)), sep="|")
    print(error)
assert sorted(os.listdir(".")) == before, os.listdir(".")
assert daemonkit.PidFile("pid").read_pid() is None
try:
    print("children", os.waitpid(-1, os.WNOHANG))
except ChildProcessError:
    pass
"""

ARGUMENTS = {
    "umask='0o22'": "TypeError", "umask=True": "TypeError", "umask=-1": "ValueError", "umask=0o1000": "ValueError",
    "uid='nobody-such'": "LookupError", "gid='nobody-such'": "LookupError", "uid=1.5": "TypeError", "uid=-1": "ValueError",
    "gid=True": "TypeError", "uid=2**33": "ValueError", "close_fds='some'": "ValueError", "close_fds=True": "ValueError",
    "wait_ready=1": "TypeError", "detach_process='yes'": "TypeError", "initgroups=None": "TypeError",
    "start_timeout=0": "ValueError", "start_timeout=-1": "ValueError", "start_timeout='5'": "TypeError",
    "start_timeout=float('nan')": "ValueError", "stdout=daemonkit.STDOUT": "ValueError", "stdin=daemonkit.STDOUT": "ValueError",
    "stdout=-1": "ValueError", "stdout=999": "ValueError", "stdout=__import__('io').StringIO()": "ValueError",
    "stdout=open(__file__)": "ValueError", "stdin=open(os.devnull, 'w')": "ValueError", "stdout=True": "TypeError",
    "stdout=3.5": "TypeError", "stdout=object()": "TypeError", "pidfile=3": "TypeError", "pidfile=object()": "TypeError",
    "working_directory=None": "TypeError", "working_directory=3": "TypeError", "chroot_directory=3": "TypeError",
    "signal_map=[1]": "TypeError", "signal_map={'SIGNONE': None}": "ValueError", "signal_map={'SIGKILL': None}": "ValueError",
    "signal_map={99: None}": "ValueError", "signal_map={'SIGHUP': 'no_such'}": "ValueError", "signal_map={'SIGHUP': 3.5}": "TypeError",
    "signal_map={1.5: None}": "TypeError", "files_preserve=['x']": "TypeError", "files_preserve=[-1]": "ValueError",
    "files_preserve=3": "TypeError", "nonsense=1": "TypeError", "stdout='nul\\0byte'": "ValueError", "pidfile='nul\\0byte'": "ValueError",
}  # fmt: skip


@pytest.mark.parametrize(("options", "expected"), ARGUMENTS.items(), ids=ARGUMENTS)
def test_a_bad_argument(tmp_path: Path, options: str, expected: str) -> None:
    pidfile = "" if "pidfile" in options else "pidfile='pid', "
    done = run(tmp_path, TRY.format(options=pidfile + options))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{expected}|"), done.stdout
    message = done.stdout.splitlines()[1]
    assert options.partition("=")[0] in message or "nul" in options, message


PATHS = {
    "stdout='missing/log'": ("FileNotFoundError", "log"),
    "stdout='directory'": ("IsADirectoryError", "directory"),
    "stdin='missing'": ("FileNotFoundError", "missing"),
    "stdin='directory'": ("IsADirectoryError", "directory"),
    "stderr='link'": ("OSError", "link"),
    "stderr='dangling'": ("OSError", "dangling"),
    "stdout='fifo'": ("OSError", "fifo"),
    "stdout='program.py/log'": ("NotADirectoryError", "log"),
    "working_directory='missing'": ("FileNotFoundError", "missing"),
    "working_directory='program.py'": ("NotADirectoryError", "program.py"),
    "chroot_directory='missing'": ("FileNotFoundError", "missing"),
    "pidfile='missing/pid'": ("FileNotFoundError", "pid"),
    "pidfile='directory'": ("IsADirectoryError", "directory"),
    "pidfile='link'": ("OSError", "link"),
    "pidfile='fifo'": ("OSError", "fifo"),
}


@pytest.mark.parametrize(("options", "expected"), PATHS.items(), ids=PATHS)
def test_a_path_that_can_not_be_used(tmp_path: Path, options: str, expected: tuple[str, str]) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("program.py")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo")
    more = "" if "stdout" in options else "stdout='log', "  # created, and taken back
    more += "" if "pidfile" in options else "pidfile='pid', "
    done = run(tmp_path, TRY.format(options=more + options))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "|".join(expected), done.stdout
    assert not (tmp_path / "nowhere").exists()


DENIED = {
    "stdout='closed/log'": ("PermissionError", "log"),
    "stdout='roots'": ("PermissionError", "roots"),
    "pidfile='closed/pid'": ("PermissionError", "pid"),
    "pidfile='roots'": ("PermissionError", "roots"),
    "working_directory='private'": ("PermissionError", "private"),
    "uid=0": ("PermissionError", "None"),
    "uid='daemon'": ("PermissionError", "None"),
    "gid=12345": ("PermissionError", "None"),
    "chroot_directory='open'": ("PermissionError", "open"),
}


@pytest.mark.parametrize(("options", "expected"), DENIED.items(), ids=DENIED)
@pytest.mark.skipif(os.geteuid() != 0, reason="root lays out what an ordinary user may not touch")
def test_what_an_ordinary_user_may_not(
    tmp_path: Path, everybody: dict[str, str], options: str, expected: tuple[str, str]
) -> None:
    for name, mode in {"closed": 0o755, "private": 0o700, "open": 0o777}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(mode)
    (tmp_path / "roots").touch(0o600)
    for parent in [tmp_path, *tmp_path.parents][:4]:
        parent.chmod(parent.stat().st_mode | 0o055)
    tmp_path.chmod(0o777)
    more = "" if "pidfile" in options else "pidfile='pid', "
    done = run(tmp_path, ORDINARY.format(65534) + TRY.format(options=more + options), env=everybody)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "|".join(expected), done.stdout
    assert (tmp_path / "roots").read_text() == ""


def test_a_held_pidfile_is_left_untouched_and_the_error_says_whose_it_is(tmp_path: Path) -> None:
    service = """
        with daemonkit.detached(pidfile="pid", stdout="log", working_directory="."):
            report()
            wait()
    """
    run(tmp_path, service)
    holder = reported(tmp_path)["pid"]
    before = (tmp_path / "pid").stat()
    second = run(tmp_path, service)
    assert second.returncode == 1
    assert f"{tmp_path}/pid is held by process {holder} (since " in second.stderr.splitlines()[-1]
    after = (tmp_path / "pid").stat()
    assert (before.st_ino, before.st_mtime_ns, before.st_size) == (after.st_ino, after.st_mtime_ns, after.st_size)
    assert pid_in(tmp_path / "pid") == holder
    stop(holder)


@pytest.mark.parametrize("limit", range(3, 19))
def test_no_descriptors_left(tmp_path: Path, limit: int) -> None:
    """At each limit: a daemon that runs, or an exception and nothing left. The program itself has three open."""
    done = run(
        tmp_path,
        f"""
        import resource, io, encodings.idna, lockfile, daemon
        daemonkit.detached, daemonkit.StartError
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, hard))
        try:
            with daemonkit.detached(pidfile="pid", stdout="log", working_directory=".", wait_ready=True) as d:
                resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
                d.ready()
                report()
                wait()
        except (OSError, daemonkit.StartError) as error:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            print(error)
            assert daemonkit.PidFile("pid").read_pid() is None and not os.path.exists("pid")
            sys.exit(1)
    """,
    )
    assert done.returncode in {0, 1}, done.stderr
    if done.returncode == 0:
        stop(reported(tmp_path)["pid"])
    else:
        assert "Too many open files" in done.stdout and not (tmp_path / "report").exists()
    assert done.returncode == (0 if limit > 15 else 1 if limit < 6 else done.returncode)


@pytest.mark.skipif(os.geteuid() != 0, reason="a user with no other processes takes root")
@pytest.mark.parametrize("left", [0, 1])
def test_no_processes_left(tmp_path: Path, everybody: dict[str, str], left: int) -> None:
    for parent in [tmp_path, *tmp_path.parents][:4]:
        parent.chmod(parent.stat().st_mode | 0o055)
    tmp_path.chmod(0o777)
    nobody_else = 61234
    done = run(
        tmp_path,
        ORDINARY.format(nobody_else)
        + textwrap.dedent(f"""
        resource.setrlimit(resource.RLIMIT_NPROC, (1 + {left}, 1 + {left}))
        try:
            with daemonkit.detached(pidfile="pid"):
                pass
        except (BlockingIOError, daemonkit.StartError) as error:
            print(error)
            assert not os.path.exists("pid")
    """),
        env=everybody,
    )
    assert "Resource temporarily unavailable" in done.stdout, done


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare"), reason="a small file system of its own takes root"
)
def test_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    done = run(
        tmp_path,
        """
        import subprocess
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "none", "disk"], check=True)
        with open("disk/filler", "wb", buffering=0) as filler:
            filler.write(b"x" * 4096)
        try:
            with daemonkit.detached(pidfile="disk/pid"):
                pass
        except OSError as error:
            print(error, os.listdir("disk"))
    """,
        wrapper=("unshare", "--mount"),
    )
    assert done.stdout == f"[Errno 28] No space left on device: '{tmp_path}/disk/pid' ['filler']\n", done


def test_a_stdout_that_can_not_be_flushed_is_an_error_before_any_fork(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = run(
            tmp_path,
            """
            print("lost?", end="")
            try:
                with daemonkit.detached(pidfile="pid"):
                    pass
            except OSError as error:
                print(error, os.listdir("."), file=sys.stderr)
                os._exit(1)
        """,
            stdout=full,
            stderr=-1,
        )
    assert done.stderr == "[Errno 28] No space left on device ['program.py']\n"


@pytest.mark.parametrize(
    "call", ["spawn_detached('true x')", "supervise('true x')", "supervise(['true'], ready_check='true x')"]
)
def test_a_command_line_in_place_of_a_list_is_answered_with_one_that_every_call_takes(
    tmp_path: Path, call: str
) -> None:
    done = run(tmp_path, f"try: daemonkit.{call}\nexcept TypeError as error: print(error)")
    assert "a command line is ['sh', '-c', 'true x']" in done.stdout
