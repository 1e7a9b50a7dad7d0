"""Real servers from PyPI behind `supervise(listen=...)`, unchanged, restarted under load."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from harness import PATIENCE, eventually
from supervising import supervising

APPS = {
    "wsgi": """
import os
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.environ["DAEMONKIT_INSTANCE"]).encode()]
""",
    "asgi": """
import os
async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": os.environ["DAEMONKIT_INSTANCE"].encode()})
""",
    "plain": """
import http.server, os, signal, socket, socketserver, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(os.environ["DAEMONKIT_INSTANCE"].encode())
    def log_message(self, *_): pass
class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = False
server = Server(("", 0), Handler, bind_and_activate=False)
server.socket.close(); server.socket = socket.socket(fileno=3)
import threading
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
server.serve_forever(0.05)
server.server_close()
""",
}
HOWTO = Path(__file__).parent.parent / "docs" / "howto" / "rolling.md"
APPS["node"] = HOWTO.read_text().partition("```js\n")[2].partition("```")[0]  # as the page shows it
COMMANDS = {
    "wsgi": [sys.executable, "-m", "gunicorn", "app:app", "--graceful-timeout", "10"],
    "asgi": [sys.executable, "-m", "uvicorn", "app:app", "--fd", "3", "--log-level", "error", "--no-access-log"],
    "plain": [sys.executable, "app.py"],
    "node": ["node", "app.py"],
}


class Load:
    """Clients that ask as fast as they can, a connection each time, and count."""

    def __init__(self, port: int, clients: int = 3) -> None:
        """Start them."""
        self.port, self.good, self.seen, self.failures = port, 0, set[str](), list[str]()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        while not self._stop.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
            try:
                connection.request("GET", "/", headers={"Connection": "close"})
                response = connection.getresponse()
                self.seen.add(response.read().decode())
                assert response.status == 200
                self.good += 1
            except Exception as error:
                self.failures.append(repr(error))
            finally:
                connection.close()

    def end(self) -> None:
        """Stop asking."""
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.parametrize("kind", APPS)
def test_a_real_server_runs_behind_it_and_restarts_without_a_failed_request(tmp_path: Path, kind: str) -> None:
    if not shutil.which(COMMANDS[kind][0]):
        pytest.skip(f"no {kind} here")
    (tmp_path / "app.py").write_text(APPS[kind])
    body = f"""
sock = socket.create_server(("127.0.0.1", 0), backlog=512)
with open("port.new", "w") as file: file.write(str(sock.getsockname()[1]))
os.rename("port.new", "port")
supervise({COMMANDS[kind]!r}, listen=sock, instances=2, wait_ready={kind == "wsgi"}, min_uptime=1.0, env={{**os.environ, "HOME": os.getcwd()}})
"""
    with supervising(tmp_path, body) as supervisor:
        supervisor.until("ready", 2)
        load = Load(int((tmp_path / "port").read_text()))
        try:
            eventually(lambda: load.good > 200)
            supervisor.process.send_signal(signal.SIGHUP)
            supervisor.until("exit", 2)
            before = load.good
            eventually(lambda: load.good > before + 200)
        finally:
            load.end()
        if kind == "asgi":
            # uvicorn closes what it has accepted and not yet read from when it is told to end: its own doing.
            own = ("RemoteDisconnected", "ConnectionResetError")
            assert len(load.failures) <= 6 and all(failure.startswith(own) for failure in load.failures), load.failures
        else:
            assert load.failures == []
        assert load.seen == {"0", "1"}
        assert [event["exitcode"] for event in supervisor.events("exit")] == [0, 0] or kind == "asgi"
        summary = supervisor.stop()
        assert summary["exitcode"] == 0, json.dumps(summary)


CELERY = """
import os, time
from celery import Celery
app = Celery("jobs", broker="filesystem://", backend=None)
folder = os.path.abspath("queue")
app.conf.broker_transport_options = {"data_folder_in": folder, "data_folder_out": folder, "control_folder": os.path.abspath("control")}
app.conf.worker_hijack_root_logger = False
@app.task
def job():
    open("begun", "w").close()
    while not os.path.exists("go"):
        time.sleep(0.05)
    open("finished", "w").close()
"""


def test_a_celery_worker_finishes_its_job_when_the_signal_goes_to_its_main_process_alone(tmp_path: Path) -> None:
    pytest.importorskip("celery", reason="celery is not installed")
    for name in ("queue", "control"):
        (tmp_path / name).mkdir()
    (tmp_path / "jobs.py").write_text(CELERY)
    command = [sys.executable, "-m", "celery", "-A", "jobs", "worker", "--pool=prefork", "-c", "1", "-l", "warning"]
    body = f"supervise({command!r}, kill_mode='main', stop_timeout=1000, env={{**os.environ, 'C_FORCE_ROOT': '1'}})"
    with supervising(tmp_path, body) as supervisor:
        subprocess.run([sys.executable, "-c", "import jobs; jobs.job.delay()"], cwd=tmp_path, check=True)
        eventually((tmp_path / "begun").exists)
        supervisor.process.terminate()
        eventually(lambda: "Warm shutdown" in supervisor.errors.read_text() or supervisor.process.poll() is None)
        (tmp_path / "go").touch()
        assert supervisor.process.wait(PATIENCE) == 0, supervisor.errors.read_text()
        assert supervisor.summary()["instances"][0]["exitcode"] == 0
    assert (tmp_path / "finished").exists()
