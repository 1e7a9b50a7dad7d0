"""Become a daemon."""

from daemonkit._detach.context import DetachedContext, detached

__all__ = ["DetachedContext", "detached"]
