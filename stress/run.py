"""Attack daemonkit and print what became of it: tried, survived, lost, left. Status 1 if a promise was broken."""

from __future__ import annotations

import argparse
import os
import platform
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))  # the harness is the tests'

import agents
import chaos
import churn
import common
import faults
import fuzz
import harness
import limits
import ups
from common import Run

PARTS: dict[str, tuple[common.Part, float]] = {
    "faults": (faults.sweep, 0.25),
    "churn": (churn.churn, 0.1),
    "daemons": (churn.daemons, 0.05),
    "limits": (limits.limits, 0.05),
    "fuzz": (fuzz.fuzz, 0.1),
    "doubles": (chaos.doubles, 0.1),
    "ups": (ups.ups, 0.1),
    "agents": (agents.agents, 0.1),
    "chaos": (chaos.chaos, 0.15),
}
"""Each part, and its share of the time."""


def main() -> int:
    """Run the parts one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args()
    harness.become_subreaper()
    print(
        f"seed {options.seed}, {options.minutes:g} minutes, Python {platform.python_version()}, Linux {platform.release()}"
    )
    print("\n| part | tried | survived | lost | left |\n| --- | --- | --- | --- | --- |", flush=True)
    accounts, notes = [], []
    for name, (part, share) in PARTS.items():
        if options.only and name != options.only:
            continue
        seconds = options.minutes * 60 * (1.0 if options.only else share)
        with tempfile.TemporaryDirectory(prefix="daemonkit-stress-") as folder:
            os.chmod(folder, 0o755)
            run = Run(seconds, random.Random(f"{options.seed} {name}"), Path(folder))
            begun = time.monotonic()
            try:
                part(run)
            except Exception as error:  # what it had found by then is told all the same
                run.account(f"{name}: the part itself").count(f"{type(error).__name__}: {error}")
        for account in run.accounts:
            print(account.row(), flush=True)
        accounts += run.accounts
        notes.extend(f"- {name}: {note}" for account in run.accounts for note in account.notes)
        notes.append(f"- {name}: {time.monotonic() - begun:.0f} s")
    print("\n" + "\n".join(notes))
    broken = sum(account.lost + account.left for account in accounts)
    print(f"\n{broken} promises broken" if broken else "\nEvery promise held.")
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
