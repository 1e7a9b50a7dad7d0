"""A real systemd in a throw-away machine: namespaces of its own over an overlay of `/` that lives in memory.

Its boot empties /tmp, and it writes where it likes, so it is never started before `SCRIPT` has seen that all it can
write to is its own: `/`, /dev, /run and /tmp by a witness file in each, cgroups by a group of its own.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from harness import PATIENCE, PRELUDE, children, eventually, open_copy, textwrap

if TYPE_CHECKING:
    from collections.abc import Iterator

SYSTEMD = next((path for path in ("/usr/lib/systemd/systemd", "/lib/systemd/systemd") if os.path.exists(path)), None)
TOOLS = ("unshare", "nsenter", "setpriv", "mount", "chroot", "systemctl")
PYTHON = sys.executable
CHECKOUT = Path(__file__).resolve().parent.parent
CANNOT = 77
"""The status of a machine that can't be built here."""

# In a mount namespace of its own; $1 is an empty directory, the rest are directories that must be seen in there.
SCRIPT = r"""
set -u
cannot() { echo "$*" >&2; exit 77; }
base=$1; shift
mount -t tmpfs -o mode=755 tmpfs "$base" || cannot "no tmpfs can be mounted here"
mkdir "$base/upper" "$base/work" "$base/root" "$base/groups"
mount -t cgroup2 cgroup2 "$base/groups" || cannot "no cgroup2 can be mounted here"
above=$base/groups$(sed -n 's/^0:://p' /proc/self/cgroup)
group=${above%/}/daemonkit-test-$$
mkdir "$group" && echo $$ >"$group/cgroup.procs" || cannot "no control group can be made here"
setpriv --pdeathsig KILL unshare -pfCuin --kill-child sh -c "$INNER" inner "$base" "$@"
status=$?
echo $$ >"$above/cgroup.procs"
find "$group" -depth -type d -exec rmdir {} +
exit $status
"""

# As process 1 of the new namespaces.
INNER = r"""
set -u
cannot() { echo "$*" >&2; exit 77; }
base=$1; shift
new=$base/root
mount -t overlay -o "lowerdir=/,upperdir=$base/upper,workdir=$base/work" overlay "$new" || cannot "no overlay of / here"
for own in dev run tmp; do mount -t tmpfs -o mode=755 tmpfs "$new/$own" || cannot "no tmpfs for /$own"; done
chmod 1777 "$new/tmp"
mount -t proc proc "$new/proc" || cannot "no fresh proc"
mount --bind "$new/proc/sys" "$new/proc/sys" && mount -o remount,bind,ro "$new/proc/sys" || cannot "no read-only sysctls"
mount -t sysfs -o ro sysfs "$new/sys" && mount -t cgroup2 cgroup2 "$new/sys/fs/cgroup" || cannot "no cgroup2 inside"
mkdir "$new/dev/pts" "$new/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$new/dev/pts" || cannot "no devpts"
ln -s pts/ptmx "$new/dev/ptmx"
for device in null zero full random urandom tty; do
    touch "$new/dev/$device" && mount --bind "/dev/$device" "$new/dev/$device" \
        && mount -o remount,bind,ro "$new/dev/$device" || cannot "no /dev/$device"
done
touch "$new/dev/kmsg"  # systemd's own log, instead of the kernel's
for seen in "$@"; do  # what lay under /tmp, or is a mount of its own
    if [ -z "$(ls -A "$new$seen" 2>/dev/null)" ]; then
        mkdir -p "$new$seen" && mount --bind "$seen" "$new$seen" && mount -o remount,bind,ro "$new$seen" \
            || cannot "$seen can't be shown in there"
    fi
done
mkdir -p "$new/run/systemd/system"
cat >"$new/run/systemd/system/throw-away.target" <<end
[Unit]
DefaultDependencies=no
AllowIsolate=yes
end

witness=.witness-$(cat /proc/sys/kernel/random/uuid)
refuse() { echo "refused: $*" >&2; for own in / /dev/ /run/ /tmp/; do rm -f "$new$own$witness"; done; exit 90; }
for own in / /dev/ /run/ /tmp/; do
    touch "$new$own$witness" || refuse "nothing can be written to $own"
    [ ! -e "$own$witness" ] || refuse "$own is the real one"
    [ "$own" != / ] || [ -e "$base/upper/$witness" ] || refuse "what is written to / goes elsewhere"
done
[ "$(stat -f -c %T "$base/upper")" = tmpfs ] || refuse "the overlay is not in memory"
[ "$(stat -f -c %T "$new/sys/fs/cgroup")" = cgroup2fs ] || refuse "not its own control groups"
[ "$(sed -n 's/^0:://p' "$new/proc/self/cgroup")" = / ] || refuse "it would see the control groups of others"
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=throw-away WITNESS="$witness" SYSTEMD="$SYSTEMD" \
    setpriv --bounding-set -sys_time,-sys_module,-syslog chroot "$new" sh -c '
        for own in / /dev/ /run/ /tmp/; do [ -e "$own$WITNESS" ] || exit 90; rm "$own$WITNESS"; done
        [ $$ = 1 ] && [ "$(readlink /proc/self)" != "" ] || exit 90
        exec "$SYSTEMD" --system --unit=throw-away.target --show-status=no --log-level=info --log-target=kmsg'
"""


def missing() -> str | None:
    """Return what keeps a machine from being built here, as far as that is seen at once."""
    if os.geteuid() != 0:
        return "a machine of its own takes root"
    if SYSTEMD is None:
        return "no systemd is installed"
    absent = [tool for tool in TOOLS if not shutil.which(tool)]
    if absent:
        return f"no {', '.join(absent)} is installed"
    trial = subprocess.run(["unshare", "-mpfCuin", "true"], capture_output=True, text=True, check=False)
    return f"no namespaces of its own: {trial.stderr.strip()}" if trial.returncode else None


class CannotBootError(Exception):
    """This machine does not allow what a machine within it takes."""


class Machine:
    """A booted machine, seen from outside."""

    def __init__(self, pid: int) -> None:
        """Take the pid of its process 1."""
        self.pid = pid
        self.root = Path(f"/proc/{pid}/root")

    def run(self, *command: object) -> subprocess.CompletedProcess[str]:
        """Run a command in there, to its end."""
        enter = ("nsenter", "-t", str(self.pid), "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w")
        clean = ("env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8")
        return subprocess.run(
            [*enter, *clean, *map(str, command)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=3 * PATIENCE,
            check=False,
        )

    def inside(self, path: str) -> Path:
        """Return a path in there as it is reached from outside (without links on the way)."""
        return Path(f"{self.root}{path}")

    def python(self, text: str) -> str:
        """Run a line of Python in there and return what it prints."""
        done = self.run(PYTHON, "-c", f"import daemonkit, os, signal\n{text}")
        assert done.returncode == 0, done.stderr
        return done.stdout

    def systemctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Ask systemd."""
        return self.run("systemctl", "--no-pager", *arguments)

    def show(self, unit: str) -> dict[str, str]:
        """Return what systemd knows of a unit."""
        done = self.systemctl("show", unit)
        assert done.returncode == 0, done.stderr
        return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)

    def log(self) -> str:
        """Return systemd's own log."""
        return (self.root / "dev/kmsg").read_bytes().replace(b"\0", b"").decode(errors="replace")


class Service:
    """A service of a machine: a directory in there with a program, and a unit that starts it."""

    def __init__(self, machine: Machine, name: str, body: str, unit: str) -> None:
        """Write both. In `unit` `{dir}` is the directory, and `{run}` the interpreter with the program."""
        self.machine, self.name = machine, name
        self.dir = f"/srv/{name}"
        self.path = machine.inside(self.dir)
        self.path.mkdir(parents=True)
        (self.path / "program.py").write_text(PRELUDE + textwrap.dedent(body))
        text = unit.format(dir=self.dir, run=f"{PYTHON} {self.dir}/program.py")
        self.write("service", f"[Unit]\nDefaultDependencies=no\n[Service]\nWorkingDirectory={self.dir}\n{text}")

    def write(self, kind: str, text: str) -> None:
        """Write a unit of its name."""
        self.machine.inside(f"/run/systemd/system/{self.name}.{kind}").write_text(text)
        self.machine.systemctl("daemon-reload")

    def open_to(self, user: str) -> None:
        """Let another user run the program, and write to its directory; the checkout may be closed to others."""
        shutil.chown(self.path, pwd.getpwnam(user).pw_uid)
        library = self.machine.inside("/srv/library")
        if not library.exists():
            open_copy(library, "daemonkit", "daemon", "lockfile")
        python = os.path.realpath(PYTHON)
        for directory in Path(python).parents:
            self.machine.run("chmod", "o+x", directory)  # in the overlay, not in what lies below
        unit = self.machine.inside(f"/run/systemd/system/{self.name}.service").read_text()
        self.write("service", unit.replace(PYTHON, f"/usr/bin/env PYTHONPATH=/srv/library {python}"))

    def __call__(self, verb: str) -> subprocess.CompletedProcess[str]:
        """`systemctl VERB name`."""
        return self.machine.systemctl(verb, self.name)

    def __getitem__(self, key: str) -> str:
        """Return what systemd says of it."""
        return self.machine.show(self.name)[key]

    def failure(self) -> str:
        """Return all there is to say about it, for an assertion."""
        errors = self.path / "err"
        told = errors.read_text() if errors.exists() else ""
        return "\n".join((self("status").stdout, told, self.machine.log()[-3000:]))


@contextlib.contextmanager
def booted(directory: Path) -> Iterator[Machine]:
    """Boot a machine; end it by ending its process 1. CannotBootError where this machine does not allow it."""
    seen = dict.fromkeys(map(os.path.realpath, (CHECKOUT, sys.prefix, sys.base_prefix)))
    with subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "unshare", "-m", "sh", "-c", SCRIPT, "boot", directory, *seen],
        env={**os.environ, "INNER": INNER, "SYSTEMD": str(SYSTEMD)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as outer:
        try:
            pid = eventually(lambda: outer.poll() or _init(outer.pid), "a systemd as process 1")
            if outer.returncode is not None:
                assert outer.stderr
                message = outer.stderr.read().strip()
                assert outer.returncode == CANNOT, message
                raise CannotBootError(message)
            machine = Machine(pid)
            eventually(
                lambda: machine.systemctl("is-active", "throw-away.target").stdout == "active\n",
                "the machine's target",
            )
            yield machine
        finally:
            if outer.poll() is None:
                init = _init(outer.pid)
                os.kill(init or outer.pid, signal.SIGKILL)
            outer.wait(PATIENCE)


def _init(pid: int) -> int:
    """Return process 1 of the machine, once it is systemd; 0 before."""
    for child in (deeper for middle in children(pid) for deeper in children(middle)):
        if Path(f"/proc/{child}/comm").read_text() == "systemd\n":
            return child
    return 0
