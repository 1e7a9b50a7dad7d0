"""Print this process's pid, for ever: the smallest program to keep alive."""

import os
import time


def main() -> None:
    """Beat."""
    while True:
        print(os.getpid(), time.strftime("%H:%M:%S"))
        time.sleep(1)


if __name__ == "__main__":
    import sys

    import daemonkit

    name = sys.argv[1] if len(sys.argv) > 1 else "heartbeat"
    with daemonkit.detached(
        pidfile=f"{name}.pid", stdout=f"{name}.log", stderr=daemonkit.STDOUT
    ):
        main()
