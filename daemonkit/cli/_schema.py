"""The JSON schema of an app file, from the options of `daemonkit start`: `python -m daemonkit.cli._schema`.

It is kept as `daemonkit.schema.json` in this package, for editors; a test compares that file with what this prints.
"""

from __future__ import annotations

import json

from daemonkit.cli import _kinds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def schema() -> dict[str, Any]:
    """Return the schema (draft 7, which taplo knows)."""
    options: dict[str, Any] = {
        name: {"description": option.what, **_kinds.kind_of(option).schema} for name, option in _kinds.BY_NAME.items()
    }
    options["env_file"] = {"description": "files of NAME=VALUE lines", **_kinds.PATHS.schema}
    own = {
        "command": {"description": "the program and its arguments", **_kinds.COMMAND.schema},
        "after": {"description": "started once these apps are up, stopped before them", **_kinds.NAMES.schema},
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "daemonkit.toml",
        "description": "Apps that daemonkit runs",
        "type": "object",
        "properties": {
            "defaults": {
                "description": "options for all apps; an app's own come before them",
                "type": "object",
                "properties": options,
                "additionalProperties": False,
            },
            "apps": {
                "description": "the apps, by their names",
                "type": "object",
                "minProperties": 1,
                "propertyNames": {"pattern": "^[A-Za-z0-9][A-Za-z0-9._-]*$"},
                "additionalProperties": {
                    "type": "object",
                    "properties": {**own, **options},
                    "required": ["command"],
                    "additionalProperties": False,
                },
            },
        },
        "required": ["apps"],
        "additionalProperties": False,
    }


if __name__ == "__main__":
    print(json.dumps(schema(), indent=2))
