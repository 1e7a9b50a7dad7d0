"""What is measured as daemonkit: `supervised.py FIFO OPTIONS`, the arguments of `supervise()` as JSON.

The line "call PID NANOSECONDS" in FIFO tells when it was called, without the time that Python takes to start.
"""

import json
import os
import sys
import time

import daemonkit

options = json.loads(sys.argv[2])
target = options.pop("target")
with open(sys.argv[1], "w", encoding="ascii") as fifo:
    fifo.write(f"call {os.getpid()} {time.monotonic_ns()}\n")
raise SystemExit(daemonkit.supervise(target, **options).exitcode)
