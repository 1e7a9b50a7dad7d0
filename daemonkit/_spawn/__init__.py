"""Launch a detached program."""

from daemonkit._spawn.spawn import spawn_detached

__all__ = ["spawn_detached"]
