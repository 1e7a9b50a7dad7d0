"""`daemonkit import`: another tool's file becomes an app file, and what can't be taken over a comment in it."""

from __future__ import annotations

import json
import shutil
import subprocess
import tomllib
from typing import TYPE_CHECKING, Any

import pytest
from shell import Shell, one_line

from daemonkit.cli import _appfile, _import
from daemonkit.cli._import_pm2 import _HINTS as PM2_HINTS

if TYPE_CHECKING:
    from pathlib import Path

KILL_MODE = {"kill_mode": "main"}


def imported(directory: Path, name: str, text: str) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return the apps of the result, which is a file that `up` takes, and its comments."""
    (directory / name).write_text(text)
    result = _import.converted(str(directory / name))
    (directory / "daemonkit.toml").write_text(result)
    _appfile.read(str(directory / "daemonkit.toml"))
    apps = tomllib.loads(result)["apps"]
    return apps, [line[2:] for line in result.splitlines()[1:] if line.startswith("#")]


ECOSYSTEM: dict[str, Any] = {
    "apps": [
        {
            "name": "api", "script": "./server.js", "node_args": "--max-old-space-size=200", "instances": "max",
            "exec_mode": "cluster", "watch": False, "max_memory_restart": "300M", "kill_timeout": 1600,
            "wait_ready": True, "listen_timeout": "10s", "env": {"NODE_ENV": "development", "PORT": 3000, "DEBUG": True},
            "env_production": {"NODE_ENV": "production"}, "error_file": "logs/err.log", "out_file": "logs/out.log",
        },
        {"name": "my worker", "script": "worker.py", "args": "--queue 'a b'", "autorestart": False, "max_restarts": 5},
        {"script": "npm", "args": ["run", "start"], "restart_delay": 4000, "cron_restart": "0 0 * * *", "cwd": "/srv"},
    ],
    "deploy": {"production": {"user": "node"}},
}  # fmt: skip


def test_from_pm2(tmp_path: Path) -> None:
    apps, lost = imported(tmp_path, "ecosystem.json", json.dumps(ECOSYSTEM))
    assert apps == {
        "api": {
            "command": ["node", "--max-old-space-size=200", "./server.js"],
            "restart": "always",
            "instances": "auto",
            "max_memory": "300M",
            "stop_timeout": 1.6,
            "wait_ready": True,
            "start_timeout": 10,
            "env": {"NODE_ENV": "development", "PORT": 3000, "DEBUG": "true"},
            "stderr": "logs/err.log",
            "stdout": "logs/out.log",
        },
        "my-worker": {
            "command": ["python3", "worker.py", "--queue", "a b"],
            "restart": "never",
            "max_restarts": 5,
        },
        "npm": {"command": ["npm", "run", "start"], "restart": "always", "backoff": [4, 1], "cwd": "/srv"},
    }
    assert lost == [
        "deploy: no counterpart",
        f'exec_mode = "cluster": {PM2_HINTS["exec_mode"]}',
        'env_production = { NODE_ENV = "production" }: for another stage: another file, or an env_file',
        "its name was 'my worker'",
        'cron_restart = "0 0 * * *": have cron type daemonkit restart',
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"max_memory_restart": "lots"}, {"instances": "many"}, {"kill_timeout": "soon"}, {"min_uptime": {}}, {"env": []},
        {"stop_exit_codes": "x"}, {"error_file": ["a"]}, {"wait_ready": "?"}, {"nobody_knows": 1}, {"uid": []},
    ],
)  # fmt: skip
def test_a_value_that_can_not_be_taken_over_is_a_comment(tmp_path: Path, change: dict[str, Any]) -> None:
    apps, lost = imported(tmp_path, "ecosystem.json", json.dumps([{"name": "a", "script": "a.js"} | change]))
    assert apps["a"] == {"command": ["node", "a.js"], "restart": "always"}
    assert [line.split(" = ")[0] for line in lost] == [*change]


SUPERVISORD = """
[unix_http_server]
file=/tmp/supervisor.sock   ; the path to the socket file
[supervisord]
logfile=/tmp/supervisord.log
user=root
environment=A="1",B='x, y'
[program:web]
command=/usr/bin/gunicorn -b :%(ENV_PORT)s --name '%(program_name)s $1' "site:app"  ; the program
process_name=%(program_name)s_%(process_num)02d
numprocs=2
directory=%(here)s/web
umask=022
priority=999
autostart=true
autorestart=true
startsecs=2
startretries=3
exitcodes=0,2
stopsignal=QUIT
stopwaitsecs=15
stopasgroup=true
user=nobody
redirect_stderr=true
stdout_logfile=/var/log/web-%(process_num)d.log
stdout_logfile_maxbytes=1MB
environment=C="%%s",D=4
[fcgi-program:php]
command=php-cgi
socket=unix:///var/run/php.sock
stdout_logfile=/dev/stdout
stdout_logfile_maxbytes=0
stderr_logfile=syslog
[program:cat]
command=cat
redirect_stderr=true
stdout_logfile=cat.log
startsecs=0
[eventlistener:mail]
command=crashmail
[group:all]
programs=web,php
[include]
files = conf.d/*.conf
"""


def test_from_supervisord(tmp_path: Path) -> None:
    apps, lost = imported(tmp_path, "supervisord.conf", SUPERVISORD)
    common = {"A": "1", "B": "x, y"}
    assert apps == {
        "web": {
            "command": ["sh", "-c", "exec /usr/bin/gunicorn -b \":${PORT}\" --name 'web $1' site:app"],
            "env": common | {"C": "%s", "D": "4"},
            "instances": 2,
            "cwd": f"{tmp_path}/web",
            "umask": "022",
            "restart": "always",
            "min_uptime": 2,
            "steady_after": 2,
            "max_restarts": 3,
            "success_codes": [0, 2],
            "stop_signal": "QUIT",
            "stop_timeout": 15,
            "user": "nobody",
            "stdout": "/var/log/web-{instance}.log",
            "stderr": "/var/log/web-{instance}.log",
            "log_max_bytes": "1M",
        },
        "php": {"command": ["php-cgi"], "env": common, "listen": "unix:/var/run/php.sock"} | KILL_MODE,
        "cat": {"command": ["cat"], "env": common, "log": "cat.log"} | KILL_MODE,
    }
    assert lost == [
        "[supervisord] user = root: for each app",
        "[eventlistener:mail] command = crashmail: see on_event",
        "[group:all] programs = web,php: name them: daemonkit restart a b, or 'a*'",
        "[include] files = conf.d/*.conf: import those files too",
        'priority = "999": say with after what has to be up before it',
        'stderr_logfile = "syslog": stderr can\'t be that',
        'startsecs = "0": min_uptime can\'t be that',
    ]


def test_from_a_procfile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PORT", raising=False)
    (tmp_path / ".env").write_text("STAGE=live\n")
    apps, lost = imported(tmp_path, "Procfile", 'web: serve "$PORT" \\\\ | cat\nworker: sleep 9\n')
    assert apps == {
        "web": {"command": ["sh", "-c", 'serve "$PORT" \\\\ | cat'], "env_file": ".env", "env": {"PORT": 5000}},
        "worker": {"command": ["sh", "-c", "sleep 9"], "env_file": ".env", "env": {"PORT": 5100}},
    }
    assert not lost


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("ecosystem.config.js", "", "is a program; have it write down what it exports: node -p "),
        ("ecosystem.json", "{", "ecosystem.json is not JSON: "),
        ("ecosystem.json", "[" * 100000, "ecosystem.json is not JSON: "),
        ("ecosystem.json", "{}", "no list of apps with a script each"),
        ("ecosystem.json", '{"apps": [1]}', "no list of apps with a script each"),
        ("supervisord.conf", "[program:x]\n", "there is no [program:NAME] with a command in it"),
        ("supervisord.conf", "x\n", "File contains no section headers."),
        ("Procfile", "x\n", "Procfile: line 1 is not NAME: COMMAND"),
        ("compose.yml", "", "its name must be that of an ecosystem.json, a supervisord.conf or a Procfile"),
    ],
)
def test_what_is_no_such_file_is_refused_in_one_line(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the text is looked at below
        _import.converted(str(tmp_path / name))
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_the_command_prints_it_or_says_in_one_line_why_not(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    (tmp_path / "Procfile").write_text("web: sleep 9\n")
    assert tomllib.loads(shell("import", "Procfile").stdout)["apps"]["web"]["command"] == ["sh", "-c", "sleep 9"]
    assert one_line(shell("import", "none.conf", status=1).stderr).endswith("none.conf: No such file or directory\n")


def test_a_text_with_anything_in_it_is_written_so_that_it_reads_the_same() -> None:
    text = "".join(map(chr, range(1, 0x180))) + '\U0001f600"\\'
    assert tomllib.loads(f"a = {_import.toml({text: [text]})}")["a"] == {text: [text]}


def test_two_apps_with_one_name_get_names_of_their_own(tmp_path: Path) -> None:
    text = json.dumps([{"name": name, "script": "a.py"} for name in ("a", "a", "a-2", "b c", "b-c")])
    apps, comments = imported(tmp_path, "ecosystem.json", text)
    assert [*apps] == ["a", "a-2", "a-2-2", "b-c", "b-c-2"]
    assert "its name was 'a', which another one has too" in comments


def test_where_supervisord_ignores_the_log_for_errors_it_is_left_out(tmp_path: Path) -> None:
    program = "[program:a]\ncommand=a\nredirect_stderr=true\nstderr_logfile=/tmp/err\n"
    apps, _ = imported(tmp_path, "supervisord.conf", program + "stdout_logfile=/tmp/out\n")
    assert apps["a"]["log"] == "/tmp/out" and "stderr" not in apps["a"]
    assert "stderr" not in imported(tmp_path, "supervisord.conf", program)[0]["a"]


def test_what_supervisord_gives_to_all_programs_and_zeros_before_numbers_are_comments(tmp_path: Path) -> None:
    text = "[supervisord]\ndirectory=/srv\n[program:a]\ncommand=a --queue %(process_num)02d\nnumprocs=2\n"
    text += "process_name=%(program_name)s_%(process_num)02d\n"
    apps, comments = imported(tmp_path, "supervisord.conf", text)
    assert apps["a"]["instances"] == 2
    assert "[supervisord] directory = /srv: for each app" in comments
    assert "its numbers have no zeros before them here: 0, not 00" in comments


def test_javascript_in_a_json_file_is_refused_with_the_way_to_json(tmp_path: Path) -> None:
    (tmp_path / "process.json").write_text("{ apps: [{ name: 'a', script: 'a.js' }] }")
    with pytest.raises(ValueError, match=r"is not JSON: .*node -p 'JSON.stringify\(eval") as caught:
        _import.converted(str(tmp_path / "process.json"))
    if node := shutil.which("node"):
        command = str(caught.value).partition("reads too: ")[2].partition("; then")[0]
        subprocess.run(["sh", "-c", command.replace("node", node, 1)], cwd=tmp_path, check=True)
        assert "[apps.a]" in _import.converted(str(tmp_path / "ecosystem.json"))
