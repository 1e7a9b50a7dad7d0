"""Which signals there are here, and what they are called."""

from __future__ import annotations

import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

ALL_SIGNALS: Final = frozenset(map(int, signal.valid_signals()))
"""Every signal there is here, real-time ones too; asking takes longer than a system call."""


def signal_name(number: int) -> str:
    """Return a signal's name, as far as it has one."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"  # a real-time signal between SIGRTMIN and SIGRTMAX has none
