"""Supervisors, each as its manual configures it, behind the same few calls."""

from __future__ import annotations

import glob
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar

from table import HERE

if TYPE_CHECKING:
    from collections.abc import Callable

_BIN = os.path.dirname(sys.executable)
_KEPT = os.path.join(sys.prefix, "peers")
"""Where npm installs what is measured: in the virtual environment, and gone with it."""
_NPM_PACKAGES = ("pm2@7", "pm2-logrotate@3")


@dataclass(frozen=True)
class App:
    """What is to be kept running: child.c's mode, how often, and what else it takes."""

    mode: tuple[str, ...]
    count: int = 1
    log: str | None = None
    log_max_bytes: int | None = None
    port: int | None = None
    stop_timeout: int | None = None


class Peer:
    """One supervisor, at work for one app in one folder."""

    name: ClassVar[str]
    configuration: ClassVar[str]
    rotates: ClassVar[bool] = True
    reloads: ClassVar[bool] = True

    def __init__(self, tools: str, folder: str) -> None:
        """Take the folder with the compiled programs, and one of its own, with a short path: sockets(7)."""
        self.tools, self.folder = tools, folder
        self.fifo = os.path.join(folder, "fifo")
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    def missing(cls) -> str | None:
        """Return why it can't be measured here, if so."""
        return None

    @classmethod
    def version(cls) -> str:
        """Return what was measured."""
        return ""

    def command(self, app: App) -> list[str]:
        """Return what an instance of `app` runs."""
        return [os.path.join(self.tools, "child"), self.fifo, *app.mode]

    def prepare(self) -> None:
        """Do beforehand what its users do once."""

    def start(self, app: App) -> None:
        """Start it with the app, without waiting."""
        self._launch(self._arguments(app), app)

    def _arguments(self, app: App) -> list[str]:
        raise NotImplementedError

    def _launch(self, arguments: list[str], app: App) -> None:
        log = app.log if app.log and not self.rotates else os.path.join(self.folder, "peer.log")
        with open(log, "ab") as output:
            self._process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    @property
    def root(self) -> int | None:
        """The process that its user ends, or None."""
        return self._process.pid if self._process else None

    def stop(self) -> None:
        """Ask it to end the app, and itself where that is the same."""
        if self._process:
            self._process.terminate()

    def reload(self, app: App) -> None:
        """Begin a rolling restart."""
        raise NotImplementedError

    def list(self) -> None:
        """Have its own command print what runs."""
        raise NotImplementedError

    def kill(self) -> None:
        """End its main process as kill -9 does."""
        if self._process:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """Be rid of it, after stop()."""
        if self._process:
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self.kill()

    def write(self, name: str, text: str) -> str:
        """Write a configuration file; return its path."""
        path = os.path.join(self.folder, name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return path


class Daemonkit(Peer):
    """Ourselves."""

    name = "daemonkit"
    configuration = '`supervise(..., restart="always")`; `listen`, `wait_ready` for the rolling restart'

    @classmethod
    def version(cls) -> str:
        return version("daemonkit")

    def _arguments(self, app: App) -> list[str]:
        options = {
            "target": self.command(app),
            "instances": app.count,
            "restart": "always",
            "stop_timeout": app.stop_timeout,
            "stdout": app.log,
            "log_max_bytes": app.log_max_bytes,
            "log_backups": 100 if app.log_max_bytes else None,
            "listen": f"127.0.0.1:{app.port}" if app.port else None,
            "wait_ready": True if app.port or app.mode == ("ready",) else None,
        }
        given = {key: value for key, value in options.items() if value is not None}
        return [sys.executable, os.path.join(HERE, "supervised.py"), self.fifo, json.dumps(given)]

    def command(self, app: App) -> list[str]:
        return [os.path.join(self.tools, "child"), self.fifo, "serve", "3"] if app.port else super().command(app)

    def reload(self, app: App) -> None:  # noqa: ARG002 - it knows
        os.kill(self.root, signal.SIGHUP)


class Pm2(Peer):
    """PM2, with a home and a daemon of its own, which runs already when it is measured."""

    name = "PM2"
    configuration = "`pm2 start ecosystem.json`, fork mode, its daemon already running; cluster mode, `wait_ready` for the rolling restart; `pm2-logrotate` looks every second"

    @classmethod
    def missing(cls) -> str | None:
        if cls._program():
            return None
        if not shutil.which("npm"):
            return "npm is not installed"
        command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", _KEPT, *_NPM_PACKAGES]
        done = subprocess.run(command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        return (
            None if cls._program() else f"npm install failed: {(done.stderr or done.stdout).strip().splitlines()[-1]}"
        )

    @staticmethod
    def _program() -> str | None:
        return shutil.which(os.path.join(_KEPT, "node_modules", ".bin", "pm2"))

    @classmethod
    def version(cls) -> str:
        with open(os.path.join(_KEPT, "node_modules", "pm2", "package.json"), encoding="utf-8") as file:
            return json.load(file)["version"]

    def run(self, *arguments: str, cwd: str | None = None) -> None:
        """Run one command of it to its end."""
        with open(os.path.join(self.folder, "peer.log"), "ab") as output:
            environment = {**os.environ, "PM2_HOME": os.path.join(self.folder, "pm2"), "CI": "1"}
            subprocess.run(
                [self._program(), *arguments],
                check=True,
                cwd=cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def prepare(self) -> None:
        self.run("ping")

    def start(self, app: App) -> None:
        command = self.command(app)
        settings = {
            "name": "app",
            "script": command[0],
            "args": command[1:],
            "interpreter": "none",
            "exec_mode": "fork",
            "instances": app.count,
            "merge_logs": True,
            "kill_timeout": 1000 * app.stop_timeout if app.stop_timeout else None,
            "out_file": app.log,
        }
        if app.port:
            server = {"script": os.path.join(HERE, "server.js"), "exec_mode": "cluster", "wait_ready": True, "args": []}
            settings |= {**server, "interpreter": None, "env": {"FIFO": self.fifo, "PORT": str(app.port)}}
        if app.log_max_bytes:
            self._rotate(app.log_max_bytes)
        given = {key: value for key, value in settings.items() if value is not None}
        self.run("start", self.write("ecosystem.json", json.dumps({"apps": [given]})))

    def _rotate(self, size: int) -> None:
        module = "pm2-logrotate"
        for option, value in {"max_size": size, "retain": 100, "workerInterval": 1}.items():
            self.run("set", f"{module}:{option}", str(value))
        self.run("install", ".", cwd=os.path.join(_KEPT, "node_modules", module))

    @property
    def root(self) -> int | None:
        try:
            with open(os.path.join(self.folder, "pm2", "pm2.pid"), encoding="ascii") as file:
                return int(file.read())
        except FileNotFoundError:
            return None

    def stop(self) -> None:
        self.run("delete", "app")

    def reload(self, app: App) -> None:  # noqa: ARG002 - it knows
        self.run("reload", "app")

    def list(self) -> None:
        self.run("ls")

    def kill(self) -> None:
        os.kill(self.root, signal.SIGKILL)

    def close(self) -> None:
        self.run("kill")


class _InPython(Peer):
    """One that is a distribution on PyPI."""

    distribution: ClassVar[str]

    @classmethod
    def missing(cls) -> str | None:
        return None if find_spec(cls.distribution) else f"{cls.distribution} is not installed"

    @classmethod
    def version(cls) -> str:
        try:
            return version(cls.distribution)
        except PackageNotFoundError:
            return ""


class Supervisord(_InPython):
    """supervisord in the foreground."""

    name = "supervisord"
    distribution = "supervisor"
    configuration = "`[program:app]` with `numprocs`, all else as by default but `minfds`; `supervisorctl restart` of one process after the other, each with a socket of its own (`SO_REUSEPORT`)"

    _CONFIGURATION = """
[unix_http_server]
file={folder}/ctl
[supervisord]
logfile={folder}/supervisord.log
pidfile={folder}/supervisord.pid
childlogdir={folder}
nodaemon=true
minfds=4096
user={user}
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl=unix://{folder}/ctl
[program:app]
command={command}
numprocs={count}
process_name=%(process_num)d
"""

    def _arguments(self, app: App) -> list[str]:
        text = self._CONFIGURATION.format(
            folder=self.folder, user=os.geteuid(), command=" ".join(self.command(app)), count=app.count
        )
        if app.stop_timeout:
            text += f"stopwaitsecs={app.stop_timeout}\n"
        if app.log:
            size = app.log_max_bytes or 0
            text += f"stdout_logfile={app.log}\nstdout_logfile_maxbytes={size}\nstdout_logfile_backups=100\n"
        return [os.path.join(_BIN, "supervisord"), "-c", self.write("supervisord.conf", text)]

    def command(self, app: App) -> list[str]:
        port = str(app.port)
        return [os.path.join(self.tools, "child"), self.fifo, "serve", port] if app.port else super().command(app)

    def _control(self, *arguments: str) -> None:
        command = [os.path.join(_BIN, "supervisorctl"), "-c", os.path.join(self.folder, "supervisord.conf")]
        subprocess.run([*command, *arguments], check=True, stdout=subprocess.DEVNULL)

    def list(self) -> None:
        self._control("status")

    def reload(self, app: App) -> None:
        for number in range(app.count):
            self._control("restart", f"app:{number}")


class Circus(_InPython):
    """circusd in the foreground."""

    name = "circus"
    distribution = "circus"
    configuration = "`[watcher:app]` with `numprocesses`, all else as by default; `[socket:web]`, `use_sockets`, `circusctl reload` for the rolling restart; `FileStream` for logs"

    _CONFIGURATION = """
[circus]
endpoint = ipc://{folder}/ctl
pubsub_endpoint = ipc://{folder}/pub
[watcher:app]
cmd = {command}
numprocesses = {count}
"""

    def _arguments(self, app: App) -> list[str]:
        text = self._CONFIGURATION.format(folder=self.folder, command=" ".join(self.command(app)), count=app.count)
        if app.stop_timeout:
            text += f"graceful_timeout = {app.stop_timeout}\n"
        if app.log:
            text += f"stdout_stream.class = FileStream\nstdout_stream.filename = {app.log}\n"
        if app.log_max_bytes:
            text += f"stdout_stream.max_bytes = {app.log_max_bytes}\nstdout_stream.backup_count = 100\n"
        if app.port:
            text += f"use_sockets = True\n[socket:web]\nhost = 127.0.0.1\nport = {app.port}\nbacklog = 1024\n"
        return [os.path.join(_BIN, "circusd"), self.write("circus.ini", text)]

    def command(self, app: App) -> list[str]:
        if not app.port:
            return super().command(app)
        return [os.path.join(self.tools, "child"), self.fifo, "serve", "$(circus.sockets.web)"]

    def reload(self, app: App) -> None:  # noqa: ARG002 - it knows
        command = [os.path.join(_BIN, "circusctl"), "--endpoint", f"ipc://{self.folder}/ctl", "reload", "app"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


class Runit(Peer):
    """One runsv per instance, under runsvdir."""

    name = "runit"
    configuration = "`runsvdir` with one `run` script per instance, which execs the program; stopped by SIGHUP"
    rotates = reloads = False

    @classmethod
    def missing(cls) -> str | None:
        return None if shutil.which("runsvdir") else "runit is not installed"

    def _arguments(self, app: App) -> list[str]:
        for number in range(app.count):
            service = os.path.join(self.folder, "service", str(number))
            os.makedirs(service, exist_ok=True)
            os.chmod(
                self.write(os.path.join(service, "run"), f"#!/bin/sh\nexec {' '.join(self.command(app))}\n"), 0o755
            )
        return ["runsvdir", os.path.join(self.folder, "service")]

    def stop(self) -> None:
        self._process.send_signal(signal.SIGHUP)  # at which it ends every runsv: runsvdir(8)

    def close(self) -> None:
        super().close()
        services = glob.glob(os.path.join(self.folder, "service", "*"))
        command = ["sv", "-w", "3", "force-shutdown", *services]  # those that runsvdir, killed, has left
        subprocess.run(command, check=False, stdout=subprocess.DEVNULL)


class InC(Peer):
    """The least there can be: supervisor.c."""

    name = "C"
    configuration = "`bench/supervisor.c`: it starts, waits, starts again, and nothing else"
    rotates = reloads = False

    def _arguments(self, app: App) -> list[str]:
        return [os.path.join(self.tools, "supervisor"), str(app.count), *self.command(app)]


PEERS: tuple[Callable[[str, str], Peer], ...] = (Daemonkit, Pm2, Supervisord, Circus, Runit, InC)
