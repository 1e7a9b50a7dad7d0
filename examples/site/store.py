"""A small store: it answers `get KEY`, `set KEY VALUE` and `incr KEY`.

Each is a line, and so is the answer: the value.

It keeps everything in memory, and writes it to a file when it is stopped.
"""

import json
import os
import signal
import socket
import socketserver
import sys
from pathlib import Path

import notify

FILE = Path("store.json")
values: dict[str, str] = json.loads(FILE.read_text()) if FILE.exists() else {}


class Client(socketserver.StreamRequestHandler):
    """Answer one client, line by line."""

    def handle(self) -> None:
        """Answer until it goes."""
        for line in self.rfile:
            command, key, *rest = line.decode().split(None, 2)
            if command == "set":
                values[key] = rest[0].strip()
            elif command == "incr":
                values[key] = str(int(values.get(key, "0")) + 1)
            self.wfile.write(f"{values.get(key, '')}\n".encode())


class Store(socketserver.UnixStreamServer):
    """One client after the other: a command takes no time."""

    allow_reuse_address = True


class Taken(socketserver.TCPServer):
    """The same on descriptor 3, for clients on other machines."""

    def server_bind(self) -> None:
        """Take it over, in the place of one of its own."""
        self.socket.close()
        self.socket = socket.socket(fileno=3)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    where = os.environ["STORE"]
    if "LISTEN_FDS" not in os.environ:
        Path(where).unlink(missing_ok=True)
    with (
        Taken(("", 0), Client)
        if "LISTEN_FDS" in os.environ
        else Store(where, Client) as server
    ):
        print(f"listening on {where}, with {len(values)} values")
        notify.ready()
        try:
            server.serve_forever()
        finally:
            FILE.write_text(json.dumps(values))
            print("values are kept")
