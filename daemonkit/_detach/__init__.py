"""Become a daemon."""

from daemonkit._detach.callers import warn_of_losses
from daemonkit._detach.context import DetachedContext, detached

__all__ = ["DetachedContext", "detached", "warn_of_losses"]
