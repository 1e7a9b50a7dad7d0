"""Launch programs from an event loop, and reap each when it ends.

Once with asyncio, once with selectors.
"""

from __future__ import annotations

import asyncio
import selectors
from pathlib import Path

import daemonkit


def launch(status: int) -> daemonkit.DetachedProcess:
    """Launch a program that ends with that status at once."""
    return daemonkit.spawn_detached(["sh", "-c", f"exit {status}"])


def tell(loop: str, p: daemonkit.DetachedProcess) -> None:
    """Reap it, and say what became of it."""
    status = p.poll()
    what = "no zombie" if not Path(f"/proc/{p.pid}").exists() else "a zombie"
    print(f"{loop}: process {p.pid} ended with status {status} and left {what}")


async def end_of(p: daemonkit.DetachedProcess) -> None:
    """Wait for its end without blocking the loop, and reap it."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(p.fileno(), ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(p.fileno())
    tell("asyncio", p)


async def with_asyncio() -> None:
    """Launch four, and go on when all have ended."""
    async with asyncio.TaskGroup() as group:
        for status in range(4):
            group.create_task(end_of(launch(status)))


def with_selectors() -> None:
    """Do the same without asyncio: a selector takes a handle as it is."""
    with selectors.DefaultSelector() as selector:
        for status in range(4):
            selector.register(launch(status), selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                selector.unregister(key.fileobj)
                tell("selectors", key.fileobj)


if __name__ == "__main__":
    asyncio.run(with_asyncio())
    with_selectors()
