"""A program with commands, as an init script has: `python service.py start`, stop, status, restart, reload.

It looks for files in `inbox`, beside itself, and takes them out: put your own work there. Status 0: done, or running;
1: it failed; 2: no such command; 3: not running.
"""

import signal
import sys
import time
from pathlib import Path

import daemonkit

HERE = Path(__file__).resolve().parent
PIDFILE = HERE / "service.pid"
LOG = HERE / "service.log"
INBOX = HERE / "inbox"


def work(daemon: daemonkit.DetachedContext) -> None:
    """Stand for your own program."""
    INBOX.mkdir(exist_ok=True)  # what may go wrong belongs before ready(): then `start` says so
    daemon.ready(f"looking at {INBOX}")
    while True:
        for file in sorted(INBOX.iterdir()):
            print("took", file.name)
            file.unlink()
        time.sleep(0.5)


def start() -> None:
    """Become a daemon; under systemd or in a container, stay."""
    with daemonkit.detached(pidfile=PIDFILE, stdout=LOG, stderr=daemonkit.STDOUT, wait_ready=True) as daemon:
        work(daemon)


def stop() -> None:
    """End it, and return when it is gone."""
    try:
        print("stopped" if daemonkit.stop(PIDFILE, timeout=10) else "killed: it did not end within 10 s")
    except daemonkit.NotRunningError:
        print("not running")


def restart() -> None:
    """End it if it runs, and start it."""
    stop()
    start()


def reload() -> None:
    """Have it open its log anew."""
    daemonkit.send_signal(PIDFILE, signal.SIGHUP)


def status() -> None:
    """Tell whether it runs, in words and by the exit status."""
    now = daemonkit.status(PIDFILE)
    print(f"running as process {now.pid}" if now else "not running")
    sys.exit(0 if now else 3)


if __name__ == "__main__":
    commands = {command.__name__: command for command in (start, stop, status, restart, reload)}
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        print(f"usage: {sys.argv[0]} {'|'.join(commands)}", file=sys.stderr)
        sys.exit(2)
    try:
        commands[sys.argv[1]]()
    except (daemonkit.DaemonkitError, OSError) as error:
        sys.exit(f"service: {error}")
