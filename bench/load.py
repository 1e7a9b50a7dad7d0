"""Requests one after the other until stdin ends: `load.py PORT`; then prints how many, how many failed, the longest.

Each has a connection of its own. A request has failed if it is refused, cut or answered short.
"""

from __future__ import annotations

import select
import socket
import sys
import time


def ask(port: int) -> bool:
    """Make one request; return whether it was answered."""
    answer = b""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as server:
            server.sendall(b"GET / HTTP/1.0\r\n\r\n")
            while part := server.recv(4096):
                answer += part
    except OSError:
        return False
    return answer.endswith(b"ok\n")


if __name__ == "__main__":
    count = failed = 0
    longest = 0.0
    while not select.select([sys.stdin], (), (), 0)[0]:
        begin = time.perf_counter()
        failed += not ask(int(sys.argv[1]))
        longest = max(longest, time.perf_counter() - begin)
        count += 1
    print(count, failed, longest)
