"""Process 1 of the tests' namespace: runs a program, reaps what it leaves, and ends with its status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

program = subprocess.Popen(sys.argv[1:])
signal.signal(signal.SIGINT, signal.SIG_IGN)  # the program's; it shares the terminal
signal.signal(signal.SIGTERM, lambda *_: program.send_signal(signal.SIGINT))
while True:
    pid, status = os.wait()
    if pid == program.pid:
        sys.exit(os.waitstatus_to_exitcode(status) & 0xFF)
