"""What `supervise` tells its caller: events while it runs, a summary in the end."""

from __future__ import annotations

from daemonkit._system.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    from daemonkit._supervise.policy import State

    Kind = Literal["start", "ready", "exit", "gave-up", "reload-failed", "memory", "watchdog", "unhealthy"]


@record(frozen=True)
class Event:
    """Something that happened to an instance."""

    instance: int
    """Its number, from 0 on; -1 where the event is about no instance."""
    kind: Kind
    """"start"; "ready", it is up; "exit"; "gave-up", past `max_restarts`; "reload-failed", the new run did not come
    up, so the old one stays, or (of no instance) what `on_reload` wished was refused; "memory", above `max_memory`, it
    is replaced; "watchdog", silent too long, it is killed; "unhealthy", its health checks failed, it is stopped and
    started again.
    """
    pid: int
    """Of the run's main process; 0 where the event is about no instance."""
    exitcode: int | None
    """Its status, negative for a signal; None for a kind that is not about an end."""
    time: float
    """When it happened, in seconds since the epoch."""


@record(frozen=True)
class InstanceRecord:
    """How an instance ended up."""

    index: int
    """Its number, from 0 on."""
    starts: int
    """How often it was started, the first time included."""
    exitcode: int | None
    """Of its last run: negative for a signal; None if none has ended."""
    state: State
    """"exited", as wished; "stopped", on request; "failed", and not to be restarted; "gave-up", past `max_restarts`.
    In between "running" and "backoff", waiting for its next start.
    """


@record(frozen=True)
class Summary:
    """What `supervise` returns."""

    exitcode: int
    """0 if all instances ended as wished or were stopped, else 1."""
    instances: tuple[InstanceRecord, ...]
    """One record for each, by its number."""
