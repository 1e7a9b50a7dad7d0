"""Launch a long job, go away, and come back to it from another terminal.

    python job.py start make -k all
    python job.py status
    python job.py wait
    python job.py stop

job.pid and job.log are in the current directory. The status is 0 (done, or it
runs), 1 (failed) or 3 (it does not run).
"""

import sys
from collections import deque
from pathlib import Path

import daemonkit

PIDFILE = Path("job.pid")
LOG = Path("job.log")


def start(command: list[str]) -> None:
    """Launch it; nobody has to wait for it."""
    job = daemonkit.spawn_detached(
        command, pidfile=PIDFILE, stdout=LOG, stderr=daemonkit.STDOUT
    )
    print(f"started as process {job.pid}; it writes to {LOG}")


def status() -> None:
    """Tell whether it runs, and the last that it wrote."""
    now = daemonkit.status(PIDFILE)
    since = f" since {now.started.astimezone():%F %R}" if now.started else ""
    print(f"running as process {now.pid}{since}" if now else "not running")
    if LOG.exists():
        with LOG.open(errors="replace") as log:
            print("".join(deque(log, maxlen=3)), end="")
    sys.exit(0 if now else 3)


def wait() -> None:
    """Wait until it has ended."""
    code = daemonkit.attach(PIDFILE).wait()
    # Only the parent may take the status. Linux 6.15 and later tell it to
    # others once the parent has taken it.
    print("ended" if code is None else f"ended with status {code}")


def stop() -> None:
    """End it."""
    print(
        "stopped"
        if daemonkit.stop(PIDFILE, timeout=10)
        else "killed: it did not end within 10 s"
    )


if __name__ == "__main__":
    try:
        match sys.argv[1:]:
            case ["start", _, *_]:
                start(sys.argv[2:])
            case ["status"]:
                status()
            case ["wait"]:
                wait()
            case ["stop"]:
                stop()
            case _:
                print(
                    f"usage: {sys.argv[0]} start COMMAND...|status|wait|stop",
                    file=sys.stderr,
                )
                sys.exit(2)
    except daemonkit.NotRunningError:
        print("not running", file=sys.stderr)
        sys.exit(3)
    except (daemonkit.DaemonkitError, OSError) as error:
        sys.exit(f"job: {error}")
