"""An HTTP server that counts as started once it listens.

`python web.py 8000`; port 0 takes any that is free, and web.log says which.
"""

import argparse
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import daemonkit


class Hello(BaseHTTPRequestHandler):
    """Answer every GET with a line."""

    def do_GET(self) -> None:
        """Answer."""
        body = f"hello from process {os.getpid()}\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def serve(port: int) -> None:
    """Become a daemon, listen, say so, and serve until SIGTERM."""
    with (
        daemonkit.detached(
            pidfile="web.pid",
            stdout="web.log",
            stderr=daemonkit.STDOUT,
            wait_ready=True,
        ) as daemon,
        ThreadingHTTPServer(("127.0.0.1", port), Hello) as server,
    ):
        address = f"listening on http://127.0.0.1:{server.server_port}/"
        print(address)
        daemon.ready(address)
        server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="A small HTTP server, in the background."
    )
    parser.add_argument("port", type=int, nargs="?", default=8000)
    try:
        serve(parser.parse_args().port)
    except (daemonkit.DaemonkitError, OSError) as error:
        sys.exit(f"web: {error}")
