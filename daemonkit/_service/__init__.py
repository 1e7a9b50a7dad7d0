"""A program's own start, stop, status."""

from daemonkit._service.service import Service

__all__ = ["Service"]
