"""A web page that counts its visitors in the store.

The socket comes from outside, so several workers share it.
"""

import os
import signal
import socket
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

import notify
from ask import ask


class Page(BaseHTTPRequestHandler):
    """Answer every GET with a line."""

    def do_GET(self) -> None:
        """Answer."""
        visitors, ticks = ask("incr visitors"), ask("get ticks") or 0
        text = f"{os.environ['GREETING']}, visitor {visitors}; tick {ticks}\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_arguments: object) -> None:
        """Say nothing of each request."""


class Server(HTTPServer):
    """A server on the socket that is descriptor 3: sd_listen_fds(3)."""

    def __init__(self) -> None:
        """Take it over, in the place of one of its own."""
        super().__init__(("", 0), Page, bind_and_activate=False)
        self.socket.close()
        self.socket = socket.socket(fileno=3)
        self.socket.setblocking(False)  # another worker may be quicker
        self.stopping = False

    def stop(self, *_: object) -> None:
        """End after the request that is being answered."""
        self.stopping = True


if __name__ == "__main__":
    with Server() as server:
        signal.signal(signal.SIGTERM, server.stop)
        server.timeout = 0.2
        notify.ready()
        while not server.stopping:
            server.handle_request()
    sys.exit(0)
