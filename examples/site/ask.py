"""Ask the store."""

import os
import socket
import time

PATIENCE = 10.0  # seconds: the store may be restarting


def ask(line: str) -> str:
    """Send a command; return the answer."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return _ask_once(line)
        except (FileNotFoundError, ConnectionError, socket.gaierror):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _ask_once(line: str) -> str:
    host, _, port = os.environ["STORE"].rpartition(":")
    with (
        socket.create_connection((host, int(port)))
        if host
        else socket.socket(socket.AF_UNIX) as client
    ):
        if not host:  # a path: the store is on this machine
            client.connect(port)
        client.sendall(f"{line}\n".encode())
        client.shutdown(socket.SHUT_WR)
        return client.makefile().read().strip()
