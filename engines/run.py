"""Fetch the engines, and test daemonkit with them in namespaces that end with this program.

What is downloaded is kept in `$XDG_CACHE_HOME/daemonkit-engines`; delete that folder to fetch it anew. Nothing is installed
on the machine itself. The tests run as the children of a process 1 of their own, in a network without a way out: whatever
ends this program, also Ctrl-C or `kill -9`, ends every engine, and the kernel takes back their mounts and networks.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "daemonkit-engines"
SUITE = "bookworm"
BASE = ["python3", "python3-pip", "procps"]
ENGINES = {
    "docker": ["docker.io", "docker-compose", "iptables", "iproute2"],
    "podman": ["podman", "crun", "catatonit", "netavark", "aardvark-dns", "iptables", "iproute2"],
    "slurm": ["slurm-wlm", "munge", "iproute2"],
}
RECIPE = f"{SUITE} {BASE} {ENGINES}"
CGROUPS = Path("/sys/fs/cgroup")
GROUP = "daemonkit-engines-"


def main() -> int:
    """Return pytest's status; without root or what is needed, all tests are skipped, with the reason."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that it ends what it runs, as after Ctrl-C
    environment = dict(os.environ)
    with contextlib.ExitStack() as stack:
        try:
            environment["ENGINES"] = str(prepare())
            own = stack.enter_context(tempfile.TemporaryDirectory(prefix="wheels-", dir=CACHE))
            environment["ENGINES_WHEELS"] = str(wheels(Path(own)))
        except OSError as error:
            environment["ENGINES_MISSING"] = " ".join(str(error).split())
            return subprocess.call(_pytest(), env=environment)
        return _run_apart(environment)


def _pytest() -> list[str]:
    # Engines take longer than the suite's own limits allow.
    limits = ["--timeout=600", "-o", "faulthandler_timeout=500"]
    given = sys.argv[1:]
    folder = [] if any(Path(word.partition("::")[0]).exists() for word in given) else [str(ROOT / "engines")]
    return [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *limits, *given, *folder]


def _run_apart(environment: dict[str, str]) -> int:
    """Run the tests in namespaces of their own, under a process 1 that reaps."""
    _remove_groups_of_the_dead()
    environment["ENGINES_GROUP"] = group = f"{GROUP}{os.getpid()}"
    apart = ["unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"]
    reaper = [sys.executable, str(ROOT / "engines" / "reaper.py")]
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is pytest's, which has a closing line to print
    try:
        return subprocess.call([*apart, *reaper, *_pytest()], env=environment)
    finally:
        _remove_group(group)


def prepare() -> Path:
    """Return a folder with the engines' root and the base image's; OSError if it can't be had."""
    if os.geteuid() != 0:
        raise PermissionError("root is needed, to make namespaces and to start the engines in them")
    if absent := [tool for tool in ("unshare", "nsenter", "ip", "apt-get") if not shutil.which(tool)]:
        raise FileNotFoundError(f"needed, and not on this machine: {', '.join(absent)}")
    (CACHE / "node").mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        recipe = CACHE / "recipe"
        if not recipe.exists() or recipe.read_text() != RECIPE:
            _fetch()
            if _complete():  # else the tests of what is missing are skipped, and the next run tries again
                recipe.write_text(RECIPE)
    return CACHE


def _complete() -> bool:
    return all(os.path.lexists(CACHE / "root/usr" / one) for one in ("sbin/dockerd", "bin/podman", "sbin/slurmctld"))


def _fetch() -> None:
    """Make both roots by mmdebstrap, which is run from where it was unpacked, and whose mounts end with it."""
    print(f"fetching the engines into {CACHE}: some minutes, once", flush=True)
    tools, root = CACHE / "mmdebstrap", CACHE / "root"
    for old in (tools, root):
        shutil.rmtree(old, ignore_errors=True)
    (CACHE / "recipe").unlink(missing_ok=True)
    tools.mkdir()
    as_root = "APT::Sandbox::User"  # where the folder is not open to all, apt's own user could not write into it
    _run("apt-get", "-o", f"{as_root}=root", "download", "mmdebstrap", cwd=str(tools))
    _run("dpkg-deb", "-x", *map(str, tools.glob("*.deb")), str(tools))
    command = [
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        str(tools / "usr/bin/mmdebstrap"),
    ]
    command += ["--mode=root", "--variant=minbase", f'--aptopt={as_root} "root"', f"--include={','.join(BASE)}"]
    pack = 'tar --one-file-system --exclude="./dev/*" --exclude="./var/lib/apt/lists/*" --exclude="*.deb" -C "$1" -c .'
    command += [f"--customize-hook={pack} >'{CACHE}/base.tar'"]
    for packages in ENGINES.values():  # each by itself: one that can't be had is no reason to do without the others
        install = f"apt-get install -yq --no-install-recommends {' '.join(packages)}"
        command += [f'--customize-hook=chroot "$1" env DEBIAN_FRONTEND=noninteractive {install} || true']
    _run(*command, SUITE, str(root))


def wheels(folder: Path) -> Path:
    """Fill a folder with daemonkit's wheel, and those of what it needs, which are kept; OSError if they can't be had."""
    kept = CACHE / "wheels"
    kept.mkdir(exist_ok=True)
    _run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=str(ROOT))
    (own,) = folder.iterdir()
    fetch = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q", "-d", str(folder)]
    fetch += ["--only-binary=:all:", "--python-version=3.11", str(own)]
    try:
        _run(*fetch, "--no-index", f"--find-links={kept}")
    except OSError:  # not all are there: ask the registry
        _run(*fetch)
        for wheel in set(folder.iterdir()) - {own}:
            shutil.copy(wheel, kept)
    return folder


def _run(*command: str, cwd: str | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        (CACHE / "log").write_text(done.stdout + done.stderr)
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise OSError(f"{command[0]} failed with status {done.returncode}: {last} (all of it: {CACHE / 'log'})")


def _remove_groups_of_the_dead() -> None:
    for folder in {path.name for path in CGROUPS.rglob(f"{GROUP}*")}:
        with contextlib.suppress(ValueError):
            if not Path(f"/proc/{int(folder.removeprefix(GROUP))}").exists():
                _remove_group(folder)


def _remove_group(name: str) -> None:
    """Remove the engines' control groups, which belong to no namespace, once the last process in them has ended."""
    deadline = time.monotonic() + 10.0
    tops = [path for path in (CGROUPS / name, *CGROUPS.glob(f"*/{name}")) if path.exists()]
    while tops and time.monotonic() < deadline:
        for folder in (folder for top in tops for folder, _, _ in os.walk(top, topdown=False)):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        tops = [top for top in tops if top.exists()]
        time.sleep(0.05)  # noqa: TID251 - what is looked at has no event to wait for


if __name__ == "__main__":
    sys.exit(main())
