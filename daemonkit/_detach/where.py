"""Where this program runs, which decides whether it forks away."""

from __future__ import annotations

import os

from daemonkit._system.process import has_terminal
from daemonkit._system.run_mark import is_supervised


def must_stay() -> bool:
    """Tell whether this process already is where a daemon should be, so that it must not fork away from there."""
    pid = os.getpid()
    return (
        pid == 1
        or bool(os.environ.get("NOTIFY_SOCKET"))
        or os.environ.get("SYSTEMD_EXEC_PID") == str(pid)
        or is_supervised()
        or (os.getppid() in {0, 1} and not has_terminal())  # 0: the parent is outside of this PID namespace
    )


def listen_fds() -> set[int]:
    """Return the sockets that systemd passed to this very process: sd_listen_fds(3)."""
    count = os.environ.get("LISTEN_FDS", "")
    ours = os.environ.get("LISTEN_PID") == str(os.getpid()) and count.isdigit()
    return set(range(3, 3 + int(count))) if ours else set()
