"""Run the suite N times in a row, every second time with all cores loaded; the first failure ends it."""

from __future__ import annotations

import os
import subprocess
import sys
import time


def main() -> int:
    """Return 0 if no run failed."""
    runs, *arguments = sys.argv[1:]
    for n in range(1, int(runs) + 1):
        loaded = n % 2 == 0
        burners = [
            subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1) if loaded
        ]
        begun = time.monotonic()
        try:
            done = subprocess.run(
                [sys.executable, "-m", "pytest", "-q", *arguments], check=False, capture_output=True, text=True
            )
        finally:
            for burner in burners:
                burner.kill()
                burner.wait()
        closing = (done.stdout.strip().splitlines() or ["no output"])[-1]
        print(
            f"{n:3}/{runs} {'loaded' if loaded else 'idle  '} {time.monotonic() - begun:5.0f} s  {closing}", flush=True
        )
        if done.returncode != 0:
            print(done.stdout, done.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
