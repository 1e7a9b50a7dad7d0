"""Real programs as the page "Programs" starts them: its lines and its files, with small apps, on ports that are free."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import os
import random
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from harness import PATIENCE, children, eventually
from shell import Shell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PAGE = Path(__file__).parent.parent / "docs" / "howto" / "programs.md"
NAMED = re.compile(r"`(?P<name>[\w.]+)`:\n\n```\w+\n(?P<text>.*?)^```", re.MULTILINE | re.DOTALL)
LINES = {
    words[2]: words[2:]
    for words in map(
        shlex.split, re.findall(r"^daemonkit start .*", PAGE.read_text().replace("\\\n", " "), re.MULTILINE)
    )
}
"""The words after `daemonkit start` of each line that the page shows, by the app's name there."""
SIGNALS = {
    line.split()[-1]: line
    for line in re.findall(r"^(?:.* && )?daemonkit signal \w+ \w+$", PAGE.read_text(), re.MULTILINE)
}
"""By which line the page has an app read its files anew, where a rolling restart can't do that."""
PORTS = ("8000", "9000", "6379", "5432", "9222")
"""What the page's lines and files have for the server's own port, for the one behind it, and so on."""
RELEASE, NEXT = "one", "two"

# Each answers "/" with its release, and "/slow" only once there is a file `go`.
APPS = {
    "app.py": """
import os, time
RELEASE = open("release").read().encode()
def app(environ, start_response):
    if environ["PATH_INFO"] == "/slow":
        open("begun", "w").close()
        while not os.path.exists("go"):
            time.sleep(0.02)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(RELEASE)))])
    return [RELEASE]
""",
    "asgi.py": """
import asyncio, os
RELEASE = open("release").read().encode()
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    if scope["path"] == "/slow":
        open("begun", "w").close()
        while not os.path.exists("go"):
            await asyncio.sleep(0.02)
    headers = [(b"content-length", b"%d" % len(RELEASE))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": RELEASE})
""",
    "server.js": """
const fs = require('node:fs');
const release = fs.readFileSync('release');
const server = require('node:http').createServer((request, response) => {
  if (request.url !== '/slow') return response.end(release);
  fs.writeFileSync('begun', '');
  const timer = setInterval(() => fs.existsSync('go') && (clearInterval(timer), response.end(release)), 20);
});
server.listen(process.env.LISTEN_FDS ? { fd: 3 } : 8000);
process.on('SIGTERM', () => server.close());
""",
    "Server.java": """
import com.sun.net.httpserver.*;
import java.nio.file.*;
class Server {
    public static void main(String[] arguments) throws Exception {
        byte[] release = Files.readAllBytes(Path.of("release"));
        var busy = new java.util.concurrent.atomic.AtomicInteger();
        HttpServer server = HttpServer.create(new java.net.InetSocketAddress("127.0.0.1", 8000), 100);
        server.setExecutor(java.util.concurrent.Executors.newCachedThreadPool());
        server.createContext("/", exchange -> {
            busy.incrementAndGet();
            try {
                if (exchange.getRequestURI().getPath().equals("/slow")) {
                    Files.write(Path.of("begun"), new byte[0]);
                    while (!Files.exists(Path.of("go"))) Thread.sleep(20);
                }
                exchange.sendResponseHeaders(200, release.length);
                exchange.getResponseBody().write(release);
                exchange.close();
            } catch (InterruptedException error) {
            } finally {
                busy.decrementAndGet();
            }
        });
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            try { while (busy.get() > 0) Thread.sleep(20); } catch (InterruptedException error) { }
        }));
        server.start();
    }
}
""",
}
# Jobs: `quick` leaves a file with its number and the worker's release, `slow` ends once there is a file `go`.
WORK = """
import os, time
RELEASE = "" if "CLIENT" in os.environ else open("release").read()
def _quick(number):
    with open(f"done/{number}.new", "w") as file: file.write(RELEASE)
    os.rename(f"done/{number}.new", f"done/{number}")
def _slow():
    open("begun", "w").close()
    while not os.path.exists("go"): time.sleep(0.02)
    open("finished", "w").close()
"""
APPS["jobs.py"] = (
    WORK
    + """
from celery import Celery
app = Celery("jobs", broker="filesystem://", backend=None)
app.conf.broker_transport_options = {"data_folder_in": "queue", "data_folder_out": "queue", "control_folder": "control", "polling_interval": 0.05}
app.conf.beat_schedule = {"tick": {"task": "jobs.tick", "schedule": 1.0}}
quick, slow = app.task(_quick, name="quick"), app.task(_slow, name="slow")
def send(task, *arguments): task.delay(*arguments)
@app.task
def tick(): pass
"""
)
APPS["rq_jobs.py"] = (
    WORK
    + """
quick, slow = _quick, _slow
quick.__name__, slow.__name__ = quick.__qualname__, slow.__qualname__ = "quick", "slow"
def send(task, *arguments):
    from redis import Redis
    from rq import Queue
    Queue(connection=Redis(port=6379)).enqueue(task, *arguments)
"""
)
APPS["tasks.py"] = (
    WORK
    + """
import dramatiq
from dramatiq.brokers.redis import RedisBroker
dramatiq.set_broker(RedisBroker(port=6379))
quick = dramatiq.actor(_quick, actor_name="quick", max_retries=0)
slow = dramatiq.actor(_slow, actor_name="slow", max_retries=0)
def send(task, *arguments): task.send(*arguments)
"""
)
JOBS = {"celery": "jobs", "rq": "rq_jobs", "dramatiq": "tasks"}
"""The module by which a job is handed to each."""
PROXIES = {"nginx": "nginx.conf", "haproxy": "haproxy.cfg", "apache": "httpd.conf", "caddy": "Caddyfile"}
"""Their release is the server that they pass requests to."""
NEED_REDIS = {"rq", "dramatiq"}


def free_port() -> int:
    """Return a port that nobody has: below those that the kernel hands out, so that none takes it meanwhile."""
    while True:
        port = random.randrange(20000, 32000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


class Behind(http.server.ThreadingHTTPServer):
    """What a proxy passes requests to: answers with its release, and "/slow" once there is a file `go`."""

    daemon_threads = True

    def __init__(self, folder: Path, release: str) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/slow":
                    (folder / "begun").touch()
                    eventually((folder / "go").exists)
                self.send_response(200)
                self.send_header("Content-Length", str(len(release)))
                self.end_headers()
                self.wfile.write(release.encode())

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.05,)).start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class Scene:
    """One program in a folder of its own, as an app of daemonkit."""

    def __init__(self, folder: Path, name: str) -> None:
        """Write its files down."""
        self.folder, self.name = folder, name
        self.shell = Shell(folder)
        self.shell.environment |= {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin", "C_FORCE_ROOT": "1", "HOME": str(folder),
            "PYTHONDONTWRITEBYTECODE": "1",  # or a module that changes twice in one second stays the old one
        }  # fmt: skip
        self.ports = {port: str(free_port()) for port in PORTS}
        self.behind = [Behind(folder, release) for release in (RELEASE, NEXT)] if name in PROXIES else []
        if self.behind:
            self.ports["9000"] = str(self.behind[0].server_address[1])
        for file, text in {**APPS, **{part["name"]: part["text"] for part in NAMED.finditer(PAGE.read_text())}}.items():
            (folder / file).write_text(self._here(text))
        for directory in ("queue", "control", "done"):
            (folder / directory).mkdir()
        self.set_release(RELEASE)
        self._jobs = 0
        if name == "postgres":
            self._make_database()

    def _here(self, text: str) -> str:
        for page, port in self.ports.items():
            text = re.sub(rf"\b{page}\b", port, text)
        return text

    def _make_database(self) -> None:
        data = self.folder / "data"
        data.mkdir()
        shutil.chown(data, "postgres", "postgres")
        for parent in list(data.parents)[:3]:
            parent.chmod(0o755)
        command = ["runuser", "-u", "postgres", "--", "initdb", "-A", "trust", "-N", "-D", data]
        subprocess.run(command, check=True, capture_output=True, cwd="/")

    def set_release(self, release: str) -> None:
        """Deploy: what runs goes on with the old one."""
        (self.folder / "release").write_text(release)
        if self.name in PROXIES and release == NEXT:
            config = self.folder / PROXIES[self.name]
            config.write_text(config.read_text().replace(self.ports["9000"], str(self.behind[1].server_address[1])))

    @contextlib.contextmanager
    def broken_release(self) -> Iterator[None]:
        """Deploy, for a while, what can't start."""
        file = self.folder / PROXIES.get(self.name, "release")
        good = file.read_text()
        file.unlink()
        if self.name in PROXIES:
            file.write_text(good + "\nrubbish {\n")
        try:
            yield
        finally:
            file.write_text(good)

    @property
    def missing(self) -> str:
        """Name the program that is not installed, if one is not."""
        needed = ["redis"] if self.name in NEED_REDIS else []
        for name in [*needed, self.name]:
            command = LINES[name][LINES[name].index("--") + 1 :]
            if command[0] == "sh":
                command = command[2].split()[1:]
            if not shutil.which(command[0], path=self.shell.environment["PATH"]):
                return command[0]
        return ""

    def start(self, name: str = "", *options: str) -> None:
        """Type the page's line."""
        name, *words = map(self._here, LINES[name or self.name])
        first = name == self.name and self.name in NEED_REDIS and not (self.shell.home / "redis.state").exists()
        if first:
            self.start("redis")
        self.shell("start", name, *options, *words)

    def type(self, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
        """Type a command."""
        return self.shell(*arguments, **options)

    def type_signal(self) -> int:
        """Type the page's line that has it read its files anew; return the status."""
        line = self._here(SIGNALS[self.name])
        done = subprocess.run(
            line, shell=True, cwd=self.folder, env=self.shell.environment, check=False, capture_output=True
        )
        return done.returncode

    def end(self) -> None:
        """End all of it."""
        self.shell("delete", "--all")
        for behind in self.behind:
            behind.close()

    # --- what it does -----------------------------------------------------------------------------------------------

    def ask(self, path: str = "/") -> str:
        """Have it do something, and return the release that did; OSError where it does not answer."""
        if self.name in JOBS:
            done = self.folder / "done" / self.hand_in(1)[0]
            with contextlib.suppress(AssertionError):  # a job that is lost is read as one: FileNotFoundError
                eventually(done.exists, patience=5)
            return done.read_text()
        if self.name in OTHER:
            return OTHER[self.name](self)
        return self.get(int(self.ports["8000"]), path)

    def get(self, port: int, path: str) -> str:
        """Ask by HTTP, on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        try:
            connection.request("GET", path, headers={"Connection": "close"})
            response = connection.getresponse()
            body = response.read().decode()
        except http.client.HTTPException as error:
            raise ConnectionError(repr(error)) from error
        finally:
            connection.close()
        if response.status != 200:
            raise ConnectionError(f"status {response.status}")
        return body

    def hand_in(self, count: int, task: str = "quick") -> list[str]:
        """Hand in jobs; return their numbers."""
        module = JOBS[self.name]
        numbers = [str(self._jobs + one) for one in range(count)]
        self._jobs += count
        calls = f"[{module}.send({module}.quick, number) for number in {numbers}]"
        body = f"import {module}; {calls if task == 'quick' else f'{module}.send({module}.slow)'}"
        environment = {**self.shell.environment, "CLIENT": "1"}
        subprocess.run([sys.executable, "-c", body], cwd=self.folder, env=environment, check=True, capture_output=True)
        return numbers

    def output_of(self, *command: str) -> str:
        """Run a client; OSError where it fails."""
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False, timeout=PATIENCE)
        if done.returncode:
            raise ConnectionError(done.stderr)
        return done.stdout.strip()

    # --- who it is --------------------------------------------------------------------------------------------------

    @property
    def supervisor(self) -> int:
        """The process that the pidfile names."""
        return int((self.shell.home / f"{self.name}.pid").read_text())

    @property
    def worker(self) -> int:
        """The process that does the supervising."""

        def workers() -> list[int]:
            words = Path(f"/proc/{self.supervisor}/cmdline").read_bytes()
            return [pid for pid in children(self.supervisor) if Path(f"/proc/{pid}/cmdline").read_bytes() == words]

        return eventually(workers)[0]

    @property
    def mains(self) -> list[int]:
        """The main processes of the instances."""
        return self.shell.instances(self.name)

    @property
    def family(self) -> set[int]:
        """All below the worker."""
        found = children(self.worker)
        for one in found:
            found += children(one)
        return set(found)


OTHER: dict[str, Callable[[Scene], str]] = {
    "redis": lambda scene: scene.output_of("redis-cli", "-p", scene.ports["6379"], "ping"),
    "postgres": lambda scene: scene.output_of(
        "psql", "-h", "127.0.0.1", "-p", scene.ports["5432"], "-U", "postgres", "-tAc", "select 1"
    ),
    "chromium": lambda scene: scene.get(int(scene.ports["9222"]), "/json/version")[:1],
    "beat": lambda scene: str(eventually(lambda: any((scene.folder / "queue").iterdir()))),
}
