"""Places where something is missing: an error says what, and names the way out; nothing is started or left."""

from __future__ import annotations

import contextlib
import ctypes.util
import importlib.util
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import harness
import pytest
from harness import eventually, run

import daemonkit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
fuse = pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="this machine has no FUSE")

# Every door that takes a pidfile.
DOORS = {
    "acquire": "daemonkit.PidFile(PATH).acquire()",
    "detached": "with daemonkit.detached(pidfile=PATH): open(HOME + '/begun', 'w').close()",
    "foreground": "with daemonkit.detached(pidfile=PATH, detach_process=False): open(HOME + '/begun', 'w').close()",
    "spawn": "daemonkit.spawn_detached(['touch', HOME + '/begun'], pidfile=PATH)",
}


def _try(directory: Path, door: str, path: object, **options: object) -> tuple[str, str]:
    """Knock at a door in a program of its own; return the error's type and text."""
    body = f"""
        PATH, HOME = {str(path)!r}, {str(directory)!r}
        try:
            {DOORS[door]}
        except BaseException as error:
            print(type(error).__name__)
            print(error)
    """
    done = run(directory, body, **options)  # type: ignore[arg-type]  # run()'s own
    name, text = done.stdout.splitlines()
    assert not done.stderr and not (directory / "begun").exists()
    return name, text


# --- file systems -----------------------------------------------------------------------------------------------------

# Like sshfs, bindfs or mergerfs it is built on libfuse's paths: two hard links to a file are two files to the kernel.
FUSE_FS = """
import errno
import os
import sys

from fuse import FUSE, FuseOSError, Operations

SOURCE, MOUNTPOINT, KIND = sys.argv[1:]


class Mirror(Operations):
    def _real(self, path):
        return os.path.join(SOURCE, path.lstrip("/"))

    def getattr(self, path, fh=None):
        try:
            info = os.lstat(self._real(path))
        except OSError as error:
            raise FuseOSError(error.errno) from error
        names = ("st_atime", "st_ctime", "st_gid", "st_mode", "st_mtime", "st_nlink", "st_size", "st_uid", "st_ino")
        return {name: getattr(info, name) for name in names}

    def readdir(self, path, fh):
        return [".", "..", *os.listdir(self._real(path))]

    def create(self, path, mode, fi=None):
        return os.open(self._real(path), os.O_CREAT | os.O_RDWR, mode)

    def open(self, path, flags):
        return os.open(self._real(path), flags)

    def read(self, path, size, offset, fh):
        return os.pread(fh, size, offset)

    def write(self, path, data, offset, fh):
        return os.pwrite(fh, data, offset)

    def truncate(self, path, length, fh=None):
        os.truncate(self._real(path), length)

    def unlink(self, path):
        os.unlink(self._real(path))

    def rename(self, old, new):
        os.rename(self._real(old), self._real(new))

    def chmod(self, path, mode):
        os.chmod(self._real(path), mode)

    def release(self, path, fh):
        os.close(fh)

    def link(self, target, source):
        if KIND == "no-links":
            raise FuseOSError(errno.EPERM)
        os.link(self._real(source), self._real(target))


FUSE(Mirror(), MOUNTPOINT, foreground=True, nothreads=True, use_ino=True)
"""


@contextlib.contextmanager
def _mounted(directory: Path, kind: str) -> Iterator[Path]:
    source, mountpoint = directory / "source", directory / "mounted"
    source.mkdir()
    mountpoint.mkdir()
    if kind == "bindfs":
        command = ["bindfs", "-f", str(source), str(mountpoint)]
    else:
        command = [sys.executable, "-c", FUSE_FS, str(source), str(mountpoint), kind]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        try:
            eventually(lambda: os.path.ismount(mountpoint), "it is mounted")
            yield mountpoint
        finally:
            subprocess.run(["umount", "--lazy", mountpoint], check=True)
            server.wait(harness.PATIENCE)


KINDS = [
    pytest.param(
        "bindfs",
        "locks do not follow the name",
        marks=pytest.mark.skipif(not shutil.which("bindfs"), reason="bindfs is not installed"),
    ),
    *(
        pytest.param(
            kind,
            cause,
            marks=pytest.mark.skipif(
                not (importlib.util.find_spec("fuse") and ctypes.util.find_library("fuse")),
                reason="PyPI's fusepy or libfuse 2 is not installed",
            ),
        )
        for kind, cause in (("links", "locks do not follow the name"), ("no-links", "has no hard links"))
    ),
]


@root_only
@fuse
@pytest.mark.parametrize(("kind", "cause"), KINDS)
def test_a_file_system_that_can_not_keep_the_promise_is_refused_and_a_better_place_named(
    tmp_path: Path, kind: str, cause: str
) -> None:
    with _mounted(tmp_path, kind) as mounted:
        path = mounted / "app.pid"
        for door in DOORS:
            if door == "spawn":
                path.write_text(f"{harness.DEAD}\n")
            name, text = _try(tmp_path, door, path)
            assert name == "OSError" and cause in text and str(path) in text
            assert "/run" in text and "$XDG_RUNTIME_DIR" in text
            eventually(lambda: os.listdir(mounted) == [])
        assert not daemonkit.status(path)
    assert os.listdir(tmp_path / "source") == []


# --- sandboxes --------------------------------------------------------------------------------------------------------


@root_only
@pytest.mark.parametrize("door", DOORS)
def test_where_proc_is_not_mounted_the_error_says_so(tmp_path: Path, door: str) -> None:
    wrapper = ("unshare", "--mount", "sh", "-c", 'umount -l /proc && exec "$@"', "sh")
    name, text = _try(tmp_path, door, tmp_path / "app.pid", wrapper=wrapper)
    assert name == "FileNotFoundError" and "not mounted" in text and text.endswith("'/proc'")
    assert not (tmp_path / "app.pid").exists()


# Runs a program in which a system call fails: seccomp(2), as a container's profile has it.
SECCOMP = """
import ctypes, os, struct, sys
number, error, *command = sys.argv[1:]
rules = (0x20, 0, 0, 0), (0x15, 0, 1, int(number)), (0x06, 0, 0, 0x50000 | int(error)), (0x06, 0, 0, 0x7FFF0000)
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
libc, program = ctypes.CDLL(None, use_errno=True), Program(len(rules), ctypes.addressof(code))
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(program), 0, 0):
    raise OSError(ctypes.get_errno(), "prctl")
os.execvp(command[0], command)
"""
PIDFD_OPEN = 434  # on every architecture


@pytest.mark.parametrize("number", [1, 38], ids=["EPERM", "ENOSYS"])
@pytest.mark.parametrize("door", ["detached", "foreground", "spawn", "attach", "stop", "supervise"])
def test_where_pidfds_are_refused_the_error_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, door: str, number: int
) -> None:
    monkeypatch.setitem(DOORS, "attach", "daemonkit.attach(PATH)")
    monkeypatch.setitem(DOORS, "stop", "daemonkit.stop(PATH)")
    monkeypatch.setitem(DOORS, "supervise", "daemonkit.supervise(['touch', HOME + '/begun'], restart='never')")
    (tmp_path / "refuse.py").write_text(SECCOMP)
    wrapper = (sys.executable, tmp_path / "refuse.py", PIDFD_OPEN, number)
    with contextlib.ExitStack() as stack:
        if door in {"attach", "stop"}:
            stack.enter_context(daemonkit.PidFile(tmp_path / "app.pid"))
        name, text = _try(tmp_path, door, tmp_path / "app.pid", wrapper=wrapper)
        assert name == ("PermissionError" if number == 1 else "OSError")
        assert "pidfd_open(2) is refused here" in text and "seccomp" in text
    assert not (tmp_path / "app.pid").exists()


def test_where_pidfds_are_refused_a_pidfile_works(tmp_path: Path) -> None:
    (tmp_path / "refuse.py").write_text(SECCOMP)
    body = """
        with daemonkit.PidFile("app.pid") as lock:
            print(daemonkit.status("app.pid").pid == lock.read_pid() == os.getpid())
            try:
                daemonkit.PidFile("app.pid", timeout=0.1).acquire()
            except lockfile.LockTimeout:
                print("waited")
    """
    wrapper = (sys.executable, tmp_path / "refuse.py", PIDFD_OPEN, 1)
    assert (
        run(tmp_path, "import lockfile\n" + harness.textwrap.dedent(body), wrapper=wrapper).stdout == "True\nwaited\n"
    )


# --- a working directory that is gone -----------------------------------------------------------------------------------

RELATIVE = {
    "PidFile": ("daemonkit.PidFile('a.pid')", "a.pid"),
    "status": ("daemonkit.status('a.pid')", "a.pid"),
    "attach": ("daemonkit.attach('a.pid')", "a.pid"),
    "send_signal": ("daemonkit.send_signal('a.pid', 15)", "a.pid"),
    "stop": ("daemonkit.stop(b'a.pid')", "a.pid"),
    "detached-pidfile": ("daemonkit.detached(pidfile='a.pid')", "a.pid"),
    "detached-log": ("daemonkit.detached(stdout='a.log', detach_process=False).open()", "a.log"),
    "detached-directory": ("daemonkit.detached(working_directory='.', detach_process=False).open()", "."),
    "spawn-log": ("daemonkit.spawn_detached(['true'], stderr='a.log')", "a.log"),
    "spawn-input": ("daemonkit.spawn_detached(['true'], stdin='input')", "input"),
    "spawn-program": ("daemonkit.spawn_detached(['./true'])", "./true"),
    "spawn-cwd": ("daemonkit.spawn_detached(['true'], cwd='x')", "x"),
    "spawn-pidfile": ("daemonkit.spawn_detached(['true'], pidfile='a.pid')", "a.pid"),
    "supervise-log": ("daemonkit.supervise(['true'], stdout='a.log')", "a.log"),
    "supervise-cwd": ("daemonkit.supervise(['true'], cwd='x')", "x"),
    "supervise-socket": ("daemonkit.supervise(['true'], listen='unix:s')", "s"),
}
GONE = """
    os.mkdir("gone")
    os.chdir("gone")
    os.rmdir("../gone")
"""


@pytest.mark.parametrize(("call", "path"), RELATIVE.values(), ids=RELATIVE)
def test_a_relative_path_where_the_working_directory_is_gone_is_named_with_the_cause(
    tmp_path: Path, call: str, path: str
) -> None:
    body = f"""
    try:
        {call}
    except FileNotFoundError as error:
        print(error.filename)
        print(error)
    """
    done = run(tmp_path, GONE + body)
    assert done.stdout.splitlines()[:1] == [path], done
    assert "the working directory has been removed" in done.stdout and "give an absolute path" in done.stdout


def test_absolute_paths_work_where_the_working_directory_is_gone(tmp_path: Path) -> None:
    home = str(tmp_path)
    body = f"""
    with daemonkit.PidFile({home!r} + "/lock.pid"):
        print(daemonkit.status({home!r} + "/lock.pid").running)
    p = daemonkit.spawn_detached(["sleep", "60"], stdout={home!r} + "/b.log", cwd="/", pidfile={home!r} + "/b.pid")
    print(daemonkit.stop({home!r} + "/b.pid"), p.wait())
    print(daemonkit.supervise(["true"], stdout={home!r} + "/c.log", cwd="/", restart="never").exitcode, flush=True)
    with daemonkit.detached(pidfile={home!r} + "/a.pid", stdout={home!r} + "/a.log"):
        print("body", daemonkit.status({home!r} + "/a.pid").pid == os.getpid())
    """
    done = run(tmp_path, GONE + body)
    assert (done.stdout, done.stderr) == ("True\nTrue -15\n0\n", "")
    eventually(lambda: (tmp_path / "a.log").read_text() == "body True\n")
    eventually(lambda: not (tmp_path / "a.pid").exists())
