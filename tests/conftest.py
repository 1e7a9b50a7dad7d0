"""Fixtures for every test: daemons become this process's children, and none of them outlives its test."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import harness
import pytest
from shell import Shell

import daemonkit

if TYPE_CHECKING:
    from collections.abc import Iterator


# What `make quick` leaves out: what builds, boots, sweeps, or takes seconds by its nature.
CASES = 1  # of each table
LONG_FILES = {
    *("test_install", "test_docs", "test_examples", "test_systemd", "test_crash", "test_lock_protocol", "test_servers"),
    *("test_everywhere", "test_walkthrough", "test_bench", "test_programs", "test_libraries", "test_greenlets"),
    *("test_cli_day", "test_site"),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="leave out what takes long, and most of each table of cases")


@pytest.hookimpl(tryfirst=True)  # before they are shuffled: each worker must keep the same
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("quick"):
        return
    seen: Counter[str] = Counter()
    kept, left_out = [], []
    for item in items:
        test = item.nodeid.partition("[")[0]
        seen[test] += 1
        is_long = item.path.stem in LONG_FILES or item.get_closest_marker("long")
        (left_out if is_long or seen[test] > CASES else kept).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=left_out)


def pytest_configure(config: pytest.Config) -> None:
    """Give this session a temporary directory of its own.

    Pytest's common one is closed to other users whenever a session starts, and tests become other users. Its name is
    short, as that of a Unix socket in there has 108 bytes at most.
    """
    if "PYTEST_DEBUG_TEMPROOT" not in os.environ:
        os.environ["PYTEST_DEBUG_TEMPROOT"] = root = tempfile.mkdtemp(prefix="dk-")
        os.chmod(root, 0o755)
        config.add_cleanup(lambda: shutil.rmtree(root, ignore_errors=True))


@pytest.fixture(scope="session", autouse=True)
def _subreaper() -> None:
    harness.become_subreaper()
    # Under nohup, or as a shell's background job, these come ignored, and every program under test would inherit it.
    default_int = (signal.SIGINT, signal.default_int_handler)
    for number, default in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGQUIT, signal.SIG_DFL), default_int):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, default)


@pytest.fixture(scope="session")
def everybody() -> Iterator[dict[str, str]]:
    """Return an environment in which any user's Python finds daemonkit: the checkout may be closed to others."""
    with tempfile.TemporaryDirectory(prefix="daemonkit-open-") as directory:
        harness.open_copy(Path(directory), "daemonkit", "daemon", "lockfile")
        yield {**os.environ, "PYTHONPATH": directory}


@pytest.fixture(autouse=True)
def _no_strays() -> Iterator[None]:
    """Fail a test that leaves a process, and end just that process."""
    before = set(harness.children())
    yield
    with contextlib.suppress(AssertionError):  # a process that was told to end may take a moment
        harness.eventually(lambda: not [pid for pid, _ in harness.own_children() if pid not in before], patience=5)
    strays = [(pid, what) for pid, what in harness.own_children() if pid not in before]
    for pid in set(harness.children()) - before:  # children, unreaped: their numbers are theirs
        os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
    assert not strays, f"left running: {strays}"


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """Give somebody who types `daemonkit` commands; all apps are stopped in the end."""
    somebody = Shell(tmp_path)
    yield somebody
    for pidfile in somebody.home.glob("*.pid"):
        with contextlib.suppress(daemonkit.NotRunningError, OSError):
            daemonkit.stop(pidfile)


@pytest.fixture
def public() -> Iterator[Path]:
    """Yield a directory that every user can reach: pytest's own are this user's alone."""
    with tempfile.TemporaryDirectory(dir="/tmp" if os.access("/tmp", os.W_OK) else None) as directory:
        os.chmod(directory, 0o755)
        yield harness.Path(directory)
