"""Ask the store."""

import os
import socket


def ask(line: str) -> str:
    """Send a command; return the answer."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(os.environ["STORE"])
        client.sendall(f"{line}\n".encode())
        client.shutdown(socket.SHUT_WR)
        return client.makefile().read().strip()
