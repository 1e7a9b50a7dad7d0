"""A program with commands: start, stop, restart, reload, status, run.

It takes files out of the folder `inbox` beside it: put your own work there.
"""

import sys
import time
from pathlib import Path

import daemonkit

HERE = Path(__file__).resolve().parent
INBOX = HERE / "inbox"


def work(daemon: daemonkit.DetachedContext) -> None:
    """Stand for your own program."""
    INBOX.mkdir(
        exist_ok=True
    )  # what may go wrong belongs before ready(): then `start` says so
    daemon.ready(f"looking at {INBOX}")
    while True:
        for file in sorted(INBOX.iterdir()):
            print("took", file.name)
            file.unlink()
        time.sleep(0.5)


service = daemonkit.Service(
    work,
    pidfile=HERE / "service.pid",
    stdout=HERE / "service.log",
    stderr=daemonkit.STDOUT,
    wait_ready=True,
)

if __name__ == "__main__":
    sys.exit(service.main())
