"""Tell whoever started this program that it is ready: sd_notify(3)."""

import os
import socket


def ready() -> None:
    """Say so; started by hand, there is nobody to tell."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.sendto(b"READY=1", address.replace("@", "\0", 1))
