"""The house: what the tree promises to somebody who opens it for the first time."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "daemonkit"
SOURCES = sorted(PACKAGE.rglob("*.py"))
FILES = [
    *SOURCES,
    *(
        path
        for room in ("tests", "stress", "bench", "engines", "examples")
        for path in sorted((ROOT / room).glob("*.py"))
    ),
]
LINES = 600
BODY = 50
"""Lines of a function; its parameters and its docstring are not counted."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def _functions(path: Path) -> list[Function]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, Function)]


def _forks(node: ast.AST) -> bool:
    names = {"fork", "forkpty", "fork_exec"}
    if isinstance(node, ast.ImportFrom):
        return node.module != "daemonkit._system.fork" and any(one.name in names for one in node.names)
    return isinstance(node, ast.Attribute) and node.attr in names


def test_only_one_module_forks() -> None:
    forking = {path for path in SOURCES if any(map(_forks, ast.walk(ast.parse(path.read_text()))))}
    assert forking == {PACKAGE / "_system" / "fork.py"}


# What gevent or eventlet replaces, and daemonkit would hang on: `_system/unpatched.py` and `_system/sockets.py` have it.
GREEN = {
    "os": {"close", "waitpid", "wait", "forkpty", "posix_spawnp"},
    "select": {"poll", "epoll", "select"},
    "socket": {"socketpair", "create_server", "create_connection", "getaddrinfo"},
    "subprocess": {"Popen", "run", "call", "check_call", "check_output"},
    "threading": {"current_thread", "enumerate", "main_thread"},
}
PROVIDERS = {"_system/unpatched.py", "_system/sockets.py", "_system/wait.py", "_spawn/popen.py"}


def _green_names(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    types = [getattr(node, "annotation", None) for node in ast.walk(tree)]
    only_named = {id(node) for one in types if one for node in ast.walk(one)}
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and id(node) not in only_named]
    pairs = [(node.value.id, node.attr) for node in attributes if isinstance(node.value, ast.Name)]
    return {f"{module}.{name}" for module, name in pairs if name in GREEN.get(module, ())}


def test_nothing_is_used_that_monkey_patching_replaces() -> None:
    # The command is never patched; a pidfile is a regular file, which gevent closes at once.
    rooms = [path for path in SOURCES if path.parent.name not in {"cli", "_pidfile"}]
    found = {str(path.relative_to(PACKAGE)): names for path in rooms if (names := _green_names(path))}
    assert found.keys() <= PROVIDERS, found


def test_an_init_holds_names_only() -> None:
    allowed = ast.Import | ast.ImportFrom | ast.Assign | ast.AnnAssign | ast.If | ast.Expr
    lazy = {"__getattr__", "__dir__"}  # PEP 562: a name loads its room when it is used
    at_import = {"_open_files", "_run_at_exit", "_is_available"}  # what only that moment or that platform can tell
    for path in (path for path in SOURCES if path.name == "__init__.py" and path.parent.name != "cli"):
        assert {function.name for function in _functions(path)} <= lazy | at_import, path
        others = [node for node in ast.parse(path.read_text()).body if not isinstance(node, allowed)]
        assert all(isinstance(node, Function) for node in others), path


def test_a_function_is_one_step() -> None:
    found = {}
    for path in SOURCES:
        for function in _functions(path):
            body = function.body[1:] if ast.get_docstring(function) else function.body
            if body and (function.end_lineno or 0) - body[0].lineno >= BODY:
                found[function.name] = str(path)
    assert found == {}


def test_a_file_is_read_in_one_sitting() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in FILES}
    assert {name: length for name, length in lengths.items() if length > LINES} == {}


def _names(path: Path) -> set[str]:
    """Return what a module defines: functions, classes and their methods as Class.method."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, Function | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, Function)}
    return found


STEPS = re.findall(r"`([\w.]+)`\s\(`([\w/]+\.py)`\)", (ROOT / "CONTRIBUTING.md").read_text())


def test_each_step_of_the_walks_is_where_contributors_are_told() -> None:
    assert len(STEPS) > 20
    assert [(name, file) for name, file in STEPS if name not in _names(PACKAGE / file)] == []
