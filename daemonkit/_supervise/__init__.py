"""Keep a program running."""

from daemonkit._supervise.records import Event, InstanceRecord, Summary
from daemonkit._supervise.rules import Backoff
from daemonkit._supervise.supervise import supervise

__all__ = ["Backoff", "Event", "InstanceRecord", "Summary", "supervise"]
